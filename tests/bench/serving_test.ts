import { assertEquals } from "@std/assert";
import { parseCounters } from "../../bench/serving.ts";

Deno.test("parseCounters reads names and values and leaves the last line aside", () => {
  const text = "virtio-blk0 reads 12\nvirtio-blk0 backend.ringEnters 3.5\nok\n";
  assertEquals(
    [...parseCounters(text)],
    [["reads", 12], ["backend.ringEnters", 3.5]],
  );
});
