import { assertEquals } from "@std/assert";
import { BlockOp } from "../../../src/backend/block/contract.ts";
import { Errno } from "../../../src/core/errno.ts";
import { F } from "../../../src/testing/virtio_defs.ts";
import {
  BF,
  header,
  pattern,
  ranges,
  Rig,
  S,
  T,
  UNTOUCHED,
} from "./harness.ts";

const OK = (data: Uint8Array) => ({
  status: S.OK,
  data,
  written: data.length + 1,
});
const DONE = { status: S.OK, data: new Uint8Array(0), written: 1 };
const IOERR = { ...DONE, status: S.IOERR };
const UNSUPP = { ...DONE, status: S.UNSUPP };
/** A failed read: nothing was written from the start on. */
const READ_FAILED = (lengthBytes: number, status: number = S.IOERR) => ({
  status,
  data: new Uint8Array(lengthBytes).fill(UNTOUCHED),
  written: 0,
});

Deno.test("VirtioBlk reads", () => {
  using rig = new Rig();
  rig.backend.bytes.set(pattern(4096), 1024);
  assertEquals(rig.read(2, 4096), OK(pattern(4096)));
  assertEquals(rig.backend.seen, [{
    op: BlockOp.READ,
    offset: 1024,
    lengthBytes: 4096,
    durable: false,
    mayUnmap: false,
  }]);
  assertEquals(rig.counter("reads"), 1);
  assertEquals(rig.counter("readBytes"), 4096);
});

Deno.test("VirtioBlk writes", () => {
  using rig = new Rig();
  assertEquals(rig.write(5, pattern(1024)), DONE);
  assertEquals(rig.backend.bytes.slice(2560, 3584), pattern(1024));
  assertEquals(rig.counter("writes"), 1);
  assertEquals(rig.counter("writtenBytes"), 1024);
});

Deno.test("VirtioBlk takes requests cut into descriptors anywhere", () => {
  using rig = new Rig();
  const every = (total: number, step: number) =>
    new Array(Math.floor(total / step)).fill(step);
  const cuts = [
    [16, 512],
    [1, 3, 4, 7, 2, 511],
    [8, 8, 1023],
    [17, 15],
    [520],
    every(1040, 40),
  ];
  for (const [seed, lengths] of cuts.entries()) {
    const data = pattern(1024, seed);
    assertEquals(rig.write(8, data, { readable: lengths }), DONE);
    assertEquals(rig.backend.bytes.slice(4096, 5120), data);
    assertEquals(rig.read(8, 1024, { writable: lengths }), OK(data));
    assertEquals(
      rig.read(8, 1024, { readable: lengths, writable: [1024] }),
      OK(data),
    );
  }
});

Deno.test("VirtioBlk takes requests in indirect tables", () => {
  using rig = new Rig({ features: [F.RING_INDIRECT_DESC] });
  const queue = rig.queues[0]!;
  // As drivers lay it out by hand: one descriptor of the ring, a table of three.
  const table = rig.ram.alloc(48);
  const head = rig.ram.alloc(16);
  const data = rig.ram.alloc(513);
  rig.ram.write(head, header(T.IN, 1));
  rig.backend.bytes.set(pattern(512), 512);
  queue.ring.writeRawAt(table, head, 16, 1, 1);
  queue.ring.writeRawAt(table + 16, data, 512, 3, 2);
  queue.ring.writeRawAt(table + 32, data + 512, 1, 2, 0);
  queue.ring.writeRaw(0, table, 48, 4, 0);
  queue.ring.makeAvailable(0);
  rig.flush();
  rig.backend.finishAll();
  rig.loop.settle();
  assertEquals(queue.ring.deviceUsedIdx, 1);
  assertEquals(queue.ring.usedLengthAt(0), 513);
  assertEquals(rig.ram.at(data, 513), Uint8Array.of(...pattern(512), S.OK));
});

Deno.test("VirtioBlk refuses ranges outside the disk, exactly", () => {
  using rig = new Rig();
  const sectors = 2048n;
  for (
    const sector of [
      sectors,
      sectors + 1n,
      2n ** 31n,
      2n ** 32n,
      2n ** 44n - 1n,
      2n ** 44n,
      2n ** 55n - 1n,
      2n ** 55n,
      2n ** 63n,
      2n ** 64n - 1n,
    ]
  ) {
    assertEquals(rig.read(sector, 512), READ_FAILED(512));
    assertEquals(rig.write(sector, pattern(512)), IOERR);
  }
  assertEquals(rig.read(2047, 1024), READ_FAILED(1024));
  assertEquals(rig.write(2047, pattern(1024)), IOERR);
  assertEquals(rig.read(2047, 512).status, S.OK);
  assertEquals(rig.backend.seen.length, 1);
  assertEquals(rig.counter("errors"), 22);
});

