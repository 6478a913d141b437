import { assert, assertEquals, assertThrows } from "@std/assert";
import { textOf } from "../command_text.ts";
import type { BlockInfo } from "../../../src/backend/block/contract.ts";
import type { Sqe } from "./naive_driver.ts";
import { Rig, SC } from "./rig.ts";

function text(view: DataView, at: number, length: number): string {
  return new TextDecoder().decode(
    new Uint8Array(view.buffer, view.byteOffset + at, length),
  );
}

Deno.test("Identify Controller says what Linux looks at", () => {
  using rig = new Rig({ disks: { 1: 1 << 20, 7: 1 << 20 } });
  const id = rig.driver.identify(1);
  assertEquals(text(id, 4, 20), "SN1".padEnd(20));
  assertEquals(text(id, 24, 40), "Model".padEnd(40));
  assertEquals(text(id, 64, 8), "FW      ");
  assertEquals(id.getUint8(77), 8, "MDTS: 1 MiB");
  assertEquals(id.getUint32(80, true), 0x10400, "VER");
  assertEquals(id.getUint32(92, true), 0x100, "OAES");
  assertEquals(id.getUint8(111), 1, "CNTRLTYPE");
  assertEquals(id.getUint16(256, true), 0x100, "OACS");
  assertEquals(id.getUint8(259), 3, "AERL");
  assertEquals(id.getUint8(261), 6, "LPA");
  assertEquals([id.getUint8(512), id.getUint8(513)], [0x66, 0x44]);
  assertEquals(id.getUint32(516, true), 32, "NN");
  assertEquals(id.getUint16(520, true), 0b1_1101, "ONCS");
  assertEquals(id.getUint8(525), 7, "VWC");
  assertEquals(id.getUint32(536, true), 1, "SGLS");
  assertEquals(
    text(id, 768, 38),
    "nqn.2014-08.org.nvmexpress:uuid:0\0\0\0\0\0",
  );
  assertEquals(id.getUint16(2048, true), 2500);
});

Deno.test("Identify Namespace describes the storage", () => {
  using rig = new Rig({
    disks: { 1: 1 << 20, 3: 2 << 20 },
    info: { logicalBlockBytes: 4096, physicalBlockBytes: 8192 },
  });
  const ns = rig.driver.identify(0, 3);
  assertEquals(ns.getBigUint64(0, true), 512n);
  assertEquals(ns.getBigUint64(8, true), 512n);
  assertEquals(ns.getBigUint64(16, true), 512n);
  assertEquals(ns.getUint8(24), 0x10);
  assertEquals(ns.getUint8(33), 8, "DLFEAT");
  assertEquals(ns.getUint16(64, true), 1, "NPWG");
  assertEquals(ns.getUint16(68, true), 0, "NPDG");
  assertEquals(ns.getUint16(72, true), 15, "NOWS");
  assertEquals(ns.getUint8(99), 0);
  assertEquals(ns.getUint32(128, true), 12 << 16);
  // An inactive namespace is all zeroes.
  const none = rig.driver.identify(0, 2);
  assertEquals(new Uint8Array(none.buffer).some((b) => b !== 0), false);
});

Deno.test("Identify Namespace tells whole units of writing as the best size, and no more than a command takes", () => {
  const cases: [
    name: string,
    Partial<BlockInfo>,
    npwg: number,
    nows: number,
  ][] = [
    ["no best size", { optimalBytes: 0 }, 8, 8],
    ["a best size of no whole units", { optimalBytes: 10240 }, 8, 16],
    ["a best size of less than a unit", { optimalBytes: 1024 }, 8, 8],
    ["a best size beyond MDTS", { optimalBytes: 4 << 20 }, 8, 2048],
    [
      "blocks of 4 KiB",
      {
        logicalBlockBytes: 4096,
        optimalBytes: 0,
      },
      1,
      1,
    ],
  ];
  for (const [name, info, npwg, nows] of cases) {
    using rig = new Rig({ info });
    const ns = rig.driver.identify(0, 1);
    assertEquals(ns.getUint8(24) & 0x10, 0x10, "OPTPERF");
    const found = [ns.getUint16(64, true) + 1, ns.getUint16(72, true) + 1];
    assertEquals(found, [npwg, nows], name);
  }
});

Deno.test("namespaces have names of their own, the same each time", () => {
  const names = () => {
    using rig = new Rig({ disks: { 1: 65536, 2: 65536 } });
    return [1, 2].map((nsid) => {
      const ns = rig.driver.identify(0, nsid);
      const list = rig.driver.identify(3, nsid);
      assertEquals([list.getUint8(0), list.getUint8(1)], [1, 8]);
      assertEquals([list.getUint8(12), list.getUint8(13)], [2, 16]);
      assertEquals([list.getUint8(32), list.getUint8(33)], [3, 16]);
      assertEquals(list.getUint8(36 + 6) >>> 4, 8, "version of the UUID");
      assertEquals(list.getUint8(36 + 8) >>> 6, 2, "variant of the UUID");
      assertEquals([list.getUint8(52), list.getUint8(53)], [4, 1]);
      assertEquals(list.getUint8(56), 0, "NVM command set");
      assertEquals(list.getUint32(57, true), 0);
      assertEquals(list.getBigUint64(4), ns.getBigUint64(120));
      assertEquals(list.getBigUint64(16), ns.getBigUint64(104));
      assert(ns.getBigUint64(104) !== 0n);
      return [
        ns.getBigUint64(120),
        ns.getBigUint64(104),
        ns.getBigUint64(112),
        list.getBigUint64(36),
        list.getBigUint64(44),
      ];
    });
  };
  const first = names();
  assertEquals(first, names());
  assertEquals(new Set(first.flat()).size, 10);
});

