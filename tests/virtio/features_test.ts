import { assert, assertEquals } from "@std/assert";
import { Features, VIRTIO_F } from "../../src/virtio/features.ts";

Deno.test("Features.of takes bit numbers up to 63", () => {
  const set = Features.of(0, 31, 32, 63);
  assertEquals([set.word(0), set.word(1)], [0x8000_0001, 0x8000_0001]);
  assertEquals([set.word(2), set.word(3)], [0, 0]);
  for (const bit of [0, 31, 32, 63]) assert(set.has(bit));
  for (const bit of [1, 30, 33, 62]) assert(!set.has(bit));
  assertEquals(set.toString(), "0x8000000180000001");
});

Deno.test("Features.union and isSubsetOf work on both words", () => {
  const low = Features.of(31);
  const high = Features.of(VIRTIO_F.VERSION_1, 63);
  const both = low.union(high);
  assert(low.isSubsetOf(both) && high.isSubsetOf(both));
  assert(!both.isSubsetOf(low) && !both.isSubsetOf(high));
  assert(Features.of().isSubsetOf(low));
});
