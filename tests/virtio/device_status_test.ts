import { assert, assertEquals } from "@std/assert";
import { DeviceStatus } from "../../src/virtio/session/registers.ts";

// Bits by the standard, section 2.1.
const DRIVER = 2;
const DRIVER_OK = 4;
const FEATURES_OK = 8;
const NEEDS_RESET = 64;
const FAILED = 128;

const yes = () => true;
const no = () => false;

Deno.test("DeviceStatus sets bits, clears none, and tells which are new", () => {
  const status = new DeviceStatus();
  assertEquals(status.write(1, no), 1);
  assertEquals(status.write(DRIVER, no), DRIVER);
  assertEquals(status.value, 3);
  assertEquals(status.write(3, no), 0);
  assertEquals(status.write(3 | FEATURES_OK, yes), FEATURES_OK);
  assert(status.negotiated && !status.running);
  assertEquals(status.write(15, yes), DRIVER_OK);
  assert(status.running && !status.halted);
});

Deno.test("DeviceStatus lets DRIVER_OK in only after FEATURES_OK, and that only when the features are good", () => {
  const status = new DeviceStatus();
  assertEquals(status.write(3 | DRIVER_OK, yes), 3);
  assertEquals(status.write(15, no), 0);
  assert(!status.negotiated && !status.running);
  assertEquals(status.write(15, yes), FEATURES_OK | DRIVER_OK);
  assert(status.negotiated && status.running);
});

Deno.test("DeviceStatus asks for the features once, when they are chosen", () => {
  const status = new DeviceStatus();
  let asked = 0;
  const ask = () => ++asked > 0;
  status.write(3, ask);
  assertEquals(asked, 0);
  status.write(3 | FEATURES_OK, ask);
  status.write(15, ask);
  assertEquals(asked, 1);
});

Deno.test("DeviceStatus halts when either side gives up, until it is reset", () => {
  for (const bit of [NEEDS_RESET, FAILED]) {
    const status = new DeviceStatus();
    status.write(15, yes);
    if (bit === FAILED) status.write(15 | FAILED, yes);
    else status.requireReset();
    assertEquals(status.value, 15 | bit);
    assert(status.halted && !status.running && status.negotiated);
    status.reset();
    assert(!status.halted && !status.negotiated);
    status.load(15 | bit);
    assert(status.halted && !status.running);
  }
});

Deno.test("DeviceStatus leaves NEEDS_RESET, and what is beyond a byte, to the device", () => {
  const status = new DeviceStatus();
  assertEquals(status.write(0x300 | NEEDS_RESET | DRIVER, yes), DRIVER);
  assertEquals(status.value, DRIVER);
  status.write(15, yes);
  status.requireReset();
  // A driver that writes what it has read does not change anything.
  assertEquals(status.write(status.value, yes), 0);
  assert(status.halted);
});
