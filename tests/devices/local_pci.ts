/**
 * A PCI function in this process, as its driver sees it.
 *
 * @module
 */

import { assertEquals } from "@std/assert";
import type { PciFunction, PciInterrupts } from "../../src/pci/mod.ts";
import type {
  Bell,
  BellWidth,
  InterruptLines,
  PciAccess,
  PciWidth,
} from "../../src/testing/pci_access.ts";

const CONFIG_REGION = 7;
const PCI_CAPABILITY_LIST = 0x34;
const PCI_CAP_ID_MSIX = 0x11;

/** Registers by direct calls, MSI-X messages counted. */
export class LocalPci implements PciAccess, InterruptLines {
  readonly #pci: PciFunction;
  readonly #view = new DataView(new ArrayBuffer(4));
  /** Number of times each vector was raised since it was last looked at. */
  readonly raised: number[] = [];

  constructor(pci: PciFunction, interrupts: PciInterrupts) {
    this.#pci = pci;
    interrupts.connect({
      deliver: (_index, vector) => {
        this.raised[vector] = (this.raised[vector] ?? 0) + 1;
        return true;
      },
    });
  }

  readConfig(offset: number, width: PciWidth): number {
    return this.readBar(CONFIG_REGION, offset, width);
  }

  writeConfig(offset: number, width: PciWidth, value: number): void {
    this.writeBar(CONFIG_REGION, offset, width, value);
  }

  readBar(bar: number, offset: number, width: PciWidth): number {
    this.#view.setUint32(0, 0);
    assertEquals(this.#pci.readRegion(bar, offset, this.#view, 0, width), 0);
    return this.#view.getUint32(0, true);
  }

  writeBar(bar: number, offset: number, width: PciWidth, value: number): void {
    this.#view.setUint32(0, value, true);
    assertEquals(this.#pci.writeRegion(bar, offset, this.#view, 0, width), 0);
  }

  bell(bar: number, offset: number, width: BellWidth): Bell {
    const view = new DataView(new ArrayBuffer(4));
    return {
      ring: (value) => {
        view.setUint32(0, value, true);
        this.#pci.writeRegion(bar, offset, view, 0, width);
      },
    };
  }

  enableMsix(vectors: number): InterruptLines {
    let at = this.readConfig(PCI_CAPABILITY_LIST, 1);
    while (this.readConfig(at, 1) !== PCI_CAP_ID_MSIX) {
      at = this.readConfig(at + 1, 1);
    }
    const table = this.readConfig(at + 4, 4);
    for (let i = 0; i < vectors; i++) {
      this.writeBar(table & 7, (table & ~7) + i * 16 + 12, 4, 0);
    }
    this.writeConfig(at + 2, 2, this.readConfig(at + 2, 2) | 0x8000);
    return this;
  }

  wait(vector: number, _timeoutMs: number): number {
    const times = this.raised[vector] ?? 0;
    this.raised[vector] = 0;
    return times;
  }
}
