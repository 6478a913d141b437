/**
 * Configuration space as the specifications lay it out; names are those of Linux `pci_regs.h`.
 *
 * Sources: PCI Local Bus 3.0 (chapter 6), PCI Bus Power Management 1.2, PCI Express Base 5.0 (chapter 7).
 *
 * @module
 */

import { RegisterMap, type RegisterName } from "./register_map.ts";

/** Length of conventional configuration space; capabilities live inside it. */
export const PCI_CFG_SPACE_SIZE = 256;
/** Length of PCI Express configuration space. */
export const PCI_CFG_SPACE_EXP_SIZE = 4096;
/** Length of the standard header. */
export const PCI_STD_HEADER_SIZEOF = 64;
/** Number of base address registers of a type 0 header. */
export const PCI_STD_NUM_BARS = 6;

/** Rows of {@linkcode PciHeader}. */
export const PCI_HEADER_REGISTERS = [
  ["PCI_VENDOR_ID", 2, "ro"],
  ["PCI_DEVICE_ID", 2, "ro"],
  ["PCI_COMMAND", 2, "mixed"],
  ["PCI_STATUS", 2, "mixed"],
  ["PCI_REVISION_ID", 1, "ro"],
  ["PCI_CLASS_PROG", 1, "ro"],
  ["PCI_CLASS_DEVICE", 2, "ro"],
  ["PCI_CACHE_LINE_SIZE", 1, "rw"],
  ["PCI_LATENCY_TIMER", 1, "ro"],
  ["PCI_HEADER_TYPE", 1, "ro"],
  ["PCI_BIST", 1, "ro"],
  ["PCI_BASE_ADDRESS_0", 4, "mixed"],
  ["PCI_BASE_ADDRESS_1", 4, "mixed"],
  ["PCI_BASE_ADDRESS_2", 4, "mixed"],
  ["PCI_BASE_ADDRESS_3", 4, "mixed"],
  ["PCI_BASE_ADDRESS_4", 4, "mixed"],
  ["PCI_BASE_ADDRESS_5", 4, "mixed"],
  ["PCI_CARDBUS_CIS", 4, "ro"],
  ["PCI_SUBSYSTEM_VENDOR_ID", 2, "ro"],
  ["PCI_SUBSYSTEM_ID", 2, "ro"],
  ["PCI_ROM_ADDRESS", 4, "ro"],
  ["PCI_CAPABILITY_LIST", 1, "ro"],
  [null, 7],
  ["PCI_INTERRUPT_LINE", 1, "rw"],
  ["PCI_INTERRUPT_PIN", 1, "ro"],
  ["PCI_MIN_GNT", 1, "ro"],
  ["PCI_MAX_LAT", 1, "ro"],
] as const;

/** The type 0 header (PCI Local Bus 3.0, section 6.1). */
export const PciHeader: RegisterMap<RegisterName<typeof PCI_HEADER_REGISTERS>> =
  new RegisterMap("header", PCI_STD_HEADER_SIZEOF, PCI_HEADER_REGISTERS);

/** Command: responds to I/O accesses. */
export const PCI_COMMAND_IO = 0x1;
/** Command: responds to memory accesses. */
export const PCI_COMMAND_MEMORY = 0x2;
/** Command: may issue memory requests. */
export const PCI_COMMAND_MASTER = 0x4;
/** Command: parity error response. */
export const PCI_COMMAND_PARITY = 0x40;
/** Command: may report errors. */
export const PCI_COMMAND_SERR = 0x100;
/** Command: must not assert INTx. */
export const PCI_COMMAND_INTX_DISABLE = 0x400;

/** Status: an INTx interrupt is pending inside the function. */
export const PCI_STATUS_INTERRUPT = 0x08;
/** Status: there is a capability list. */
export const PCI_STATUS_CAP_LIST = 0x10;
/** Status: master data parity error. */
export const PCI_STATUS_PARITY = 0x100;
/** Status: signalled a target abort. */
export const PCI_STATUS_SIG_TARGET_ABORT = 0x800;
/** Status: received a target abort. */
export const PCI_STATUS_REC_TARGET_ABORT = 0x1000;
/** Status: received a master abort. */
export const PCI_STATUS_REC_MASTER_ABORT = 0x2000;
/** Status: signalled a system error. */
export const PCI_STATUS_SIG_SYSTEM_ERROR = 0x4000;
/** Status: detected a parity error. */
export const PCI_STATUS_DETECTED_PARITY = 0x8000;

