import { assertEquals, assertThrows } from "@std/assert";
import type { BlockInfo } from "../../../src/backend/block/contract.ts";
import type { BlockOptions } from "../../../src/backend/block/options.ts";
import { textOf, textOfAnswer } from "../command_text.ts";
import { ThreadsRig } from "./threads_rig.ts";
import type { Pair, Sqe } from "./naive_driver.ts";
import { RamDisk } from "./ram_disk.ts";
import { Rig, type RigOptions, SC } from "./rig.ts";

const NS_CHANGED = 0x04_0002;

/** A controller whose namespaces come and go; `late` are the disks that came. */
class LateRig extends Rig {
  readonly late: RamDisk[];

  constructor(options: RigOptions = {}, info: Partial<BlockInfo> = {}) {
    const late: RamDisk[] = [];
    const open = (block: BlockOptions) => {
      if (block.kind !== "memory") throw new Error(block.kind);
      const disk = new RamDisk(this.memory, block.sizeBytes, info);
      late.push(disk);
      return disk;
    };
    super({ ...options, controller: { open, ...options.controller } });
    this.late = late;
  }

  command(line: string): string {
    const [name, ...words] = line.split(" ");
    const reply = textOf(this.device.commands[name!], ...words);
    this.settle();
    return reply;
  }

  /** Numbers of a list of Identify. */
  list(cns: number): number[] {
    const view = this.driver.identify(cns, 0);
    return [0, 4, 8, 12].map((at) => view.getUint32(at, true))
      .filter((nsid) => nsid !== 0);
  }

  /** Puts a command that waits for an event. */
  awaitEvent(): void {
    this.submit(this.driver.admin, { opcode: 12 });
  }

  submit(pair: Pair, sqe: Sqe): number {
    const cid = this.driver.put(pair, sqe);
    this.driver.ring(pair);
    this.settle();
    return cid;
  }
}

Deno.test("namespaces come and go at run time, and the driver is told", () => {
  using rig = new LateRig();
  const { driver } = rig;
  const pair = rig.io();
  const NN = driver.identify(1).getUint32(516, true);
  assertEquals(driver.setFeature(11, 1 << 8).status, 0);
  rig.awaitEvent();
  assertEquals(
    rig.command("add 5 memory=128K,block-size=512 readonly=off"),
    "namespace 5 has 128K, on ram disk",
  );
  assertEquals(driver.reap(driver.admin).map(({ dw0 }) => dw0), [NS_CHANGED]);
  assertEquals(driver.logPage(4, 4096).getUint32(0, true), 5);
  assertEquals(rig.list(2), [1, 5]);
  assertEquals(driver.identify(0, 5).getBigUint64(0, true), 256n);
  const prp1 = driver.page();
  driver.ram.at(prp1, 512).fill(0x5a);
  const write = { opcode: 1, nsid: 5, prp1, cdw10: 255 };
  assertEquals(driver.run(write, pair).status, 0);
  assertEquals(rig.late[0]!.bytes[255 * 512], 0x5a);
  assertEquals(rig.device.counters()["ns5.submitted"], 1);
  rig.awaitEvent();
  assertEquals(rig.command("remove 5"), "namespace 5 is gone");
  assertEquals(driver.reap(driver.admin).map(({ dw0 }) => dw0), [NS_CHANGED]);
  assertEquals(driver.logPage(4, 4096).getUint32(0, true), 5);
  assertEquals(rig.list(2), [1]);
  assertEquals(driver.identify(0, 5).getBigUint64(0, true), 0n);
  assertEquals(driver.run(write, pair).status, SC.FIELD);
  assertEquals(rig.late[0]!.closed, 1);
  assertEquals(driver.identify(1).getUint32(516, true), NN, "NN is constant");
  // The number is free, and the last one may go too.
  rig.command("add 5 memory=64K");
  rig.command("remove 1");
  rig.command("remove 5");
  assertEquals(rig.list(2), []);
  assertEquals(driver.run({ opcode: 0, nsid: 0xffff_ffff }, pair).status, 0);
  driver.write(0x14, 0x0046_4001);
  rig.settle();
  assertEquals(driver.csts >>> 2 & 3, 2, "shut down");
});