Deno.test("VirtioBlk addresses disks as large as there can be", () => {
  const sizeBytes = 2 ** 53 - 4096;
  using rig = new Rig({ info: { sizeBytes } });
  const last = BigInt(sizeBytes) / 512n - 1n;
  assertEquals(rig.read(last, 512).status, S.OK);
  assertEquals(rig.backend.seen[0]!.offset, sizeBytes - 512);
  assertEquals(rig.read(last, 1024).status, S.IOERR);
  assertEquals(rig.read(last + 1n, 512).status, S.IOERR);
  const capacity = rig.driver.readConfigBytes(0, 8);
  assertEquals(new DataView(capacity.buffer).getBigUint64(0, true), last + 1n);
});

Deno.test("VirtioBlk refuses lengths that are no sectors", () => {
  using rig = new Rig();
  for (const length of [1, 511, 513, 1000]) {
    assertEquals(rig.read(0, length), READ_FAILED(length));
    assertEquals(rig.write(0, pattern(length)), IOERR);
  }
  assertEquals(rig.backend.seen, []);
});

Deno.test("VirtioBlk refuses what is not aligned to the logical block", () => {
  using rig = new Rig({ info: { logicalBlockBytes: 4096 } });
  assertEquals(rig.read(0, 512), READ_FAILED(512));
  assertEquals(rig.read(1, 4096), READ_FAILED(4096));
  assertEquals(rig.write(4, pattern(4096)), IOERR);
  assertEquals(
    rig.ranged(T.WRITE_ZEROES, ranges({ sector: 8, count: 7 })),
    IOERR,
  );
  assertEquals(rig.backend.seen, []);
  assertEquals(rig.write(8, pattern(4096)), DONE);
});

Deno.test("VirtioBlk does empty requests inside the disk without the back end", () => {
  using rig = new Rig();
  assertEquals(rig.read(0, 0), DONE);
  assertEquals(rig.write(2048, new Uint8Array(0)), DONE);
  assertEquals(rig.read(2049, 0), IOERR);
  assertEquals(
    rig.ranged(T.DISCARD, ranges({ sector: 3, count: 0 })),
    DONE,
  );
  assertEquals(rig.backend.seen, []);
});

Deno.test("VirtioBlk refuses transfers that are longer than the back end takes", () => {
  using rig = new Rig({ info: { maxTransferBytes: 8192 } });
  assertEquals(rig.read(0, 8192).status, S.OK);
  assertEquals(rig.read(0, 8704), READ_FAILED(8704));
  assertEquals(rig.write(0, pattern(8704)), IOERR);
});

Deno.test("VirtioBlk flushes, whatever else is in the request", () => {
  using rig = new Rig();
  assertEquals(rig.request(header(T.FLUSH, 0xffffffffffffffffn), 1), DONE);
  assertEquals(
    rig.request(header(T.FLUSH), 3, { readable: [3] }).status,
    S.OK,
  );
  assertEquals(rig.backend.seen.map(({ op }) => op), [
    BlockOp.FLUSH,
    BlockOp.FLUSH,
  ]);
  assertEquals(rig.counter("flushes"), 2);
});

Deno.test("VirtioBlk tells its serial number, padded with NULs", () => {
  using rig = new Rig();
  const id = new Uint8Array(20);
  id.set(new TextEncoder().encode("serial-7"));
  assertEquals(rig.request(header(T.GET_ID), 21), OK(id));
  assertEquals(
    rig.request(header(T.GET_ID), 21, { writable: [3, 17] }),
    OK(id),
  );
  assertEquals(rig.request(header(T.GET_ID), 6), OK(id.slice(0, 5)));
  // More room than the string needs: what lies between it and the status is not written.
  const roomy = rig.request(header(T.GET_ID), 31);
  assertEquals(roomy.written, 20);
  assertEquals(roomy.status, S.OK);
  assertEquals(roomy.data.slice(0, 20), id);
  assertEquals(roomy.data.slice(20), new Uint8Array(10).fill(UNTOUCHED));
  assertEquals(rig.backend.seen, []);
});

