/**
 * The MSI-X table and pending bit array, as they appear in a BAR (PCI Local Bus 3.0, section 6.8.2).
 *
 * @module
 */

import { StateReader } from "../core/state_reader.ts";
import { loadWidth, storeWidth } from "./access.ts";
import {
  PCI_MSIX_ENTRY_CTRL_MASKBIT,
  PCI_MSIX_ENTRY_SIZE,
  PciMsixEntry,
} from "./defs.ts";
import type { AccessWidth } from "./device.ts";
import { msixPbaBytes, msixTableBytes } from "./validate.ts";

const ENTRY = PciMsixEntry.offsets;

/** Result of {@linkcode MsixTable.write} when no vector lost its mask. */
export const NO_VECTOR: number = -1;

/** Contents of an {@linkcode MsixTable}, as plain data. */
export interface MsixState {
  /** The table: 16 bytes an entry. */
  readonly table: Uint8Array;
  /** The pending bit array. */
  readonly pending: Uint8Array;
  /** For each vector whether a client holds it back: 1 where it wrote the mask bit, and 0 elsewhere. */
  readonly maskWritten: Uint8Array;
}

const WHAT = "the MSI-X table";

/**
 * Table and pending bits.
 *
 * The table stores what is written and is never acted on: messages go through the client, which knows addresses
 * and data. Most clients (QEMU, cloud-hypervisor) keep a table of their own for the guest and never write this one,
 * which therefore still says "masked", the value after a reset, while interrupts flow. So only a mask bit that a
 * client has written holds a vector back.
 */
export class MsixTable {
  /** Number of vectors. */
  readonly vectors: number;
  readonly #table: DataView;
  readonly #pending: DataView;
  readonly #maskWritten: Uint8Array;

  /**
   * Makes a table as after a reset.
   *
   * @param vectors 1–2048
   */
  constructor(vectors: number) {
    this.vectors = vectors;
    this.#table = new DataView(new ArrayBuffer(msixTableBytes(vectors)));
    this.#pending = new DataView(new ArrayBuffer(msixPbaBytes(vectors)));
    this.#maskWritten = new Uint8Array(vectors);
    this.reset();
  }

  /** Every entry zero and masked, nothing pending. */
  reset(): void {
    for (let at = 0; at < this.#table.byteLength; at += 4) {
      const control = at % PCI_MSIX_ENTRY_SIZE ===
        ENTRY.PCI_MSIX_ENTRY_VECTOR_CTRL;
      this.#table.setUint32(
        at,
        control ? PCI_MSIX_ENTRY_CTRL_MASKBIT : 0,
        true,
      );
    }
    for (let at = 0; at < this.#pending.byteLength; at += 4) {
      this.#pending.setUint32(at, 0, true);
    }
    this.#maskWritten.fill(0);
  }

  /** Everything in it. */
  save(): MsixState {
    return {
      table: bytesOf(this.#table).slice(),
      pending: bytesOf(this.#pending).slice(),
      maskWritten: this.#maskWritten.slice(),
    };
  }

  /**
   * Takes over what {@linkcode MsixTable.save} gave.
   *
   * @throws {Error} When it is not the state of a table with as many vectors; nothing has then changed
   */
  load(state: unknown): void {
    const reader = new StateReader(state, WHAT);
    const table = reader.bytes("table", this.#table.byteLength);
    const pending = reader.bytes("pending", this.#pending.byteLength);
    const mask = reader.bytes("maskWritten", this.vectors);
    bytesOf(this.#table).set(table);
    bytesOf(this.#pending).set(pending);
    for (let vector = 0; vector < this.vectors; vector++) {
      this.#maskWritten[vector] = mask[vector]! & PCI_MSIX_ENTRY_CTRL_MASKBIT;
    }
  }

  /** Reads the table; `offset` lies inside it and is aligned to `width`. */
  read(offset: number, width: AccessWidth): number {
    return loadWidth(this.#table, offset, width);
  }

  /**
   * Writes the table; `offset` lies inside it and is aligned to `width`.
   *
   * @returns The vector whose mask bit was cleared, or {@linkcode NO_VECTOR}
   */
  write(offset: number, width: AccessWidth, value: number): number {
    const inEntry = offset % PCI_MSIX_ENTRY_SIZE;
    if (inEntry < ENTRY.PCI_MSIX_ENTRY_VECTOR_CTRL) {
      // The two low bits of a message address are zero.
      storeWidth(
        this.#table,
        offset,
        width,
        inEntry === ENTRY.PCI_MSIX_ENTRY_LOWER_ADDR ? value & ~3 : value,
      );
      return NO_VECTOR;
    }
    // The other bits of vector control are reserved.
    if (inEntry !== ENTRY.PCI_MSIX_ENTRY_VECTOR_CTRL) return NO_VECTOR;
    const vector = (offset - inEntry) / PCI_MSIX_ENTRY_SIZE;
    const masked = value & PCI_MSIX_ENTRY_CTRL_MASKBIT;
    this.#table.setUint8(offset, masked);
    this.#maskWritten[vector] = masked;
    return masked === 0 ? vector : NO_VECTOR;
  }

  /** Reads the pending bit array; `offset` lies inside it and is aligned to `width`. */
  readPending(offset: number, width: AccessWidth): number {
    return loadWidth(this.#pending, offset, width);
  }

  /** True if a client holds the vector back. */
  isMasked(vector: number): boolean {
    return this.#maskWritten[vector] === PCI_MSIX_ENTRY_CTRL_MASKBIT;
  }

  /** True if the vector waits to be sent. */
  isPending(vector: number): boolean {
    return ((this.#pending.getUint8(vector >>> 3) >>> (vector & 7)) & 1) === 1;
  }

  /** Sets or clears the pending bit. */
  setPending(vector: number, pending: boolean): void {
    const at = vector >>> 3;
    const mask = 1 << (vector & 7);
    const byte = this.#pending.getUint8(at);
    this.#pending.setUint8(at, pending ? byte | mask : byte & ~mask);
  }
}

function bytesOf(view: DataView): Uint8Array {
  return new Uint8Array(view.buffer);
}
