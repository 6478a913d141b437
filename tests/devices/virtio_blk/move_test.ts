import type { DeviceState } from "../../../src/core/state_form.ts";
import { modelState } from "../../../src/transport/virtio_pci/virtio_pci.ts";
import { ResourceBag } from "../../../src/os/mod.ts";
import { assert, assertEquals, assertThrows } from "@std/assert";
import { virtioBlkModel } from "../../../devices/virtio_blk/mod.ts";
import { PciFunction, PciInterrupts } from "../../../src/pci/mod.ts";
import { DiskOp, VirtioBlkDriver } from "../../../bench/disk_driver.ts";
import { RecordingLog } from "../../../src/testing/fake_context.ts";
import { STATUS } from "../../../src/testing/virtio_defs.ts";
import { VirtioDriver } from "../../../src/testing/virtio_driver.ts";
import { Moving, throughRing } from "../../backend/block/moving.ts";
import { Folder } from "../../backend/block/rig.ts";
import { openFds, sharedMappings } from "../../resources.ts";
import { LocalPci } from "../local_pci.ts";
import { BF, pattern, Rig, S } from "./harness.ts";

const MOVES = 50;
const SLOTS = 16;
const BLOCK = 4096;
const BLOCKS = 128;
const WRITEBACK = 32;

/** A disk that moves, and its driver, which stays. */
class MovingRig implements Disposable {
  readonly moving;
  readonly virtio: VirtioDriver;

  constructor(options: Record<string, string>, ring = false) {
    const interrupts = new PciInterrupts();
    const parsed = virtioBlkModel.options!.parse(options);
    this.moving = new Moving(
      virtioBlkModel,
      ring ? { ...parsed, block: throughRing(parsed.block) } : parsed,
      interrupts,
    );
    const pci = new PciFunction(
      this.moving.device,
      this.moving.memory,
      interrupts,
      new RecordingLog(),
    );
    this.virtio = new VirtioDriver(
      new LocalPci(pci, interrupts),
      this.moving.ram,
    );
  }

  get writeback(): number {
    return this.virtio.readConfig(WRITEBACK, 1);
  }

  [Symbol.dispose](): void {
    this.moving[Symbol.dispose]();
  }
}

/** Numbers from 0 to 1 (xorshift32, Marsaglia 2003). */
function seededRandom(seed: number): () => number {
  let state = seed;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) / 2 ** 32;
  };
}

/** A random load that knows what every block must hold; at most one request of a block is in flight. */
class Load {
  readonly #rig: MovingRig;
  readonly #disk: VirtioBlkDriver;
  readonly #random: () => number;
  readonly #seeds = new Int32Array(BLOCKS);
  readonly #sent = new Map<number, { op: DiskOp; block: number }>();
  #seed = 0;
  done = 0;

  constructor(rig: MovingRig, random: () => number) {
    this.#rig = rig;
    this.#random = random;
    const options = { slots: SLOTS, transferBytes: BLOCK };
    this.#disk = new VirtioBlkDriver(rig.virtio, options);
  }

  get inFlight(): number {
    return this.#sent.size;
  }

