import { assertEquals, assertStrictEquals, assertThrows } from "@std/assert";
import { RegisterMap } from "../../src/pci/register_map.ts";

const MAP = new RegisterMap("sample", 12, [
  ["CTRL", 4],
  ["STATUS", 2, "rw1c"],
  [null, 1],
  ["REVISION", 1, "ro"],
  ["DATA", 4, "wo"],
]);

Deno.test("RegisterMap gives offset, size, access and index of each register", () => {
  assertEquals(MAP.registers, [
    { name: "CTRL", offset: 0, sizeBytes: 4, access: "rw", index: 0 },
    { name: "STATUS", offset: 4, sizeBytes: 2, access: "rw1c", index: 1 },
    { name: "REVISION", offset: 7, sizeBytes: 1, access: "ro", index: 2 },
    { name: "DATA", offset: 8, sizeBytes: 4, access: "wo", index: 3 },
  ]);
  assertEquals(MAP.offsets, { CTRL: 0, STATUS: 4, REVISION: 7, DATA: 8 });
  assertEquals(MAP.lengthBytes, 12);
});

Deno.test("RegisterMap.at finds the register of every byte, and none in gaps and outside", () => {
  const names = Array.from({ length: 14 }, (_, i) => MAP.at(i)?.name);
  assertEquals(names, [
    ...["CTRL", "CTRL", "CTRL", "CTRL", "STATUS", "STATUS"],
    ...[undefined, "REVISION", "DATA", "DATA", "DATA", "DATA"],
    ...[undefined, undefined],
  ]);
  assertEquals(MAP.at(-1), undefined);
  assertEquals(MAP.at(1.5), undefined);
});

Deno.test("RegisterMap.at returns the same object each time", () => {
  assertStrictEquals(MAP.at(9), MAP.at(8));
});

Deno.test("RegisterMap refuses a wrong sum, a double name and an empty register", () => {
  assertThrows(
    () => new RegisterMap("m", 8, [["A", 4], ["B", 2]]),
    Error,
    "Cannot lay out m: its registers take 6 bytes, not 8",
  );
  assertThrows(
    () => new RegisterMap("m", 8, [["A", 4], ["A", 4]]),
    Error,
    "A is double",
  );
  assertThrows(
    () => new RegisterMap("m", 4, [["A", 4], ["B", 0]]),
    Error,
    "B has 0 bytes",
  );
});