Deno.test("Identify lists active namespaces above a number", () => {
  using rig = new Rig({ disks: { 1: 65536, 4: 65536, 9: 65536 } });
  for (const cns of [2, 7]) {
    const list = (after: number) => {
      const view = rig.driver.identify(cns, after);
      return [0, 4, 8, 12].map((at) => view.getUint32(at, true));
    };
    assertEquals(list(0), [1, 4, 9, 0]);
    assertEquals(list(1), [4, 9, 0, 0]);
    assertEquals(list(9), [0, 0, 0, 0]);
    for (const nsid of [0xffff_fffe, 0xffff_ffff]) {
      const done = rig.driver.run({ opcode: 6, nsid, cdw10: cns, prp1: 0 });
      assertEquals(done.status, SC.NS);
    }
  }
});

Deno.test("Identify of the NVM command set and independent of it", () => {
  using rig = new Rig({ info: { readonly: true } });
  const zero = (view: DataView) =>
    assertEquals(new Uint8Array(view.buffer).some((b) => b !== 0), false);
  zero(rig.driver.identify(5, 1));
  zero(rig.driver.identify(6));
  const independent = rig.driver.identify(8, 1);
  assertEquals([independent.getUint8(8), independent.getUint8(14)], [1, 1]);
});

Deno.test("Identify refuses what there is not", () => {
  using rig = new Rig({ disks: { 1: 65536, 3: 65536 } });
  const prp1 = rig.driver.page();
  const cases: [string, Partial<Sqe>, number][] = [
    ["unknown CNS", { cdw10: 0x55 }, SC.FIELD],
    ["controller list", { cdw10: 0x13 }, SC.FIELD],
    ["nsid 0", { cdw10: 0 }, SC.NS],
    ["nsid beyond", { cdw10: 0, nsid: 33 }, SC.NS],
    ["common namespace", { cdw10: 0, nsid: 0xffff_ffff }, SC.NS],
    ["descriptors of inactive", { cdw10: 3, nsid: 2 }, SC.NS],
    ["descriptors beyond", { cdw10: 3, nsid: 33 }, SC.NS],
    ["descriptors of none", { cdw10: 3, nsid: 0 }, SC.NS],
    ["another command set", { cdw10: 6, cdw11: 2 << 24 }, SC.FIELD],
    ["namespace of another", { cdw10: 5, nsid: 1, cdw11: 1 << 24 }, SC.FIELD],
    ["list of another", { cdw10: 7, cdw11: 1 << 24 }, SC.FIELD],
    ["SGL", { cdw10: 1, flags: 0x40 }, SC.FIELD],
    ["fused", { cdw10: 1, flags: 2 }, SC.FIELD],
    ["unaligned", { cdw10: 1, prp1: prp1 + 2 }, SC.PRP_OFFSET],
    ["not memory", { cdw10: 1, prp1: 0x1000 }, SC.DATA],
    ["no PRP2 where it is needed", { cdw10: 1, prp1: prp1 + 3072 }, SC.FIELD],
    ["PRP2 inside a page", {
      cdw10: 1,
      prp1: prp1 + 3072,
      prp2: prp1 + 64,
    }, SC.PRP_OFFSET],
    ["PRP2 that is not memory", {
      cdw10: 1,
      prp1: prp1 + 3072,
      prp2: 0x1000,
    }, SC.DATA],
  ];
  for (const [name, sqe, status] of cases) {
    const done = rig.driver.run({ opcode: 6, prp1, ...sqe });
    assertEquals(done.status, status, name);
    assertEquals(done.dnr, status !== SC.DATA, name);
  }
});

Deno.test("admin opcodes that do not exist are invalid", () => {
  using rig = new Rig();
  for (const opcode of [3, 7, 0xb, 0xd, 0x10, 0x18, 0x80, 0xc0, 0xff]) {
    assertEquals(rig.driver.run({ opcode }).status, SC.OPCODE, `${opcode}`);
  }
});

