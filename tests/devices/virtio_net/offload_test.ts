import { assertEquals, assertThrows } from "@std/assert";
import { F } from "../../../src/testing/virtio_defs.ts";
import {
  ALL_OFFLOADS,
  frame,
  HDR_BYTES,
  type HeadedFrame,
  NF,
  OF,
  Rig,
} from "./harness.ts";

const CSUM = 1;
const TSO4 = 2;
const TSO6 = 4;
const ECN = 8;
const USO4 = 32;
const USO6 = 64;

const NEEDS_CSUM = 1;
const DATA_VALID = 2;
const TCPV4 = 1;

const EVERYTHING = [...Object.values(NF), ...Object.values(OF)]
  .filter((bit) => bit !== OF.MQ);

/** A header's first ten bytes; the last two are num_buffers. */
function fields(
  flags: number,
  gsoType = 0,
  hdrLen = 0,
  gsoSize = 0,
  csumStart = 0,
  csumOffset = 0,
): number[] {
  const words = [hdrLen, gsoSize, csumStart, csumOffset];
  return [flags, gsoType, ...words.flatMap((n) => [n & 255, n >> 8])];
}

const TSO_FIELDS = fields(NEEDS_CSUM, TCPV4, 54, 1448, 34, 16);

function headed(header: readonly number[], lengthBytes: number): HeadedFrame {
  return { header: [...header, 0xad, 0xde], frame: frame(lengthBytes) };
}

function queue(rig: Rig, header: readonly number[], body: Uint8Array): void {
  rig.queueTx(Uint8Array.from([...header, 0, 0, ...body]));
}

function transmit(rig: Rig, header: readonly number[], body: Uint8Array) {
  queue(rig, header, body);
  rig.tx.flush();
  rig.settle();
}

function offered(rig: Rig): number[] {
  const all = Object.values(OF) as number[];
  return [...rig.driver.offeredFeatures()].filter((bit) => all.includes(bit));
}

function setOffloads(rig: Rig, ...features: number[]): number {
  const bytes = new Array(8).fill(0);
  for (const bit of features) bytes[bit >> 3] |= 1 << (bit & 7);
  return rig.command([5, 0, ...bytes]);
}

const COALESCING = [OF.VQ_NOTF_COAL, OF.NOTF_COAL];

Deno.test("VirtioNet offers the offloads that the back end has", () => {
  using all = new Rig({ offloads: ALL_OFFLOADS });
  assertEquals(
    offered(all),
    Object.values(OF).filter((bit) => bit !== OF.MQ).toSorted((a, b) => a - b),
  );
  using some = new Rig({ offloads: { take: CSUM | TSO4 | USO4, give: 0 } });
  assertEquals(offered(some), [OF.CSUM, OF.HOST_TSO4, ...COALESCING]);
  using other = new Rig({ offloads: { take: 0, give: CSUM | USO6 } });
  assertEquals(offered(other), [
    OF.GUEST_CSUM,
    OF.CTRL_GUEST_OFFLOADS,
    ...COALESCING,
    OF.GUEST_USO6,
  ]);
});

Deno.test("VirtioNet offers no offloads where they are off, or where there is no header", () => {
  using off = new Rig({ offloads: ALL_OFFLOADS, offersOffloads: false });
  assertEquals(offered(off), COALESCING);
  using bare = new Rig({ offloads: ALL_OFFLOADS, vnetHeader: false });
  assertEquals(offered(bare), COALESCING);
});

Deno.test("VirtioNet tells the back end what the driver can take, at each start", () => {
  using rig = new Rig({ offloads: ALL_OFFLOADS, features: EVERYTHING });
  assertEquals(rig.backend.givenOffloads, 0x7f);
  rig.bringUp([OF.GUEST_CSUM, OF.GUEST_TSO4, OF.GUEST_ECN]);
  assertEquals(rig.backend.givenOffloads, CSUM | TSO4 | ECN);
  rig.bringUp([]);
  assertEquals(rig.backend.givenOffloads, 0);
});

