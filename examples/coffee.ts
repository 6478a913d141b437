/** A PCI device that answers 0xc0ffee and raises its interrupt line when told to. */

import type { DeviceContext, DeviceModel, PciDevice } from "../mod.ts";

function create(context: DeviceContext): PciDevice {
  return {
    spec: {
      vendorId: 0x1234,
      deviceId: 0x0001,
      revision: 1,
      classCode: 0x088000,
      subsystemVendorId: 0x1234,
      subsystemId: 1,
      intx: true,
      bars: [{ index: 0, sizeBytes: 4096, kind: "memory32" }],
      capabilities: [{ kind: "pm" }],
    },
    readBar: (_bar, offset, _width) => offset === 0 ? 0xc0ffee : 0,
    writeBar: (_bar, _offset, _width, value) =>
      context.interrupts.setLevel(value !== 0),
    reset: () => context.interrupts.setLevel(false),
    close: () => {},
  };
}

/** The model: `--device ./examples/coffee.ts`. */
export const model: DeviceModel<unknown, PciDevice> = {
  name: "coffee",
  help: "answers 0xc0ffee",
  create,
};