Deno.test("queues are created only as the standard allows", () => {
  using rig = new Rig();
  const { driver } = rig;
  const prp1 = driver.page(17);
  const cq = (more: Partial<Sqe>) =>
    driver.run({ opcode: 5, prp1, cdw10: 1 | 15 << 16, cdw11: 3, ...more })
      .status;
  const sq = (more: Partial<Sqe>) =>
    driver.run({
      opcode: 1,
      prp1,
      cdw10: 1 | 15 << 16,
      cdw11: 1 | 1 << 16,
      ...more,
    }).status;
  assertEquals(sq({}), SC.CQ, "no CQ yet");
  for (const qid of [0, 5, 0xffff]) {
    assertEquals(cq({ cdw10: qid | 15 << 16 }), SC.QID, `CQ ${qid}`);
    assertEquals(sq({ cdw10: qid | 15 << 16 }), SC.QID, `SQ ${qid}`);
    assertEquals(
      sq({ cdw11: (1 | qid << 16) >>> 0 }),
      SC.QID,
      `SQ on CQ ${qid}`,
    );
  }
  for (const create of [cq, sq]) {
    assertEquals(create({ cdw10: 1 }), SC.QUEUE_SIZE, "one entry");
    assertEquals(create({ cdw10: 1 | 1024 << 16 }), SC.QUEUE_SIZE, "MQES + 2");
    assertEquals(
      create({ cdw11: create === cq ? 2 : 1 << 16 }),
      SC.FIELD,
      "PC=0",
    );
    assertEquals(create({ prp1: prp1 + 64 }), SC.PRP_OFFSET, "unaligned");
  }
  assertEquals(cq({ cdw11: 3 | 5 << 16 }), SC.VECTOR);
  assertEquals(cq({ prp1: 0x1000 }), SC.FIELD, "not memory");
  assertEquals(cq({ prp1: 2 ** 53 }), SC.FIELD, "2^53");
  assertEquals(cq({ cdw10: 1 | 1023 << 16 }), 0, "MQES + 1");
  assertEquals(cq({}), SC.QID, "twice");
  assertEquals(sq({ prp1: 2 ** 63 }), SC.FIELD, "2^63");
  assertEquals(sq({}), 0);
  assertEquals(sq({}), SC.QID, "twice");
  // The queue with vector 4, the last one.
  assertEquals(cq({ cdw10: 2 | 1 << 16, cdw11: 3 | 4 << 16 }), 0);
});

Deno.test("queues are created once CC has told how large their entries are", () => {
  const IOSQES = 6 << 16;
  const IOCQES = 4 << 20;
  const cases: [cc: number, cq: number, sq: number][] = [
    [0, SC.QUEUE_SIZE, SC.QUEUE_SIZE],
    [IOSQES, SC.QUEUE_SIZE, SC.CQ],
    [IOCQES, 0, SC.QUEUE_SIZE],
    [5 << 16 | IOCQES, 0, SC.QUEUE_SIZE],
    [IOSQES | 5 << 20, SC.QUEUE_SIZE, SC.CQ],
    [IOSQES | IOCQES, 0, 0],
  ];
  for (const [cc, cq, sq] of cases) {
    using rig = new Rig({ disabled: true });
    const { driver } = rig;
    driver.enable(32, cc | 1);
    const prp1 = driver.page();
    const cdw10 = 1 | 15 << 16;
    const made = driver.run({ opcode: 5, prp1, cdw10, cdw11: 3 | 1 << 16 });
    assertEquals(made.status, cq, `CQ with ${cc.toString(16)}`);
    const other = driver.run({ opcode: 1, prp1, cdw10, cdw11: 1 | 1 << 16 });
    assertEquals(other.status, sq, `SQ with ${cc.toString(16)}`);
  }
  // They may be told while the controller is ready, as long as there are no queues.
  using rig = new Rig({ disabled: true });
  rig.driver.enable(32, 1);
  rig.driver.write(0x14, 1 | IOSQES | IOCQES);
  rig.io();
});

Deno.test("queues are deleted in order", () => {
  using rig = new Rig();
  const { driver } = rig;
  rig.io();
  const remove = (opcode: number, qid: number) =>
    driver.run({ opcode, cdw10: qid }).status;
  assertEquals(remove(4, 1), SC.QUEUE_DELETION);
  for (const qid of [0, 2, 0xffff]) {
    assertEquals(remove(0, qid), SC.QID);
    assertEquals(remove(4, qid), SC.QID);
  }
  assertEquals(remove(0, 1), 0);
  assertEquals(remove(0, 1), SC.QID);
  assertEquals(remove(4, 1), 0);
  assertEquals(remove(4, 1), SC.QID);
  const pair = rig.io();
  assertEquals(driver.run({ opcode: 0, nsid: 1 }, pair).status, 0);
});

Deno.test("two submission queues may complete in one queue", () => {
  using rig = new Rig();
  const { driver } = rig;
  const pair = rig.io();
  const sq = driver.page();
  const made = driver.run({
    opcode: 1,
    prp1: sq,
    cdw10: 2 | 15 << 16,
    cdw11: 1 | 1 << 16,
  });
  assertEquals(made.status, 0);
  driver.run({ opcode: 0, nsid: 1 }, pair);
  assertEquals(driver.run({ opcode: 0, cdw10: 1 }).status, 0);
  assertEquals(
    driver.run({ opcode: 4, cdw10: 1 }).status,
    SC.QUEUE_DELETION,
  );
  assertEquals(driver.run({ opcode: 0, cdw10: 2 }).status, 0);
  assertEquals(driver.run({ opcode: 4, cdw10: 1 }).status, 0);
});

Deno.test("deleting a submission queue waits for its commands and drops what was not fetched", () => {
  using rig = new Rig();
  const { driver, disk } = rig;
  const pair = driver.createPair(1, 64, 1, 4);
  disk.slow = true;
  const prp1 = driver.page();
  for (let i = 0; i < 6; i++) driver.put(pair, { opcode: 2, nsid: 1, prp1 });
  driver.ring(pair);
  rig.settle();
  assertEquals(disk.pending.length, 3);
  driver.put(driver.admin, { opcode: 0, cdw10: 1 });
  driver.ring(driver.admin);
  rig.settle();
  // Asked twice, the second is refused.
  driver.put(driver.admin, { opcode: 0, cdw10: 1 });
  driver.ring(driver.admin);
  rig.settle();
  assertEquals(driver.reap(driver.admin).map((c) => c.status), [SC.QID]);
  disk.finish();
  disk.finish();
  rig.settle();
  assertEquals(driver.reap(driver.admin), []);
  assertEquals(driver.reap(pair).length, 2);
  disk.finish();
  rig.settle();
  assertEquals(driver.reap(driver.admin).map((c) => c.status), [0]);
  assertEquals(driver.reap(pair).length, 1);
  assertEquals([disk.pending.length, disk.log.length], [0, 3]);
});

