import { assertEquals } from "@std/assert";
import { WriteOrder } from "../../src/pci/posted_writes.ts";
import { CountedWrites } from "../../src/testing/mod.ts";

Deno.test("WriteOrder keeps what was found until the writes before it are carried out, and no longer", () => {
  const posted = new CountedWrites();
  let again = 0;
  const order = new WriteOrder(posted, () => again++);
  assertEquals([order.admit(), order.waiting, again], [true, false, 0]);
  posted.sent = 3;
  assertEquals([order.admit(), order.waiting, again], [false, true, 1]);
  posted.done = 2;
  posted.sent = 9;
  assertEquals([order.admit(), again], [false, 2]);
  posted.done = 3;
  assertEquals([order.admit(), order.waiting], [true, false]);
  assertEquals(order.admit(), false, "what is found now comes behind all nine");
  order.forget();
  assertEquals(order.waiting, false);
});
