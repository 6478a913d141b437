import { assert, assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import { decodePlainData, encodePlainData } from "../../src/core/plain_data.ts";

const numbers = fc.oneof(fc.double(), fc.integer(), fc.constant(-0));
const units = fc.array(fc.integer({ min: 0, max: 0xffff }))
  .map((codes) => String.fromCharCode(...codes));
const typed = fc.oneof(
  fc.int8Array(),
  fc.uint8Array(),
  fc.uint8ClampedArray(),
  fc.int16Array(),
  fc.uint16Array(),
  fc.int32Array(),
  fc.uint32Array(),
  fc.float32Array(),
  fc.float64Array(),
  fc.bigInt64Array(),
  fc.bigUint64Array(),
  fc.uint8Array().map((bytes) => new DataView(bytes.slice().buffer)),
  fc.uint8Array().map((bytes) => bytes.slice().buffer),
  // A view of a part of its buffer.
  fc.uint8Array({ minLength: 3 }).map((bytes) => bytes.subarray(1, -1)),
);
const { value: plain } = fc.letrec((tie) => ({
  value: fc.oneof(
    { depthSize: "small" },
    fc.constantFrom(null, undefined, true, false),
    numbers,
    fc.bigInt(),
    units,
    typed,
    fc.array(tie("value")),
    fc.dictionary(fc.oneof(units, fc.constant("__proto__")), tie("value"), {
      noNullPrototype: true,
    }),
  ),
}));

Deno.test("decodePlainData gives what encodePlainData was given", () => {
  fc.assert(fc.property(plain, (value) => {
    const copy = decodePlainData(encodePlainData(value));
    assertEquals(copy, value);
    assertEquals(copy, structuredClone(value), "as between threads");
  }));
});

Deno.test("decodePlainData gives numbers to the last bit", () => {
  fc.assert(fc.property(numbers, (value) => {
    assert(Object.is(decodePlainData(encodePlainData(value)), value));
  }));
});

Deno.test("decodePlainData shares no memory with the bytes", () => {
  const bytes = encodePlainData([new Uint8Array([1, 2]), "text"]);
  const value = decodePlainData(bytes);
  bytes.fill(0xff);
  assertEquals(value, [new Uint8Array([1, 2]), "text"]);
});

Deno.test("decodePlainData reads bytes that begin anywhere", () => {
  fc.assert(fc.property(fc.nat(9), plain, (offset, value) => {
    const bytes = encodePlainData(value);
    const moved = new Uint8Array(offset + bytes.length + 1);
    moved.set(bytes, offset);
    const view = moved.subarray(offset, offset + bytes.length);
    assertEquals(decodePlainData(view), value);
  }));
});

Deno.test("decodePlainData refuses what was cut off or goes on", () => {
  fc.assert(fc.property(plain, fc.nat(), (value, at) => {
    const bytes = encodePlainData(value);
    const cut = bytes.subarray(0, at % bytes.length);
    assertThrows(() => decodePlainData(cut), Error, "Cannot read plain data");
    const longer = new Uint8Array(bytes.length + 1);
    longer.set(bytes);
    assertThrows(() => decodePlainData(longer), Error, "are a value");
  }));
});

Deno.test("decodePlainData reads any bytes or throws", () => {
  fc.assert(fc.property(fc.uint8Array({ maxLength: 64 }), (bytes) => {
    try {
      decodePlainData(bytes);
    } catch (error) {
      assert(error instanceof Error);
    }
  }));
});

Deno.test("encodePlainData tells what is no plain data, and where", () => {
  const cyclic: unknown[] = [];
  cyclic.push(cyclic);
  const cases: [unknown, string][] = [
    [() => {}, "it is a function"],
    [{ a: [1, { run: () => {} }] }, "a.1.run is a function"],
    [[Symbol("s")], "0 is a symbol"],
    [{ when: new Date() }, "when is a Date"],
    [new Map(), "it is a Map"],
    [new SharedArrayBuffer(1), "it is a SharedArrayBuffer"],
    [cyclic, "is nested too deep"],
  ];
  for (const [value, message] of cases) {
    assertThrows(() => encodePlainData(value), TypeError, message);
  }
});
