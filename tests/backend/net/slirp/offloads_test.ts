import { assert, assertEquals } from "@std/assert";
import { NetOffload } from "../../../../src/backend/net/contract.ts";
import {
  completeChecksum,
  joinSegments,
  PAYLOAD_AT,
  writeHeader,
} from "../../../../src/backend/net/slirp/offloads.ts";
import {
  ACK,
  be16,
  bytes,
  checksum,
  ethernet,
  FIN,
  GUEST_MAC,
  ip,
  PSH,
  RST,
  SYN,
  tcp,
  type TcpFields,
  udp,
} from "../frames.ts";

const HEADER_BYTES = 12;
const MSS = 1460;
const ROUTER = "10.0.2.2";
const GUEST = "10.0.2.15";
const ROUTER_MAC = Uint8Array.of(0x52, 0x55, 10, 0, 2, 2);

function payload(length: number, first = 0): Uint8Array<ArrayBuffer> {
  return Uint8Array.from({ length }, (_, i) => (first + i) * 7 + (i >>> 8));
}

function segment(
  fields: Partial<TcpFields> & { readonly data: Uint8Array },
): Uint8Array<ArrayBuffer> {
  const all = {
    srcPort: 80,
    dstPort: 1234,
    seq: 0xffff_ff00,
    ack: 77,
    flags: ACK,
    ...fields,
  };
  return ethernet(GUEST_MAC, 0x0800, tcp(ROUTER, GUEST, all), ROUTER_MAC);
}

/** Header of a segment as the driver sees it: `struct virtio_net_hdr_v1` by its fields. */
function headerOf(all: Uint8Array) {
  const view = new DataView(all.buffer, all.byteOffset);
  return {
    flags: all[0],
    gsoType: all[1],
    headerLength: view.getUint16(2, true),
    gsoSize: view.getUint16(4, true),
    csumStart: view.getUint16(6, true),
    csumOffset: view.getUint16(8, true),
  };
}

/** Puts frames together as the network does; what comes out, each with its header. */
function joined(frames: readonly Uint8Array[]): Uint8Array<ArrayBuffer>[] {
  const view = new DataView(new ArrayBuffer(256 * 1024));
  const all = new Uint8Array(view.buffer);
  const out: { at: number; length: number }[] = [];
  // At an odd place, as in a stream.
  let tail = 1;
  for (const frame of frames) {
    const length = HEADER_BYTES + frame.length;
    writeHeader(view, tail, NetOffload.CSUM | NetOffload.TSO4);
    all.set(frame, tail + HEADER_BYTES);
    const last = out.at(-1);
    if (last !== undefined && joinSegments(view, last.at, tail, length)) {
      all.copyWithin(last.at + last.length, tail + PAYLOAD_AT, tail + length);
      last.length += length - PAYLOAD_AT;
      tail = last.at + last.length;
    } else {
      out.push({ at: tail, length });
      tail += length;
    }
  }
  return out.map(({ at, length }) => all.slice(at, at + length));
}

function completed(all: Uint8Array<ArrayBuffer>): Uint8Array {
  completeChecksum(new DataView(all.buffer), 0, all.length);
  return all.subarray(HEADER_BYTES);
}

/** A frame whose checksum is left to us, behind the header that says so. */
function incomplete(
  frame: Uint8Array<ArrayBuffer>,
  protocol: number,
  offset: number,
): Uint8Array<ArrayBuffer> {
  const length = frame.length - 34;
  const pseudo = bytes(
    frame.subarray(26, 34),
    [0, protocol],
    be16(length),
  );
  const without = frame.slice();
  without.set(be16(checksum(pseudo) ^ 0xffff), 34 + offset);
  const header = new Uint8Array(HEADER_BYTES);
  header[0] = 1;
  header[6] = 34;
  header[8] = offset;
  return bytes(header, without);
}

Deno.test("completeChecksum completes what the driver left, at every length", () => {
  for (const length of [0, 1, 2, 3, 4, 5, 6, 7, 1460, 1461, 65_000, 65_001]) {
    const frame = segment({ data: payload(length) });
    assertEquals(completed(incomplete(frame, 6, 16)), frame, `${length}`);
  }
  const datagram = ethernet(
    ROUTER_MAC,
    0x0800,
    udp(GUEST, 5000, ROUTER, 53, payload(77)),
  );
  assertEquals(completed(incomplete(datagram, 17, 6)), datagram);
});

Deno.test("completeChecksum never says that a datagram has none", () => {
  const sum = (data: Uint8Array) =>
    checksum(
      bytes(
        ip(GUEST),
        ip(ROUTER),
        [0, 17],
        be16(10),
        be16(5000),
        be16(53),
        be16(10),
        data,
      ),
    );
  const data = bytes(be16(sum(Uint8Array.of(0, 0))));
  assertEquals(sum(data), 0);
  const frame = ethernet(
    ROUTER_MAC,
    0x0800,
    udp(GUEST, 5000, ROUTER, 53, data),
  );
  const whole = completed(incomplete(frame, 17, 6));
  assertEquals([...whole.subarray(40, 42)], [0xff, 0xff]);
});

