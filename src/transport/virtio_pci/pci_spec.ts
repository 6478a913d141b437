/**
 * Description of a virtio device on the PCI bus (virtio 1.3, sections 4.1.2 to 4.1.4): ids, BARs, capabilities.
 *
 * @module
 */

import type {
  AccessWidth,
  BarSpec,
  CapabilitySpec,
  PciSpec,
  VendorCapability,
} from "../../pci/device.ts";
import {
  PCI_SUBDEVICE_ID_QEMU,
  PCI_VENDOR_ID_REDHAT_QUMRANET,
  VIRTIO_PCI_CAP,
  VIRTIO_PCI_CAP_CFG,
  VIRTIO_PCI_MODERN_DEVICE_ID_BASE,
} from "../../virtio/defs.ts";
import type { VirtioDevice } from "../../virtio/device.ts";
import { NOTIFY_SLOT_BYTES, type NotifyStructure } from "./notify.ts";

/** The BAR of the MSI-X table and pending bits. */
export const VIRTIO_PCI_MSIX_BAR = 1;

/** The BAR of the virtio structures. */
export const VIRTIO_PCI_MODERN_BAR = 4;

/**
 * Places of the virtio structures in their BAR: QEMU's layout, which SPDK's driver takes for granted. The notify
 * structure reaches to the end of the BAR.
 */
export const VIRTIO_PCI_MODERN_LAYOUT = {
  COMMON: 0x0000,
  ISR: 0x1000,
  DEVICE: 0x2000,
  NOTIFY: 0x3000,
  STRUCTURE_SIZE: 0x1000,
  NOTIFY_OFF_MULTIPLIER: NOTIFY_SLOT_BYTES,
} as const;

const LAYOUT = VIRTIO_PCI_MODERN_LAYOUT;
/** A device that fits no class (PCI Code and ID Assignment, section 1). */
const PCI_CLASS_NOT_DEFINED = 0xff_0000;
const MSIX_ENTRY_BYTES = 16;
const MSIX_BAR_BYTES = 0x1000;
const MSIX_PBA_OFFSET = 0x800;

/** Parts of the description of a device. */
export interface VirtioPciSpecParts {
  readonly device: VirtioDevice;
  /** Size of the MSI-X table; 0 for a device without MSI-X. */
  readonly vectors: number;
  readonly notify: NotifyStructure;
  /** Accesses to the virtio structures by way of configuration space. */
  readonly read: (bar: number, offset: number, width: AccessWidth) => number;
  readonly write: (
    bar: number,
    offset: number,
    width: AccessWidth,
    value: number,
  ) => void;
}

/** The description of a modern virtio device. */
export function virtioPciSpec(parts: VirtioPciSpecParts): PciSpec {
  const { device, vectors, notify } = parts;
  const modernBar: BarSpec = {
    index: VIRTIO_PCI_MODERN_BAR,
    sizeBytes: powerOfTwoAtLeast(LAYOUT.NOTIFY + notify.lengthBytes),
    kind: "memory64",
    prefetchable: true,
    ...notify.barSpec,
  };
  const msix = msixParts(vectors);
  return {
    vendorId: PCI_VENDOR_ID_REDHAT_QUMRANET,
    deviceId: VIRTIO_PCI_MODERN_DEVICE_ID_BASE + device.deviceId,
    // 1 or higher keeps legacy drivers away (4.1.2.1).
    revision: 1,
    classCode: device.pciClassCode ?? PCI_CLASS_NOT_DEFINED,
    subsystemVendorId: PCI_VENDOR_ID_REDHAT_QUMRANET,
    subsystemId: PCI_SUBDEVICE_ID_QEMU,
    intx: true,
    bars: [...msix.bars, modernBar],
    capabilities: [
      { kind: "pm" },
      { kind: "pcie" },
      ...msix.capabilities,
      ...virtioCapabilities(parts, modernBar.sizeBytes),
    ],
  };
}

function msixParts(
  vectors: number,
): Pick<PciSpec, "bars" | "capabilities"> {
  if (vectors === 0) return { bars: [], capabilities: [] };
  const pbaOffset = Math.max(MSIX_PBA_OFFSET, vectors * MSIX_ENTRY_BYTES);
  const usedBytes = pbaOffset + Math.ceil(vectors / 64) * 8;
  return {
    bars: [{
      index: VIRTIO_PCI_MSIX_BAR,
      sizeBytes: powerOfTwoAtLeast(Math.max(MSIX_BAR_BYTES, usedBytes)),
      kind: "memory32",
    }],
    capabilities: [{
      kind: "msix",
      vectors,
      tableBar: VIRTIO_PCI_MSIX_BAR,
      tableOffset: 0,
      pbaBar: VIRTIO_PCI_MSIX_BAR,
      pbaOffset,
    }],
  };
}