/** Base address: I/O space. */
export const PCI_BASE_ADDRESS_SPACE_IO = 0x01;
/** Base address: memory, 64 bits wide. */
export const PCI_BASE_ADDRESS_MEM_TYPE_64 = 0x04;
/** Base address: memory without read side effects. */
export const PCI_BASE_ADDRESS_MEM_PREFETCH = 0x08;

/** Offset of the id in every capability. */
export const PCI_CAP_LIST_ID = 0;
/** Offset of the pointer to the next capability. */
export const PCI_CAP_LIST_NEXT = 1;
/** Power Management. */
export const PCI_CAP_ID_PM = 0x01;
/** Message Signalled Interrupts. */
export const PCI_CAP_ID_MSI = 0x05;
/** Vendor-Specific. */
export const PCI_CAP_ID_VNDR = 0x09;
/** PCI Express. */
export const PCI_CAP_ID_EXP = 0x10;
/** MSI-X. */
export const PCI_CAP_ID_MSIX = 0x11;

/** Rows of {@linkcode PciPm}. */
export const PCI_PM_REGISTERS = [
  ["PCI_CAP_LIST_ID", 1, "ro"],
  ["PCI_CAP_LIST_NEXT", 1, "ro"],
  ["PCI_PM_PMC", 2, "ro"],
  ["PCI_PM_CTRL", 2, "mixed"],
  ["PCI_PM_PPB_EXTENSIONS", 1, "ro"],
  ["PCI_PM_DATA_REGISTER", 1, "ro"],
] as const;

/** The Power Management capability (PCI Bus Power Management 1.2, section 3.2). */
export const PciPm: RegisterMap<RegisterName<typeof PCI_PM_REGISTERS>> =
  new RegisterMap("PM", 8, PCI_PM_REGISTERS);

/** PM control: power state, D0 to D3hot. */
export const PCI_PM_CTRL_STATE_MASK = 0x0003;
/** PM control: going from D3hot to D0 keeps all state. */
export const PCI_PM_CTRL_NO_SOFT_RESET = 0x0008;

/** Rows of {@linkcode PciMsi}. */
export const PCI_MSI_REGISTERS = [
  ["PCI_CAP_LIST_ID", 1, "ro"],
  ["PCI_CAP_LIST_NEXT", 1, "ro"],
  ["PCI_MSI_FLAGS", 2, "mixed"],
  ["PCI_MSI_ADDRESS_LO", 4, "mixed"],
  ["PCI_MSI_ADDRESS_HI", 4, "rw"],
  ["PCI_MSI_DATA_64", 2, "rw"],
  [null, 2],
  ["PCI_MSI_MASK_64", 4, "mixed"],
  ["PCI_MSI_PENDING_64", 4, "ro"],
] as const;

/** The MSI capability with 64-bit addresses and per-vector masking (PCI Local Bus 3.0, section 6.8.1). */
export const PciMsi: RegisterMap<RegisterName<typeof PCI_MSI_REGISTERS>> =
  new RegisterMap("MSI", 24, PCI_MSI_REGISTERS);

/** MSI control: enabled. */
export const PCI_MSI_FLAGS_ENABLE = 0x0001;
/** MSI control: log2 of the vectors the function asks for. */
export const PCI_MSI_FLAGS_QMASK = 0x000e;
/** MSI control: log2 of the vectors software allocated. */
export const PCI_MSI_FLAGS_QSIZE = 0x0070;
/** MSI control: 64-bit addresses. */
export const PCI_MSI_FLAGS_64BIT = 0x0080;
/** MSI control: per-vector masking. */
export const PCI_MSI_FLAGS_MASKBIT = 0x0100;