for (
  const [feature, ...needed] of [
    [OF.GUEST_TSO4, OF.GUEST_CSUM],
    [OF.GUEST_TSO6, OF.GUEST_CSUM],
    [OF.GUEST_UFO, OF.GUEST_CSUM],
    [OF.GUEST_USO4, OF.GUEST_CSUM],
    [OF.GUEST_USO6, OF.GUEST_CSUM],
    [OF.GUEST_ECN, OF.GUEST_TSO4, OF.GUEST_CSUM],
    [OF.HOST_TSO4, OF.CSUM],
    [OF.HOST_TSO6, OF.CSUM],
    [OF.HOST_UFO, OF.CSUM],
    [OF.HOST_USO, OF.CSUM],
    [OF.HOST_ECN, OF.HOST_TSO6, OF.CSUM],
    [OF.NOTF_COAL, NF.CTRL_VQ],
    [OF.VQ_NOTF_COAL, NF.CTRL_VQ],
    [OF.MQ, NF.CTRL_VQ],
  ] as const
) {
  Deno.test(`VirtioNet refuses feature ${feature} without ${needed[0]}`, () => {
    using rig = new Rig({
      offloads: ALL_OFFLOADS,
      queuePairs: 2,
      bare: true,
    });
    assertThrows(
      () => rig.driver.negotiate([feature]),
      Error,
      "refused the features",
    );
    rig.driver.negotiate([feature, ...needed]);
  });
}

Deno.test("VirtioNet hands large frames on with the driver's header", () => {
  using rig = new Rig({ offloads: ALL_OFFLOADS, features: EVERYTHING });
  const body = frame(65589);
  transmit(rig, TSO_FIELDS, body);
  assertEquals(rig.backend.sent, [
    Uint8Array.from([...TSO_FIELDS, 0, 0, ...body]),
  ]);
  assertEquals(rig.counter("txGsoPackets"), 1);
  assertEquals(rig.counter("txBytes"), 65589);
  assertEquals(rig.reclaim(), 1);
});

Deno.test("VirtioNet hands on nothing of a header that has no meaning", () => {
  using rig = new Rig({ offloads: ALL_OFFLOADS, features: EVERYTHING });
  const body = frame(60);
  rig.queueTx(
    Uint8Array.from([0xfe, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, ...body]),
  );
  rig.queueTx(
    Uint8Array.from([...fields(0xff, 0, 9, 9, 34, 16), 0xff, 0xff]),
    body,
  );
  rig.tx.flush();
  rig.settle();
  assertEquals(rig.backend.sent, [
    Uint8Array.from([...new Array(12).fill(0), ...body]),
    Uint8Array.from([...fields(1, 0, 0, 0, 34, 16), 0, 0, ...body]),
  ]);
});

Deno.test("VirtioNet takes only the offloads that were negotiated", () => {
  using rig = new Rig({
    offloads: ALL_OFFLOADS,
    features: [OF.CSUM, OF.HOST_TSO4],
  });
  const body = frame(5000);
  transmit(rig, TSO_FIELDS, body);
  assertEquals(rig.counter("txPackets"), 1);
  for (
    const [type, start, offset] of [
      [4, 54, 16],
      [3, 34, 6],
      [5, 34, 6],
      [0x81, 34, 16],
      [0x7f, 34, 16],
    ] as const
  ) {
    transmit(rig, fields(1, type, 54, 1400, start, offset), body);
  }
  assertEquals(rig.counter("txDroppedBadHeader"), 5);
  // A large frame that is not to be cut.
  transmit(rig, fields(1, 0, 0, 0, 34, 16), body);
  assertEquals(rig.counter("txDroppedOversized"), 1);
  // A frame that is longer than any.
  transmit(rig, TSO_FIELDS, frame(65594));
  assertEquals(rig.counter("txDroppedOversized"), 2);
  assertEquals(rig.backend.sent.length, 1);
  assertEquals(rig.reclaim(), 8);
  assertEquals(rig.needsReset, false);
});

Deno.test("VirtioNet uses the header as it was when it was checked", () => {
  using rig = new Rig({ offloads: ALL_OFFLOADS, features: EVERYTHING });
  const at = rig.ram.alloc(HDR_BYTES + 60, 1);
  rig.ram.write(at, Uint8Array.from([...fields(0), 0, 0, ...frame(60)]));
  rig.tx.ring.begin(1);
  rig.tx.ring.readable(at, HDR_BYTES + 60);
  rig.tx.ring.end();
  // The back end is called after the check and reads what it was handed only then.
  rig.backend.onSend = () => rig.ram.at(at, HDR_BYTES).fill(0xff);
  rig.tx.flush();
  rig.settle();
  assertEquals([...rig.backend.sent[0]!.slice(0, HDR_BYTES)], [
    ...fields(0),
    0,
    0,
  ]);
});

