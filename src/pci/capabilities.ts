/**
 * Writes the capabilities of a specification into configuration space: initial values and what may be written.
 *
 * @module
 */

import {
  PCI_CAP_ID_EXP,
  PCI_CAP_ID_MSI,
  PCI_CAP_ID_MSIX,
  PCI_CAP_ID_PM,
  PCI_CAP_ID_VNDR,
  PCI_CAP_LIST_ID,
  PCI_CAP_LIST_NEXT,
  PCI_EXP_DEVCAP2_COMP_TMOUT_DIS,
  PCI_EXP_DEVCAP_FLR,
  PCI_EXP_DEVCAP_L0S,
  PCI_EXP_DEVCAP_L1,
  PCI_EXP_DEVCAP_RBER,
  PCI_EXP_DEVCTL2_COMP_TMOUT_DIS,
  PCI_EXP_DEVCTL_BCR_FLR,
  PCI_EXP_DEVCTL_CERE,
  PCI_EXP_DEVCTL_FERE,
  PCI_EXP_DEVCTL_NFERE,
  PCI_EXP_DEVCTL_NOSNOOP_EN,
  PCI_EXP_DEVCTL_READRQ,
  PCI_EXP_DEVCTL_READRQ_512B,
  PCI_EXP_DEVCTL_RELAX_EN,
  PCI_EXP_DEVCTL_URRE,
  PCI_EXP_DEVSTA_CED,
  PCI_EXP_DEVSTA_FED,
  PCI_EXP_DEVSTA_NFED,
  PCI_EXP_DEVSTA_URD,
  PCI_EXP_LNKCAP2_SLS_2_5GB,
  PCI_EXP_LNKCAP_AOC,
  PCI_EXP_LNKCAP_SLS_2_5GB,
  PCI_EXP_LNKCTL2_TLS_2_5GT,
  PCI_EXP_LNKCTL_CCC,
  PCI_EXP_LNKCTL_ES,
  PCI_EXP_LNKSTA_CLS_2_5GB,
  PCI_EXP_LNKSTA_NLW_X1,
  PCI_EXP_LNKSTA_SLC,
  PCI_EXP_TYPE_ENDPOINT,
  PCI_MSI_FLAGS_64BIT,
  PCI_MSI_FLAGS_ENABLE,
  PCI_MSI_FLAGS_MASKBIT,
  PCI_MSI_FLAGS_QSIZE,
  PCI_MSIX_FLAGS_ENABLE,
  PCI_MSIX_FLAGS_MASKALL,
  PCI_PM_CTRL_STATE_MASK,
  PCI_STATUS_CAP_LIST,
  PCI_STD_HEADER_SIZEOF,
  PciExp,
  PciHeader,
  PciMsi,
  PciMsix,
  PciPm,
} from "./defs.ts";
import type { CapabilitySpec, PciSpec, VendorCapability } from "./device.ts";
import { capabilityBytes, VENDOR_PREFIX_BYTES } from "./validate.ts";

/** Configuration space as data: three images of the same length. */
export interface ConfigImage {
  /** Values of the registers after a reset. */
  readonly values: DataView;
  /** One for each bit that software sets and clears. */
  readonly writeMask: DataView;
  /** One for each bit that software clears by writing one; disjoint from `writeMask`. */
  readonly w1cMask: DataView;
}

/** A capability and where it is. */
export interface PlacedCapability {
  /** Specification that was asked for. */
  readonly spec: CapabilitySpec;
  /** Offset in configuration space. */
  readonly offset: number;
  /** Length, without padding. */
  readonly lengthBytes: number;
}

/**
 * Links all capabilities, in the order given, from the end of the header on.
 *
 * @param spec Valid
 */
export function placeCapabilities(
  spec: PciSpec,
  image: ConfigImage,
): PlacedCapability[] {
  const placed: PlacedCapability[] = [];
  let link: number = PciHeader.offsets.PCI_CAPABILITY_LIST;
  let offset = PCI_STD_HEADER_SIZEOF;
  for (const capability of spec.capabilities) {
    const lengthBytes = capabilityBytes(capability);
    image.values.setUint8(link, offset);
    fillCapability(capability, offset, image);
    placed.push({ spec: capability, offset, lengthBytes });
    link = offset + PCI_CAP_LIST_NEXT;
    offset = Math.ceil((offset + lengthBytes) / 4) * 4;
  }
  if (placed.length > 0) {
    image.values.setUint16(
      PciHeader.offsets.PCI_STATUS,
      PCI_STATUS_CAP_LIST,
      true,
    );
  }
  return placed;
}

