import { assertEquals } from "@std/assert";
import { Errno } from "../../src/core/errno.ts";
import { ArrayMemory } from "../../src/memory/array_memory.ts";
import { DmaMemory } from "../../src/memory/dma_memory.ts";
import { Access } from "../../src/memory/guest_memory.ts";
import { MappedWindow } from "../../src/memory/mapped_window.ts";
import { sharedMappings } from "../resources.ts";

for (const kind of ["array", "dma"] as const) {
  Deno.test(`createScratch makes memory for lists that no guest reaches (${kind})`, () => {
    const before = sharedMappings();
    const memory = kind === "array" ? new ArrayMemory([]) : new DmaMemory();
    const scratch = memory.createScratch(5000);
    assertEquals(scratch.bytes.length, 5000);
    const list = memory.createScatterGather(1);
    assertEquals(scratch.append(3, list), 0);
    assertEquals([list.count, list.lengthBytes], [1, 3]);
    assertEquals(scratch.append(3, list), -Errno.E2BIG);
    memory.scatter(list, Uint8Array.of(1, 2, 3), 3);
    assertEquals(scratch.bytes.subarray(0, 4), Uint8Array.of(1, 2, 3, 0));
    scratch.bytes[1] = 9;
    const out = new Uint8Array(3);
    assertEquals(memory.gather(list, out, 3), 3);
    assertEquals(out, Uint8Array.of(1, 9, 3));
    // No address leads there, and it stays when the guest's memory goes.
    assertEquals(memory.window(0, 1, Access.READ), null);
    memory.unmapAll();
    assertEquals(memory.gather(list, out, 3), 3);
    if (memory instanceof DmaMemory) memory.close();
    assertEquals(sharedMappings(), before);
  });
}

Deno.test("MappedWindow loads and stores words atomically, from its own start", () => {
  const buffer = new ArrayBuffer(32);
  const window = new MappedWindow(buffer, 8, 16);
  window.storeU32(4, 0xdead_beef);
  assertEquals(new DataView(buffer).getUint32(12, true), 0xdead_beef);
  assertEquals(window.loadU32(4), 0xdead_beef);
  assertEquals(window.loadU32(0), 0);
});
