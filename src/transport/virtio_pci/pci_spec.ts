/**
 * What a virtio device shows of itself on the PCI bus (virtio 1.3, sections 4.1.2 to 4.1.4): ids, BARs, capabilities.
 *
 * @module
 */

import type {
  AccessWidth,
  BarSpec,
  CapabilitySpec,
  PciSpec,
} from "../../pci/device.ts";
import {
  configAccessCapability,
  notifyCapability,
  structureCapability,
} from "./capabilities.ts";
import {
  PCI_SUBDEVICE_ID_QEMU,
  PCI_VENDOR_ID_REDHAT_QUMRANET,
  VIRTIO_PCI_CAP_CFG,
  VIRTIO_PCI_MODERN_DEVICE_ID_BASE,
} from "../../virtio/defs.ts";
import type { VirtioDevice } from "../../virtio/device.ts";
import { NOTIFY_SLOT_BYTES } from "./notify_page.ts";
import type { NotifyStructure } from "./notify_structure.ts";

/** The BAR of the MSI-X table and pending bits. */
export const VIRTIO_PCI_MSIX_BAR = 1;

/** The BAR of the virtio structures. */
export const VIRTIO_PCI_MODERN_BAR = 4;

/**
 * Where the virtio structures are in their BAR: QEMU's layout, which SPDK's driver takes for granted. The notify
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

/** What the description of a device is made of. */
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
  { device, read, write }: VirtioPciSpecParts,
  barBytes: number,
): CapabilitySpec[] {
  const at = (cfgType: number, offset: number, lengthBytes: number) => ({
    cfgType,
    bar: VIRTIO_PCI_MODERN_BAR,
    offset,
    lengthBytes,
  });
  const size = LAYOUT.STRUCTURE_SIZE;
  const capabilities: CapabilitySpec[] = [
    structureCapability(at(VIRTIO_PCI_CAP_CFG.COMMON, LAYOUT.COMMON, size)),
    structureCapability(at(VIRTIO_PCI_CAP_CFG.ISR, LAYOUT.ISR, size)),
  ];
  if ((device.configLengthBytes ?? 0) > 0) {
    capabilities.push(
      structureCapability(at(VIRTIO_PCI_CAP_CFG.DEVICE, LAYOUT.DEVICE, size)),
    );
  }
  const notifyBytes = barBytes - LAYOUT.NOTIFY;
  capabilities.push(
    notifyCapability(
      at(VIRTIO_PCI_CAP_CFG.NOTIFY, LAYOUT.NOTIFY, notifyBytes),
      LAYOUT.NOTIFY_OFF_MULTIPLIER,
    ),
    configAccessCapability(VIRTIO_PCI_CAP_CFG.PCI, {
      // The virtio structures, and nothing else, may be reached this way (4.1.4.9.2).
      allows: (bar, offset, width) =>
        bar === VIRTIO_PCI_MODERN_BAR && offset + width <= barBytes,
      read,
      write,
    }),
  );
  return capabilities;
}

function powerOfTwoAtLeast(value: number): number {
  return 2 ** Math.ceil(Math.log2(value));
}