Deno.test("VirtioBlk tells a serial number of 20 characters without a NUL", () => {
  using rig = new Rig({ disk: { serial: "12345678901234567890" } });
  assertEquals(
    rig.request(header(T.GET_ID), 21).data,
    new TextEncoder().encode("12345678901234567890"),
  );
});

Deno.test("VirtioBlk does not know other types", () => {
  using rig = new Rig();
  for (const type of [2, 3, 5, 10, 14, 15, 16, 0x8000_0000, 0xffff_ffff]) {
    assertEquals(rig.request(header(type), 1), UNSUPP);
    assertEquals(
      rig.request(header(type), 513),
      READ_FAILED(512, S.UNSUPP),
    );
  }
  assertEquals(rig.backend.seen, []);
  assertEquals(rig.counter("unsupported"), 18);
});

Deno.test("VirtioBlk discards ranges one after the other", () => {
  using rig = new Rig();
  rig.backend.bytes.fill(1);
  const reply = rig.ranged(
    T.DISCARD,
    ranges(
      { sector: 8, count: 8 },
      { sector: 9, count: 0 },
      { sector: 16, count: 1 },
    ),
  );
  assertEquals(reply, DONE);
  assertEquals(
    rig.backend.seen.map(({ op, offset, lengthBytes, durable }) => [
      op,
      offset,
      lengthBytes,
      durable,
    ]),
    [
      [BlockOp.DISCARD, 4096, 4096, false],
      [BlockOp.DISCARD, 8192, 512, false],
    ],
  );
  assertEquals(rig.backend.bytes.indexOf(0xdd), 4096);
  assertEquals(rig.counter("discards"), 1);
});

Deno.test("VirtioBlk discards ranges one after the other with a back end that is done at once", () => {
  using rig = new Rig({ immediate: true });
  const list = Array.from({ length: 32 }, (_, i) => ({ sector: i, count: 1 }));
  assertEquals(rig.ranged(T.DISCARD, ranges(...list)), DONE);
  assertEquals(rig.backend.seen.length, 32);
});

Deno.test("VirtioBlk stops at the range that fails", () => {
  for (const immediate of [true, false]) {
    using rig = new Rig({ immediate });
    rig.backend.results.push(0, -Errno.EIO);
    const list = ranges(
      { sector: 0, count: 1 },
      { sector: 1, count: 1 },
      { sector: 2, count: 1 },
    );
    assertEquals(rig.ranged(T.DISCARD, list), IOERR);
    assertEquals(rig.backend.seen.length, 2);
  }
});

Deno.test("VirtioBlk writes zeroes, with leave to unmap or without", () => {
  using rig = new Rig();
  rig.backend.bytes.fill(1);
  const list = ranges(
    { sector: 1, count: 2, flags: 1 },
    { sector: 4, count: 1 },
  );
  assertEquals(rig.ranged(T.WRITE_ZEROES, list), DONE);
  assertEquals(
    rig.backend.seen.map(({ op, offset, lengthBytes, mayUnmap }) => [
      op,
      offset,
      lengthBytes,
      mayUnmap,
    ]),
    [
      [BlockOp.WRITE_ZEROES, 512, 1024, true],
      [BlockOp.WRITE_ZEROES, 2048, 512, false],
    ],
  );
  assertEquals(rig.counter("writeZeroes"), 1);
});

Deno.test("VirtioBlk checks every range before it serves one", () => {
  using rig = new Rig();
  const good = { sector: 0, count: 8 };
  const tooMany = Array.from({ length: 33 }, () => good);
  const cases: [number, Uint8Array, unknown][] = [
    [T.DISCARD, ranges(good, { sector: 2048, count: 1 }), IOERR],
    [T.DISCARD, ranges(good, { sector: 2n ** 64n - 1n, count: 1 }), IOERR],
    [T.DISCARD, ranges({ sector: 0, count: 0xffff_ffff }), IOERR],
    [T.DISCARD, ranges(...tooMany), IOERR],
    [T.DISCARD, new Uint8Array(0), IOERR],
    [T.DISCARD, ranges(good).slice(0, 15), IOERR],
    [T.DISCARD, new Uint8Array(17), IOERR],
    [T.DISCARD, ranges(good, { ...good, flags: 1 }), UNSUPP],
    [T.DISCARD, ranges({ ...good, flags: 2 }), UNSUPP],
    [T.WRITE_ZEROES, ranges({ ...good, flags: 2 }), UNSUPP],
    [T.WRITE_ZEROES, ranges({ ...good, flags: 0x8000_0001 }), UNSUPP],
    [T.WRITE_ZEROES, ranges(good, { sector: 2047, count: 2 }), IOERR],
  ];
  for (const [type, list, reply] of cases) {
    assertEquals(rig.ranged(type, list), reply);
  }
  assertEquals(rig.backend.seen, []);
});

