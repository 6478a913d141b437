/**
 * Devices that go on in another process, at random points of random workloads: nothing is lost, and nothing is done
 * twice, on whatever back end.
 */

import { assert, assertEquals, assertThrows } from "@std/assert";
import { openNetBackend } from "../../src/backend/net/open.ts";
import { NET_OPTIONS } from "../../src/backend/net/options.ts";
import { Errno } from "../../src/core/errno.ts";
import { NetDriver, VirtioDriver } from "../../src/testing/mod.ts";
import {
  type BellKind,
  GuestRam,
  PciClient,
  type VfioUserClient,
} from "../../src/transport/vfio_user/client/mod.ts";
import type { OptionTexts } from "../../src/core/options.ts";
import { EXPORT_BYTES, ServerThread } from "../backend/block/nbd/rig.ts";
import { Folder } from "../backend/block/rig.ts";
import { Card, Host } from "../backend/net/card.ts";
import {
  arpReply,
  arpRequest,
  ethernet,
  parseIp,
  ping,
} from "../backend/net/frames.ts";
import { testLibslirp } from "../backend/net/libslirp.ts";
import { tapTests } from "../backend/net/netns.ts";
import { seededRandom, Workload } from "../devices/nvme/workload.ts";
import { openFds } from "../resources.ts";
import { PATIENCE_MS } from "../until.ts";
import { connectClient } from "../transport/vfio_user/remote.ts";
import { DeviceProcess, Traveller } from "./device_process.ts";
import { RemoteNvme } from "./nvme_client.ts";
import { VerifiedDisk } from "./verified_disk.ts";

const SEED = 20261201;
const RAM_BYTES = 8 << 20;
const MOVES = 6;
const QUEUES = 2;
const STORE =
  new URL("../backend/block/fixtures/memory_store.ts", import.meta.url)
    .pathname;

/** Blank storage by its name in tests, as options of a disk; in a folder. */
const STORAGE: Readonly<Record<string, (folder: Folder) => OptionTexts>> = {
  memory: () => ({ memory: "4M" }),
  file: (folder) => ({ file: blank(`${folder.path}/disk`) }),
  nbd: (folder) => {
    blank(`${folder.path}/export`);
    return { nbd: `unix:${folder.path}/nbd.sock` };
  },
};

function blank(path: string): string {
  Deno.writeFileSync(path, new Uint8Array(EXPORT_BYTES));
  return path;
}

interface Scene {
  readonly client: VfioUserClient;
  readonly ram: GuestRam;
  readonly traveller: Traveller;
  readonly random: () => number;
}

/** Runs a test on a device of two processes, and on a client with memory in this one. */
async function withTraveller(
  processes: readonly [DeviceProcess, DeviceProcess],
  folder: Folder,
  model: string,
  options: OptionTexts,
  seed: number,
  run: (scene: Scene) => Promise<void>,
): Promise<void> {
  const path = `${folder.path}/device-${model}-${seed}`;
  using traveller = new Traveller(processes, model, options, path);
  using client = connectClient(path);
  client.negotiate();
  using ram = new GuestRam(RAM_BYTES);
  ram.share(client);
  console.log(`  ${model} ${JSON.stringify(options)}, seed ${seed}`);
  await run({ client, ram, traveller, random: seededRandom(seed) });
  assertEquals(traveller.moves, MOVES);
}

type Test = (
  processes: readonly [DeviceProcess, DeviceProcess],
  folder: Folder,
) => void | Promise<void>;

/**
 * Runs a test with two processes and a folder.
 *
 * @param ifname As of {@linkcode DeviceProcess}, for the first of them
 */
async function withProcesses(
  run: Test,
  env: Record<string, string> = {},
  ifname?: string,
): Promise<void> {
  using folder = new Folder();
  await using first = new DeviceProcess(folder.path, env, ifname);
  await using second = new DeviceProcess(folder.path, env);
  await run([first, second], folder);
}

/** Runs a test with an NBD server besides. */
function withStorage(run: Test): Promise<void> {
  return withProcesses(async (processes, folder) => {
    await using _server = await ServerThread.start({
      file: blank(`${folder.path}/export`),
      socket: `${folder.path}/nbd.sock`,
    });
    await run(processes, folder);
  });
}

async function moveDisk(
  { client, ram, traveller, random }: Scene,
  bells: BellKind,
  packed: boolean,
  seed: number,
): Promise<void> {
  using pci = new PciClient(client, { bells });
  const disk = new VerifiedDisk(new VirtioDriver(pci, ram.memory), {
    ...{ queues: QUEUES, slotsPerQueue: 6, blocks: 64, seed, packed },
  });
  while (traveller.moves < MOVES) {
    await disk.run(Math.floor(random() * 200));
    // What is asked for here is found by either process.
    if (random() < 0.8) disk.step();
    traveller.move();
  }
  await disk.verifyAll();
}

