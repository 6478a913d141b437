import { createPciDevice } from "../pci_device.ts";
import { assert, assertEquals, assertThrows } from "@std/assert";
import { nvmeModel } from "../../../devices/nvme/mod.ts";
import { RecordingInterrupts } from "../../../src/testing/fake_context.ts";
import type { DeviceState } from "../../../src/core/state_form.ts";
import type { ManualLoop } from "../../../src/testing/manual_loop.ts";
import { Folder } from "../../backend/block/rig.ts";
import { Moving, throughRing } from "../../backend/block/moving.ts";
import { ServerThread } from "../../backend/block/nbd/rig.ts";
import { openFds, sharedMappings } from "../../resources.ts";
import { textOf } from "../command_text.ts";
import { NaiveDriver, type Pair } from "./naive_driver.ts";
import { PIECE, seededRandom, Workload } from "./workload.ts";

const MOVES = 50;
const PIECES = 128;
const AER = 12;
const FLUSH = { opcode: 0, nsid: 1 };

/** A controller that moves, and its driver, which stays. */
class MovingRig implements Disposable {
  readonly interrupts = new RecordingInterrupts();
  readonly moving;
  readonly driver: NaiveDriver;

  constructor(options: Record<string, string>, enable = true, ring = false) {
    const parsed = nvmeModel.options!.parse({ queues: "4", ...options });
    const namespaces = parsed.namespaces.map(({ nsid, block }) => (
      { nsid, block: throughRing(block) }
    ));
    this.moving = new Moving(
      nvmeModel,
      ring ? { ...parsed, namespaces } : parsed,
      this.interrupts,
    );
    const { device, ram } = this.moving;
    const settle = () => this.moving.settle();
    this.driver = new NaiveDriver(
      device,
      ram,
      { settle } as unknown as ManualLoop,
    );
    if (enable) this.driver.enable();
  }

  /** Puts a command that waits for an event. */
  awaitEvent(): number {
    const cid = this.driver.put(this.driver.admin, { opcode: AER });
    this.driver.ring(this.driver.admin);
    this.moving.settle();
    return cid;
  }

  resize(sizeBytes: number): void {
    this.moving.current.commands!["resize"]!.run(["1", `${sizeBytes}`]);
    this.moving.settle();
  }

  [Symbol.dispose](): void {
    this.moving[Symbol.dispose]();
  }
}

/** Random load, moves in the midst of it, and everything read at the end. */
function loadAndMove(rig: MovingRig, seed: number): Workload[] {
  const random = seededRandom(seed);
  const { moving, driver } = rig;
  const loads = [1, 2].map((qid) =>
    new Workload(
      driver,
      driver.createPair(qid, 16),
      random,
      (qid - 1) * PIECES,
      PIECES,
    )
  );
  for (let round = 0; round < MOVES; round++) {
    for (let step = 0; step < 4; step++) {
      for (const each of loads) each.submit(Math.floor(random() * 8));
      if (random() < 0.5) moving.loop.turn(0);
      for (const each of loads) if (random() < 0.7) each.reap();
    }
    moving.move();
  }
  for (const each of loads) each.verify(() => moving.loop.turn(5));
  return loads;
}

for (
  const [name, image, ring] of [
    ["a file through its ring", true, true],
    ["a file in the page cache", true, false],
    ["memory", false, false],
  ] as const
) {
  Deno.test(`an NVMe controller on ${name} moves under load and loses nothing`, () => {
    using folder = new Folder();
    using rig = new MovingRig(
      image ? { file: folder.image("disk", 1 << 20) } : { memory: "1M" },
      true,
      ring,
    );
    const loads = loadAndMove(rig, 4711);
    const done = loads.reduce((sum, { done }) => sum + done, 0);
    const { moving } = rig;
    assertEquals(moving.count("reads") + moving.count("writes"), done);
    assertEquals(
      moving.count("ns1.reads") + moving.count("ns1.writes"),
      done,
    );
    assertEquals(moving.moves, MOVES);
    if (ring) assert(moving.busyMoves > 0);
  });
}

