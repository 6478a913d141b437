/**
 * Access of a driver to a PCI device: the same few calls over vfio-user and inside a unit test.
 *
 * @module
 */

/** Width of a register access in bytes. */
export type PciWidth = 1 | 2 | 4;

/** Width of a doorbell in bytes: virtio has 16 bits, NVM Express 32. */
export type BellWidth = 2 | 4;

/** A register that is only ever written to make the device look. */
export interface Bell {
  /** Rings it. Allocates nothing. */
  ring(value: number): void;
}

/** The interrupts of a device, as the driver's CPU would get them. */
export interface InterruptLines {
  /**
   * Waits for a vector.
   *
   * @param timeoutMs The longest to wait; 0 only looks
   * @returns How often it was raised since it was last looked at; 0 when the time is up
   */
  wait(vector: number, timeoutMs: number): number;
}

/** A PCI device as its driver sees it. */
export interface PciAccess {
  /** Reads configuration space. */
  readConfig(offset: number, width: PciWidth): number;
  /** Writes configuration space. */
  writeConfig(offset: number, width: PciWidth, value: number): void;
  /** Reads a register of a BAR. */
  readBar(bar: number, offset: number, width: PciWidth): number;
  /** Writes a register of a BAR. */
  writeBar(bar: number, offset: number, width: PciWidth, value: number): void;
  /** The best way to ring a doorbell, always by writes of its width. */
  bell(bar: number, offset: number, width: BellWidth): Bell;
  /** Sets up that many MSI-X vectors. */
  enableMsix(vectors: number): InterruptLines;
}

/** A capability of configuration space. */
export interface PciCapability {
  /** PCI_CAP_ID_*. */
  readonly id: number;
  /** Offset of the register. */
  readonly offset: number;
}

const PCI_STATUS = 0x06;
const PCI_STATUS_CAP_LIST = 0x10;
const PCI_CAPABILITY_LIST = 0x34;

/**
 * Walks the capability list (PCI Local Bus 3.0, section 6.7).
 *
 * @throws {Error} When it loops or leaves its place
 */
export function listCapabilities(pci: PciAccess): PciCapability[] {
  const found: PciCapability[] = [];
  if ((pci.readConfig(PCI_STATUS, 2) & PCI_STATUS_CAP_LIST) === 0) return found;
  let at = pci.readConfig(PCI_CAPABILITY_LIST, 1) & ~3;
  while (at !== 0) {
    if (at < 0x40 || found.length > 48) {
      throw new Error(`Cannot walk the capability list: it comes to ${at}`);
    }
    found.push({ id: pci.readConfig(at, 1), offset: at });
    at = pci.readConfig(at + 1, 1) & ~3;
  }
  return found;
}