Deno.test("VirtioNet drops a frame in more pieces than the kernel takes with a header", () => {
  using rig = new Rig({
    offloads: ALL_OFFLOADS,
    features: EVERYTHING,
    queueSize: 1024,
  });
  const at = rig.ram.alloc(1024 * 4, 1);
  rig.ram.at(at, 4096).fill(0);
  for (const pieces of [1024, 1013]) {
    // Apart from each other, so that none are joined; the first has the header.
    rig.tx.ring.begin(pieces);
    rig.tx.ring.readable(at, 13);
    for (let i = 1; i < pieces; i++) {
      rig.tx.ring.readable(at + i * 4 - (i & 1), 1);
    }
    rig.tx.ring.end();
    rig.tx.flush();
    rig.settle();
    rig.reclaim();
  }
  assertEquals(rig.counter("txErrors"), 1);
  assertEquals(rig.counter("txPackets"), 1);
  assertEquals(rig.needsReset, false);
});

for (const mergeable of [true, false]) {
  Deno.test(`VirtioNet gives large frames with the back end's header (mergeable ${mergeable})`, () => {
    using rig = new Rig({
      offloads: ALL_OFFLOADS,
      features: mergeable
        ? EVERYTHING
        : EVERYTHING.filter((bit) => bit !== NF.MRG_RXBUF),
    });
    const size = mergeable ? 4096 : 65601;
    rig.postRx(...new Array(mergeable ? 40 : 3).fill(size));
    const large = headed(TSO_FIELDS, 65589);
    const small = headed(fields(DATA_VALID), 60);
    const partial = headed(fields(NEEDS_CSUM, 0, 0, 0, 34, 16), 1514);
    rig.arrive(large, small, partial);
    const buffers = mergeable ? 17 : 1;
    assertEquals(rig.received(), [
      {
        header: [...TSO_FIELDS, buffers, 0],
        frame: large.frame,
        lengths: mergeable ? [...new Array(16).fill(4096), 65] : [65601],
      },
      {
        header: [...fields(DATA_VALID), 1, 0],
        frame: small.frame,
        lengths: [72],
      },
      {
        header: [...fields(NEEDS_CSUM, 0, 0, 0, 34, 16), 1, 0],
        frame: partial.frame,
        lengths: [1526],
      },
    ]);
    assertEquals(rig.counter("rxGsoPackets"), 1);
    assertEquals(rig.counter("rxPackets"), 3);
  });
}

Deno.test("VirtioNet gives what is left of the buffers of one frame to the next, over many rounds", () => {
  using rig = new Rig({
    offloads: ALL_OFFLOADS,
    features: [...EVERYTHING, F.RING_RESET],
  });
  const lengths = [60, 5000, 1514, 20_000, 54, 65589, 3000];
  for (let round = 0; round < 15; round++) {
    rig.postRx(...Array.from({ length: 120 }, (_, i) => 1526 + (i % 7) * 300));
    const frames = lengths.map((n) => headed(TSO_FIELDS, n + round));
    // The longest there can be stays so.
    frames[5] = headed(TSO_FIELDS, 65589);
    rig.arrive(...frames);
    const got = rig.received();
    assertEquals(got.map((it) => it.frame), frames.map((it) => it.frame));
    rig.driver.resetQueue(rig.rx);
    rig.driver.reenableQueue(rig.rx);
  }
});

Deno.test("VirtioNet waits for room for the largest frame, or half a ring of buffers", () => {
  using rig = new Rig({
    offloads: ALL_OFFLOADS,
    features: EVERYTHING,
    queueSize: 64,
  });
  rig.postRx(...new Array(30).fill(2100));
  rig.arrive(headed(TSO_FIELDS, 60_000));
  assertEquals(rig.received(), []);
  assertEquals(rig.backend.receiving, false);
  // 32 buffers: enough for this one.
  rig.postRx(2100, 2100);
  assertEquals(rig.received().length, 1);
  rig.postRx(...new Array(29).fill(1526));
  rig.arrive(headed(TSO_FIELDS, 60_000), headed(fields(0), 60));
  assertEquals(rig.received().length, 1);
  assertEquals(rig.counter("rxDroppedNoRoom"), 1);
});

Deno.test("VirtioNet drops frames with offloads that are off", () => {
  using rig = new Rig({
    offloads: ALL_OFFLOADS,
    features: [...Object.values(NF), OF.GUEST_CSUM],
  });
  rig.postRx(...new Array(8).fill(2048));
  rig.arrive(
    headed(TSO_FIELDS, 1400),
    headed(fields(0, TCPV4, 54, 1448, 34, 16), 1400),
    headed(fields(NEEDS_CSUM, 0, 0, 0, 34, 16), 60),
  );
  assertEquals(rig.received().map((it) => it.frame.length), [60]);
  assertEquals(rig.counter("rxDroppedBadHeader"), 2);
  rig.bringUp(Object.values(NF));
  rig.postRx(...new Array(8).fill(2048));
  rig.arrive(
    headed(fields(NEEDS_CSUM, 0, 0, 0, 34, 16), 60),
    headed(fields(DATA_VALID), 61),
  );
  assertEquals(rig.received().map((it) => [it.frame.length, it.header[0]]), [
    [61, 0],
  ]);
  assertEquals(rig.counter("rxDroppedBadHeader"), 3);
});