function fillCapability(
  capability: CapabilitySpec,
  offset: number,
  image: ConfigImage,
): void {
  switch (capability.kind) {
    case "pm":
      return fillPm(offset, image);
    case "pcie":
      return fillExpress(offset, image);
    case "msi":
      return fillMsi(capability.vectors, offset, image);
    case "msix":
      return fillMsix(capability, offset, image);
    case "vendor":
      return fillVendor(capability, offset, image);
    default:
      capability satisfies never;
  }
}

/**
 * Version 3, D0 and D3hot only, no PME. Going back from D3hot to D0 is a reset (No_Soft_Reset is clear): whatever state the
 * function kept, a VMM resets it when the machine wakes up, and a driver that was told otherwise would not restore it.
 */
function fillPm(base: number, { values, writeMask }: ConfigImage): void {
  const { PCI_PM_PMC, PCI_PM_CTRL } = PciPm.offsets;
  const PM_VERSION = 3;
  values.setUint8(base + PCI_CAP_LIST_ID, PCI_CAP_ID_PM);
  values.setUint16(base + PCI_PM_PMC, PM_VERSION, true);
  writeMask.setUint16(base + PCI_PM_CTRL, PCI_PM_CTRL_STATE_MASK, true);
}

/**
 * An endpoint on a 2.5 GT/s x1 link with function level reset.
 *
 * A plain endpoint is right on a PCI Express port. On the root bus of a PCI Express machine QEMU's VFIO code makes
 * it a Root Complex Integrated Endpoint and hides the link; on a conventional bus it leaves it alone and guests
 * ignore the link. The reverse, declaring an integrated endpoint here, would have it invent a link elsewhere.
 */
function fillExpress(base: number, image: ConfigImage): void {
  const at = PciExp.offsets;
  const { values, writeMask, w1cMask } = image;
  const PCIE_CAPABILITY_VERSION = 2;
  values.setUint8(base + PCI_CAP_LIST_ID, PCI_CAP_ID_EXP);
  values.setUint16(
    base + at.PCI_EXP_FLAGS,
    (PCI_EXP_TYPE_ENDPOINT << 4) | PCIE_CAPABILITY_VERSION,
    true,
  );
  // Without ASPM no latency is ever suffered, so any is acceptable. The payload maximum is 128 bytes (code 0).
  values.setUint32(
    base + at.PCI_EXP_DEVCAP,
    PCI_EXP_DEVCAP_L0S | PCI_EXP_DEVCAP_L1 | PCI_EXP_DEVCAP_RBER |
      PCI_EXP_DEVCAP_FLR,
    true,
  );
  const errorReporting = PCI_EXP_DEVCTL_CERE | PCI_EXP_DEVCTL_NFERE |
    PCI_EXP_DEVCTL_FERE | PCI_EXP_DEVCTL_URRE;
  const ordering = PCI_EXP_DEVCTL_RELAX_EN | PCI_EXP_DEVCTL_NOSNOOP_EN;
  // Defaults of section 7.5.3.4: relaxed ordering and no snoop allowed, reads of up to 512 bytes.
  values.setUint16(
    base + at.PCI_EXP_DEVCTL,
    ordering | PCI_EXP_DEVCTL_READRQ_512B,
    true,
  );
  writeMask.setUint16(
    base + at.PCI_EXP_DEVCTL,
    errorReporting | ordering | PCI_EXP_DEVCTL_READRQ | PCI_EXP_DEVCTL_BCR_FLR,
    true,
  );
  w1cMask.setUint16(
    base + at.PCI_EXP_DEVSTA,
    PCI_EXP_DEVSTA_CED | PCI_EXP_DEVSTA_NFED | PCI_EXP_DEVSTA_FED |
      PCI_EXP_DEVSTA_URD,
    true,
  );
  fillLink(base, image);
  // Section 7.5.3.15: an endpoint that issues requests must be able to do without the completion timeout.
  values.setUint32(
    base + at.PCI_EXP_DEVCAP2,
    PCI_EXP_DEVCAP2_COMP_TMOUT_DIS,
    true,
  );
  writeMask.setUint16(
    base + at.PCI_EXP_DEVCTL2,
    PCI_EXP_DEVCTL2_COMP_TMOUT_DIS,
    true,
  );
}

