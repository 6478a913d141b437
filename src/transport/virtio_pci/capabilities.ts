/**
 * The vendor-specific capabilities that say where the structures of a virtio device are (virtio 1.3, section 4.1.4).
 *
 * @module
 */

import type { AccessWidth, VendorCapability } from "../../pci/device.ts";
import { VIRTIO_PCI_CAP } from "../../virtio/defs.ts";

/** The id, next and length bytes come before the body that a {@linkcode VendorCapability} describes. */
const PREFIX = 3;

/** Where a structure is. */
export interface StructureLocation {
  /** Which structure, a VIRTIO_PCI_CAP_CFG. */
  readonly cfgType: number;
  /** Number of the BAR. */
  readonly bar: number;
  /** Where in the BAR. */
  readonly offset: number;
  /** Length in bytes. */
  readonly lengthBytes: number;
}

function body(sizeBytes: number, at: StructureLocation): DataView<ArrayBuffer> {
  const view = new DataView(new ArrayBuffer(sizeBytes - PREFIX));
  view.setUint8(VIRTIO_PCI_CAP.CFG_TYPE - PREFIX, at.cfgType);
  view.setUint8(VIRTIO_PCI_CAP.BAR - PREFIX, at.bar);
  view.setUint32(VIRTIO_PCI_CAP.OFFSET - PREFIX, at.offset, true);
  view.setUint32(VIRTIO_PCI_CAP.LENGTH - PREFIX, at.lengthBytes, true);
  return view;
}

/** `struct virtio_pci_cap`. */
export function structureCapability(at: StructureLocation): VendorCapability {
  const view = body(VIRTIO_PCI_CAP.SIZE, at);
  return { kind: "vendor", body: new Uint8Array(view.buffer) };
}

/** `struct virtio_pci_notify_cap` (section 4.1.4.4). */
export function notifyCapability(
  at: StructureLocation,
  multiplier: number,
): VendorCapability {
  const view = body(VIRTIO_PCI_CAP.NOTIFY_SIZE, at);
  view.setUint32(VIRTIO_PCI_CAP.NOTIFY_MULT - PREFIX, multiplier, true);
  return { kind: "vendor", body: new Uint8Array(view.buffer) };
}

/** How the configuration access capability reaches registers. */
export interface RegisterAccessor {
  /** Whether the driver may reach this through the capability. */
  allows(bar: number, offset: number, width: AccessWidth): boolean;
  /** Reads a register. */
  read(bar: number, offset: number, width: AccessWidth): number;
  /** Writes a register. */
  write(bar: number, offset: number, width: AccessWidth, value: number): void;
}

const WINDOW_DATA = VIRTIO_PCI_CAP.PCI_CFG_DATA - PREFIX;

/**
 * `struct virtio_pci_cfg_cap` (section 4.1.4.9): a window of up to 4 bytes on the other structures, for firmware that
 * has no BARs mapped. An access that the section forbids reads as it last was and writes nothing.
 */
export function configAccessCapability(
  cfgType: number,
  registers: RegisterAccessor,
): VendorCapability {
  const view = body(VIRTIO_PCI_CAP.PCI_CFG_SIZE, {
    cfgType,
    bar: 0,
    offset: 0,
    lengthBytes: 0,
  });
  const writable = new Uint8Array(view.byteLength);
  writable[VIRTIO_PCI_CAP.BAR - PREFIX] = 0xff;
  writable.fill(0xff, VIRTIO_PCI_CAP.OFFSET - PREFIX);
  return {
    kind: "vendor",
    body: new Uint8Array(view.buffer),
    writable,
    onRead: (bytes, offset, lengthBytes) => {
      if (offset + lengthBytes <= WINDOW_DATA) return;
      readWindow(bytes, registers);
    },
    onWrite: (bytes, offset, lengthBytes) => {
      if (offset + lengthBytes <= WINDOW_DATA) return;
      writeWindow(bytes, registers);
    },
  };
}

/** The width of the access, or 0 when the window points at nothing that may be accessed. */
function windowWidth(
  bytes: DataView,
  registers: RegisterAccessor,
): AccessWidth | 0 {
  const length = bytes.getUint32(VIRTIO_PCI_CAP.LENGTH - PREFIX, true);
  if (length !== 1 && length !== 2 && length !== 4) return 0;
  const offset = windowOffset(bytes);
  if (offset % length !== 0) return 0;
  return registers.allows(windowBar(bytes), offset, length) ? length : 0;
}

function windowBar(bytes: DataView): number {
  return bytes.getUint8(VIRTIO_PCI_CAP.BAR - PREFIX);
}

function windowOffset(bytes: DataView): number {
  return bytes.getUint32(VIRTIO_PCI_CAP.OFFSET - PREFIX, true);
}

function readWindow(bytes: DataView, registers: RegisterAccessor): void {
  const width = windowWidth(bytes, registers);
  if (width === 0) return;
  const value = registers.read(windowBar(bytes), windowOffset(bytes), width);
  for (let i = 0; i < width; i++) {
    bytes.setUint8(WINDOW_DATA + i, value >>> (i * 8));
  }
}

function writeWindow(bytes: DataView, registers: RegisterAccessor): void {
  const width = windowWidth(bytes, registers);
  if (width === 0) return;
  let value = 0;
  for (let i = 0; i < width; i++) {
    value |= bytes.getUint8(WINDOW_DATA + i) << (i * 8);
  }
  registers.write(
    windowBar(bytes),
    windowOffset(bytes),
    width,
    value >>> 0,
  );
}