Deno.test("completeChecksum leaves alone what is complete, and what has no room for one", () => {
  const frame = segment({ data: payload(100) });
  const plain = bytes(new Uint8Array(HEADER_BYTES), frame);
  assertEquals(completed(plain.slice()), frame);
  const far = plain.slice();
  far.set([1, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
  assertEquals(completed(far), frame);
});

Deno.test("joinSegments makes one of segments that follow each other, as a driver takes it", () => {
  const data = payload(3 * MSS + 100);
  const parts = [0, 1, 2, 3].map((i) =>
    segment({
      // The sequence number wraps.
      seq: (0xffff_ff00 + i * MSS) >>> 0,
      flags: i === 3 ? ACK | PSH : ACK,
      data: data.subarray(i * MSS, (i + 1) * MSS),
    })
  );
  const [all, ...rest] = joined(parts);
  assertEquals(rest, []);
  assertEquals(headerOf(all!), {
    flags: 1,
    gsoType: 1,
    headerLength: 54,
    gsoSize: MSS,
    csumStart: 34,
    csumOffset: 16,
  });
  // The same as if it had been one from the beginning, once its checksum is complete.
  assertEquals(completed(all!), segment({ flags: ACK | PSH, data }));
});

Deno.test("joinSegments never makes more than an IP packet holds", () => {
  const count = 50;
  const parts = Array.from({ length: count }, (_, i) =>
    segment({
      seq: (0xffff_ff00 + i * MSS) >>> 0,
      data: payload(MSS, i),
    }));
  const all = joined(parts);
  assertEquals(all.length, 2);
  // 44 segments and 40 bytes are 64,280; one more would be 65,740.
  assertEquals(all.map((each) => each.length - PAYLOAD_AT), [
    44 * MSS,
    6 * MSS,
  ]);
  assertEquals(headerOf(all[1]!).gsoSize, MSS);
});

Deno.test("joinSegments leaves apart what differs in more than where it is", () => {
  const first = segment({ data: payload(MSS) });
  const seq = (0xffff_ff00 + MSS) >>> 0;
  const next = (fields: Partial<TcpFields> = {}, length = MSS) =>
    segment({ seq, data: payload(length, 1), ...fields });
  const changed = (at: number, value: number, of = next()) => {
    const frame = of.slice();
    frame[at] = value;
    return frame;
  };
  assertEquals(joined([first, next()]).length, 1, "as it is");
  const apart: Record<string, readonly [Uint8Array, Uint8Array]> = {
    "a gap": [first, next({ seq: seq + 1 })],
    "the same again": [first, first],
    "another port": [first, next({ dstPort: 1235 })],
    "another acknowledgement": [first, next({ ack: 78 })],
    "SYN": [first, next({ flags: ACK | SYN })],
    "FIN": [first, next({ flags: ACK | FIN })],
    "RST": [first, next({ flags: ACK | RST })],
    "no ACK": [first, next({ flags: 0 })],
    "after PSH": [segment({ flags: ACK | PSH, data: payload(MSS) }), next()],
    "after a SYN": [
      segment({ flags: ACK | SYN, data: payload(MSS) }),
      next(),
    ],
    "longer than the first": [first, next({}, MSS + 1)],
    "nothing in it": [first, next({}, 0)],
    "after nothing": [
      segment({ data: payload(0) }),
      next({ seq: 0xffff_ff00 }),
    ],
    "another destination address": [first, changed(0, 2)],
    "another source address": [first, changed(11, 9)],
    "no IPv4": [first, changed(13, 1)],
    "IP options": [first, changed(14, 0x46)],
    "another type of service": [first, changed(15, 8)],
    "a fragment": [first, changed(20, 0x20)],
    "another time to live": [first, changed(22, 3)],
    "UDP": [first, changed(23, 17)],
    "another source": [first, changed(29, 9)],
    "TCP options": [first, changed(46, 0x60)],
    "another window": [first, changed(48, 1)],
    "an urgent pointer": [first, changed(53, 1)],
    "a length that is not the frame's": [first, changed(17, 1)],
    "bytes behind the packet": [first, bytes(next(), 0)],
    "a first fragment": [changed(20, 0x20, first), next()],
    "a short frame": [first, first.subarray(0, 20)],
  };
  for (const [what, frames] of Object.entries(apart)) {
    const all = joined(frames);
    assertEquals(
      all.map((each) => each.subarray(HEADER_BYTES)),
      [...frames],
      what,
    );
    assert(all.every((each) => each[1] === 0), what);
  }
  const short = [
    first,
    next({}, 10),
    segment({ seq: (seq + 10) >>> 0, data: payload(10) }),
  ];
  assertEquals(joined(short).length, 2, "behind the last");
});

Deno.test("writeHeader says that checksums are right to a driver that may be told so", () => {
  const view = new DataView(new ArrayBuffer(HEADER_BYTES));
  view.setUint32(4, 1);
  writeHeader(view, 0, 0);
  assertEquals(new Uint8Array(view.buffer), new Uint8Array(HEADER_BYTES));
  writeHeader(view, 0, NetOffload.CSUM);
  assertEquals(view.getUint8(0), 2);
});
