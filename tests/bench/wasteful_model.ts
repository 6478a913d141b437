/** A device that leaves something behind at every register write: to see whether that is noticed. */

import type { DeviceContext, DeviceModel, PciDevice } from "../../mod.ts";
import { heapCounters } from "../../bench/watched.ts";

const WORDS = 8;

function create(_context: DeviceContext): PciDevice {
  let garbage: number[] = [];
  return {
    spec: {
      vendorId: 0x1234,
      deviceId: 0x0002,
      revision: 1,
      classCode: 0x088000,
      subsystemVendorId: 0x1234,
      subsystemId: 2,
      intx: true,
      bars: [{ index: 4, sizeBytes: 4096, kind: "memory32" }],
      capabilities: [],
    },
    readBar: () => garbage.length,
    writeBar: () => {
      garbage = new Array<number>(WORDS);
    },
    reset: () => {},
    counters: () => heapCounters(),
    close: () => {},
  };
}

/** The model. */
export const model: DeviceModel = {
  name: "wasteful",
  help: "allocates at every write",
  create,
};