  submit(count: number, show = true): void {
    for (let i = 0; i < count; i++) {
      const block = Math.floor(this.#random() * BLOCKS);
      const busy = [...this.#sent.values()].some((sent) =>
        sent.block === block
      );
      if (!busy) this.#issue(this.#random() < 0.5 ? DiskOp.WRITE : 0, block);
    }
    if (show) this.#disk.flush();
  }

  reap(): number {
    const count = this.#disk.reap();
    for (const slot of this.#disk.done.subarray(0, count)) {
      const sent = this.#sent.get(slot);
      assert(this.#sent.delete(slot), `slot ${slot} came back twice`);
      const { op, block } = sent!;
      assertEquals(this.#disk.status[slot], S.OK);
      if (op === DiskOp.READ) {
        const seed = this.#seeds[block]!;
        const wanted = seed === 0
          ? new Uint8Array(BLOCK)
          : pattern(BLOCK, seed + block);
        assertEquals(this.#bytes(slot), wanted, `block ${block}`);
      }
    }
    this.done += count;
    return count;
  }

  /** Reads every block. */
  verify(): void {
    this.#disk.flush();
    for (let block = 0; block < BLOCKS; block++) {
      this.#rig.moving.until(() => {
        this.reap();
        return this.inFlight === 0;
      });
      this.#issue(DiskOp.READ, block);
      this.#disk.flush();
    }
    this.#rig.moving.until(() => this.reap() > 0);
  }

  #bytes(slot: number): Uint8Array {
    return this.#rig.moving.ram.at(this.#disk.bufferIova(slot), BLOCK);
  }

  #issue(op: DiskOp, block: number): void {
    let slot = 0;
    while (this.#sent.has(slot)) slot++;
    if (slot >= SLOTS) return;
    if (op === DiskOp.WRITE) {
      this.#seeds[block] = ++this.#seed;
      this.#bytes(slot).set(pattern(BLOCK, this.#seed + block));
    } else this.#bytes(slot).fill(0xee);
    this.#sent.set(slot, { op, block });
    this.#disk.issue(slot, op, block * BLOCK / 512);
  }
}

for (
  const [name, image, ring] of [
    ["a file through its ring", true, true],
    ["a file in the page cache", true, false],
    ["memory", false, false],
  ] as const
) {
  Deno.test(`a virtio disk on ${name} moves under load and loses nothing`, () => {
    using folder = new Folder();
    using rig = new MovingRig(
      image ? { file: folder.image("disk", 1 << 20) } : { memory: "1M" },
      ring,
    );
    const { moving } = rig;
    const random = seededRandom(4711);
    const load = new Load(rig, random);
    let counts: number[] = [];
    for (let round = 0; round < MOVES; round++) {
      for (let step = 0; step < 4; step++) {
        load.submit(Math.floor(random() * 8));
        if (random() < 0.5) moving.loop.turn(0);
        if (random() < 0.7) load.reap();
      }
      // Sometimes what was issued last is shown after the move only.
      load.submit(2, random() < 0.5);
      moving.move();
      if (round === 1) counts = [openFds(), sharedMappings()];
    }
    assertEquals([openFds(), sharedMappings()], counts);
    load.verify();
    assertEquals(load.inFlight, 0);
    const served = moving.count("reads") + moving.count("writes");
    assertEquals(served, load.done);
    assertEquals(
      moving.count("backend.reads") + moving.count("backend.writes"),
      load.done,
    );
    assert(load.done > MOVES * 4);
    if (ring) assert(moving.busyMoves > 0);
  });
}

Deno.test("a virtio disk that holds takes nothing new, and finishes what it has", () => {
  using folder = new Folder();
  using rig = new MovingRig({ file: folder.image("disk", 1 << 20) }, true);
  const { moving } = rig;
  const load = new Load(rig, seededRandom(5));
  load.submit(4);
  while (moving.count("backend.ringSubmissions") === 0) moving.loop.turn(0);
  const first = load.inFlight;
  assert(moving.current.hold!() > 0);
  load.submit(3);
  moving.hold();
  moving.settle();
  assertEquals(load.reap(), first);
  moving.current.start!();
  moving.until(() => load.reap() > 0 && load.inFlight === 0);
});

Deno.test("requests that were taken out of flight are in flight for hold, and finish", () => {
  using rig = new Rig({ cancels: true, disk: { queues: 2 } });
  const pending = rig.queueWrite(0, pattern(512));
  rig.flush();
  rig.driver.resetQueue(rig.queues[1]!);
  assertEquals(rig.counter("reissued"), 1);
  assertEquals(rig.device.hold!(), 1);
  const late = rig.queueWrite(8, pattern(512, 2));
  rig.flush();
  assertEquals(rig.backend.finishAll(), 1);
  rig.loop.settle();
  assertEquals(rig.device.hold!(), 0);
  assertEquals(rig.take(pending).status, S.OK);
  assertEquals(rig.takeHeads(), []);
  rig.device.start!();
  rig.loop.settle();
  rig.backend.finishAll();
  rig.loop.settle();
  assertEquals(rig.take(late).status, S.OK);
});

/** State of the storage, in the state of a disk behind virtio-pci. */
interface BackendState {
  kind: string;
  readonly body: { durable: boolean };
}

function backendOf(state: DeviceState): BackendState {
  const disk = modelState(state) as DeviceState<{ backend: BackendState }>;
  return disk.body.backend;
}

Deno.test("the cache mode that the driver chose moves with the disk", () => {
  using folder = new Folder();
  using rig = new MovingRig({ file: folder.image("disk", 1 << 20) });
  const { virtio, moving } = rig;
  virtio.negotiate([BF.FLUSH, BF.CONFIG_WCE]);
  virtio.setupQueue(0);
  virtio.driverOk();
  assertEquals(rig.writeback, 1);
  moving.move();
  assertEquals(rig.writeback, 1);
  virtio.writeConfig(WRITEBACK, 1, 0);
  moving.move();
  assertEquals(rig.writeback, 0);
  moving.hold();
  const { given, state } = moving.leave();
  assert(backendOf(state).body.durable);
  moving.arrive(given, state);
  assertEquals(rig.writeback, 0);
});

Deno.test("a disk that no driver has started moves, and is started afterwards", () => {
  using rig = new MovingRig({ memory: "1M" });
  rig.moving.move();
  const load = new Load(rig, seededRandom(13));
  load.submit(5);
  rig.moving.settle();
  load.verify();
  rig.virtio.reset();
  rig.moving.move();
  assertEquals(rig.virtio.status, 0);
});

Deno.test("a disk whose driver broke the rules is broken after a move, until it is reset", () => {
  using rig = new MovingRig({ memory: "1M" });
  const { virtio, moving } = rig;
  virtio.negotiate([BF.FLUSH]);
  const queue = virtio.setupQueue(0);
  virtio.driverOk();
  // A request without a header.
  assert(queue.ring.begin(1));
  queue.ring.writable(moving.ram.alloc(512, 1), 1);
  queue.ring.end();
  queue.flush();
  moving.settle();
  assert((virtio.status & STATUS.NEEDS_RESET) !== 0);
  moving.move();
  moving.settle();
  assert((virtio.status & STATUS.NEEDS_RESET) !== 0);
  virtio.reset();
  const load = new Load(rig, seededRandom(17));
  load.submit(5);
  moving.settle();
  load.verify();
});

Deno.test("a successor of a disk that cannot be made or loaded leaves what it was given", () => {
  using folder = new Folder();
  using rig = new MovingRig({ file: folder.image("disk", 1 << 20) });
  const { moving } = rig;
  const load = new Load(rig, seededRandom(19));
  load.submit(8);
  moving.hold();
  const { state, given } = moving.leave();
  const fds = openFds();
  const other = structuredClone(state);
  backendOf(other).kind = "memory";
  assertThrows(() => moving.arrive(given, other), Error, "Cannot load storage");
  assertThrows(() => moving.arrive({}, state), Error, "was not handed over");
  assertEquals(openFds(), fds);
  assertThrows(
    () => moving.arrive(given, { ...state, body: {} }),
    Error,
    "Cannot load",
  );
  assertEquals(openFds(), fds);
  moving.arrive(given, state);
  moving.settle();
  load.reap();
  load.verify();
});

Deno.test("VirtioBlk.load refuses what is no state of a disk", () => {
  using rig = new Rig();
  const good = rig.disk.save();
  const spoilt = (fields: object) => ({
    ...good,
    body: { ...good.body, ...fields },
  });
  for (
    const state of [
      undefined,
      null,
      [],
      {},
      { ...good, version: 2 },
      spoilt({ writeback: 1 }),
      spoilt({ sizeBytes: -1 }),
      spoilt({ sizeBytes: "1M" }),
    ]
  ) {
    assertThrows(() => rig.disk.load(state), Error, "Cannot load the disk");
  }
  rig.disk.load(structuredClone(good));
  assertEquals(rig.disk.save(), good);
});

Deno.test("a disk that is loaded on storage of another size tells its driver", () => {
  using rig = new Rig();
  const good = rig.disk.save();
  const before = rig.driver.configGeneration;
  const sizeBytes = good.body.sizeBytes * 2;
  rig.disk.load({ ...good, body: { ...good.body, sizeBytes } });
  assertEquals(rig.interrupts(0), 1);
  rig.driver.readConfig(0, 4);
  assert(rig.driver.configGeneration !== before);
});

Deno.test("a disk says that it has another size, unless its twin has said so", () => {
  for (const [told, said] of [[1 << 20, 1], [2 << 20, 0], [3 << 20, 1]]) {
    using rig = new Rig();
    const state = rig.disk.save();
    const rescan = () => {
      rig.backend.resize(2 << 20);
      return true;
    };
    Object.defineProperty(rig.backend, "rescan", { value: rescan });
    rig.disk.load({ ...state, body: { ...state.body, sizeBytes: told! } });
    // One that is told the size it has already does not look.
    if (told === 1 << 20) rescan();
    assertEquals(rig.driver.readConfig(0, 4), 4096);
    const lines = rig.log.records.filter(({ message }) =>
      message === "the disk has 2M now"
    );
    assertEquals(lines.length, said, `told ${told}`);
  }
});

Deno.test("a disk on storage that stays on its thread says so", () => {
  using rig = new Rig();
  using bag = ResourceBag.of();
  assertThrows(
    () => rig.disk.handOver(bag),
    Error,
    "Cannot move the disk: ram disk stays on its thread",
  );
  assertEquals(rig.read(0, 512).status, S.OK);
});
