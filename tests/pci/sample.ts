/** A model that remembers what it was asked, and a sink that remembers what it was handed. */

import type {
  AccessWidth,
  BarSpec,
  IrqSink,
  PciDevice,
  PciFunction,
  PciSpec,
  ResetReason,
  SharedMemory,
} from "../../src/pci/mod.ts";

/** Two pages for an mmap area. */
export function twoPages(): SharedMemory {
  return { bytes: new Uint8Array(8192) };
}

/** A specification with every kind of BAR and capability. */
export function sampleSpec(overrides: Partial<PciSpec> = {}): PciSpec {
  return {
    vendorId: 0x1af4,
    deviceId: 0x1041,
    revision: 0x01,
    classCode: 0x02_0080,
    subsystemVendorId: 0x1234,
    subsystemId: 0x5678,
    intx: true,
    bars: sampleBars(),
    capabilities: [
      { kind: "pm" },
      { kind: "pcie" },
      { kind: "msi", vectors: 8 },
      {
        kind: "msix",
        vectors: 70,
        tableBar: 1,
        tableOffset: 0x800,
        pbaBar: 1,
        pbaOffset: 0xf00,
      },
      {
        kind: "vendor",
        body: Uint8Array.of(0xaa, 0xbb, 0xcc, 0xdd, 0xee),
        writable: Uint8Array.of(0, 0xff, 0x0f, 0, 0),
      },
    ],
    ...overrides,
  };
}

/** BAR 0: 32-bit; 1: MSI-X; 2: I/O; 4: 64-bit with an mmap area and doorbells. */
export function sampleBars(): BarSpec[] {
  return [
    { index: 0, sizeBytes: 0x1000, kind: "memory32" },
    { index: 1, sizeBytes: 0x1000, kind: "memory32" },
    { index: 2, sizeBytes: 0x20, kind: "io" },
    {
      index: 4,
      sizeBytes: 2 ** 34,
      kind: "memory64",
      prefetchable: true,
      mmap: [{ offset: 0x4000, memory: twoPages() }],
      doorbells: [{ offset: 0x3000, sizeBytes: 2 }],
    },
  ];
}

/** Offsets of the capabilities of {@linkcode sampleSpec}, added up by hand: 8, 60, 24, 12 and 8 bytes from 0x40. */
export const CAP = {
  PM: 0x40,
  EXP: 0x48,
  MSI: 0x84,
  MSIX: 0x9c,
  VENDOR: 0xa8,
} as const;

/** One access that a model saw. */
export interface Seen {
  readonly op: "read" | "write";
  readonly bar: number;
  readonly offset: number;
  readonly width: AccessWidth;
  readonly value?: number;
}

/** A model whose registers read as a pattern of their address. */
export class RecordingDevice implements PciDevice {
  readonly spec: PciSpec;
  readonly seen: Seen[] = [];
  readonly resets: ResetReason[] = [];
  onReset: () => void = () => {};

  constructor(spec: PciSpec = sampleSpec()) {
    this.spec = spec;
  }

  readBar(bar: number, offset: number, width: AccessWidth): number {
    this.seen.push({ op: "read", bar, offset, width });
    let value = 0;
    for (let i = width - 1; i >= 0; i--) {
      value = value * 256 + patternByte(offset + i);
    }
    return value;
  }

  writeBar(
    bar: number,
    offset: number,
    width: AccessWidth,
    value: number,
  ): void {
    this.seen.push({ op: "write", bar, offset, width, value });
  }

  reset(reason: ResetReason): void {
    this.resets.push(reason);
    this.onReset();
  }

  close(): void {}
}

/** The byte that {@linkcode RecordingDevice} reads as at an offset. */
export function patternByte(offset: number): number {
  return (offset * 7 + 0x91) & 0xff;
}

/** A sink with or without a client behind each interrupt. */
export class RecordingSink implements IrqSink {
  readonly delivered: [index: number, vector: number][] = [];
  willing = true;

  deliver(index: number, vector: number): boolean {
    if (!this.willing) return false;
    this.delivered.push([index, vector]);
    return true;
  }

  /** Interrupts that were delivered since the last call. */
  take(): [index: number, vector: number][] {
    return this.delivered.splice(0);
  }
}

/** A view with room for one register, and helpers to fill and read it. */
export function words(...values: number[]): DataView {
  const view = new DataView(new ArrayBuffer(4 * values.length));
  values.forEach((value, i) => view.setUint32(4 * i, value, true));
  return view;
}

/** Lets a function access memory and send messages, as drivers begin: Bus Master Enable, all else off. */
export function allowMastering(pci: PciFunction): void {
  const COMMAND = 4;
  const BUS_MASTER_ENABLE = 4;
  pci.writeRegion(7, COMMAND, words(BUS_MASTER_ENABLE), 0, 2);
}
