/**
 * Received frames that the driver wants, by receive modes, address table and VLAN table.
 *
 * @module
 */

import { bit, withBit } from "../../../src/core/bits.ts";
import {
  ETH_ALEN,
  ETH_P_8021Q,
  VIRTIO_NET_CTRL_RX_CMD,
  VLAN_N_VID,
} from "../defs.ts";
import { type FilterState, macFromText, macsToText } from "../state.ts";

/** Addresses that are filtered exactly; a driver that asks for more gets all of the kind. */
export const MAC_TABLE_ENTRIES = 64;

/** Bytes of a frame that {@linkcode ReceiveFilter.accepts} looks at: addresses, an 802.1Q tag. */
export const FILTER_BYTES = 18;

const RX_MODES = Object.entries(VIRTIO_NET_CTRL_RX_CMD);

/** Bytes 0 and 1 of an address as one number. */
function highOf(bytes: Uint8Array, at: number): number {
  return (bytes[at]! << 8) | bytes[at + 1]!;
}

/** Bytes 2 to 5 of an address as one number; signed, good for comparison only. */
function lowOf(bytes: Uint8Array, at: number): number {
  return (bytes[at + 2]! << 24) | (bytes[at + 3]! << 16) |
    (bytes[at + 4]! << 8) | bytes[at + 5]!;
}

/** A list of addresses, compared as two numbers each. */
class MacList {
  readonly #high = new Int32Array(MAC_TABLE_ENTRIES);
  readonly #low = new Int32Array(MAC_TABLE_ENTRIES);
  #count = 0;
  /** More addresses were asked for than fit: all match. */
  overflow = false;

  /** @param addresses Six bytes each, or null for more than fit */
  set(addresses: Uint8Array | null): void {
    this.overflow = addresses === null;
    this.#count = addresses === null ? 0 : addresses.length / ETH_ALEN;
    for (let i = 0; i < this.#count; i++) {
      this.#high[i] = highOf(addresses!, i * ETH_ALEN);
      this.#low[i] = lowOf(addresses!, i * ETH_ALEN);
    }
  }

