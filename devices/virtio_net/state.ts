/**
 * State of a card.
 *
 * @module
 */

import { type CounterRecord, parseCounters } from "../../src/core/counters.ts";
import { StateForm } from "../../src/core/state_form.ts";
import type { StateReader } from "../../src/core/state_reader.ts";
import { NET_COUNTERS, PAIR_COUNTERS } from "./counters.ts";
import { formatMac } from "./config.ts";
import type { CoalescingLimits } from "./queue/coalescing.ts";
import { ETH_ALEN, VLAN_N_VID } from "./defs.ts";

/** Frames and bytes of one queue pair. */
export type PairCounts = CounterRecord<typeof PAIR_COUNTERS>;

const U32_MAX = 0xffff_ffff;

/** The bytes of an address written as by {@linkcode formatMac}; null for anything else. */
export function macFromText(text: string): Uint8Array<ArrayBuffer> | null {
  if (!/^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/.test(text)) return null;
  return Uint8Array.from(text.split(":"), (byte) => parseInt(byte, 16));
}

/** Addresses of six bytes each as text. */
export function macsToText(addresses: Uint8Array): string[] {
  const texts: string[] = [];
  for (let at = 0; at < addresses.length; at += ETH_ALEN) {
    texts.push(formatMac(addresses.subarray(at, at + ETH_ALEN)));
  }
  return texts;
}

function readMac(state: StateReader, name: string): string {
  const text = state.text(name);
  if (macFromText(text) === null) {
    throw state.refused(`its ${name} is no address`);
  }
  return text;
}

function readTable(state: StateReader, name: string): readonly string[] | null {
  if (state.value(name) === null) return null;
  const texts = state.texts(name);
  if (texts.some((text) => macFromText(text) === null)) {
    throw state.refused(`not all of ${name} are addresses`);
  }
  return texts;
}

function readFilter(state: StateReader) {
  return {
    /** Names of the VIRTIO_NET_CTRL_RX_CMD modes that are on. */
    modes: state.texts("modes"),
    /** The address table, as people write it; null for more addresses than fit. */
    unicast: readTable(state, "unicast"),
    multicast: readTable(state, "multicast"),
    /** VLANs that are let in. */
    vlans: state.integers("vlans", VLAN_N_VID - 1),
  };
}

function readLimits(state: StateReader): CoalescingLimits {
  return {
    maxPackets: state.integer("maxPackets", U32_MAX),
    maxUsecs: state.integer("maxUsecs", U32_MAX),
  };
}

function readCoalescing(state: StateReader, queues: number) {
  return {
    /** Limits that all receive queues, and all transmit queues, were given last. */
    rx: readLimits(state.part("rx")),
    tx: readLimits(state.part("tx")),
    /** Limits in force, by queue number. */
    queues: state.parts("queues", readLimits, queues),
  };
}

function readSettings(state: StateReader, pairs: number) {
  return {
    /** The address in force, as people write it. */
    mac: readMac(state, "mac"),
    /** True while the card is plugged in. */
    linkUp: state.flag("linkUp"),
    /** Number of queue pairs that receive. */
    activePairs: state.integer("activePairs", pairs),
    /** Offloads that are left to the driver, a set of NetOffload. */
    guestOffloads: state.integer("guestOffloads", U32_MAX),
    filter: readFilter(state.part("filter")),
    coalescing: readCoalescing(state.part("coalescing"), pairs * 2),
  };
}

function readState(state: StateReader, pairs: number) {
  return {
    /** The address that a reset restores. */
    permanentMac: readMac(state, "permanentMac"),
    ...readSettings(state, pairs),
    /** True while the driver is to announce itself, and has not said that it did. */
    announce: state.flag("announce"),
    /** Counters by name. */
    counters: parseCounters(NET_COUNTERS, state.value("counters")),
    pairs: state.list("pairs", pairs)
      .map((pair) => parseCounters(PAIR_COUNTERS, pair)),
    /** State of its network, for openNetBackend; null for one that cannot go on elsewhere. */
    backend: state.value("backend"),
  };
}

/** The receive filter. */
export type FilterState = Readonly<ReturnType<typeof readFilter>>;

/** Notification coalescing. */
export type CoalescingState = Readonly<ReturnType<typeof readCoalescing>>;

/** Decisions about frames, of the control side or of the driver by way of it. Plain data. */
export type NetSettings = Readonly<ReturnType<typeof readSettings>>;

/** Everything that a card goes on from, beyond its queues and features; see {@linkcode VirtioNet.save}. */
export type NetState = Readonly<ReturnType<typeof readState>>;

/** Form of {@linkcode NetState}. */
export const NET_FORM: StateForm<NetState> = new StateForm(
  "virtio-net",
  "the network card",
);

/**
 * Parses the state of a card.
 *
 * @param pairs How many queue pairs the card has
 * @throws {ErrnoError} EINVAL when it is none of such a card
 */
export function parseNetState(value: unknown, pairs: number): NetState {
  return readState(NET_FORM.read(value), pairs);
}
