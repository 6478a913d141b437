import { assert, assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import { ErrnoError } from "../../../../src/core/errno.ts";
import { NbdHandshake } from "../../../../src/backend/block/nbd/handshake.ts";

/** Big-endian fields: pairs of a width in bytes and a value. */
function bytes(...fields: readonly (readonly [number, number | bigint])[]) {
  return Uint8Array.from(fields.flatMap(([width, value]) => {
    const out: number[] = [];
    for (let i = width - 1; i >= 0; i--) {
      out.push(Number((BigInt(value) >> BigInt(i * 8)) & 0xffn));
    }
    return out;
  }));
}

const GREETING = bytes([8, 0x4e42444d41474943n], [8, 0x49484156454F5054n], [
  2,
  3,
]);
const reply = (option: number, type: number, data = new Uint8Array(0)) =>
  Uint8Array.from([
    ...bytes([8, 0x3e889045565a9n], [4, option], [4, type], [4, data.length]),
    ...data,
  ]);
const INFO = reply(7, 3, bytes([2, 0], [8, 1 << 20], [2, 0x6d]));
const GOOD = Uint8Array.from([
  ...GREETING,
  ...reply(8, 1),
  ...INFO,
  ...reply(7, 3, bytes([2, 3], [4, 512], [4, 4096], [4, 65536])),
  ...reply(7, 1),
]);

Deno.test("NbdHandshake sends what the protocol wants, and understands the answer", () => {
  const handshake = new NbdHandshake("ab");
  assertEquals(handshake.takeOutput(), new Uint8Array(0));
  handshake.feed(GREETING);
  assertEquals(
    handshake.takeOutput(),
    bytes([4, 3], [8, 0x49484156454F5054n], [4, 8], [4, 0]),
  );
  handshake.feed(reply(8, 1));
  assertEquals(
    handshake.takeOutput(),
    bytes(
      [8, 0x49484156454F5054n],
      [4, 7],
      [4, 10],
      [4, 2],
      [1, 0x61],
      [1, 0x62],
      [2, 1],
      [2, 3],
    ),
  );
  handshake.feed(INFO);
  assertEquals(handshake.result, null);
  handshake.feed(reply(7, 1));
  assertEquals(handshake.result, {
    structuredReplies: true,
    sizeBytes: 1 << 20,
    flags: 0x6d,
    minimumBlockBytes: 1,
    preferredBlockBytes: 0,
    maximumPayloadBytes: 32 << 20,
  });
});

Deno.test("NbdHandshake takes its bytes in pieces of any size", () => {
  fc.assert(fc.property(
    fc.array(fc.integer({ min: 1, max: 40 }), { minLength: 1 }),
    (pieces) => {
      const handshake = new NbdHandshake("");
      for (let at = 0, i = 0; at < GOOD.length; i++) {
        const length = pieces[i % pieces.length]!;
        handshake.feed(GOOD.subarray(at, at + length));
        at += length;
      }
      assertEquals(handshake.result?.sizeBytes, 1 << 20);
      assertEquals(handshake.result?.preferredBlockBytes, 4096);
    },
  ));
});

for (
  const [name, input, message] of [
    ["blocks that are no powers of two", [
      ...reply(7, 3, bytes([2, 3], [4, 513], [4, 4096], [4, 65536])),
    ], "make no sense"],
    ["a preferred block below the minimum", [
      ...reply(7, 3, bytes([2, 3], [4, 4096], [4, 512], [4, 65536])),
    ], "make no sense"],
    ["information that is cut short", [
      ...reply(7, 3, bytes([2, 0], [8, 5])),
    ], "malformed"],
    ["information without a type", [...reply(7, 3)], "malformed"],
    ["a reply to another option", [...reply(6, 1)], "malformed"],
    ["no size", [...reply(7, 1)], "does not tell the size"],
    ["too many replies", new Array(70).fill([...INFO]).flat(), "on and on"],
    ["words of its own", [
      ...reply(7, 0x8000_0002, new TextEncoder().encode("go\x1b[31m away")),
    ], 'a default export ("go [31m away")'],
    ["more than was asked for", [...INFO, ...reply(7, 1), 0], "out of turn"],
  ] as const
) {
  Deno.test(`NbdHandshake refuses a server that sends ${name}`, () => {
    const handshake = new NbdHandshake("");
    handshake.feed(GREETING);
    handshake.feed(reply(8, 1));
    assertThrows(
      () => handshake.feed(Uint8Array.from(input)),
      ErrnoError,
      message,
    );
  });
}

Deno.test("NbdHandshake survives anything", () => {
  fc.assert(
    fc.property(
      fc.array(
        fc.record({
          at: fc.nat(GOOD.length - 1),
          value: fc.nat(255),
        }),
        { minLength: 1, maxLength: 4 },
      ),
      fc.uint8Array({ maxLength: 64 }),
      (changes, tail) => {
        const input = Uint8Array.from([...GOOD, ...tail]);
        for (const { at, value } of changes) input[at] = value;
        const handshake = new NbdHandshake("");
        try {
          handshake.feed(input);
        } catch (error) {
          assert(error instanceof ErrnoError, `${error}`);
          assert(`${error}`.includes("Cannot use the NBD server"));
        }
      },
    ),
    { numRuns: 1000 },
  );
});
