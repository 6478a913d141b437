import { assertEquals } from "@std/assert";
import {
  PciExp,
  PciHeader,
  PciMsi,
  PciMsix,
  PciMsixEntry,
  PciPm,
} from "../../src/pci/mod.ts";

// Numbers of the kernel's include/uapi/linux/pci_regs.h.

Deno.test("PciHeader has the kernel's offsets", () => {
  assertEquals(PciHeader.offsets, {
    PCI_VENDOR_ID: 0x00,
    PCI_DEVICE_ID: 0x02,
    PCI_COMMAND: 0x04,
    PCI_STATUS: 0x06,
    PCI_REVISION_ID: 0x08,
    PCI_CLASS_PROG: 0x09,
    PCI_CLASS_DEVICE: 0x0a,
    PCI_CACHE_LINE_SIZE: 0x0c,
    PCI_LATENCY_TIMER: 0x0d,
    PCI_HEADER_TYPE: 0x0e,
    PCI_BIST: 0x0f,
    PCI_BASE_ADDRESS_0: 0x10,
    PCI_BASE_ADDRESS_1: 0x14,
    PCI_BASE_ADDRESS_2: 0x18,
    PCI_BASE_ADDRESS_3: 0x1c,
    PCI_BASE_ADDRESS_4: 0x20,
    PCI_BASE_ADDRESS_5: 0x24,
    PCI_CARDBUS_CIS: 0x28,
    PCI_SUBSYSTEM_VENDOR_ID: 0x2c,
    PCI_SUBSYSTEM_ID: 0x2e,
    PCI_ROM_ADDRESS: 0x30,
    PCI_CAPABILITY_LIST: 0x34,
    PCI_INTERRUPT_LINE: 0x3c,
    PCI_INTERRUPT_PIN: 0x3d,
    PCI_MIN_GNT: 0x3e,
    PCI_MAX_LAT: 0x3f,
  });
});

Deno.test("PciPm, PciMsi and PciMsix have the kernel's offsets", () => {
  assertEquals(PciPm.offsets.PCI_PM_PMC, 2);
  assertEquals(PciPm.offsets.PCI_PM_CTRL, 4);
  assertEquals(PciPm.offsets.PCI_PM_PPB_EXTENSIONS, 6);
  assertEquals(PciPm.offsets.PCI_PM_DATA_REGISTER, 7);
  assertEquals(PciMsi.offsets.PCI_MSI_FLAGS, 2);
  assertEquals(PciMsi.offsets.PCI_MSI_ADDRESS_LO, 4);
  assertEquals(PciMsi.offsets.PCI_MSI_ADDRESS_HI, 8);
  assertEquals(PciMsi.offsets.PCI_MSI_DATA_64, 12);
  assertEquals(PciMsi.offsets.PCI_MSI_MASK_64, 16);
  assertEquals(PciMsi.offsets.PCI_MSI_PENDING_64, 20);
  assertEquals(PciMsix.offsets.PCI_MSIX_FLAGS, 2);
  assertEquals(PciMsix.offsets.PCI_MSIX_TABLE, 4);
  assertEquals(PciMsix.offsets.PCI_MSIX_PBA, 8);
  assertEquals(PciMsix.lengthBytes, 12);
  assertEquals(PciMsixEntry.offsets, {
    PCI_MSIX_ENTRY_LOWER_ADDR: 0,
    PCI_MSIX_ENTRY_UPPER_ADDR: 4,
    PCI_MSIX_ENTRY_DATA: 8,
    PCI_MSIX_ENTRY_VECTOR_CTRL: 12,
  });
});

Deno.test("PciExp has the kernel's offsets", () => {
  assertEquals(PciExp.offsets, {
    PCI_CAP_LIST_ID: 0,
    PCI_CAP_LIST_NEXT: 1,
    PCI_EXP_FLAGS: 2,
    PCI_EXP_DEVCAP: 4,
    PCI_EXP_DEVCTL: 8,
    PCI_EXP_DEVSTA: 10,
    PCI_EXP_LNKCAP: 12,
    PCI_EXP_LNKCTL: 16,
    PCI_EXP_LNKSTA: 18,
    PCI_EXP_SLTCAP: 20,
    PCI_EXP_SLTCTL: 24,
    PCI_EXP_SLTSTA: 26,
    PCI_EXP_RTCTL: 28,
    PCI_EXP_RTCAP: 30,
    PCI_EXP_RTSTA: 32,
    PCI_EXP_DEVCAP2: 36,
    PCI_EXP_DEVCTL2: 40,
    PCI_EXP_DEVSTA2: 42,
    PCI_EXP_LNKCAP2: 44,
    PCI_EXP_LNKCTL2: 48,
    PCI_EXP_LNKSTA2: 50,
    PCI_EXP_SLTCAP2: 52,
    PCI_EXP_SLTCTL2: 56,
    PCI_EXP_SLTSTA2: 58,
  });
});