Deno.test("what comes of a namespace is told by name", () => {
  using rig = new LateRig();
  rig.command("add 5 memory=128K");
  rig.command("remove 5");
  assertEquals(
    rig.context.log.records.map(({ message, properties }) => ({
      message,
      ...properties,
    })).filter((record) => "event" in record),
    [
      {
        message: "namespace 5 is there, of 128K",
        event: "NAMESPACE_ADDED",
        nsid: 5,
        sizeBytes: 131072,
      },
      {
        message: "namespace 5 is gone",
        event: "NAMESPACE_REMOVED",
        nsid: 5,
      },
    ],
  );
});

Deno.test("a driver that wants no notices finds changed namespaces in the log", () => {
  using rig = new LateRig();
  rig.awaitEvent();
  rig.command("add 2 memory=64K");
  rig.command("add 3 memory=64K");
  rig.command("remove 2");
  assertEquals(rig.driver.reap(rig.driver.admin), []);
  const log = rig.driver.logPage(4, 4096);
  assertEquals([0, 4, 8].map((at) => log.getUint32(at, true)), [2, 3, 0]);
});

Deno.test("commands in flight on a namespace that is removed end as on one that is not there", () => {
  using rig = new LateRig({ disks: { 1: 1 << 20, 3: 1 << 20 } });
  const { driver } = rig;
  const pair = driver.createPair(1, 32);
  rig.command("add 2 memory=1M");
  const late = rig.late[0]!;
  late.slow = true;
  // What cannot end soon is given up by the storage.
  late.drainResult = -125;
  const prp1 = driver.page();
  driver.ram.writeU64(prp1, 8 * 2 ** 32);
  driver.ram.writeU64(prp1 + 16, 8 * 2 ** 32);
  const onLate: Sqe[] = [
    { opcode: 2, nsid: 2, prp1: driver.page() },
    { opcode: 1, nsid: 2, prp1, cdw10: 8 },
    { opcode: 0, nsid: 2 },
    { opcode: 9, nsid: 2, prp1, cdw10: 1, cdw11: 4 },
    // The second waits for the first.
    { opcode: 5, nsid: 2, prp1 },
    { opcode: 5, nsid: 2, prp1 },
  ];
  const cids = onLate.map((sqe) => rig.submit(pair, sqe));
  // Flush of all is with namespace 2, and goes on to 3.
  const flushAll = rig.submit(pair, { opcode: 0, nsid: 0xffff_ffff });
  const other = rig.disks[3]!;
  const before = other.log.length;
  assertEquals(driver.reap(pair), []);
  rig.command("remove 2");
  const ended = driver.reap(pair);
  assertEquals(
    new Map(ended.map(({ cid, status }) => [cid, status])),
    new Map([...cids.map((cid) => [cid, SC.FIELD] as const), [flushAll, 0]]),
  );
  assertEquals(ended.filter(({ dnr }) => dnr).length, cids.length);
  assertEquals(other.log.length, before + 1);
  assertEquals([late.closed, late.pending.length], [1, 0]);
  assertEquals(rig.device.inFlight().length, 0);
  // Compare goes on elsewhere.
  driver.ram.at(prp1, 512).fill(0);
  assertEquals(driver.run({ opcode: 5, nsid: 3, prp1 }, pair).status, 0);
});

Deno.test("a Compare that waits for another namespace's ends with its own that is removed", () => {
  using rig = new LateRig();
  const { driver, disk } = rig;
  const pair = rig.io();
  rig.command("add 2 memory=1M");
  disk.slow = true;
  const prp1 = driver.page();
  const first = rig.submit(pair, { opcode: 5, nsid: 1, prp1 });
  const second = rig.submit(pair, { opcode: 5, nsid: 2, prp1 });
  rig.command("remove 2");
  disk.finish();
  rig.settle();
  assertEquals(
    new Map(driver.reap(pair).map(({ cid, status }) => [cid, status])),
    new Map([[first, 0], [second, SC.FIELD]]),
  );
  assertEquals(rig.late[0]!.log.length, 0, "nothing of it reached the storage");
});

