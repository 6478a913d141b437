import { assert, assertEquals } from "@std/assert";
import { measureGrowth, registers } from "../../bench/memory.ts";

Deno.test("measureGrowth sees garbage that V8 would have collected meanwhile", async () => {
  const [allocated, held] = await measureGrowth({
    name: "write",
    device: `${import.meta.dirname}/wasteful_model.ts`,
    prepare: (served) => registers(served, true),
    // More than twice what V8's new space holds unless told.
  }, { scale: 0.4 });
  assertEquals(
    [allocated!.name, held!.name],
    ["write: allocated", "write: held"],
  );
  // An array of eight words.
  assert(allocated!.value > 64, `${allocated!.value} bytes were seen`);
  assert(!allocated!.target!.met);
  assert(held!.value < 1, `${held!.value} bytes are held`);
});