Deno.test("features are told, set, and not saved", () => {
  using rig = new Rig();
  const { driver } = rig;
  assertEquals(driver.setFeature(7, 0x00ff_00ff).dw0, 0x0003_0003);
  assertEquals(driver.getFeature(7).dw0, 0x0003_0003);
  assertEquals(driver.getFeature(1).dw0, 3);
  assertEquals(driver.setFeature(1, 5).status, 0);
  assertEquals(driver.getFeature(1).dw0, 5);
  assertEquals(driver.getFeature(1, 0, 1).dw0, 3);
  assertEquals(driver.getFeature(1, 0, 2).dw0, 3);
  assertEquals(driver.getFeature(1, 0, 3).dw0, 4);
  assertEquals(driver.getFeature(1, 0, 4).status, SC.FIELD);
  assertEquals(driver.getFeature(2).dw0, 0);
  assertEquals(driver.setFeature(2, 0).status, 0);
  assertEquals(driver.setFeature(2, 1).status, SC.FIELD);
  assertEquals(driver.getFeature(4).dw0, 343);
  assertEquals(driver.getFeature(4, 1 << 20).dw0, 0);
  assertEquals(driver.getFeature(4, 1 << 16).status, SC.FIELD);
  assertEquals(driver.getFeature(4, 2 << 20).status, SC.FIELD);
  assertEquals(driver.getFeature(9, 0).dw0, 1 << 16);
  assertEquals(driver.getFeature(9, 4).dw0, 4);
  assertEquals(driver.getFeature(9, 5).status, SC.FIELD);
  assertEquals(driver.setFeature(9, 2 | 1 << 16).status, 0);
  assertEquals(driver.getFeature(9, 2).dw0, 2 | 1 << 16);
  for (const fid of [8, 10, 11]) {
    assertEquals(driver.setFeature(fid, 0x101).status, 0);
    assertEquals(driver.getFeature(fid).dw0, 0x101);
  }
  for (const fid of [0, 3, 0x0c, 0x7e, 0xc0]) {
    assertEquals(driver.getFeature(fid).status, SC.FIELD);
    assertEquals(driver.setFeature(fid, 0).status, SC.FIELD);
  }
  const save = driver.run({ opcode: 9, cdw10: (1 << 31 | 1) >>> 0 });
  assertEquals(save.status, SC.NOT_SAVEABLE);
  assertEquals(driver.setFeature(1, 0, { nsid: 1 }).status, SC.NOT_PER_NS);
  driver.disable();
  driver.enable();
  assertEquals([driver.getFeature(1).dw0, driver.getFeature(11).dw0], [3, 0]);
});

Deno.test("Error Recovery is each namespace's own", () => {
  using rig = new Rig({ disks: { 2: 65536, 3: 65536 } });
  const { driver } = rig;
  const get = (nsid: number, select = 0) => {
    const cdw10 = 5 | select << 8;
    const { status, dw0 } = driver.run({ opcode: 10, nsid, cdw10 });
    return status === 0 ? dw0 : -status;
  };
  const set = (nsid: number, value: number) =>
    driver.setFeature(5, value, { nsid }).status;
  assertEquals([2, 3].map((nsid) => get(nsid)), [0, 0]);
  assertEquals(set(3, 7), 0);
  assertEquals([2, 3, 0].map((nsid) => get(nsid)), [0, 7, 0]);
  assertEquals(get(3, 1), 0, "default");
  assertEquals(get(3, 3), 6, "changeable, and of namespaces");
  assertEquals(set(0xffff_ffff, 9), 0);
  assertEquals([2, 3, 0].map((nsid) => get(nsid)), [9, 9, 9]);
  for (const [nsid, status] of [[1, SC.FIELD], [33, SC.NS]] as const) {
    assertEquals([set(nsid, 1), get(nsid)], [status, -status], `${nsid}`);
  }
  // Errors for deallocated blocks are not offered (DAE of NSFEAT).
  assertEquals(set(2, 1 << 16), SC.FIELD);
  driver.disable();
  driver.enable();
  assertEquals([2, 3].map((nsid) => get(nsid)), [0, 0]);
});

Deno.test("Keep Alive Timer is a feature that is off for good", () => {
  using rig = new Rig();
  const { driver } = rig;
  assertEquals(driver.identify(1).getUint16(320, true), 0, "KAS");
  for (const select of [0, 1, 2]) {
    const { status, dw0 } = driver.getFeature(0x0f, 0, select);
    assertEquals([status, dw0], [0, 0]);
  }
  assertEquals(driver.getFeature(0x0f, 0, 3).dw0, 0, "not changeable");
  assertEquals(driver.setFeature(0x0f, 0).status, 0);
  assertEquals(driver.setFeature(0x0f, 1000).status, SC.NOT_CHANGEABLE);
});

