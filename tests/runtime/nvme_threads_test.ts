import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import {
  type DriverMemory,
  type OutboardProcess,
  startOutboard,
} from "../../src/testing/mod.ts";
import {
  GuestRam,
  VfioUserClient,
} from "../../src/transport/vfio_user/client/mod.ts";
import type { Pair } from "../devices/nvme/naive_driver.ts";
import { seededRandom, Workload } from "../devices/nvme/workload.ts";
import { controlLine, countersOf } from "../guest/control_line.ts";
import { RemoteNvme } from "./nvme_client.ts";

const STORE =
  new URL("../backend/block/fixtures/memory_store.ts", import.meta.url)
    .pathname;
const RAM_BYTES = 16 * 1024 * 1024;
const DISK_BYTES = 4 * 1024 * 1024;
const OTHER_BYTES = 4 * 1024 * 1024;
const OTHER_IOVA = 0x10_0000_0000;
const QUEUES = 6;
const PIECES = 128;
const SIZE = 16;
const WAIT_MS = 20_000;
const FLUSH = { opcode: 0, nsid: 1 };
const DATA_TRANSFER_ERROR = 4;

interface Rig {
  readonly outboard: OutboardProcess;
  readonly client: VfioUserClient;
  readonly nvme: RemoteNvme;
  ask(line: string): Promise<string[]>;
}