/** Rows of {@linkcode PciMsix}. */
export const PCI_MSIX_REGISTERS = [
  ["PCI_CAP_LIST_ID", 1, "ro"],
  ["PCI_CAP_LIST_NEXT", 1, "ro"],
  ["PCI_MSIX_FLAGS", 2, "mixed"],
  ["PCI_MSIX_TABLE", 4, "ro"],
  ["PCI_MSIX_PBA", 4, "ro"],
] as const;

/** The MSI-X capability (PCI Local Bus 3.0, section 6.8.2). */
export const PciMsix: RegisterMap<RegisterName<typeof PCI_MSIX_REGISTERS>> =
  new RegisterMap("MSI-X", 12, PCI_MSIX_REGISTERS);

/** MSI-X control: number of vectors less one. */
export const PCI_MSIX_FLAGS_QSIZE = 0x07ff;
/** MSI-X control: every vector is masked. */
export const PCI_MSIX_FLAGS_MASKALL = 0x4000;
/** MSI-X control: enabled. */
export const PCI_MSIX_FLAGS_ENABLE = 0x8000;

/** Rows of {@linkcode PciMsixEntry}. */
export const PCI_MSIX_ENTRY_REGISTERS = [
  ["PCI_MSIX_ENTRY_LOWER_ADDR", 4, "mixed"],
  ["PCI_MSIX_ENTRY_UPPER_ADDR", 4, "rw"],
  ["PCI_MSIX_ENTRY_DATA", 4, "rw"],
  ["PCI_MSIX_ENTRY_VECTOR_CTRL", 4, "mixed"],
] as const;

/** An entry of the MSI-X table (PCI Local Bus 3.0, section 6.8.2.6). */
export const PciMsixEntry: RegisterMap<
  RegisterName<typeof PCI_MSIX_ENTRY_REGISTERS>
> = new RegisterMap("MSI-X entry", 16, PCI_MSIX_ENTRY_REGISTERS);

/** Length of an entry of the MSI-X table. */
export const PCI_MSIX_ENTRY_SIZE = 16;
/** Vector control: the vector is masked. */
export const PCI_MSIX_ENTRY_CTRL_MASKBIT = 1;

/** Rows of {@linkcode PciExp}. */
export const PCI_EXP_REGISTERS = [
  ["PCI_CAP_LIST_ID", 1, "ro"],
  ["PCI_CAP_LIST_NEXT", 1, "ro"],
  ["PCI_EXP_FLAGS", 2, "ro"],
  ["PCI_EXP_DEVCAP", 4, "ro"],
  ["PCI_EXP_DEVCTL", 2, "mixed"],
  ["PCI_EXP_DEVSTA", 2, "rw1c"],
  ["PCI_EXP_LNKCAP", 4, "ro"],
  ["PCI_EXP_LNKCTL", 2, "mixed"],
  ["PCI_EXP_LNKSTA", 2, "ro"],
  ["PCI_EXP_SLTCAP", 4, "ro"],
  ["PCI_EXP_SLTCTL", 2, "ro"],
  ["PCI_EXP_SLTSTA", 2, "ro"],
  ["PCI_EXP_RTCTL", 2, "ro"],
  ["PCI_EXP_RTCAP", 2, "ro"],
  ["PCI_EXP_RTSTA", 4, "ro"],
  ["PCI_EXP_DEVCAP2", 4, "ro"],
  ["PCI_EXP_DEVCTL2", 2, "mixed"],
  ["PCI_EXP_DEVSTA2", 2, "ro"],
  ["PCI_EXP_LNKCAP2", 4, "ro"],
  ["PCI_EXP_LNKCTL2", 2, "ro"],
  ["PCI_EXP_LNKSTA2", 2, "ro"],
  ["PCI_EXP_SLTCAP2", 4, "ro"],
  ["PCI_EXP_SLTCTL2", 2, "ro"],
  ["PCI_EXP_SLTSTA2", 2, "ro"],
] as const;

/** The PCI Express capability, version 2 (PCI Express Base 5.0, section 7.5.3). */
export const PciExp: RegisterMap<RegisterName<typeof PCI_EXP_REGISTERS>> =
  new RegisterMap("Express", 60, PCI_EXP_REGISTERS);