Deno.test("Host Behavior Support is told and set as 512 bytes of data", () => {
  using rig = new Rig();
  const { driver } = rig;
  const prp1 = driver.page();
  const data = driver.ram.at(prp1, 516);
  const get = (select: number) => {
    data.fill(0x77);
    const { status, dw0 } = driver.run({
      opcode: 10,
      prp1,
      cdw10: 0x16 | select << 8,
    });
    assertEquals(status, 0);
    return { dw0, acre: data[0], others: new Set(data.subarray(1, 512)) };
  };
  const set = (acre: number, more: Partial<Sqe> = {}) => {
    data.fill(0);
    data[0] = acre;
    return driver.setFeature(0x16, 0, { prp1, ...more }).status;
  };
  assertEquals(get(0), { dw0: 0, acre: 0, others: new Set([0]) });
  assertEquals(data[512], 0x77, "no more than 512 bytes");
  assertEquals(set(1), 0);
  assertEquals(get(0), { dw0: 0, acre: 1, others: new Set([0]) });
  assertEquals(get(1).acre, 0, "default");
  assertEquals(set(2), SC.FIELD);
  assertEquals(set(0, { prp1: 0x1000 }), SC.DATA);
  assertEquals(get(0).acre, 1, "unchanged");
  // What it is capable of is told without data.
  assertEquals(get(3), { dw0: 4, acre: 0x77, others: new Set([0x77]) });
  driver.disable();
  driver.enable();
  assertEquals(get(0).acre, 0);
});

Deno.test("the number of queues is settled before there are any", () => {
  using rig = new Rig();
  assertEquals(rig.driver.setFeature(7, 0xffff).status, SC.FIELD);
  assertEquals(rig.driver.setFeature(7, 0xffff_0000).status, SC.FIELD);
  rig.io();
  assertEquals(rig.driver.setFeature(7, 0).status, SC.SEQUENCE);
});

Deno.test("the write cache is switched where it can be", () => {
  using rig = new Rig();
  const { driver, disk } = rig;
  assertEquals(driver.getFeature(6).dw0, 1);
  assertEquals(driver.setFeature(6, 0).status, 0);
  assertEquals([disk.writeCache, driver.getFeature(6).dw0], [false, 0]);
  assertEquals(driver.getFeature(6, 0, 1).dw0, 1);
  driver.disable();
  assertEquals(disk.writeCache, true);
  driver.enable();
  assertEquals(driver.getFeature(6).dw0, 1);
  disk.writeCacheResult = -95;
  assertEquals(driver.setFeature(6, 1).status, 0);
  assertEquals(driver.setFeature(6, 0).status, SC.NOT_CHANGEABLE);
  assertEquals(driver.getFeature(6).dw0, 1);
  using without = new Rig({ info: { volatileCache: false } });
  assertEquals(without.driver.identify(1).getUint8(525), 6);
  assertEquals(without.driver.getFeature(6).status, SC.FIELD);
  assertEquals(without.driver.setFeature(6, 1).status, SC.FIELD);
});

Deno.test("the SMART log counts", () => {
  using rig = new Rig();
  const { driver } = rig;
  const pair = rig.io();
  const buffer = driver.page(2);
  for (let i = 0; i < 3; i++) {
    driver.run({
      opcode: 1,
      nsid: 1,
      cdw12: 15,
      ...driver.prps(buffer, 0, 8192),
    }, pair);
  }
  driver.run({ opcode: 2, nsid: 1, prp1: buffer }, pair);
  driver.run({ opcode: 2, nsid: 9, prp1: buffer }, pair);
  // Compare reads too, and whatever comes of it.
  driver.run({ opcode: 5, nsid: 1, prp1: buffer }, pair);
  driver.ram.at(buffer, 1)[0]! ^= 1;
  driver.run({ opcode: 5, nsid: 1, prp1: buffer }, pair);
  rig.loop.advance(2 * 3_600_000);
  const log = driver.logPage(2, 512);
  assertEquals(log.getUint8(0), 0);
  assertEquals(log.getUint16(1, true), 308);
  assertEquals(log.getUint8(3), 100);
  const counter = (at: number) => log.getBigUint64(at, true);
  assertEquals([counter(32), counter(48)], [1n, 1n]);
  assertEquals([counter(64), counter(80)], [3n, 3n]);
  assertEquals([counter(112), counter(128), counter(144)], [1n, 2n, 0n]);
  assertEquals([counter(160), counter(176)], [0n, 2n]);
  assertEquals(
    driver.run({ opcode: 2, nsid: 1, cdw10: 2 | 127 << 16, prp1: buffer })
      .status,
    SC.FIELD,
  );
});

Deno.test("power that is lost is an unsafe shutdown unless the driver has announced it", () => {
  type Step = (rig: Rig) => void;
  const lose: Step = ({ device }) => device.reset("client_gone");
  const d3hot: Step = ({ device }) => device.reset("soft_reset");
  const on: Step = ({ driver }) => driver.enable();
  const off: Step = ({ driver }) => driver.disable();
  const cc = (value: number): Step => (rig) => {
    rig.driver.write(0x14, value);
    rig.settle();
  };
  const shutDown = cc(0x0046_4001);
  const cases: [name: string, steps: Step[], counted: bigint][] = [
    ["in use", [on, lose], 1n],
    ["announced", [on, shutDown, lose], 0n],
    ["announced in a hurry", [on, cc(0x0046_8001), lose], 0n],
    ["announced and not waited for", [on, ({ driver, disk }) => {
      disk.slow = true;
      driver.write(0x14, 0x0046_4001);
    }, lose], 0n],
    ["announced, then used again", [on, shutDown, off, on, lose], 1n],
    ["announced and disabled", [on, shutDown, off, lose], 0n],
    ["announced in the write that disables", [on, cc(0x0046_4000), lose], 0n],
    ["disabled without a word", [on, off, lose], 1n],
    ["never used", [lose, lose], 0n],
    ["twice", [on, lose, on, lose], 2n],
    ["function level reset", [on, ({ device }) => device.reset("flr")], 0n],
    ["reset by the client", [on, ({ device }) => {
      device.reset("device_reset");
    }], 0n],
    ["D3hot and back", [on, d3hot], 0n],
    ["D3hot and back, then lost", [on, d3hot, lose], 1n],
  ];
  for (const [name, steps, counted] of cases) {
    using rig = new Rig({ disabled: true });
    for (const step of steps) step(rig);
    rig.disk.slow = false;
    rig.driver.enable();
    const log = rig.driver.logPage(2, 512);
    assertEquals(log.getBigUint64(144, true), counted, name);
    const losses = steps.filter((step) => step === lose).length;
    assertEquals(log.getBigUint64(112, true), BigInt(1 + losses), name);
  }
});

