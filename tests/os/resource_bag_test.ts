import { assert, assertEquals, assertThrows } from "@std/assert";
import {
  createEventFd,
  drainEventFd,
  ResourceBag,
  signalEventFd,
} from "../../src/os/mod.ts";
import { openFds } from "../resources.ts";

Deno.test("ResourceBag holds and gives duplicates, as often as they are taken", () => {
  const before = openFds();
  {
    using bag = ResourceBag.of();
    {
      using original = createEventFd();
      bag.at("client").put("bell", original.number);
      signalEventFd(original.number);
    }
    assert(bag.at("client").has("bell") && !bag.has("bell"));
    for (let i = 1; i <= 2; i++) {
      using taken = bag.at("client").take("bell");
      assertEquals(drainEventFd(taken.number), 2 - i);
    }
    assertThrows(
      () => bag.at("client").take("other"),
      Error,
      "Cannot go on: client.other was not handed over",
    );
    using other = createEventFd();
    bag.at("client").put("bell", other.number);
    assertEquals(openFds(), before + 2, "it takes the other's place");
  }
  assertEquals(openFds(), before);
});

Deno.test("ResourceBag travels as numbers by name", () => {
  const before = openFds();
  using original = createEventFd();
  const bag = ResourceBag.of();
  bag.put("a", original.number);
  const numbers = structuredClone(bag.release());
  assertEquals(Object.keys(numbers), ["a"]);
  bag[Symbol.dispose]();
  assertEquals(openFds(), before + 2, "what was given away stays open");
  ResourceBag.of(numbers)[Symbol.dispose]();
  assertEquals(openFds(), before + 1);
});