/** Express flags, type: an endpoint. */
export const PCI_EXP_TYPE_ENDPOINT = 0x0;
/** Device capabilities: acceptable L0s latency; all ones for no limit. */
export const PCI_EXP_DEVCAP_L0S = 0x0000_01c0;
/** Device capabilities: acceptable L1 latency; all ones for no limit. */
export const PCI_EXP_DEVCAP_L1 = 0x0000_0e00;
/** Device capabilities: role-based error reporting. */
export const PCI_EXP_DEVCAP_RBER = 0x0000_8000;
/** Device capabilities: function level reset. */
export const PCI_EXP_DEVCAP_FLR = 0x1000_0000;
/** Device control: correctable error reporting. */
export const PCI_EXP_DEVCTL_CERE = 0x0001;
/** Device control: non-fatal error reporting. */
export const PCI_EXP_DEVCTL_NFERE = 0x0002;
/** Device control: fatal error reporting. */
export const PCI_EXP_DEVCTL_FERE = 0x0004;
/** Device control: unsupported request reporting. */
export const PCI_EXP_DEVCTL_URRE = 0x0008;
/** Device control: relaxed ordering. */
export const PCI_EXP_DEVCTL_RELAX_EN = 0x0010;
/** Device control: no snoop. */
export const PCI_EXP_DEVCTL_NOSNOOP_EN = 0x0800;
/** Device control: maximum read request size. */
export const PCI_EXP_DEVCTL_READRQ = 0x7000;
/** Device control: maximum read request of 512 bytes. */
export const PCI_EXP_DEVCTL_READRQ_512B = 0x2000;
/** Device control: starts a function level reset; reads as zero. */
export const PCI_EXP_DEVCTL_BCR_FLR = 0x8000;
/** Device status: a correctable error was detected. */
export const PCI_EXP_DEVSTA_CED = 0x0001;
/** Device status: a non-fatal error was detected. */
export const PCI_EXP_DEVSTA_NFED = 0x0002;
/** Device status: a fatal error was detected. */
export const PCI_EXP_DEVSTA_FED = 0x0004;
/** Device status: an unsupported request was detected. */
export const PCI_EXP_DEVSTA_URD = 0x0008;
/** Link capabilities: 2.5 GT/s. */
export const PCI_EXP_LNKCAP_SLS_2_5GB = 0x0000_0001;
/** Link capabilities: ASPM optionality compliance (the name is that of pciutils, Linux has none). */
export const PCI_EXP_LNKCAP_AOC = 0x0040_0000;
/** Link control: common clock configuration. */
export const PCI_EXP_LNKCTL_CCC = 0x0040;
/** Link control: extended synch. */
export const PCI_EXP_LNKCTL_ES = 0x0080;
/** Link status: 2.5 GT/s. */
export const PCI_EXP_LNKSTA_CLS_2_5GB = 0x0001;
/** Link status: one lane. The maximum link width of link capabilities sits in the same bits. */
export const PCI_EXP_LNKSTA_NLW_X1 = 0x0010;
/** Link status: uses the clock of the slot. */
export const PCI_EXP_LNKSTA_SLC = 0x1000;
/** Device capabilities 2: a completion timeout can be disabled. */
export const PCI_EXP_DEVCAP2_COMP_TMOUT_DIS = 0x0000_0010;
/** Device control 2: completion timeouts are disabled. */
export const PCI_EXP_DEVCTL2_COMP_TMOUT_DIS = 0x0010;
/** Link capabilities 2: 2.5 GT/s. */
export const PCI_EXP_LNKCAP2_SLS_2_5GB = 0x0000_0002;
/** Link control 2: target speed 2.5 GT/s. */
export const PCI_EXP_LNKCTL2_TLS_2_5GT = 0x0001;

/**
 * Indices of the interrupt kinds of a function, as VFIO numbers them (linux/vfio.h, `VFIO_PCI_*_IRQ_INDEX`).
 */
export const IrqIndex = {
  INTX: 0,
  MSI: 1,
  MSIX: 2,
  ERR: 3,
} as const;

/** Index of the configuration space region, as VFIO numbers regions; 0–5 are the BARs. */
export const CONFIG_REGION = 7;
