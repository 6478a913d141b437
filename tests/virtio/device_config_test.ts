import { assertEquals } from "@std/assert";
import { fakeContext } from "../../src/testing/fake_context.ts";
import { DeviceConfig } from "../../src/virtio/session/registers.ts";
import { EchoDevice } from "./echo_device.ts";

/** A structure of the bytes 0, 1, … 6: neither its length nor its end is even. */
function config() {
  const transport = {
    interrupt() {},
    configChanged() {},
    fail() {},
  };
  const device = new EchoDevice(fakeContext(), transport, [8], 7);
  return { device, config: new DeviceConfig(device) };
}

Deno.test("DeviceConfig reads what there is, and 0 beyond it", () => {
  const { config: it } = config();
  assertEquals(it.read(0, 4), 0x03020100);
  assertEquals(it.read(3, 4), 0x06050403);
  assertEquals(it.read(4, 4), 0x00060504);
  assertEquals(it.read(6, 2), 6);
  assertEquals([it.read(7, 1), it.read(8, 4), it.read(0xffc, 4)], [0, 0, 0]);
});

Deno.test("DeviceConfig writes only what lies inside", () => {
  const { config: it, device } = config();
  it.write(5, 2, 0xbbaa);
  it.write(6, 2, 0xffff);
  it.write(4, 4, 0xffff_ffff);
  it.write(7, 1, 0xff);
  assertEquals([...device.config], [0, 1, 2, 3, 4, 0xaa, 0xbb]);
});

Deno.test("DeviceConfig counts reads that saw a change, not changes", () => {
  const { config: it } = config();
  it.read(0, 4);
  assertEquals(it.generation, 0);
  for (let i = 0; i < 256; i++) it.markChanged();
  assertEquals(it.generation, 0);
  it.read(0, 4);
  it.read(4, 1);
  assertEquals(it.generation, 1);
  for (let i = 0; i < 255; i++) {
    it.markChanged();
    it.read(0, 1);
  }
  assertEquals(it.generation, 0, "8 bits");
});

Deno.test("DeviceConfig goes on where it was saved, an unseen change included", () => {
  const { config: from } = config();
  from.markChanged();
  from.read(0, 1);
  from.markChanged();
  assertEquals(from.save(), { configGeneration: 1, configDirty: true });
  const { config: to } = config();
  to.load(from.save());
  to.read(0, 1);
  assertEquals(to.save(), { configGeneration: 2, configDirty: false });
});
