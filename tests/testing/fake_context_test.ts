import { assert, assertEquals, assertThrows } from "@std/assert";
import { ErrnoError } from "../../src/core/errno.ts";
import { ArrayMemory } from "../../src/memory/array_memory.ts";
import { fakeContext } from "../../src/testing/fake_context.ts";

Deno.test({
  name: "fakeContext works without any permission",
  permissions: "none",
  fn: () => {
    const context = fakeContext();
    assertEquals(context.memory.write(0, Uint8Array.of(1)), 0);
    context.interrupts.raise(3);
    context.interrupts.setLevel(true);
    context.interrupts.setLevel(true);
    context.interrupts.setLevel(false);
    assertEquals(context.interrupts.take(), [3]);
    assertEquals(context.interrupts.take(), []);
    assertEquals([context.interrupts.edges, context.interrupts.level], [
      1,
      false,
    ]);
    context.log.warn("one", { port: 2 });
    context.log.debug("two");
    assertEquals(context.log.at("warn"), ["one"]);
    assertEquals(context.log.records[0]!.properties, { port: 2 });
    assertEquals(context.createSharedMemory("page", 8192).bytes.length, 8192);
    assertThrows(
      () => context.createSharedMemory("page", 100),
      ErrnoError,
      "whole pages",
    );
  },
});

Deno.test("fakeContext takes memory and a seed", () => {
  const memory = new ArrayMemory([]);
  const one = fakeContext({ memory, seed: 5 });
  assert(one.memory === memory);
  const bytes = one.random(16);
  assertEquals(bytes.length, 16);
  assertEquals(fakeContext({ seed: 5 }).random(16), bytes);
  assert(fakeContext({ seed: 6 }).random(16).join() !== bytes.join());
  assert(new Set(bytes).size > 8);
});
