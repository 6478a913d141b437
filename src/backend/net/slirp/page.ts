/**
 * The page that a card and its user-mode network share: what the network has counted, the addresses it has given, and
 * what the driver lets it leave undone.
 *
 * The page outlives the network's process, so that the next one goes on from there. Whoever reads it trusts no number
 * in it: its length is sealed, its numbers mean nothing but themselves.
 *
 * @module
 */

import { SlirpCounter } from "./counters.ts";
import { createMemfd, type Fd, Mapping, sealLength } from "../../../os/mod.ts";

const PAGE_BYTES = 4096;

/** Word of what the driver takes. */
const OFFLOADS = 8;

/** As many guests as libslirp gives addresses to (NB_BOOTP_CLIENTS). */
const LEASES_MAX = 16;
/** Word of the first lease. */
const LEASES = 16;
/** A lease: the first two bytes of the MAC address, the last four, the IPv4 address (0 for none). */
const LEASE = { MAC_HIGH: 0, MAC_LOW: 1, ADDRESS: 2, WORDS: 3 } as const;

/** An address that was given to a guest. */
export interface SlirpLease {
  /** Six bytes. */
  readonly mac: Uint8Array<ArrayBuffer>;
  /** IPv4 address in host order. */
  readonly address: number;
}

/** A page as one of its sides sees it. */
export class SlirpPage implements Disposable {
  readonly #fd: Fd;
  readonly #mapping: Mapping;
  readonly #words: Uint32Array<ArrayBuffer>;

  /**
   * @param fd Of a page, taken over; a new one is made when absent
   * @throws {import("../../../os/mod.ts").SyscallError}
   */
  constructor(fd?: Fd) {
    using undo = new DisposableStack();
    this.#fd = undo.use(fd ?? createMemfd("user-network", PAGE_BYTES));
    if (fd === undefined) sealLength(this.fd);
    this.#mapping = new Mapping({ fd: this.fd, lengthBytes: PAGE_BYTES });
    this.#words = new Uint32Array(this.#mapping.buffer);
    undo.move();
  }

  /** The descriptor, for the other side. */
  get fd(): number {
    return this.#fd.number;
  }

  /** Counts; by {@linkcode SlirpCounter}. */
  add(count: number, n: number): void {
    this.#words[count]! += n;
  }

  /** Sets what is no sum. */
  set(count: number, value: number): void {
    this.#words[count] = value;
  }

  /** Offloads that the driver takes, a set of NetOffload; set by the card. */
  get offloads(): number {
    return this.#words[OFFLOADS]!;
  }

  set offloads(give: number) {
    this.#words[OFFLOADS] = give;
  }

  /** Counters by name. */
  counters(): Record<string, number> {
    return Object.fromEntries(
      Object.entries(SlirpCounter)
        .map(([name, word]) => [name, this.#words[word]!]),
    );
  }

  /** Keeps in mind that a guest has an address; when there is no place for one more, that one is forgotten. */
  recordLease(macHigh: number, macLow: number, address: number): void {
    const words = this.#words;
    let place = -1;
    for (let i = 0; i < LEASES_MAX; i++) {
      const at = LEASES + i * LEASE.WORDS;
      const isSame = words[at + LEASE.MAC_HIGH] === macHigh &&
        words[at + LEASE.MAC_LOW] === macLow;
      if (place < 0 && words[at + LEASE.ADDRESS] === 0) place = at;
      if (!isSame || words[at + LEASE.ADDRESS] === 0) continue;
      place = at;
      break;
    }
    if (place < 0) return;
    words[place + LEASE.MAC_HIGH] = macHigh;
    words[place + LEASE.MAC_LOW] = macLow;
    words[place + LEASE.ADDRESS] = address;
  }

  /** The addresses that guests have. */
  leases(): SlirpLease[] {
    const leases: SlirpLease[] = [];
    for (let i = 0; i < LEASES_MAX; i++) {
      const at = LEASES + i * LEASE.WORDS;
      const address = this.#words[at + LEASE.ADDRESS]!;
      if (address === 0) continue;
      const mac = new Uint8Array(6);
      const view = new DataView(mac.buffer);
      view.setUint16(0, this.#words[at + LEASE.MAC_HIGH]!, false);
      view.setUint32(2, this.#words[at + LEASE.MAC_LOW]!, false);
      leases.push({ mac, address });
    }
    return leases;
  }

  /** Unmaps and closes it. */
  close(): void {
    this.#mapping.close();
    this.#fd.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