Deno.test("an NVMe controller on NBD moves under load, and its server sees one client", async () => {
  using folder = new Folder();
  const socket = `${folder.path}/nbd.sock`;
  const file = folder.image("disk", 1 << 20);
  await using server = await ServerThread.start({ file, socket });
  using rig = new MovingRig({ nbd: `unix:${socket}` });
  const loads = loadAndMove(rig, 1234);
  assert(rig.moving.busyMoves > 0);
  assertEquals(
    rig.moving.count("reads") + rig.moving.count("writes"),
    loads.reduce((sum, { done }) => sum + done, 0),
  );
  assertEquals(rig.moving.count("ns1.disconnects"), 0);
  assertEquals(await server.connections(), 1);
});

Deno.test("an NVMe controller with shadow doorbells moves under load and loses nothing", () => {
  using rig = new MovingRig({ memory: "1M" });
  const { driver, moving } = rig;
  const pair = driver.createPair(1, 16);
  driver.configureShadow();
  const load = new Workload(driver, pair, seededRandom(7), 0, PIECES);
  const rung = driver.doorbells;
  for (let i = 0; i < MOVES; i++) {
    load.submit(6);
    if (i % 3 === 0) moving.settle();
    if (i % 2 === 0) load.reap();
    moving.move();
    // Submitted while it was away: stored in guest memory, and perhaps not rung.
    moving.settle();
    load.reap();
  }
  load.verify(() => moving.settle());
  assertEquals(load.inFlight, 0);
  assert(driver.doorbells - rung < load.done);
});

Deno.test("commands that were submitted while an NVMe controller was away are found when it is back", () => {
  using rig = new MovingRig({ memory: "1M", doorbells: "mmap" });
  const { driver, moving } = rig;
  const pair = driver.createPair(1, 16);
  const load = new Workload(driver, pair, seededRandom(3), 0, PIECES);
  const page = new Uint32Array(moving.shared[0]!.bytes.buffer);
  moving.hold();
  const { state, given } = moving.leave();
  moving.changePlace();
  load.submit(3, false);
  page[2] = pair.sqTail;
  moving.arrive(given, state);
  moving.settle();
  assertEquals(load.reap(), 3);
});

Deno.test("an NVMe controller that holds fetches nothing, finishes what it has, and answers registers", () => {
  using folder = new Folder();
  const file = folder.image("disk", 1 << 20);
  using rig = new MovingRig({ file }, true, true);
  const { driver, moving } = rig;
  const pair = driver.createPair(1, 16);
  const load = new Workload(driver, pair, seededRandom(5), 0, PIECES);
  load.submit(4);
  while (moving.current.counters!()["ns1.ringSubmissions"] === 0) {
    moving.loop.turn(0);
  }
  const first = load.inFlight;
  const inFlight = moving.current.hold!();
  assert(inFlight > 0 && inFlight <= first);
  load.submit(3);
  moving.hold();
  assertEquals(load.reap(), first);
  assertEquals(driver.read(0x1c) & 1, 1);
  moving.settle();
  assertEquals(load.reap(), 0);
  // It may as well stay.
  moving.current.start!();
  moving.until(() => load.reap() > 0 && load.inFlight === 0);
});

Deno.test("an NVMe controller keeps commands that wait for an event, and tells the event where it is then", () => {
  using rig = new MovingRig({ memory: "1M" });
  const { driver, moving } = rig;
  const NOTICES = 11;
  assertEquals(driver.setFeature(NOTICES, 1 << 8).status, 0);
  const cids = [rig.awaitEvent(), rig.awaitEvent()];
  assertEquals(moving.current.hold!(), 0, "they are not in flight");
  moving.move();
  rig.resize(2 << 20);
  const [told, ...more] = driver.reap(driver.admin);
  assertEquals(more, []);
  assertEquals(told!.cid, cids[0]);
  assertEquals(told!.status, 0);
  assertEquals(told!.dw0, 0x04_0002, "notice, namespace changed, log page 4");
  // It is held back until the page is read, wherever that is.
  moving.move();
  rig.resize(3 << 20);
  assertEquals(driver.reap(driver.admin), []);
  moving.move();
  assertEquals(driver.logPage(4, 4096).getUint32(0, true), 1);
  rig.resize(4 << 20);
  assertEquals(driver.reap(driver.admin).map(({ cid }) => cid), [cids[1]]);
  assertEquals(driver.identify(0, 1).getUint32(0, true), 8192);
});

