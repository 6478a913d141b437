import { assert } from "@std/assert";
import { silentLog } from "../../src/core/log.ts";
import { ArrayMemory } from "../../src/memory/array_memory.ts";
import {
  type AccessWidth,
  PciFunction,
  PciInterrupts,
  type ResetReason,
} from "../../src/pci/mod.ts";
import { heapGrowthPerOperation } from "../resources.ts";
import {
  allowMastering,
  CAP,
  RecordingSink,
  sampleSpec,
  words,
} from "./sample.ts";

const OPERATIONS = 200_000;

function bytesPerOperation(operation: (i: number) => void): number {
  return heapGrowthPerOperation(OPERATIONS, (operations) => {
    for (let i = 0; i < operations; i++) operation(i);
  });
}

class Registers {
  readonly spec = sampleSpec();
  readonly values = new Uint32Array(1024);
  readBar(_bar: number, offset: number, _width: AccessWidth): number {
    return this.values[(offset >>> 2) & 1023]!;
  }
  writeBar(_bar: number, offset: number, _w: AccessWidth, value: number): void {
    this.values[(offset >>> 2) & 1023] = value;
  }
  reset(_reason: ResetReason): void {}
  close(): void {}
}

class CountingSink extends RecordingSink {
  count = 0;
  override deliver(): boolean {
    this.count++;
    return true;
  }
}

function setUp() {
  const interrupts = new PciInterrupts();
  const pci = new PciFunction(
    new Registers(),
    new ArrayMemory(),
    interrupts,
    silentLog,
  );
  allowMastering(pci);
  const sink = new CountingSink();
  interrupts.connect(sink);
  return { pci, interrupts, sink };
}

Deno.test("PciFunction.readRegion and writeRegion do not allocate", () => {
  const { pci } = setUp();
  const view = words(0x0102_0304, 0x0506_0708, 0, 0);
  const bytes = bytesPerOperation((i) => {
    // A doorbell, a register of each width, 64 bits, the MSI-X structures, mapped memory, configuration space.
    pci.writeRegion(4, 0x3000 + 4 * (i & 7), view, 0, 2);
    pci.readRegion(0, 4 * (i & 63), view, 8, 4);
    pci.writeRegion(0, 8 * (i & 63), view, 0, 8);
    pci.readRegion(0, 1, view, 8, 7);
    pci.writeRegion(1, 0x80c, view, 0, 4);
    pci.readRegion(1, 0xf00, view, 8, 8);
    pci.writeRegion(4, 0x4010, view, 0, 8);
    pci.readRegion(4, 0x4010, view, 8, 8);
    pci.readRegion(7, 4, view, 8, 4);
    pci.writeRegion(7, 0x3c, view, 0, 1);
    pci.readRegion(3, 0, view, 0, 4);
  });
  assert(bytes < 1, `${bytes} bytes per operation`);
});

Deno.test("PciInterrupts.raise and setLevel do not allocate", () => {
  const { pci, interrupts, sink } = setUp();
  const level = bytesPerOperation((i) => interrupts.setLevel((i & 1) === 0));
  assert(level < 1, `${level} bytes per operation`);
  pci.writeRegion(7, CAP.MSIX + 2, words(0x8000), 0, 2);
  sink.count = 0;
  const raised = bytesPerOperation((i) => interrupts.raise(i & 63));
  assert(raised < 1, `${raised} bytes per operation`);
  assert(sink.count > OPERATIONS);
});
