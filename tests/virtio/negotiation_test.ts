import { assert, assertEquals } from "@std/assert";
import { fakeContext } from "../../src/testing/fake_context.ts";
import { Features } from "../../src/virtio/features.ts";
import { Negotiation } from "../../src/virtio/session/registers.ts";
import { DEPENDENT_FEATURE, ECHO_FEATURE, EchoDevice } from "./echo_device.ts";

const VERSION_1 = 32;
const OFFERED = Features.of(ECHO_FEATURE, DEPENDENT_FEATURE, 29, VERSION_1);

function negotiation() {
  const context = fakeContext();
  const transport = {
    interrupt() {},
    configChanged() {},
    fail() {},
  };
  const device = new EchoDevice(context, transport);
  return {
    log: context.log,
    negotiation: new Negotiation(device, OFFERED, context.log),
  };
}

Deno.test("Negotiation takes the words one by one, each as often as the driver likes", () => {
  const { negotiation: it } = negotiation();
  assert(!it.check(), "VERSION_1 must be accepted");
  it.accept(1, 1);
  assert(it.check());
  it.accept(0, 0xffff_ffff);
  assert(!it.check(), "not all of that is offered");
  it.accept(0, 1 << 29);
  assert(it.check());
  assertEquals(`${it.accepted}`, "0x0000000120000000");
  it.accept(1, 0);
  assert(!it.check());
});

Deno.test("Negotiation refuses features that are not there, those above 63 for good", () => {
  const { negotiation: it, log } = negotiation();
  it.accept(1, 3);
  assert(!it.check(), "bit 33 is not offered");
  it.accept(1, 1);
  it.accept(2, 0);
  it.accept(3, 0);
  assert(it.check(), "nothing was accepted above 63");
  it.accept(2, 1);
  it.accept(2, 0);
  assert(!it.check());
  it.reset();
  it.accept(1, 1);
  assert(it.check());
  assertEquals(log.at("debug"), [
    "Refused FEATURES_OK: the driver accepts 0x0000000300000000 of 0x0000000120000028",
    "Refused FEATURES_OK: the driver accepts 0x0000000100000000 of 0x0000000120000028",
  ]);
});

Deno.test("Negotiation lets the device model have the last word", () => {
  const { negotiation: it } = negotiation();
  it.accept(1, 1);
  it.accept(0, 1 << DEPENDENT_FEATURE);
  assert(!it.check());
  it.accept(0, (1 << DEPENDENT_FEATURE) | (1 << ECHO_FEATURE));
  assert(it.check());
});

Deno.test("Negotiation goes on where it was saved", () => {
  const { negotiation: from } = negotiation();
  from.accept(0, 0x8000_0001);
  from.accept(1, 0x8000_0000);
  from.accept(9, 1);
  const state = from.save();
  assertEquals(state, {
    accepted: [0x8000_0001, 0x8000_0000],
    acceptedBeyond: true,
  });
  const { negotiation: to } = negotiation();
  to.load(state);
  assertEquals([to.save(), `${to.accepted}`], [state, `${from.accepted}`]);
});