Deno.test("a virtio-blk goes on in another process with all that was asked of it", () =>
  withStorage(async (processes, folder) => {
    let seed = SEED;
    const bells: BellKind[] = ["message", "posted", "ioeventfd", "mmap"];
    for (const storage of Object.keys(STORAGE)) {
      for (const packed of [false, true]) {
        const options = STORAGE[storage]!(folder);
        const kind = bells[seed++ % bells.length]!;
        await withTraveller(
          processes,
          folder,
          "virtio-blk",
          {
            ...options,
            queues: `${QUEUES}`,
            packed: "on",
            ...(kind === "mmap" ? { doorbells: "mmap" } : {}),
          },
          seed,
          (scene) => moveDisk(scene, kind, packed, seed),
        );
      }
    }
  }));

async function moveNvme(
  { client, ram, traveller, random }: Scene,
  doorbells: string,
  seed: number,
): Promise<void> {
  const nvme = new RemoteNvme(client, ram, QUEUES + 1, doorbells === "mmap");
  using _pci = nvme.pci;
  if (doorbells === "shadow") nvme.driver.configureShadow();
  const loads = Array.from(
    { length: QUEUES },
    (_, i) =>
      new Workload(
        nvme.driver,
        nvme.driver.createPair(i + 1),
        seededRandom(seed + i),
        i * 64,
        64,
      ),
  );
  const done = () => loads.reduce((sum, load) => sum + load.done, 0);
  const step = () => {
    for (const load of loads) {
      load.reap();
      load.submit(4);
    }
  };
  while (traveller.moves < MOVES) {
    const target = done() + Math.floor(random() * 200);
    nvme.until(() => {
      step();
      return done() >= target;
    }, "commands");
    await new Promise((go) => setTimeout(go, 0));
    const isQuiet = random() < 0.3;
    if (isQuiet) {
      nvme.until(() => {
        for (const load of loads) load.reap();
        return loads.every(({ inFlight }) => inFlight === 0);
      }, "the last commands");
      loads.forEach((_, i) => nvme.lines.wait(i + 1, 0));
    }
    if (isQuiet || random() < 0.8) step();
    traveller.move();
    if (!isQuiet) continue;
    // Whichever process completes them, there is an interrupt for each queue.
    loads.forEach((_, i) => assert(nvme.lines.wait(i + 1, PATIENCE_MS) > 0));
  }
  for (const load of loads) load.verify(() => {});
}

Deno.test("an NVMe controller goes on in another process with all that was asked of it", () =>
  withStorage(async (processes, folder) => {
    let seed = SEED;
    for (const storage of Object.keys(STORAGE)) {
      for (const doorbells of ["message", "mmap", "shadow"]) {
        await withTraveller(
          processes,
          folder,
          "nvme",
          {
            ...STORAGE[storage]!(folder),
            queues: `${QUEUES}`,
            doorbells: doorbells === "mmap" ? "mmap" : "message",
          },
          ++seed,
          (scene) => moveNvme(scene, doorbells, seed),
        );
      }
    }
  }));

Deno.test("a store stays in its process, which takes the disk back", () =>
  withProcesses((processes, folder) => {
    const options = { backend: STORE };
    const path = `${folder.path}/store`;
    const before = openFds();
    {
      using traveller = new Traveller(processes, "virtio-blk", options, path);
      assertThrows(() => traveller.move(), Error, "is in another process");
      assert(traveller.moves === 0);
      using client = connectClient(path);
      client.negotiate();
    }
    assertEquals(openFds(), before);
  }));

/** The other end of a card's wire, which sends back what it gets. */
class Echo implements Disposable {
  readonly #host = new Host();
  readonly #card: Card;
  readonly #frames: Uint8Array[] = [];

  constructor(options: OptionTexts) {
    this.#card = new Card(
      this.#host,
      openNetBackend(NET_OPTIONS.parse(options), this.#host.context),
    );
    this.#card.onFrame = (frame) => this.#frames.push(frame) > 0;
  }

  turn(): void {
    this.#host.loop.turn(0);
    while (this.#frames.length > 0) {
      const sent = this.#card.send(this.#frames[0]!);
      if (sent === -Errno.EAGAIN) return;
      assert(sent >= 0, `sending: ${sent}`);
      this.#frames.shift();
    }
  }

  [Symbol.dispose](): void {
    this.#card[Symbol.dispose]();
    this.#host[Symbol.dispose]();
  }
}

const GUEST_IP = "10.0.2.15";
const HOST_IP = "10.0.2.2";
const PINGS = 16;

/** Pings that are each to be answered once. */
class Pings {
  answered = 0;
  readonly #net: NetDriver;
  readonly #random: () => number;
  readonly #open = new Map<number, string>();
  #mac: Uint8Array | null = null;
  #sent = 0;

  constructor(net: NetDriver, random: () => number) {
    this.#net = net;
    this.#random = random;
    assert(net.transmit(arpRequest(GUEST_IP, HOST_IP)));
  }

  get open(): number {
    return this.#open.size;
  }