Deno.test("a shutdown that flushes a namespace which is removed goes on to the others", () => {
  using rig = new LateRig();
  const { driver } = rig;
  rig.command("add 2 memory=1M");
  rig.command("add 3 memory=1M");
  rig.late[0]!.slow = true;
  driver.write(0x14, 0x0046_4001);
  rig.settle();
  assertEquals(driver.csts >>> 2 & 3, 1);
  rig.command("remove 2");
  assertEquals(driver.csts >>> 2 & 3, 2);
  assertEquals(rig.late[1]!.log.map(({ op }) => op), [2]);
});

Deno.test("a namespace that comes late has its writes durable where the driver does not flush", () => {
  const off = (rig: LateRig) => {
    assertEquals(rig.driver.setFeature(6, 0).status, 0);
  };
  const cases: [string, RigOptions, (rig: LateRig) => void, boolean | null][] =
    [
      ["as the others", {}, () => {}, null],
      ["switched off", {}, off, false],
      ["none was told", { info: { volatileCache: false } }, () => {}, false],
    ];
  for (const [name, options, prepare, wanted] of cases) {
    using rig = new LateRig(options);
    prepare(rig);
    rig.command("add 2 memory=64K");
    assertEquals(rig.late[0]!.writeCache, wanted, name);
  }
});

Deno.test("the commands about namespaces say what is wrong, and change nothing then", () => {
  using rig = new LateRig({}, { maxTransferBytes: 4096 });
  const cases: [line: string, message: string][] = [
    ["add", "Cannot add a namespace: say add NSID OPTION=VALUE"],
    ["add 0 memory=1M", "a number from 1 to 32"],
    ["add 33 memory=1M", "a number from 1 to 32"],
    ["add two memory=1M", "a number from 1 to 32"],
    ["add 1 memory=1M", "there is one, remove it first"],
    ["add 2 nonsense=1", "nonsense"],
    ["add 2 memory=1M memory=2M", "memory 2 times"],
    ["add 2 memory=1000", "a multiple of the block"],
    [
      "add 2 memory=1M",
      "ram disk: its storage takes 4K at a time, and the driver was told 1M",
    ],
    ["remove", "say remove NSID"],
    ["remove 1 2", "say remove NSID"],
    [
      "add 2 constructor=1",
      "Cannot use option constructor: storage has file, memory, nbd",
    ],
    ["add 2 file=a,,b,c=d", "Cannot use option c: storage has"],
    [
      "remove 2",
      "Cannot remove namespace 2: there is none of that number, only 1",
    ],
    ["remove x", "Cannot remove namespace x: there is none of that number"],
  ];
  for (const [line, message] of cases) {
    assertThrows(() => rig.command(line), Error, message, line);
  }
  assertEquals(rig.list(2), [1]);
  assertEquals(rig.late.map(({ closed }) => closed), [1]);
  assertEquals(rig.driver.logPage(4, 4096).getUint32(0, true), 0);
  using fixed = new Rig();
  assertThrows(
    () => textOf(fixed.device.commands["add"], "2", "memory=1M"),
    Error,
    "this model opens no storage",
  );
});

