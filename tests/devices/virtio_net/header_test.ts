import { assert, assertEquals } from "@std/assert";
import fc from "fast-check";
import {
  HeaderKind,
  sanitizeHeader,
} from "../../../devices/virtio_net/queue/header.ts";

const CSUM = 1;
const TSO4 = 2;
const TSO6 = 4;
const ECN = 8;
const UFO = 16;
const USO4 = 32;
const ALL = 0x7f;

/** flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers */
function header(...fields: number[]): Uint8Array {
  const view = new DataView(new ArrayBuffer(12));
  view.setUint8(0, fields[0] ?? 0);
  view.setUint8(1, fields[1] ?? 0);
  for (let i = 0; i < 5; i++) {
    view.setUint16(2 + i * 2, fields[2 + i] ?? 0, true);
  }
  return new Uint8Array(view.buffer);
}

for (
  const [name, fields, frameBytes, offloads, kind] of [
    ["an empty header", [], 60, 0, 0],
    ["a checksum to complete", [1, 0, 0, 0, 34, 16], 60, CSUM, 0],
    ["a checksum without CSUM", [1, 0, 0, 0, 34, 16], 60, ALL & ~CSUM, -1],
    ["a checksum at the very end", [1, 0, 0, 0, 34, 24], 60, CSUM, 0],
    ["a checksum behind the end", [1, 0, 0, 0, 34, 25], 60, CSUM, -1],
    ["a checksum far behind", [1, 0, 0, 0, 65535, 65535], 60, CSUM, -1],
    ["a checksum of the Ethernet header", [1, 0, 0, 0, 13, 16], 60, CSUM, -1],
    ["TCP over IPv4", [1, 1, 54, 1448, 34, 16], 5000, CSUM | TSO4, 1],
    [
      "TCP over IPv4 with IPv6 only",
      [1, 1, 54, 1448, 34, 16],
      5000,
      CSUM | TSO6,
      -1,
    ],
    ["TCP over IPv6", [1, 4, 74, 1428, 54, 16], 5000, CSUM | TSO6, 1],
    [
      "TCP over IPv6 with IPv4 only",
      [1, 4, 74, 1428, 54, 16],
      5000,
      CSUM | TSO4,
      -1,
    ],
    ["UDP in fragments", [1, 3, 42, 1472, 34, 6], 5000, CSUM | UFO, 1],
    [
      "UDP in fragments without UFO",
      [1, 3, 42, 1472, 34, 6],
      5000,
      ALL & ~UFO,
      -1,
    ],
    ["UDP in datagrams", [1, 5, 42, 1472, 34, 6], 5000, CSUM | USO4, 1],
    [
      "UDP in datagrams without USO",
      [1, 5, 42, 1472, 34, 6],
      5000,
      CSUM | UFO,
      -1,
    ],
    ["ECN", [1, 0x81, 54, 1448, 34, 16], 5000, CSUM | TSO4 | ECN, 1],
    ["ECN without ECN", [1, 0x81, 54, 1448, 34, 16], 5000, CSUM | TSO4, -1],
    ["ECN of UDP", [1, 0x83, 54, 1448, 34, 16], 5000, ALL, -1],
    ["ECN of nothing", [1, 0x80, 54, 1448, 34, 16], 5000, ALL, -1],
    ["a type that is none", [1, 2, 54, 1448, 34, 16], 5000, ALL, -1],
    ["another type that is none", [1, 6, 54, 1448, 34, 16], 5000, ALL, -1],
    ["segments without a checksum", [0, 1, 54, 1448, 34, 16], 5000, ALL, -1],
    ["segments of no size", [1, 1, 54, 0, 34, 16], 5000, ALL, -1],
    ["headers as long as the frame", [1, 1, 5000, 1448, 34, 16], 5000, ALL, 1],
    [
      "headers longer than the frame",
      [1, 1, 5001, 1448, 34, 16],
      5000,
      ALL,
      -1,
    ],
    ["no header length", [1, 1, 0, 1448, 34, 16], 5000, ALL, 1],
  ] as const
) {
  Deno.test(`sanitizeHeader finds ${name} to be ${kind}`, () => {
    const bytes = header(...fields);
    assertEquals(sanitizeHeader(bytes, frameBytes, offloads, false), kind);
    if (kind === HeaderKind.BAD) return;
    assertEquals(bytes, header(...fields));
  });
}

Deno.test("sanitizeHeader clears what has no meaning", () => {
  const plain = header(0xfe, 0, 54, 1448, 34, 16, 7);
  assertEquals(sanitizeHeader(plain, 60, ALL, false), HeaderKind.PLAIN);
  assertEquals(plain, header());
  const csum = header(0xff, 0, 54, 1448, 34, 16, 7);
  assertEquals(sanitizeHeader(csum, 60, ALL, false), HeaderKind.PLAIN);
  assertEquals(csum, header(1, 0, 0, 0, 34, 16));
});

Deno.test("sanitizeHeader passes DATA_VALID on to who may have it", () => {
  for (
    const [offloads, keeps, flags] of [
      [CSUM, true, 2],
      [CSUM, false, 0],
      [0, true, 0],
    ] as const
  ) {
    const bytes = header(0xfe);
    assertEquals(sanitizeHeader(bytes, 60, offloads, keeps), HeaderKind.PLAIN);
    assertEquals(bytes, header(flags));
  }
});

Deno.test("sanitizeHeader lets nothing through that the kernel could trip over", () => {
  const bytes = fc.uint8Array({ minLength: 12, maxLength: 12 });
  fc.assert(
    fc.property(
      bytes,
      fc.integer({ min: 14, max: 65593 }),
      fc.integer({ min: 0, max: ALL }),
      (random, frameBytes, offloads) => {
        // Most random types are none.
        const got = random.slice();
        got[1] = [0, 1, 3, 4, 5, 0x81, 0x84, random[1]!][random[1]! & 7]!;
        got[0] = random[0]! & 3;
        const kind = sanitizeHeader(got, frameBytes, offloads, true);
        if (kind === HeaderKind.BAD) return;
        const view = new DataView(got.buffer);
        const le16 = (at: number) => view.getUint16(at, true);
        assertEquals(le16(10), 0);
        if (got[0]! !== 0) assert((offloads & CSUM) !== 0);
        if ((got[0]! & 1) !== 0) {
          assert(le16(6) >= 14 && le16(6) + le16(8) + 2 <= frameBytes);
        } else assertEquals([le16(6), le16(8)], [0, 0]);
        if (kind === HeaderKind.GSO) {
          assert((got[0]! & 1) !== 0 && le16(4) > 0 && le16(2) <= frameBytes);
        } else assertEquals([got[1], le16(2), le16(4)], [0, 0, 0]);
        // What is good stays as it is when it is looked at again.
        const again = got.slice();
        assertEquals(sanitizeHeader(again, frameBytes, offloads, true), kind);
        assertEquals(again, got);
      },
    ),
    { numRuns: 2000 },
  );
});