  /** As text; null for more than fit. */
  save(): string[] | null {
    if (this.overflow) return null;
    const bytes = new DataView(new ArrayBuffer(this.#count * ETH_ALEN));
    for (let i = 0; i < this.#count; i++) {
      bytes.setUint16(i * ETH_ALEN, this.#high[i]!);
      bytes.setInt32(i * ETH_ALEN + 2, this.#low[i]!);
    }
    return macsToText(new Uint8Array(bytes.buffer));
  }

  /** As save; more than fit are as null. */
  load(addresses: readonly string[] | null): void {
    const few = addresses !== null && addresses.length <= MAC_TABLE_ENTRIES;
    this.set(
      few
        ? Uint8Array.from(addresses.flatMap((mac) => [...macFromText(mac)!]))
        : null,
    );
  }

  has(high: number, low: number): boolean {
    if (this.overflow) return true;
    for (let i = 0; i < this.#count; i++) {
      if (this.#low[i] === low && this.#high[i] === high) return true;
    }
    return false;
  }
}

/**
 * The receive filter (virtio 1.3, sections 5.1.6.5.1 to 5.1.6.5.3).
 *
 * After a reset everything passes, so that drivers without a control queue receive all they may want; the first
 * PROMISC off makes it a filter.
 */
export class ReceiveFilter {
  readonly #unicast = new MacList();
  readonly #multicast = new MacList();
  readonly #vlans = new Uint32Array(VLAN_N_VID / 32);
  readonly #modes = new Uint8Array(RX_MODES.length);
  #filtersVlans = false;
  #macHigh = 0;
  #macLow = 0;

  /**
   * Back to the state after a reset.
   *
   * @param mac The card's own address, 6 bytes
   * @param filtersVlans Whether the driver manages the VLAN table; it begins empty. Otherwise all VLANs pass
   */
  reset(mac: Uint8Array, filtersVlans: boolean): void {
    this.setMac(mac);
    this.#unicast.set(new Uint8Array(0));
    this.#multicast.set(new Uint8Array(0));
    this.#vlans.fill(0);
    this.#filtersVlans = filtersVlans;
    this.#modes.fill(0);
    this.#modes[VIRTIO_NET_CTRL_RX_CMD.PROMISC] = 1;
  }

  /** Chooses whether the driver manages the VLAN table; otherwise all VLANs pass. */
  managesVlans(on: boolean): void {
    this.#filtersVlans = on;
  }

  /** True when every frame passes, so that none needs to be looked at. */
  get promiscuous(): boolean {
    return this.#modes[VIRTIO_NET_CTRL_RX_CMD.PROMISC] !== 0;
  }

  /** Changes the card's own address, 6 bytes. */
  setMac(mac: Uint8Array): void {
    this.#macHigh = highOf(mac, 0);
    this.#macLow = lowOf(mac, 0);
  }

  /**
   * Sets a receive mode.
   *
   * @param mode One of {@linkcode VIRTIO_NET_CTRL_RX_CMD}
   */
  setMode(mode: number, on: boolean): void {
    this.#modes[mode] = on ? 1 : 0;
  }

  /**
   * Replaces the address table.
   *
   * @param unicast Six bytes an address, at most {@linkcode MAC_TABLE_ENTRIES} of them; null for more than that
   * @param multicast Likewise
   */
  setMacTable(unicast: Uint8Array | null, multicast: Uint8Array | null): void {
    this.#unicast.set(unicast);
    this.#multicast.set(multicast);
  }

  /** Lets a VLAN (0–4095) in, or keeps it out. */
  setVlan(vid: number, allowed: boolean): void {
    const word = vid >>> 5;
    this.#vlans[word] = withBit(this.#vlans[word]!, vid & 31, allowed);
  }

  /** Settings of the driver, the card's own address and whether VLANs are filtered at all aside. */
  save(): FilterState {
    const vlans: number[] = [];
    for (let vid = 0; vid < VLAN_N_VID; vid++) {
      if (bit(this.#vlans[vid >>> 5]!, vid & 31)) vlans.push(vid);
    }
    return {
      modes: RX_MODES.filter(([, mode]) => this.#modes[mode] !== 0)
        .map(([name]) => name),
      unicast: this.#unicast.save(),
      multicast: this.#multicast.save(),
      vlans,
    };
  }

  /** Takes over what {@linkcode save} gave. */
  load(state: FilterState): void {
    for (const [name, mode] of RX_MODES) {
      this.setMode(mode, state.modes.includes(name));
    }
    this.#unicast.load(state.unicast);
    this.#multicast.load(state.multicast);
    this.#vlans.fill(0);
    for (const vid of state.vlans) this.setVlan(vid, true);
  }

  /**
   * True when the driver wants a frame.
   *
   * @param bytes Holds the first {@linkcode FILTER_BYTES} of the frame
   * @param at Where in `bytes` the frame begins
   */
  accepts(bytes: Uint8Array, at: number): boolean {
    const modes = this.#modes;
    if (modes[VIRTIO_NET_CTRL_RX_CMD.PROMISC] !== 0) return true;
    if (this.#filtersVlans && highOf(bytes, at + 12) === ETH_P_8021Q) {
      const vid = highOf(bytes, at + 14) & (VLAN_N_VID - 1);
      if (!bit(this.#vlans[vid >>> 5]!, vid & 31)) return false;
    }
    const high = highOf(bytes, at);
    const low = lowOf(bytes, at);
    if ((bytes[at]! & 1) === 0) {
      if (modes[VIRTIO_NET_CTRL_RX_CMD.NOUNI] !== 0) return false;
      return (low === this.#macLow && high === this.#macHigh) ||
        modes[VIRTIO_NET_CTRL_RX_CMD.ALLUNI] !== 0 ||
        this.#unicast.has(high, low);
    }
    if (high === 0xffff && low === -1) {
      return modes[VIRTIO_NET_CTRL_RX_CMD.NOBCAST] === 0;
    }
    if (modes[VIRTIO_NET_CTRL_RX_CMD.NOMULTI] !== 0) return false;
    return modes[VIRTIO_NET_CTRL_RX_CMD.ALLMULTI] !== 0 ||
      this.#multicast.has(high, low);
  }
}