Deno.test("VirtioBlk refuses ranges longer than it says, however large the disk", () => {
  using rig = new Rig({ info: { sizeBytes: 2 ** 45 } });
  const max = rig.driver.readConfig(36, 4);
  assertEquals(max, 0x20_0000);
  const list = (count: number) => ranges({ sector: 2 ** 33, count });
  assertEquals(rig.ranged(T.DISCARD, list(max + 1)), IOERR);
  assertEquals(rig.backend.seen, []);
  rig.backend.results.push(0);
  assertEquals(rig.ranged(T.DISCARD, list(max)), DONE);
  assertEquals(rig.backend.seen[0]!.offset, 2 ** 42);
  assertEquals(rig.backend.seen[0]!.lengthBytes, 2 ** 30);
});

Deno.test("VirtioBlk takes ranges only where they were negotiated", () => {
  using rig = new Rig({ features: [BF.FLUSH] });
  const list = ranges({ sector: 0, count: 8 });
  assertEquals(rig.ranged(T.DISCARD, list), UNSUPP);
  assertEquals(rig.ranged(T.WRITE_ZEROES, list), UNSUPP);
  rig.bringUp([BF.WRITE_ZEROES]);
  assertEquals(rig.ranged(T.DISCARD, list), UNSUPP);
  assertEquals(rig.ranged(T.WRITE_ZEROES, list), DONE);
  assertEquals(rig.backend.seen.length, 1);
});

Deno.test("VirtioBlk fails every kind of write on a read-only disk", () => {
  using rig = new Rig({ info: { readonly: true } });
  assertEquals(rig.write(0, pattern(512)), IOERR);
  assertEquals(rig.write(0, new Uint8Array(0)), IOERR);
  const list = ranges({ sector: 0, count: 8 });
  // Neither is offered.
  assertEquals(rig.ranged(T.DISCARD, list), UNSUPP);
  assertEquals(rig.ranged(T.WRITE_ZEROES, list), UNSUPP);
  assertEquals(rig.read(0, 512).status, S.OK);
  assertEquals(rig.request(header(T.FLUSH), 1), DONE);
  assertEquals(rig.backend.seen.length, 2);
});

Deno.test("VirtioBlk passes on that the storage failed", () => {
  for (const immediate of [true, false]) {
    using rig = new Rig({ immediate });
    const { results } = rig.backend;
    results.push(-Errno.EIO, -Errno.ENOSPC, -Errno.EOPNOTSUPP, -Errno.EIO);
    assertEquals(rig.read(0, 512), READ_FAILED(512));
    assertEquals(rig.write(0, pattern(512)), IOERR);
    assertEquals(
      rig.ranged(T.DISCARD, ranges({ sector: 0, count: 1 })),
      UNSUPP,
    );
    assertEquals(rig.request(header(T.FLUSH), 1), IOERR);
    assertEquals(rig.read(0, 512).status, S.OK);
    assertEquals(rig.counter("errors"), 3);
    assertEquals(rig.needsReset, false);
  }
});

for (
  const [name, readableBytes, writableBytes] of [
    ["no room for the status", 16, 0],
    ["no room for the status behind data", 528, 0],
    ["half a header", 15, 1],
    ["no header", 0, 513],
  ] as const
) {
  Deno.test(`VirtioBlk fails on a request with ${name}, after those before it`, () => {
    using rig = new Rig();
    const first = rig.queueWrite(0, pattern(512));
    const immediate = rig.queue(header(T.GET_ID), 21);
    const bytes = new Uint8Array(readableBytes);
    rig.queue(bytes, writableBytes);
    rig.queueWrite(1, pattern(512));
    rig.flush();
    assertEquals(rig.needsReset, true);
    assertEquals(rig.counter("failures"), 1);
    assertEquals(rig.interrupts(0), 1);
    assertEquals(rig.take(immediate).status, S.OK);
    // The write is with the back end and comes to its end there, unseen by the driver.
    assertEquals(rig.backend.finishAll(), 1);
    rig.loop.settle();
    assertEquals(rig.takeHeads(), []);
    assertEquals(rig.backend.bytes.slice(0, 512), pattern(512));
    assertEquals(rig.reply(first, 0).status, S.OK);
    rig.bringUp();
    assertEquals(rig.write(0, pattern(512)), DONE);
  });
}
