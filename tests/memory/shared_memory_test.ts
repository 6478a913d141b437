import { assertEquals } from "@std/assert";
import { createMemfd } from "../../src/os/mod.ts";
import { MemfdMemory } from "../../src/memory/shared_memory.ts";
import { openFds, sharedMappings } from "../resources.ts";

Deno.test("MemfdMemory.handOver gives its memfd, and adopt shows it under the views there are", () => {
  const [fds, mappings] = [openFds(), sharedMappings()];
  const old = new MemfdMemory("old", 0x2000);
  old.bytes[0x1fff] = 5;
  const fd = old.handOver()!;
  assertEquals(sharedMappings(), mappings);
  assertEquals(openFds(), fds + 1);

  const next = new MemfdMemory("next", 0x2000);
  const { bytes } = next;
  bytes[0x1fff] = 6;
  next.adopt(fd);
  assertEquals([next.fd, bytes[0x1fff]], [fd, 5]);
  assertEquals([openFds(), sharedMappings()], [fds + 1, mappings + 1]);
  next.close();
  assertEquals([openFds(), sharedMappings()], [fds, mappings]);
});

Deno.test("MemfdMemory.handOver gives nothing of memory that lies in another file", () => {
  const [fds, mappings] = [openFds(), sharedMappings()];
  using file = createMemfd("bar", 0x4000);
  const old = new MemfdMemory("area", 0x1000);
  old.bytes[0] = 5;
  old.relocate(file.number, 0x1000);
  assertEquals(old.handOver(), null);
  assertEquals([openFds(), sharedMappings()], [fds + 1, mappings]);
  using next = new MemfdMemory("area", 0x1000);
  next.bytes[0] = 6;
  next.show(file.number, 0x1000);
  assertEquals(next.bytes[0], 5);
});