async function withThreads(
  args: {
    readonly poll?: string;
    readonly on?: "file" | "store";
    readonly pin?: boolean;
    readonly mapped?: boolean;
  },
  run: (rig: Rig) => Promise<void> | void,
): Promise<void> {
  const folder = Deno.makeTempDirSync();
  try {
    const control = `${folder}/control`;
    const image = `${folder}/disk`;
    Deno.writeFileSync(image, new Uint8Array(DISK_BYTES));
    const storage = {
      file: `file=${image}`,
      store: `backend=${STORE},size=${DISK_BYTES}`,
      memory: `memory=${DISK_BYTES}`,
    }[args.on ?? "memory"];
    await using outboard = await startOutboard(
      [
        "--iothreads",
        "3",
        "--device",
        `nvme,${storage},queues=${QUEUES},iothread=0:1:2${
          args.mapped ? ",doorbells=mmap" : ""
        }`,
        "--socket",
        `${folder}/dev`,
        "--control",
        control,
        ...(args.poll === undefined ? [] : ["--poll", args.poll]),
      ],
      // A page that was unmapped and is touched all the same ends the process.
      { env: { OUTBOARD_POISON: "1" } },
    );
    using client = new VfioUserClient(`${folder}/dev`);
    client.negotiate();
    using ram = new GuestRam(RAM_BYTES);
    ram.share(client);
    const vectors = args.pin === true ? 0 : QUEUES + 1;
    const nvme = new RemoteNvme(client, ram, vectors);
    const ask = (line: string) => controlLine(control, line);
    await run({ outboard, client, nvme, ask });
    assertEquals(outboard.status, null);
    assert(!/error/i.test(outboard.stderr), outboard.stderr);
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
}

/** Loads on all queues, with buffers where `memoryOf` says. */
function startLoads(
  { driver }: RemoteNvme,
  seed: number,
  memoryOf: (qid: number) => DriverMemory = () => driver.ram,
): Workload[] {
  return Array.from({ length: QUEUES }, (_, i) =>
    new Workload(
      driver,
      driver.createPair(i + 1, SIZE),
      seededRandom(seed + i),
      i * PIECES,
      PIECES,
      memoryOf(i + 1),
    ));
}

function step(loads: readonly Workload[]): void {
  for (const load of loads) {
    load.reap();
    load.submit(4);
  }
}

function verifyAll(nvme: RemoteNvme, loads: readonly Workload[]): void {
  for (const load of loads) {
    nvme.until(() => load.reap() > 0 || load.inFlight === 0, "a command");
    const deadline = performance.now() + WAIT_MS;
    load.verify(() => assert(performance.now() < deadline, "no completion"));
  }
}

for (
  const [name, args, shadow] of [
    ["memory, by messages", { poll: "0" }, false],
    ["a file, by messages, polled", { on: "file" }, false],
    ["a store, by messages", { on: "store" }, false],
    ["memory, shadow doorbells", { poll: "0" }, true],
    ["memory, shadow doorbells, polled", {}, true],
  ] as const
) {
  Deno.test(`an NVMe controller on three IOThreads survives resets and deletions under load: ${name}`, () =>
    withThreads(args, async ({ nvme, client, ask }) => {
      const { driver } = nvme;
      const start = () => {
        driver.shadow = null;
        driver.enable();
        if (shadow) driver.configureShadow();
      };
      if (shadow) driver.configureShadow();
      const loads = startLoads(nvme, 20261128);
      let forgotten = 0;
      for (let round = 0; round < 60; round++) {
        const before = loads.reduce((sum, { done }) => sum + done, 0);
        nvme.until(() => {
          step(loads);
          return loads.reduce((sum, { done }) => sum + done, 0) > before + 300;
        }, "commands");
        const kind = round % 3;
        if (kind === 2) {
          const at = round % QUEUES;
          const remove = (opcode: number) =>
            driver.run({ opcode, cdw10: at + 1 }).status;
          assertEquals(remove(0), 0);
          loads[at]!.reap();
          assertEquals(remove(4), 0);
          forgotten += loads[at]!.inFlight;
          loads[at]!.restart(driver.createPair(at + 1, SIZE));
        } else {
          // Both are answered when every thread has left the memory alone: it may be used for something else.
          if (kind === 0) driver.disable();
          else client.reset(), nvme.setUpPci();
          for (const load of loads) forgotten += load.inFlight;
          start();
          loads.forEach((load, i) => load.restart(driver.createPair(i + 1)));
        }
        await new Promise((go) => setTimeout(go, 0));
      }
      verifyAll(nvme, loads);
      const counters = countersOf(await ask("counters nvme0"));
      assertEquals(counters.failedCommands, 0);
      assertEquals(counters.invalidDoorbells, 0);
      const served = counters.reads! + counters.writes!;
      const done = loads.reduce((sum, each) => sum + each.done, 0);
      assert(served >= done && served <= done + forgotten);
    }));
}

Deno.test("memory is unmapped 1000 times under the load of an NVMe controller on three IOThreads", () =>
  withThreads({}, async ({ nvme, client }) => {
    using other = new GuestRam(OTHER_BYTES, OTHER_IOVA);
    other.share(client);
    // One queue of each thread has its buffers there.
    const loads = startLoads(
      nvme,
      7,
      (qid) => qid <= 3 ? nvme.driver.ram : other.memory,
    );
    const others = loads.slice(3);
    for (let round = 0; round < 1000; round++) {
      step(loads);
      // A driver waits for commands with memory there before it takes that away; the rest goes on.
      nvme.until(() => {
        step(loads.slice(0, 3));
        for (const load of others) load.reap();
        return others.every(({ inFlight }) => inFlight === 0);
      }, "commands");
      other.unshare(client);
      step(loads.slice(0, 3));
      other.share(client);
      if (round % 64 === 0) await new Promise((go) => setTimeout(go, 0));
    }
    verifyAll(nvme, loads);
  }));

Deno.test("commands whose memory goes away end on every thread, and nothing else does", () =>
  withThreads({}, async ({ nvme, client }) => {
    const { driver } = nvme;
    using other = new GuestRam(OTHER_BYTES, OTHER_IOVA);
    other.share(client);
    const pairs = Array.from(
      { length: QUEUES },
      (_, i) => driver.createPair(i + 1, SIZE),
    );
    const buffer = other.memory.alloc(4096, 4096);
    const read = { opcode: 2, nsid: 1, prp1: buffer, cdw12: 7 };
    const reapAll = (pair: Pair, count: number) => {
      const found: number[] = [];
      nvme.until(() => {
        found.push(...driver.reap(pair).map(({ status }) => status));
        return found.length === count;
      }, `queue ${pair.qid}`);
      return found;
    };
    for (let round = 0; round < 200; round++) {
      for (const pair of pairs) {
        for (let i = 0; i < 5; i++) driver.put(pair, read);
        driver.ring(pair);
      }
      other.unshare(client);
      for (const pair of pairs) {
        driver.put(pair, read);
        driver.ring(pair);
      }
      for (const pair of pairs) {
        const statuses = reapAll(pair, 6);
        assertEquals(statuses.at(-1), DATA_TRANSFER_ERROR);
        for (const status of statuses) {
          assert(status === 0 || status === DATA_TRANSFER_ERROR, `${status}`);
        }
      }
      other.share(client);
      if (round % 32 === 0) await new Promise((go) => setTimeout(go, 0));
    }
    for (const pair of pairs) {
      driver.put(pair, FLUSH);
      driver.ring(pair);
      assertEquals(reapAll(pair, 1), [0]);
    }
  }));

Deno.test("an NVMe controller on three IOThreads raises the vector of each queue", () =>
  withThreads({ poll: "0" }, ({ nvme }) => {
    const { driver, lines } = nvme;
    for (let round = 0; round < 20; round++) {
      const pairs = Array.from(
        { length: QUEUES },
        (_, i) => driver.createPair(i + 1, SIZE),
      );
      for (const pair of pairs) {
        driver.put(pair, FLUSH);
        driver.ring(pair);
        assert(lines.wait(pair.qid, WAIT_MS) > 0, `queue ${pair.qid}`);
        assertEquals(driver.reap(pair).length, 1);
      }
      for (const { qid } of pairs) {
        assertEquals(driver.run({ opcode: 0, cdw10: qid }).status, 0);
        assertEquals(driver.run({ opcode: 4, cdw10: qid }).status, 0);
      }
    }
  }));

Deno.test("an NVMe controller on three IOThreads has its pin up while any queue wants it", () =>
  withThreads({ pin: true }, ({ nvme }) => {
    const { driver, pci } = nvme;
    const PCI_STATUS = 6;
    const PCI_STATUS_INTERRUPT = 8;
    const isUp = () =>
      (pci.readConfig(PCI_STATUS, 2) & PCI_STATUS_INTERRUPT) !== 0;
    const pairs = Array.from(
      { length: QUEUES },
      (_, i) => driver.createPair(i + 1, SIZE, 0),
    );
    for (let round = 0; round < 50; round++) {
      for (const pair of pairs) {
        driver.put(pair, FLUSH);
        driver.ring(pair);
      }
      for (const [i, pair] of pairs.entries()) {
        nvme.until(() => driver.reap(pair, false).length === 1, "a completion");
        nvme.until(isUp, "the pin");
        // A driver's handler ends behind this write: if the line stayed up, it would be called in vain.
        driver.write(0x1004 + 8 * pair.qid, pair.cqHead);
        if (i === QUEUES - 1) assert(!isUp(), `round ${round}`);
      }
    }
  }));

Deno.test("an NVMe controller on three IOThreads tells of hostile doorbells, sums its logs, and grows", () =>
  withThreads({}, async ({ nvme, ask }) => {
    const { driver } = nvme;
    const pairs = [1, 2, 3].map((qid) => driver.createPair(qid, SIZE));
    const run = (pair: Pair, sqe: Parameters<typeof driver.put>[1]) => {
      driver.put(pair, sqe);
      driver.ring(pair);
      let status = -1;
      nvme.until(() => {
        status = driver.reap(pair)[0]?.status ?? -1;
        return status >= 0;
      }, `queue ${pair.qid}`);
      return status;
    };
    const prp1 = driver.page();
    const read = { opcode: 2, nsid: 1, prp1, cdw10: (5 << 20) / 512 };
    for (const pair of pairs) assert(run(pair, read) !== 0, "beyond the end");
    const errors = driver.logPage(1, 3 * 64);
    assertEquals([0, 1, 2].map((i) => errors.getUint16(i * 64 + 8, true)), [
      3,
      2,
      1,
    ]);
    await ask("nvme0 resize 8M");
    for (const pair of pairs) assertEquals(run(pair, read), 0);
    assertEquals(driver.logPage(2, 512).getUint32(64, true), 3, "host reads");
    // A head that is ahead of all completions: only the thread of queue 2 can tell.
    driver.put(driver.admin, { opcode: 12 });
    driver.ring(driver.admin);
    driver.write(0x1000 + 8 * 2 + 4, 9);
    let event = 0;
    nvme.until(() => {
      event = driver.reap(driver.admin)[0]?.dw0 ?? 0;
      return event !== 0;
    }, "an event");
    assertEquals(event, 0x01_0100);
  }));

for (
  const [name, args, shadow] of [
    ["messages", { poll: "0" }, false],
    ["messages, on a file, polled", { on: "file" }, false],
    ["shadow doorbells", { poll: "0" }, true],
    ["a mapped page", { poll: "0", mapped: true }, false],
    ["a mapped page, polled", { mapped: true }, false],
  ] as const
) {
  Deno.test(`queues of an NVMe controller move from thread to thread, and the controller with them, under load: ${name}`, () =>
    withThreads(args, async ({ nvme, ask }) => {
      if (shadow) nvme.driver.configureShadow();
      const loads = startLoads(nvme, 20270101);
      const done = () => loads.reduce((sum, each) => sum + each.done, 0);
      const placeOf = async () =>
        / on (IOThreads? [\d:]+),/.exec((await ask("list"))[0]!)![1];
      for (
        const [reference, iothread, place] of [
          ["nvme0.3", 0, "IOThreads 0:1:2"],
          ["nvme0.6", 1, "IOThreads 0:1"],
          ["nvme0.1", 2, "IOThreads 0:2:1"],
          ["nvme0", 1, "IOThread 1"],
          ["nvme0.4", 0, "IOThreads 1:0"],
          ["nvme0.5", 2, "IOThreads 1:0:2"],
          ["nvme0", 2, "IOThread 2"],
          ["nvme0.2", 2, "IOThread 2"],
          ["nvme0.2", 1, "IOThreads 2:1"],
          ["nvme0", 0, "IOThread 0"],
        ] as const
      ) {
        // Commands are under way, and more come while it moves.
        const moved = ask(`move ${reference} ${iothread}`);
        let isMoved = false;
        moved.finally(() => isMoved = true);
        while (!isMoved) {
          step(loads);
          await new Promise((go) => setTimeout(go, 0));
        }
        assertMatch((await moved)[0]!, /moved to IOThread|already/);
        assertEquals(await placeOf(), place, reference);
        const before = done();
        nvme.until(() => {
          step(loads);
          return done() > before + 200;
        }, "commands");
      }
      await assertRejects(() => ask("move nvme0.7 1"), Error, "1 to 6");
      await assertRejects(() => ask("move nvme0.0 1"), Error, "as a whole");
      verifyAll(nvme, loads);
      const counters = countersOf(await ask("counters nvme0"));
      assertEquals(counters.reads! + counters.writes!, done());
      assertEquals(counters.invalidDoorbells, 0);
      const health = nvme.driver.logPage(2, 512);
      assertEquals(
        health.getUint32(64, true) + health.getUint32(80, true),
        done(),
      );
    }));
}

Deno.test("a namespace of an NVMe controller on three IOThreads comes and goes, with commands in flight on all", () =>
  withThreads({}, async ({ outboard, nvme, ask }) => {
    const { driver } = nvme;
    const INVALID_FIELD = 2;
    const pairs = Array.from(
      { length: QUEUES },
      (_, i) => driver.createPair(i + 1, SIZE),
    );
    const prp1 = driver.page();
    /** Statuses of as many commands on each queue as are given, and of what is done meanwhile. */
    const run = async (
      nsid: number,
      count: number,
      meanwhile: () => Promise<unknown> = () => Promise.resolve(),
    ) => {
      const statuses: number[] = [];
      for (const pair of pairs) {
        for (let i = 0; i < count; i++) {
          driver.put(pair, { opcode: 2, nsid, prp1 });
        }
        driver.ring(pair);
      }
      await meanwhile();
      nvme.until(() => {
        for (const pair of pairs) {
          statuses.push(...driver.reap(pair).map(({ status }) => status));
        }
        return statuses.length === count * QUEUES;
      }, "every command");
      return new Set(statuses);
    };
    const descriptors = () =>
      [...Deno.readDirSync(`/proc/${outboard.pid}/fd`)].length;
    let before = 0;
    for (let round = 0; round < 3; round++) {
      await ask("nvme0 add 2 memory=1M");
      assertEquals(await run(2, 1), new Set([0]));
      const ended = await run(2, 8, () => ask("nvme0 remove 2"));
      ended.delete(0);
      assert(ended.size === 0 || ended.has(INVALID_FIELD), `${[...ended]}`);
      assertEquals(ended.size <= 1, true);
      assertEquals(await run(2, 1), new Set([INVALID_FIELD]));
      assertEquals(await run(1, 1), new Set([0]));
      if (round === 0) before = descriptors();
    }
    assertEquals(descriptors(), before);
    await assertRejects(
      () => ask("nvme0 add 2 file=/nonexistent"),
      Error,
      "/nonexistent",
    );
  }));