Deno.test("a namespace whose storage takes long to open is there when it is open", () => {
  const openings: {
    tell: (outcome: RamDisk | Error) => void;
    givenUp: boolean;
  }[] = [];
  const said: string[] = [];
  using rig = new LateRig({
    controller: {
      mdts: 6,
      beginOpen: (block, tell) => {
        if (block.kind === "memory") return null;
        const opening = { tell, givenUp: false };
        openings.push(opening);
        return {
          [Symbol.dispose]: () => {
            opening.givenUp = true;
          },
        };
      },
    },
  });
  assertEquals(rig.driver.identify(1).getUint8(77), 6);
  const add = (nsid: string) => {
    const answer = rig.device.commands["add"]!.run([nsid, "backend=./a.ts"]);
    if (typeof answer !== "function") throw new Error("it is there at once");
    answer((outcome) =>
      said.push(
        outcome instanceof Error ? outcome.message : textOfAnswer(outcome),
      )
    );
  };
  const disk = (info: Partial<BlockInfo> = {}) =>
    new RamDisk(rig.memory, 65536, info);
  add("2");
  assertEquals(
    rig.command("add 3 memory=64K"),
    "namespace 3 has 64K, on ram disk",
  );
  assertEquals([rig.list(2), said], [[1, 3], []]);
  openings[0]!.tell(disk());
  assertEquals(rig.list(2), [1, 2, 3]);
  add("4");
  openings[1]!.tell(new Error("the door is stuck"));
  add("4");
  const small = disk({ maxTransferBytes: 4096 });
  openings[2]!.tell(small);
  assertEquals([rig.list(2), small.closed], [[1, 2, 3], 1]);
  assertEquals(said, [
    "namespace 2 has 64K, on ram disk",
    "the door is stuck",
    "Cannot add ram disk: its storage takes 4K at a time, and the driver was told 256K",
  ]);
  add("4");
  rig.device.close();
  assertEquals(openings.map(({ givenUp }) => givenUp), [
    ...[false, false, false, true],
  ]);
});

Deno.test("storage that takes less at a time than the driver was told is not opened, and the remedy named", () => {
  using rig = new LateRig({
    controller: {
      beginOpen: () => {
        throw new Error("it was opened");
      },
    },
  });
  assertThrows(
    () => rig.command("add 2 backend=./a.ts"),
    Error,
    "Cannot add namespace 2: its storage takes 256K at a time, and the driver was told 1M; start the device with mdts=6 for that",
  );
});

Deno.test("namespaces come and go on all threads of a controller", () => {
  using rig = new ThreadsRig({ threads: 3 });
  const { driver } = rig;
  const pairs = [1, 2, 3].map((qid) => driver.createPair(qid, 16));
  const command = (name: string, ...words: string[]) => {
    const reply = textOf(rig.device.commands[name], ...words);
    rig.settle();
    return reply;
  };
  const prp1 = driver.page();
  const run = (sqe: Sqe) =>
    pairs.map((pair) => driver.run({ prp1, ...sqe }, pair).status);
  assertEquals(driver.setFeature(11, 1 << 8).status, 0);
  driver.put(driver.admin, { opcode: 12 });
  driver.ring(driver.admin);
  command("add", "4", "memory=64K");
  assertEquals(driver.reap(driver.admin).map(({ dw0 }) => dw0), [NS_CHANGED]);
  assertEquals(run({ opcode: 1, nsid: 4, cdw10: 127 }), [0, 0, 0]);
  assertEquals(run({ opcode: 1, nsid: 4, cdw10: 128 }), [
    SC.LBA,
    SC.LBA,
    SC.LBA,
  ]);
  // One command in flight on each thread.
  for (const { late } of rig.members) late[0]!.slow = true;
  const cids = pairs.map((pair) =>
    rig.submit(pair, { opcode: 2, nsid: 4, prp1 })
  );
  rig.settle();
  assertEquals(
    rig.members.map(({ late }) => late[0]!.pending.length),
    [1, 1, 1],
  );
  command("remove", "4");
  assertEquals(
    pairs.map((pair) => driver.reap(pair).map((c) => [c.cid, c.status])),
    cids.map((cid) => [[cid, SC.FIELD]]),
  );
  assertEquals(run({ opcode: 2, nsid: 4 }), [SC.FIELD, SC.FIELD, SC.FIELD]);
  assertEquals(run({ opcode: 2, nsid: 1 }), [0, 0, 0]);
  assertEquals(rig.members.map(({ late }) => late[0]!.closed), [1, 1, 1]);
  // A thread that cannot have it: nobody has.
  rig.members[2]!.refuse = true;
  assertThrows(() => command("add", "5", "memory=64K"), Error, "refused");
  assertEquals(run({ opcode: 2, nsid: 5 }), [SC.FIELD, SC.FIELD, SC.FIELD]);
  assertEquals(
    rig.members.map(({ late }) => late.map(({ closed }) => closed)),
    [[1, 1], [1, 1], [1]],
  );
});