Deno.test("the error log has the newest first and forgets the oldest", () => {
  using rig = new Rig();
  const { driver } = rig;
  const pair = rig.io();
  for (let i = 0; i < 20; i++) {
    driver.run({ opcode: 2, nsid: 100 + i, cid: 500 + i }, pair);
  }
  const log = driver.logPage(1, 1024);
  for (let i = 0; i < 16; i++) {
    const at = i * 64;
    assertEquals(log.getBigUint64(at, true), BigInt(20 - i));
    assertEquals(log.getUint16(at + 8, true), 1);
    assertEquals(log.getUint16(at + 10, true), 519 - i);
    assertEquals(log.getUint16(at + 12, true) >>> 1 & 0x7ff, SC.NS);
    assertEquals(log.getUint32(at + 24, true), 119 - i);
  }
});

Deno.test("the error log tells where in a command the error is, and the first block that it is about", () => {
  using rig = new Rig();
  const { driver } = rig;
  const pair = rig.io();
  const prp1 = driver.page();
  const BLOCKS = 2048;
  const cases: [
    name: string,
    sqe: Sqe,
    admin: boolean,
    location: number,
    lba: bigint,
  ][] = [
    ["read beyond", { opcode: 2, cdw10: BLOCKS + 7 }, false, 40, 2055n],
    [
      "write across the end",
      {
        opcode: 1,
        cdw10: BLOCKS - 1,
        cdw12: 1,
      },
      false,
      40,
      2048n,
    ],
    [
      "compare far beyond",
      {
        opcode: 5,
        cdw10: 5,
        cdw11: 0xffff_ffff,
      },
      false,
      40,
      0xffff_ffff_0000_0005n,
    ],
    ["write zeroes", { opcode: 8, cdw10: BLOCKS }, false, 40, 2048n],
    // The range list is in memory.
    ["deallocate", { opcode: 9, cdw11: 4 }, false, 0xffff, 2050n],
    ["no such opcode", { opcode: 0x99 }, false, 0, 0n],
    ["no such namespace", { opcode: 2, nsid: 99 }, false, 4, 0n],
    ["no such queue", { opcode: 0, cdw10: 3 }, true, 40, 0n],
    ["queue size", { opcode: 5, cdw10: 2, cdw11: 3 }, true, 42, 0n],
    [
      "no such vector",
      {
        opcode: 5,
        cdw10: 2 | 15 << 16,
        cdw11: 3 | 9 << 16,
      },
      true,
      46,
      0n,
    ],
    ["not memory", { opcode: 2, prp1: 0x1000 }, false, 0xffff, 0n],
  ];
  for (const [i, [name, sqe, admin, location, lba]] of cases.entries()) {
    // A range of one block.
    driver.ram.writeU64(prp1, 2 ** 32);
    driver.ram.writeU64(prp1 + 8, 2050);
    driver.run({ nsid: 1, prp1, ...sqe }, admin ? driver.admin : pair);
    const log = driver.logPage(1, 64);
    assertEquals(log.getBigUint64(0, true), BigInt(i + 1), name);
    assertEquals(log.getUint16(14, true), location, name);
    assertEquals(log.getBigUint64(16, true), lba, name);
  }
});

Deno.test("questions for what is optional fill no error log, and failures that do say that there is more", () => {
  using rig = new Rig();
  const { driver } = rig;
  const pair = rig.io();
  const prp1 = driver.page();
  const questions: Sqe[] = [
    { opcode: 6, prp1, cdw10: 0x1c },
    { opcode: 6, prp1, cdw10: 3, nsid: 9 },
    { opcode: 10, prp1, cdw10: 0x0c },
    { opcode: 2, prp1, cdw10: 0x0d },
    { opcode: 2, prp1, nsid: 1, cdw10: 2 | 127 << 16 },
  ];
  for (const sqe of questions) {
    const done = driver.run(sqe);
    assert(done.status !== 0);
    assertEquals(done.more, false);
  }
  const counted = () => driver.logPage(2, 512).getBigUint64(176, true);
  assertEquals(counted(), 0n);
  assertEquals(driver.logPage(1, 64).getBigUint64(0, true), 0n);
  assertEquals(rig.device.counters().failedCommands, questions.length);
  // What asks for something to be done, or reaches no memory, is an error.
  assertEquals(driver.setFeature(0x0c, 0).more, true);
  assertEquals(driver.run({ opcode: 6, cdw10: 1, prp1: 0x1000 }).more, true);
  assertEquals(driver.run({ opcode: 2, nsid: 99, prp1 }, pair).more, true);
  assertEquals(driver.run({ opcode: 0, nsid: 1 }, pair).more, false);
  assertEquals(counted(), 3n);
});

