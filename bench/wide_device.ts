/**
 * A device that is as large as clients may ask for: registers of 2 MiB and 2048 vectors.
 *
 * @module
 */

import type { DeviceModel } from "../mod.ts";

/** The BAR of the registers. */
export const WIDE_BAR = 0;
/** Number of vectors it has. */
export const WIDE_VECTORS = 2048;

const REGISTERS_BYTES = 2 << 20;
const TABLE_BAR = 1;
const TABLE_ENTRY_BYTES = 16;

/** The model: `--device bench/wide_device.ts`. */
export const model: DeviceModel = {
  name: "wide",
  help: "registers of 2 MiB and 2048 vectors",
  create: () => {
    const registers = new Uint8Array(REGISTERS_BYTES);
    return {
      spec: {
        vendorId: 0x1234,
        deviceId: 0x0002,
        revision: 1,
        classCode: 0x088000,
        subsystemVendorId: 0x1234,
        subsystemId: 2,
        intx: false,
        bars: [
          { index: WIDE_BAR, sizeBytes: REGISTERS_BYTES, kind: "memory32" },
          { index: TABLE_BAR, sizeBytes: 0x1_0000, kind: "memory32" },
        ],
        capabilities: [{
          kind: "msix",
          vectors: WIDE_VECTORS,
          tableBar: TABLE_BAR,
          tableOffset: 0,
          pbaBar: TABLE_BAR,
          pbaOffset: WIDE_VECTORS * TABLE_ENTRY_BYTES,
        }],
      },
      readBar: (_bar, offset) => registers[offset]!,
      writeBar: (_bar, offset, _width, value) => {
        registers[offset] = value;
      },
      reset: () => {},
      close: () => {},
    };
  },
};
