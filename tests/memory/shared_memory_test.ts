import { assertEquals } from "@std/assert";
import { createMemfd, ResourceBag } from "../../src/os/mod.ts";
import { MemfdMemory } from "../../src/memory/shared_memory.ts";
import { openFds, sharedMappings } from "../resources.ts";

Deno.test("MemfdMemory.save puts its memfd into a bag, and load shows it under the views there are", () => {
  const [fds, mappings] = [openFds(), sharedMappings()];
  using bag = ResourceBag.of();
  const old = new MemfdMemory("old", 0x2000);
  old.bytes[0x1fff] = 5;
  old.save(bag, "it");
  old.close();
  assertEquals(sharedMappings(), mappings);
  assertEquals(openFds(), fds + 1);

  for (let attempt = 0; attempt < 2; attempt++) {
    const next = new MemfdMemory("next", 0x2000);
    const { bytes } = next;
    bytes[0x1fff] = 6;
    next.load(bag, "it");
    assertEquals(bytes[0x1fff], 5);
    assertEquals([openFds(), sharedMappings()], [fds + 2, mappings + 1]);
    next.close();
    assertEquals([openFds(), sharedMappings()], [fds + 1, mappings]);
  }
});

Deno.test("MemfdMemory.save puts nothing of memory that lies in another file", () => {
  using file = createMemfd("bar", 0x4000);
  using bag = ResourceBag.of();
  using old = new MemfdMemory("area", 0x1000);
  old.bytes[0] = 5;
  old.relocate(file.number, 0x1000);
  old.save(bag, "it");
  assertEquals(bag.has("it"), false);
  using next = new MemfdMemory("area", 0x1000);
  next.bytes[0] = 6;
  next.load(bag, "it");
  next.show(file.number, 0x1000);
  assertEquals(next.bytes[0], 5);
});