Deno.test("the error log has doorbells that cannot be, as errors of no command", () => {
  using rig = new Rig();
  const { driver } = rig;
  driver.write(0x1000 + 8 * 3, 1);
  driver.write(0x1000 + 4, 31);
  rig.settle();
  const log = driver.logPage(1, 128);
  for (const [at, count, status] of [[0, 2n, SC.FIELD], [64, 1n, SC.QID]]) {
    const [offset, wanted] = [at as number, [count, 0xffff, 0xffff, status]];
    assertEquals([
      log.getBigUint64(offset, true),
      log.getUint16(offset + 8, true),
      log.getUint16(offset + 10, true),
      log.getUint16(offset + 12, true) >>> 1,
    ], wanted);
    assertEquals(log.getUint16(offset + 14, true), 0xffff);
  }
});

Deno.test("firmware and command effects logs", () => {
  using rig = new Rig();
  const firmware = rig.driver.logPage(3, 512);
  assertEquals(firmware.getUint8(0), 1);
  assertEquals(text(firmware, 8, 8), "FW      ");
  const effects = rig.driver.logPage(5, 4096);
  assertEquals(effects.getUint32(6 * 4, true), 1);
  assertEquals(effects.getUint32(0x7c * 4, true), 1);
  assertEquals(effects.getUint32(0x18 * 4, true), 0);
  assertEquals(effects.getUint32(1024 + 2 * 4, true), 1);
  assertEquals(effects.getUint32(1024 + 1 * 4, true), 3);
  assertEquals(effects.getUint32(1024 + 3 * 4, true), 0);
});

Deno.test("Get Log Page takes offset and length apart", () => {
  using rig = new Rig();
  const { driver } = rig;
  const part = driver.logPage(3, 8, { cdw12: 8 });
  assertEquals(text(part, 0, 8), "FW      ");
  const prp1 = driver.page();
  const run = (more: Partial<Sqe>) =>
    driver.run({ opcode: 2, nsid: 0xffff_ffff, prp1, cdw10: 3, ...more })
      .status;
  assertEquals(run({ cdw12: 512 }), 0, "the end");
  assertEquals(run({ cdw12: 516 }), SC.FIELD);
  assertEquals(run({ cdw12: 2 }), SC.FIELD);
  assertEquals(run({ cdw13: 1 }), SC.FIELD);
  assertEquals(run({ cdw10: 3, cdw11: 0xffff }), SC.FIELD, "MDTS");
  assertEquals(run({ cdw10: 0 }), SC.LOG_PAGE);
  assertEquals(run({ cdw10: 0xc0 }), SC.LOG_PAGE);
  // Longer than the page: only the page is written.
  driver.ram.at(prp1, 4096).fill(0x77);
  assertEquals(run({ cdw10: 3 | 1023 << 16 }), 0);
  assertEquals(driver.ram.at(prp1 + 511, 2), Uint8Array.of(0, 0x77));
});

Deno.test("Asynchronous events: as many requests as AERL says", () => {
  using rig = new Rig();
  const { driver } = rig;
  for (let i = 0; i < 4; i++) driver.put(driver.admin, { opcode: 12 });
  driver.ring(driver.admin);
  rig.settle();
  assertEquals(driver.reap(driver.admin), []);
  assertEquals(driver.run({ opcode: 12 }).status, SC.AER_LIMIT);
});

Deno.test("requests for events keep no room from other commands", () => {
  using rig = new Rig({ disabled: true });
  const { driver } = rig;
  driver.enable(2);
  driver.put(driver.admin, { opcode: 12 });
  driver.ring(driver.admin);
  rig.settle();
  assertEquals(driver.reap(driver.admin), []);
  assertEquals(driver.identify(1).getUint8(111), 1);
  // An event that finds the queue full waits for room.
  driver.put(driver.admin, { opcode: 0x99 });
  driver.ring(driver.admin);
  rig.settle();
  driver.write(0x1000 + 2 * 8, 1);
  rig.settle();
  assertEquals(driver.reap(driver.admin).map((c) => c.status), [SC.OPCODE]);
  assertEquals(driver.reap(driver.admin).map((c) => c.dw0), [0x01_00_00]);
});