Deno.test("an NVMe controller takes along the namespaces that came, and not those that went", () => {
  using folder = new Folder();
  const fds = openFds();
  {
    using rig = new MovingRig({ memory: "1M" });
    const { driver, moving } = rig;
    const pair = driver.createPair(1, 16);
    const run = (name: string, ...words: string[]) => {
      textOf(moving.current.commands![name], ...words);
      moving.settle();
    };
    const read = (nsid: number) =>
      driver.run({ opcode: 2, nsid, prp1: driver.page() }, pair).status;
    run("add", "7", `file=${folder.image("late", 1 << 20)}`);
    run("add", "9", "memory=1M");
    const names = driver.identify(3, 7);
    moving.move();
    assertEquals([1, 7, 9, 8].map(read), [0, 0, 0, 2]);
    assertEquals(driver.identify(3, 7), names);
    run("remove", "1");
    moving.move();
    run("remove", "7");
    moving.move();
    assertEquals([1, 7, 9].map(read), [2, 2, 0]);
    assertEquals(driver.identify(2, 0).getUint32(0, true), 9);
  }
  assertEquals(openFds(), fds);
});

Deno.test("an event that finds no command before a move finds one after it", () => {
  using rig = new MovingRig({ memory: "1M" });
  const { driver, moving } = rig;
  driver.write(0x1000 + 8 * 3, 5);
  moving.settle();
  moving.move();
  const cid = rig.awaitEvent();
  const [told] = driver.reap(driver.admin);
  assertEquals([told!.cid, told!.dw0], [cid, 0x01_0000]);
});

Deno.test("a command that waits for an event can be aborted after a move", () => {
  using rig = new MovingRig({ memory: "1M" });
  const { driver, moving } = rig;
  const cid = rig.awaitEvent();
  moving.move();
  driver.put(driver.admin, { opcode: 8, cdw10: cid << 16 });
  driver.ring(driver.admin);
  moving.settle();
  const found = driver.reap(driver.admin);
  assertEquals(found.map(({ status }) => status).toSorted(), [0, 7]);
});

Deno.test("features, logs, names and counters of an NVMe controller move with it", () => {
  using rig = new MovingRig({ memory: "1M" });
  const { driver, moving } = rig;
  const pair = driver.createPair(1, 16);
  const features = [[1, 5], [5, 77], [8, 0x0a03], [10, 1], [11, 0x100]];
  for (const [fid, value] of features) {
    assertEquals(driver.setFeature(fid!, value!).status, 0);
  }
  assertEquals(driver.setFeature(9, 2 | 1 << 16).status, 0);
  assertEquals(driver.setFeature(4, 350).status, 0);
  // Twenty errors: more than the log has room for.
  for (let i = 0; i < 20; i++) {
    assertEquals(driver.run({ opcode: 0x55, nsid: i }, pair).status, 1);
  }
  const look = () => ({
    features: features.map(([fid]) => driver.getFeature(fid!).dw0),
    vector: driver.getFeature(9, 2).dw0,
    temperature: driver.getFeature(4).dw0,
    errors: new Uint8Array(driver.logPage(1, 1024).buffer),
    smart: new Uint8Array(driver.logPage(2, 512).buffer),
    controller: new Uint8Array(driver.identify(1).buffer),
    namespace: new Uint8Array(driver.identify(0, 1).buffer),
    names: new Uint8Array(driver.identify(3, 1).buffer),
  });
  const before = look();
  assertEquals(before.features, features.map(([, value]) => value));
  const admin = moving.count("adminCommands");
  moving.move();
  assertEquals(moving.count("adminCommands"), admin);
  assertEquals(look(), before);
  moving.move();
  assertEquals(look(), before);
});

