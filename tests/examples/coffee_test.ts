import { model } from "../../examples/coffee.ts";
import { fakeContext } from "../../src/testing/mod.ts";

Deno.test("coffee answers", { permissions: "none" }, () => {
  const device = model.create(fakeContext(), null);
  if (device.readBar(0, 0, 4) !== 0xc0ffee) throw new Error("no coffee");
});
