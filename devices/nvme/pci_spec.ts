/**
 * A controller's PCI identity and BARs.
 *
 * @module
 */

import type {
  BarSpec,
  CapabilitySpec,
  PciSpec,
  SharedMemory,
} from "../../src/pci/device.ts";
import {
  NVME_REG_DBS,
  PCI_CLASS_STORAGE_EXPRESS,
  PCI_DEVICE_ID_EXPERIMENTAL_NVME,
  PCI_SUBDEVICE_ID_QEMU,
  PCI_VENDOR_ID_REDHAT_QUMRANET,
} from "./defs.ts";
import type { NvmeOptions } from "./options.ts";

/** MSI vectors. */
const MSI_VECTORS = 1;
/** Bytes of the page that holds the doorbells; pairs of 8 bytes, so there is room for 512. */
export const DOORBELL_PAGE_BYTES = 0x1000;

/** Registers and doorbells, and as much again that is reserved. */
const REGISTER_BAR_BYTES = 0x4000;
/** The BAR of the MSI-X table and pending bits. */
const MSIX_BAR = 4;
const MSIX_BAR_BYTES = 0x1000;
const MSIX_PBA_OFFSET = 0x800;

/** The interrupt vectors that a completion queue may name: one for each queue, or the only one of MSI and the pin. */
export function interruptVectors(
  { queues, msix }: Pick<NvmeOptions, "queues" | "msix">,
): number {
  return msix ? queues + 1 : MSI_VECTORS;
}

/**
 * Makes the specification.
 *
 * @param doorbells Memory for the doorbell page when clients may map it
 */
export function makeSpec(
  options: Pick<NvmeOptions, "queues" | "msix">,
  doorbells: SharedMemory | null,
): PciSpec {
  const registers: BarSpec = {
    index: 0,
    sizeBytes: REGISTER_BAR_BYTES,
    kind: "memory64",
    ...(doorbells === null
      ? {}
      : { mmap: [{ offset: NVME_REG_DBS, memory: doorbells }] }),
  };
  const table: BarSpec = {
    index: MSIX_BAR,
    sizeBytes: MSIX_BAR_BYTES,
    kind: "memory32",
  };
  const msix: CapabilitySpec = {
    kind: "msix",
    vectors: interruptVectors(options),
    tableBar: MSIX_BAR,
    tableOffset: 0,
    pbaBar: MSIX_BAR,
    pbaOffset: MSIX_PBA_OFFSET,
  };
  return {
    vendorId: PCI_VENDOR_ID_REDHAT_QUMRANET,
    deviceId: PCI_DEVICE_ID_EXPERIMENTAL_NVME,
    revision: 2,
    classCode: PCI_CLASS_STORAGE_EXPRESS,
    subsystemVendorId: PCI_VENDOR_ID_REDHAT_QUMRANET,
    subsystemId: PCI_SUBDEVICE_ID_QEMU,
    intx: true,
    bars: options.msix ? [registers, table] : [registers],
    capabilities: [
      { kind: "pm" },
      { kind: "pcie" },
      { kind: "msi", vectors: MSI_VECTORS },
      ...(options.msix ? [msix] : []),
    ],
  };
}