Deno.test("an NVMe controller without a write cache has none after a move", () => {
  using folder = new Folder();
  using rig = new MovingRig({ file: folder.image("disk", 1 << 20) });
  const { driver, moving } = rig;
  assertEquals(driver.setFeature(6, 0).status, 0);
  moving.move();
  assertEquals(driver.getFeature(6).dw0, 0);
  const { namespaces } = moving.current.save!().body as {
    namespaces: { backend: DeviceState<{ durable: boolean }> }[];
  };
  assertEquals(namespaces[0]!.backend.body.durable, true);
});

Deno.test("completions that no interrupt has told about are told after a move", () => {
  using rig = new MovingRig({ memory: "1M" });
  const { driver, moving, interrupts } = rig;
  const pair = driver.createPair(1, 16);
  assertEquals(driver.setFeature(8, 7 | 255 << 8).status, 0);
  interrupts.take();
  driver.put(pair, FLUSH);
  driver.ring(pair);
  moving.settle();
  assertEquals(interrupts.take(), []);
  moving.hold();
  const { state, given } = moving.leave();
  assertEquals(interrupts.take(), []);
  moving.changePlace();
  moving.arrive(given, state);
  assertEquals(interrupts.take(), []);
  moving.settle();
  assertEquals(interrupts.take(), [1]);
});

for (const msix of ["on", "off"]) {
  Deno.test(`the pin of an NVMe controller with msix=${msix} follows what the driver consumes before and after a move`, () => {
    using rig = new MovingRig({ memory: "1M", msix });
    const { driver, moving, interrupts } = rig;
    interrupts.mode = "intx";
    const pair = driver.createPair(1, 16, 0);
    driver.put(pair, FLUSH);
    driver.ring(pair);
    moving.settle();
    assertEquals(interrupts.level, true);
    moving.move();
    moving.settle();
    assertEquals(interrupts.level, true);
    assertEquals(driver.reap(pair).length, 1);
    assertEquals(interrupts.level, false);
  });
}

Deno.test("a full completion queue is as full after a move", () => {
  using rig = new MovingRig({ memory: "1M" });
  const { driver, moving } = rig;
  const pair = driver.createPair(1, 16, 1, 4);
  for (let i = 0; i < 10; i++) driver.put(pair, FLUSH);
  driver.ring(pair);
  moving.settle();
  let done = 0;
  for (let i = 0; i < 4; i++) {
    moving.move();
    moving.settle();
    done += driver.reap(pair).length;
  }
  assertEquals(done, 10);
});

Deno.test("a disabled NVMe controller moves and is enabled afterwards", () => {
  using rig = new MovingRig({ memory: "1M" }, false);
  rig.moving.move();
  rig.driver.enable();
  rig.driver.identify(1);
  rig.driver.disable();
  rig.moving.move();
  assertEquals(rig.driver.csts, 0);
  rig.driver.enable();
  const pair = rig.driver.createPair(1);
  assertEquals(rig.driver.run(FLUSH, pair).status, 0);
});

Deno.test("a reset that was asked for just before a move is carried out after it", () => {
  using rig = new MovingRig({ memory: "1M" });
  const { driver, moving } = rig;
  const pair = driver.createPair(1);
  moving.hold();
  driver.write(0x14, 0);
  const { state, given } = moving.leave();
  moving.changePlace();
  moving.arrive(given, state);
  assertEquals(driver.csts & 1, 1);
  moving.settle();
  assertEquals(driver.csts & 1, 0);
  driver.enable();
  assertEquals(driver.createPair(1).qid, pair.qid);
});