  send(): void {
    if (this.#mac === null) return;
    while (this.#open.size < PINGS) {
      const data = new Uint8Array(4 + Math.floor(this.#random() * 1000));
      for (let i = 4; i < data.length; i++) data[i] = this.#random() * 256;
      new DataView(data.buffer).setUint32(0, ++this.#sent);
      const packet = ping(GUEST_IP, HOST_IP, data);
      if (!this.#net.transmit(ethernet(this.#mac, 0x0800, packet))) return;
      this.#open.set(this.#sent, data.join());
    }
  }

  take(): void {
    for (
      let frame = this.#net.receive();
      frame !== null;
      frame = this.#net.receive()
    ) this.#take(frame);
  }

  #take(frame: Uint8Array): void {
    if (frame[12] === 0x08 && frame[13] === 0x06) {
      this.#mac ??= frame.slice(6, 12);
      // The host asks for the guest's address now and then.
      const asks = frame[21] === 1 &&
        frame.slice(38, 42).join(".") === GUEST_IP;
      if (asks) this.#net.transmit(arpReply(frame, GUEST_IP));
      return;
    }
    const packet = parseIp(frame);
    if (packet?.protocol !== 1) return;
    const data = packet.payload.slice(8);
    const number = new DataView(data.buffer).getUint32(0);
    assertEquals(data.join(), this.#open.get(number), `ping ${number}`);
    this.#open.delete(number);
    this.answered++;
  }
}

async function moveCard(
  { client, ram, traveller, random }: Scene,
  bells: BellKind,
  echo?: Echo,
): Promise<void> {
  using pci = new PciClient(client, { bells });
  const net = new NetDriver(new VirtioDriver(pci, ram.memory), {
    queueSize: 128,
  });
  const pings = new Pings(net, random);
  const until = async (what: string, isSo: () => boolean) => {
    const deadline = performance.now() + PATIENCE_MS;
    for (let turn = 0; !isSo(); turn++) {
      echo?.turn();
      pings.take();
      assert(performance.now() < deadline, what);
      if (turn % 16 === 0) await new Promise((go) => setTimeout(go, 0));
    }
  };
  while (traveller.moves < MOVES) {
    const target = pings.answered + 1 + Math.floor(random() * 100);
    await until("answers", () => {
      pings.send();
      return pings.answered >= target;
    });
    if (random() < 0.8) pings.send();
    if (random() < 0.5) echo?.turn();
    traveller.move();
  }
  await until("the last answers", () => pings.open === 0);
  assert(net.linkUp);
}

const MAC = "52:54:00:12:34:56";

Deno.test("a virtio-net goes on in another process with all frames", () =>
  withProcesses(async (processes, folder) => {
    let seed = SEED;
    const at = (name: string) => `${folder.path}/${name}`;
    const wires: [OptionTexts, OptionTexts | null][] = [
      [
        { net: "stream", path: at("a") },
        { net: "stream", path: at("a"), server: "on" },
      ],
      [
        { net: "stream", path: at("b"), server: "on" },
        { net: "stream", path: at("b") },
      ],
      [
        { net: "dgram", "local-path": at("c"), "remote-path": at("d") },
        { net: "dgram", "local-path": at("d"), "remote-path": at("c") },
      ],
      [{ net: "user" }, null],
    ];
    const bells: BellKind[] = ["message", "posted", "ioeventfd", "mmap"];
    for (const [options, other] of wires) {
      const kind = bells[seed++ % bells.length]!;
      // A client of a stream connects at once.
      const isFirst = other !== null && options.server !== "on";
      using before = isFirst ? new Echo(other) : null;
      await withTraveller(
        processes,
        folder,
        "virtio-net",
        {
          ...options,
          mac: MAC,
          ...(kind === "mmap" ? { doorbells: "mmap" } : {}),
        },
        seed,
        async (scene) => {
          using after = other !== null && !isFirst ? new Echo(other) : null;
          await moveCard(scene, kind, before ?? after ?? undefined);
        },
      );
    }
  }, { OUTBOARD_LIBSLIRP: "none" }));

const libslirp = await testLibslirp();

Deno.test({
  name: "a virtio-net on libslirp goes on in another process with all frames",
  ignore: "skip" in libslirp,
  fn: () =>
    withProcesses(
      (processes, folder) =>
        withTraveller(
          processes,
          folder,
          "virtio-net",
          { net: "user", mac: MAC },
          SEED,
          (scene) => moveCard(scene, "message"),
        ),
      "library" in libslirp ? { OUTBOARD_LIBSLIRP: libslirp.library } : {},
    ),
});

tapTests(import.meta.url)(
  "a virtio-net on a TAP goes on in another process with all frames",
  () =>
    withProcesses(
      (processes, folder) =>
        withTraveller(
          processes,
          folder,
          "virtio-net",
          { net: "tap", ifname: "tap0", mac: MAC },
          SEED,
          (scene) => moveCard(scene, "posted"),
        ),
      {},
      "tap0",
    ),
);