Deno.test("a namespace that changes its size is told about, once until its log is read", () => {
  using rig = new Rig({ disks: { 1: 65536, 2: 65536 } });
  const { driver } = rig;
  const held = () => {
    const cid = driver.put(driver.admin, { opcode: 12 });
    driver.ring(driver.admin);
    rig.settle();
    return cid;
  };
  held();
  rig.disks[2]!.resize(131072);
  rig.settle();
  assertEquals(driver.reap(driver.admin), [], "not asked for");
  assertEquals(driver.setFeature(11, 1 << 8).status, 0);
  rig.disks[2]!.resize(65536);
  rig.settle();
  const [first] = driver.reap(driver.admin);
  assertEquals([first!.status, first!.dw0], [0, 2 | 0 << 8 | 4 << 16]);
  held();
  rig.disks[1]!.resize(4096);
  rig.settle();
  assertEquals(driver.reap(driver.admin), [], "not acknowledged");
  const retained = driver.logPage(4, 4096, {
    cdw10: 4 | 1 << 15 | 1023 << 16,
  });
  assertEquals([0, 4, 8].map((at) => retained.getUint32(at, true)), [1, 2, 0]);
  rig.settle();
  assertEquals(driver.reap(driver.admin), []);
  // Nor does a read that fails tell anything.
  const failed = { opcode: 2, prp1: 0x1000, cdw10: 4 | 1023 << 16 };
  assert(driver.run(failed).status !== 0);
  const log = driver.logPage(4, 4096);
  assertEquals([0, 4, 8].map((at) => log.getUint32(at, true)), [1, 2, 0]);
  assertEquals(driver.logPage(4, 4096).getUint32(0, true), 0);
  assertEquals(driver.reap(driver.admin), []);
  rig.disks[1]!.resize(8192);
  rig.settle();
  assertEquals(driver.reap(driver.admin).map((c) => c.dw0), [0x4_0002]);
  assertEquals(driver.identify(0, 1).getBigUint64(0, true), 16n);
});

Deno.test("a temperature past its threshold is told about", () => {
  using rig = new Rig();
  const { driver } = rig;
  driver.put(driver.admin, { opcode: 12 });
  driver.ring(driver.admin);
  rig.settle();
  assertEquals(driver.setFeature(4, 300).status, 0);
  assertEquals(driver.logPage(2, 512).getUint8(0), 2);
  const done = (() => {
    driver.put(driver.admin, { opcode: 9, cdw10: 11, cdw11: 2 });
    driver.ring(driver.admin);
    rig.settle();
    return driver.reap(driver.admin);
  })();
  assertEquals(done.map((c) => c.dw0), [0, 1 | 1 << 8 | 2 << 16]);
});

Deno.test("Abort ends a waiting event request, and tells when there is nothing to end", () => {
  using rig = new Rig();
  const { driver, disk } = rig;
  const cid = driver.put(driver.admin, { opcode: 12 });
  driver.ring(driver.admin);
  rig.settle();
  driver.put(driver.admin, { opcode: 8, cdw10: cid << 16 });
  driver.ring(driver.admin);
  rig.settle();
  const [aborted, abort] = driver.reap(driver.admin);
  assertEquals([aborted!.cid, aborted!.status], [cid, SC.ABORTED]);
  assertEquals([abort!.status, abort!.dw0], [0, 0]);
  assertEquals(driver.run({ opcode: 8, cdw10: cid << 16 }).dw0, 1);
  assertEquals(driver.run({ opcode: 8, cdw10: 0xffff_ffff }).dw0, 1);
  // The event request's place is free again.
  for (let i = 0; i < 4; i++) driver.put(driver.admin, { opcode: 12 });
  driver.ring(driver.admin);
  rig.settle();
  assertEquals(driver.reap(driver.admin), []);
  // What is with the storage cannot be taken back.
  const pair = rig.io();
  disk.slow = true;
  const prp1 = driver.page();
  const compares = [1, 2].map(() =>
    driver.put(pair, { opcode: 5, nsid: 1, prp1 })
  );
  driver.ring(pair);
  rig.settle();
  assertEquals(driver.run({ opcode: 8, cdw10: 1 | compares[0]! << 16 }).dw0, 1);
  assertEquals(driver.run({ opcode: 8, cdw10: 1 | compares[1]! << 16 }).dw0, 0);
  assertEquals(driver.reap(pair).map((c) => [c.cid, c.status]), [[
    compares[1],
    SC.ABORTED,
  ]]);
  disk.finish();
  rig.settle();
  assertEquals(driver.reap(pair).map((c) => c.status), [0]);
});

Deno.test("Abort leaves an event request alone while its completion has no room", () => {
  using rig = new Rig({ disabled: true });
  const { driver } = rig;
  driver.enable(2);
  const cid = driver.put(driver.admin, { opcode: 12 });
  driver.ring(driver.admin);
  rig.settle();
  // The only entry of the completion queue is the Abort command's own.
  const abort = driver.run({ opcode: 8, cdw10: cid << 16 });
  assertEquals([abort.status, abort.dw0], [0, 1]);
  assertEquals(driver.reap(driver.admin), []);
  assertEquals(rig.device.inFlight().length, 1);
});

Deno.test("the resize command changes storage and explains itself", () => {
  using rig = new Rig({ disks: { 1: 65536, 2: 65536 } });
  const run = (...args: string[]) =>
    textOf(rig.device.commands.resize, ...args);
  assertEquals(run("2", "128K"), "namespace 2 has 128K, on ram disk");
  assertEquals(run().split("\n").length, 2);
  assertThrows(() => run("2", "64K"), Error, "say 64K --shrink");
  assertEquals(
    run("2", "--shrink", "64K"),
    "namespace 2 has 64K, on ram disk",
  );
  for (
    const args of [["1M"], ["3", "1M"], ["x", "1M"], ["1", "1001"], [
      "1",
      "lots",
    ], ["1", "1M", "2"]]
  ) {
    assertThrows(() => run(...args), Error, "Cannot resize");
  }
});

Deno.test("NvmeController.counters has those of the storage too", () => {
  using rig = new Rig();
  const pair = rig.io();
  rig.driver.run({ opcode: 0, nsid: 1 }, pair);
  const counters = rig.device.counters();
  assertEquals(counters["ns1.submitted"], 1);
  assertEquals([counters.flushes, counters.adminCommands], [1, 2]);
});