Deno.test("a shutdown is as far after a move as before, or goes on", () => {
  using rig = new MovingRig({ memory: "1M" });
  const { driver, moving } = rig;
  moving.hold();
  driver.write(0x14, 0x0046_4001);
  const { state, given } = moving.leave();
  moving.changePlace();
  moving.arrive(given, state);
  moving.settle();
  assertEquals(driver.csts >>> 2 & 3, 2, "complete");
  moving.move();
  moving.settle();
  assertEquals(driver.csts >>> 2 & 3, 2, "complete");
});

Deno.test("a controller that failed is failed after a move, until it is reset", () => {
  using rig = new MovingRig({ memory: "1M" }, false);
  const { driver, moving } = rig;
  driver.write(0x14, 0x0046_0001);
  moving.settle();
  assertEquals(driver.csts & 3, 2);
  moving.move();
  moving.settle();
  assertEquals(driver.csts & 3, 2);
  driver.disable();
  driver.enable();
  driver.identify(1);
});

Deno.test("an NVMe controller leaves nothing behind where it was", () => {
  using folder = new Folder();
  using rig = new MovingRig({
    "ns1.file": folder.image("disk", 1 << 20),
    "ns2.memory": "1M",
    "ns3.file": folder.image("other", 1 << 20),
    "ns3.discard": "ignore",
  });
  const pair = rig.driver.createPair(1);
  let counts: number[] = [];
  for (let i = 0; i < MOVES; i++) {
    rig.moving.move();
    for (const nsid of [1, 2, 3]) {
      const command = { opcode: 8, nsid, cdw10: i, cdw12: 0 };
      rig.driver.put(pair, command);
      rig.driver.ring(pair);
      let found = 0;
      rig.moving.until(() =>
        (found += rig.driver.reap(pair).filter(({ status }) =>
          status === 0
        ).length) === 1
      );
    }
    if (i === 1) counts = [openFds(), sharedMappings()];
  }
  assertEquals([openFds(), sharedMappings()], counts);
});

Deno.test("a successor that cannot be made leaves what it was given, and the predecessor's thread goes on", () => {
  using folder = new Folder();
  using rig = new MovingRig({
    "ns1.file": folder.image("disk", 1 << 20),
    "ns2.memory": "1M",
  });
  const { driver, moving } = rig;
  const pair = driver.createPair(1);
  const load = new Workload(driver, pair, seededRandom(9), 0, PIECES);
  load.submit(8);
  moving.hold();
  const { state, given } = moving.leave();
  const fds = openFds();
  const mappings = sharedMappings();
  // Its first namespace is there by the time that the second turns out to be missing.
  const body = state.body as { namespaces: object[] };
  const [first, second] = body.namespaces;
  for (
    const namespaces of [
      [first, { ...second, backend: {} }],
      [first, { ...second, block: null }],
      {},
      null,
    ]
  ) {
    const wrong = { ...state, body: { ...body, namespaces } };
    assertThrows(() => moving.arrive(given, wrong), Error, "Cannot ");
  }
  assertEquals([openFds(), sharedMappings()], [fds, mappings]);
  moving.arrive(given, state);
  moving.settle();
  load.reap();
  load.verify(() => moving.settle());
});

Deno.test("a successor that cannot load the state gives everything back", () => {
  using rig = new MovingRig({ memory: "1M" });
  const { driver, moving } = rig;
  const pair = driver.createPair(1);
  const load = new Workload(driver, pair, seededRandom(11), 0, PIECES);
  load.submit(8);
  moving.settle();
  moving.hold();
  const { state, given } = moving.leave();
  assertThrows(
    () => moving.arrive(given, { ...state, version: 2 }),
    Error,
    "version 2",
  );
  moving.arrive(given, state);
  moving.settle();
  load.reap();
  load.verify(() => moving.settle());
});