function virtioCapabilities(
  parts: VirtioPciSpecParts,
  barBytes: number,
): CapabilitySpec[] {
  const at = (cfgType: number, offset: number, lengthBytes: number) => ({
    cfgType,
    bar: VIRTIO_PCI_MODERN_BAR,
    offset,
    lengthBytes,
  });
  const { COMMON, ISR, DEVICE, NOTIFY, STRUCTURE_SIZE } = LAYOUT;
  const structures: [type: number, offset: number][] = [
    [VIRTIO_PCI_CAP_CFG.COMMON, COMMON],
    [VIRTIO_PCI_CAP_CFG.ISR, ISR],
  ];
  if ((parts.device.configLengthBytes ?? 0) > 0) {
    structures.push([VIRTIO_PCI_CAP_CFG.DEVICE, DEVICE]);
  }
  return [
    ...structures.map(([type, offset]) =>
      structureCapability(at(type, offset, STRUCTURE_SIZE))
    ),
    notifyCapability(
      at(VIRTIO_PCI_CAP_CFG.NOTIFY, NOTIFY, barBytes - NOTIFY),
      LAYOUT.NOTIFY_OFF_MULTIPLIER,
    ),
    configAccessCapability(parts, barBytes),
  ];
}

function powerOfTwoAtLeast(value: number): number {
  return 2 ** Math.ceil(Math.log2(value));
}

/** The id, next and length bytes come before the body that a {@linkcode VendorCapability} describes. */
const PREFIX = 3;

/** Place of a structure. */
interface StructureLocation {
  /** Type of the structure, a VIRTIO_PCI_CAP_CFG. */
  readonly cfgType: number;
  /** Number of the BAR. */
  readonly bar: number;
  /** Offset in the BAR. */
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
function structureCapability(at: StructureLocation): VendorCapability {
  const view = body(VIRTIO_PCI_CAP.SIZE, at);
  return { kind: "vendor", body: new Uint8Array(view.buffer) };
}

/** `struct virtio_pci_notify_cap` (section 4.1.4.4). */
function notifyCapability(
  at: StructureLocation,
  multiplier: number,
): VendorCapability {
  const view = body(VIRTIO_PCI_CAP.NOTIFY_SIZE, at);
  view.setUint32(VIRTIO_PCI_CAP.NOTIFY_MULT - PREFIX, multiplier, true);
  return { kind: "vendor", body: new Uint8Array(view.buffer) };
}

const WINDOW_DATA = VIRTIO_PCI_CAP.PCI_CFG_DATA - PREFIX;

/**
 * `struct virtio_pci_cfg_cap` (section 4.1.4.9): a window of up to 4 bytes on the other structures, for firmware that
 * has no BARs mapped. An access that the section forbids reads as it last was and writes nothing.
 */
function configAccessCapability(
  { read, write }: VirtioPciSpecParts,
  barBytes: number,
): VendorCapability {
  const view = body(VIRTIO_PCI_CAP.PCI_CFG_SIZE, {
    cfgType: VIRTIO_PCI_CAP_CFG.PCI,
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
      const { bar, at, width } = windowOn(bytes, barBytes);
      if (width === 0) return;
      const value = read(bar, at, width);
      for (let i = 0; i < width; i++) {
        bytes.setUint8(WINDOW_DATA + i, value >>> (i * 8));
      }
    },
    onWrite: (bytes, offset, lengthBytes) => {
      if (offset + lengthBytes <= WINDOW_DATA) return;
      const { bar, at, width } = windowOn(bytes, barBytes);
      if (width === 0) return;
      let value = 0;
      for (let i = 0; i < width; i++) {
        value |= bytes.getUint8(WINDOW_DATA + i) << (i * 8);
      }
      write(bar, at, width, value >>> 0);
    },
  };
}

/** The registers that the window is on; width 0 when it points at nothing that may be accessed. */
function windowOn(
  bytes: DataView,
  barBytes: number,
): { bar: number; at: number; width: AccessWidth | 0 } {
  const bar = bytes.getUint8(VIRTIO_PCI_CAP.BAR - PREFIX);
  const at = bytes.getUint32(VIRTIO_PCI_CAP.OFFSET - PREFIX, true);
  const width = bytes.getUint32(VIRTIO_PCI_CAP.LENGTH - PREFIX, true);
  // The virtio structures, and nothing else, may be reached this way (4.1.4.9.2).
  const allowed = (width === 1 || width === 2 || width === 4) &&
    at % width === 0 && bar === VIRTIO_PCI_MODERN_BAR &&
    at + width <= barBytes;
  return { bar, at, width: allowed ? width : 0 };
}
