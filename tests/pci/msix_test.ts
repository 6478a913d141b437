import { assertEquals } from "@std/assert";
import { MsixTable, NO_VECTOR } from "../../src/pci/mod.ts";

Deno.test("MsixTable starts zero, masked in the table, held back nowhere", () => {
  const table = new MsixTable(3);
  for (let vector = 0; vector < 3; vector++) {
    assertEquals(table.read(16 * vector, 4), 0);
    assertEquals(table.read(16 * vector + 4, 4), 0);
    assertEquals(table.read(16 * vector + 8, 4), 0);
    assertEquals(table.read(16 * vector + 12, 4), 1);
    assertEquals(table.isMasked(vector), false);
    assertEquals(table.isPending(vector), false);
  }
});

Deno.test("MsixTable.write stores address and data, without the low address bits", () => {
  const table = new MsixTable(2);
  assertEquals(table.write(16, 4, 0xfee0_1007), NO_VECTOR);
  assertEquals(table.write(20, 4, 0x8000_0001), NO_VECTOR);
  assertEquals(table.write(24, 2, 0x4021), NO_VECTOR);
  assertEquals(table.write(26, 1, 0x77), NO_VECTOR);
  assertEquals(table.read(16, 4), 0xfee0_1004);
  assertEquals(table.read(20, 4), 0x8000_0001);
  assertEquals(table.read(24, 4), 0x0077_4021);
  assertEquals(table.read(25, 1), 0x40);
  assertEquals(table.read(0, 4), 0, "the other entry is untouched");
});

Deno.test("MsixTable.write keeps only the mask bit of vector control and tells of an unmask", () => {
  const table = new MsixTable(3);
  assertEquals(table.write(2 * 16 + 12, 4, 0xffff_ffff), NO_VECTOR);
  assertEquals(table.read(2 * 16 + 12, 4), 1);
  assertEquals(table.isMasked(2), true);
  assertEquals(table.isMasked(1), false);
  assertEquals(table.write(2 * 16 + 14, 2, 0xffff), NO_VECTOR);
  assertEquals(table.read(2 * 16 + 12, 4), 1);
  assertEquals(table.write(2 * 16 + 12, 4, 0), 2);
  assertEquals(table.read(2 * 16 + 12, 4), 0);
  assertEquals(table.isMasked(2), false);
});

Deno.test("MsixTable.setPending sets one bit of the array", () => {
  const table = new MsixTable(70);
  table.setPending(0, true);
  table.setPending(31, true);
  table.setPending(69, true);
  assertEquals(table.readPending(0, 4), 0x8000_0001);
  assertEquals(table.readPending(4, 4), 0);
  assertEquals(table.readPending(8, 1), 0x20);
  assertEquals(table.isPending(69), true);
  assertEquals(table.isPending(68), false);
  table.setPending(31, false);
  assertEquals(table.readPending(0, 4), 1);
});

Deno.test("MsixTable.reset masks the table again and forgets the rest", () => {
  const table = new MsixTable(2);
  table.write(0, 4, 0xfee0_0000);
  table.write(12, 4, 0);
  table.write(28, 4, 1);
  table.setPending(1, true);
  table.reset();
  assertEquals(table.read(0, 4), 0);
  assertEquals(table.read(12, 4), 1);
  assertEquals(table.isMasked(1), false);
  assertEquals(table.readPending(0, 4), 0);
});