/** Places where a state may be spoilt, with the values that spoil it. */
const SPOILT: readonly (readonly [path: string, value: unknown])[] = [
  ["version", 0],
  ["version", "1"],
  ["serial", 5],
  ["running", 1],
  ["registers", null],
  ["registers.cc", -1],
  ["registers.cc", 2 ** 32],
  ["registers.cc", 0x0046_0000],
  ["registers.asqLow", [0]],
  ["queues", []],
  ["queues.completion", []],
  ["queues.completion.1.qid", 0],
  ["queues.completion.1.qid", 5],
  ["queues.completion.1.size", 1],
  ["queues.completion.1.size", 4097],
  ["queues.completion.1.head", 16],
  ["queues.completion.1.tail", 1.5],
  ["queues.completion.1.phase", 2],
  ["queues.completion.1.vector", 5],
  ["queues.completion.1.iova", NaN],
  ["queues.completion.1.iova", 2 ** 53],
  ["queues.submission.1.cqid", 3],
  ["queues.submission.1.head", -1],
  ["queues.submission.1.rejected", "x"],
  ["doorbells.registers", [1, 2, 3]],
  ["doorbells.registers", null],
  ["doorbells.buffers", 7],
  ["doorbells.buffers", { shadowIova: 0 }],
  ["doorbells.initial", [1, 2, 3]],
  ["doorbells.armed", null],
  ["doorbells.inUse", "1"],
  ["features.values.ARBITRATION", "much"],
  ["features.vectors", []],
  ["features.writeCache", null],
  ["events.held", [{ cid: 70000, nsid: 0 }]],
  ["events.held", [{ cid: 1, nsid: 0 }, { cid: 1, nsid: 0 }]],
  ["events.held", [1, 2, 3, 4, 5].map((cid) => ({ cid, nsid: 0 }))],
  ["events.pending", [4]],
  ["events.heldBack", [3]],
  ["logs.errorCount", -1],
  ["logs.errorCount", 3],
  ["logs.changed", "all"],
  ["logs.powerCycles", -1],
  ["counters.reads", Infinity],
  ["namespaces", []],
  ["namespaces.0.nsid", 2],
  ["namespaces.0.lbaShift", 12],
];

Deno.test("NvmeController.load refuses what is no state of it", () => {
  using rig = new MovingRig({ memory: "1M" });
  const { moving, driver } = rig;
  driver.createPair(1);
  moving.hold();
  const good = moving.current.save!();
  const refuse = (state: unknown, what: string) => {
    const other = createPciDevice(
      nvmeModel,
      { ...fresh.context, interrupts: new RecordingInterrupts() },
      moving.options,
    );
    try {
      assertThrows(() => other.load!(state), Error, "Cannot load", what);
    } finally {
      other.close();
    }
  };
  using fresh = new Moving(nvmeModel, moving.options, rig.interrupts);
  for (const state of [undefined, null, 1, "state", [], {}]) {
    refuse(state, `${state}`);
  }
  for (const [path, value] of SPOILT) {
    const state = structuredClone<object>(good) as Record<string, unknown>;
    const keys = path === "version" ? [path] : ["body", ...path.split(".")];
    const last = keys.pop()!;
    let at = state;
    for (const key of keys) at = at[key] as Record<string, unknown>;
    assert(last in at, path);
    at[last] = value;
    refuse(state, `${path} = ${value}`);
    delete at[last];
    // A counter that an older version did not have is 0.
    if (keys.at(-1) !== "counters") refuse(state, `no ${path}`);
  }
});

Deno.test("NvmeController.save refuses while commands are in flight", () => {
  using folder = new Folder();
  const file = folder.image("disk", 1 << 20);
  using rig = new MovingRig({ file }, true, true);
  const { moving, driver } = rig;
  const pair: Pair = driver.createPair(1);
  driver.put(pair, {
    opcode: 2,
    nsid: 1,
    prp1: driver.page(),
    cdw12: PIECE / 512 - 1,
  });
  driver.ring(pair);
  while (moving.current.hold!() === 0) {
    moving.current.start!();
    moving.loop.turn(0);
  }
  assertThrows(() => moving.current.save!(), Error, "1 commands");
  moving.hold();
  moving.current.save!();
});