function fillLink(base: number, { values, writeMask }: ConfigImage): void {
  const at = PciExp.offsets;
  values.setUint32(
    base + at.PCI_EXP_LNKCAP,
    PCI_EXP_LNKCAP_SLS_2_5GB | PCI_EXP_LNKSTA_NLW_X1 | PCI_EXP_LNKCAP_AOC,
    true,
  );
  writeMask.setUint16(
    base + at.PCI_EXP_LNKCTL,
    PCI_EXP_LNKCTL_CCC | PCI_EXP_LNKCTL_ES,
    true,
  );
  values.setUint16(
    base + at.PCI_EXP_LNKSTA,
    PCI_EXP_LNKSTA_CLS_2_5GB | PCI_EXP_LNKSTA_NLW_X1 | PCI_EXP_LNKSTA_SLC,
    true,
  );
  values.setUint32(base + at.PCI_EXP_LNKCAP2, PCI_EXP_LNKCAP2_SLS_2_5GB, true);
  values.setUint16(base + at.PCI_EXP_LNKCTL2, PCI_EXP_LNKCTL2_TLS_2_5GT, true);
}

/** 64-bit addresses and a mask bit per vector. */
function fillMsi(
  vectors: number,
  base: number,
  { values, writeMask }: ConfigImage,
): void {
  const at = PciMsi.offsets;
  values.setUint8(base + PCI_CAP_LIST_ID, PCI_CAP_ID_MSI);
  values.setUint16(
    base + at.PCI_MSI_FLAGS,
    PCI_MSI_FLAGS_64BIT | PCI_MSI_FLAGS_MASKBIT | (Math.log2(vectors) << 1),
    true,
  );
  writeMask.setUint16(
    base + at.PCI_MSI_FLAGS,
    PCI_MSI_FLAGS_ENABLE | PCI_MSI_FLAGS_QSIZE,
    true,
  );
  writeMask.setUint32(base + at.PCI_MSI_ADDRESS_LO, 0xffff_fffc, true);
  writeMask.setUint32(base + at.PCI_MSI_ADDRESS_HI, 0xffff_ffff, true);
  writeMask.setUint16(base + at.PCI_MSI_DATA_64, 0xffff, true);
  writeMask.setUint32(base + at.PCI_MSI_MASK_64, 2 ** vectors - 1, true);
}

function fillMsix(
  msix: Extract<CapabilitySpec, { kind: "msix" }>,
  base: number,
  { values, writeMask }: ConfigImage,
): void {
  const at = PciMsix.offsets;
  values.setUint8(base + PCI_CAP_LIST_ID, PCI_CAP_ID_MSIX);
  values.setUint16(base + at.PCI_MSIX_FLAGS, msix.vectors - 1, true);
  writeMask.setUint16(
    base + at.PCI_MSIX_FLAGS,
    PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL,
    true,
  );
  // Offsets are multiples of 8; the low three bits say which BAR.
  values.setUint32(
    base + at.PCI_MSIX_TABLE,
    msix.tableOffset + msix.tableBar,
    true,
  );
  values.setUint32(base + at.PCI_MSIX_PBA, msix.pbaOffset + msix.pbaBar, true);
}

function fillVendor(
  vendor: VendorCapability,
  base: number,
  { values, writeMask }: ConfigImage,
): void {
  values.setUint8(base + PCI_CAP_LIST_ID, PCI_CAP_ID_VNDR);
  values.setUint8(base + 2, VENDOR_PREFIX_BYTES + vendor.body.length);
  const start = base + VENDOR_PREFIX_BYTES;
  vendor.body.forEach((byte, i) => values.setUint8(start + i, byte));
  vendor.writable?.forEach((byte, i) => writeMask.setUint8(start + i, byte));
}