Deno.test("VirtioNet drops a frame that is too long and not to be cut", () => {
  using rig = new Rig({ offloads: ALL_OFFLOADS, features: EVERYTHING });
  rig.postRx(...new Array(40).fill(4096));
  rig.arrive(
    headed(fields(0), 1519),
    headed(TSO_FIELDS, 65594),
    headed(fields(0), 1518),
  );
  assertEquals(rig.received().map((it) => it.frame.length), [1518]);
  assertEquals(rig.counter("rxDroppedOversized"), 2);
});

Deno.test("VirtioNet filters large frames by what is behind the header", () => {
  using rig = new Rig({ offloads: ALL_OFFLOADS, features: EVERYTHING });
  rig.postRx(...new Array(60).fill(4096));
  assertEquals(rig.command([0, 0, 0]), 0);
  rig.arrive(
    {
      header: [...TSO_FIELDS, 0, 0],
      frame: frame(9000, 1, [2, 0, 0, 0, 0, 9]),
    },
    headed(TSO_FIELDS, 9001),
  );
  assertEquals(rig.received().map((it) => it.frame), [frame(9001)]);
  assertEquals(rig.counter("rxDroppedFilter"), 1);
});

Deno.test("control command GUEST_OFFLOADS_SET takes what was negotiated", () => {
  using rig = new Rig({
    offloads: ALL_OFFLOADS,
    features: EVERYTHING.filter((bit) => bit !== OF.GUEST_UFO),
  });
  assertEquals(setOffloads(rig), 0);
  assertEquals(rig.backend.givenOffloads, 0);
  assertEquals(
    setOffloads(rig, OF.GUEST_CSUM, OF.GUEST_TSO6, OF.GUEST_USO4),
    0,
  );
  assertEquals(rig.backend.givenOffloads, CSUM | TSO6 | USO4);
  // Nothing can do without the checksum.
  assertEquals(setOffloads(rig, OF.GUEST_TSO6), 0);
  assertEquals(rig.backend.givenOffloads, 0);
  assertEquals(setOffloads(rig, OF.GUEST_CSUM), 0);
  for (const bit of [OF.GUEST_UFO, OF.CSUM, OF.HOST_TSO4, 6, 40, 63]) {
    assertEquals(setOffloads(rig, OF.GUEST_CSUM, bit), 1, `${bit}`);
  }
  assertEquals(rig.backend.givenOffloads, CSUM);
});

Deno.test("control command GUEST_OFFLOADS_SET refuses what is malformed or cannot be", () => {
  using rig = new Rig({ offloads: ALL_OFFLOADS, features: EVERYTHING });
  const zeros = new Array(8).fill(0);
  assertEquals(rig.command([5, 0, ...zeros.slice(1)]), 1);
  assertEquals(rig.command([5, 0, ...zeros, 0]), 1);
  assertEquals(rig.command([5, 0]), 1);
  assertEquals(rig.command([5, 1, ...zeros]), 1);
  rig.backend.result = -5;
  assertEquals(setOffloads(rig), 1);
  assertEquals(rig.backend.givenOffloads, 0x7f);
  rig.backend.result = 0;
  // What was on is on still.
  rig.postRx(...new Array(20).fill(4096));
  rig.arrive(headed(TSO_FIELDS, 9000));
  assertEquals(rig.received().length, 1);
  rig.bringUp(EVERYTHING.filter((bit) => bit !== OF.CTRL_GUEST_OFFLOADS));
  assertEquals(setOffloads(rig), 1);
});

Deno.test("control command GUEST_OFFLOADS_SET drops what was cut for later", () => {
  using rig = new Rig({ offloads: ALL_OFFLOADS, features: EVERYTHING });
  rig.postRx(...new Array(40).fill(4096));
  assertEquals(setOffloads(rig, OF.GUEST_CSUM), 0);
  rig.arrive(
    headed(TSO_FIELDS, 30_000),
    headed(TSO_FIELDS, 1000),
    headed(fields(0), 60),
  );
  assertEquals(rig.received().map((it) => it.frame.length), [60]);
  assertEquals(setOffloads(rig, OF.GUEST_CSUM, OF.GUEST_TSO4), 0);
  rig.arrive(headed(TSO_FIELDS, 30_000));
  assertEquals(rig.received().map((it) => it.frame.length), [30_000]);
});
