/**
 * What a card counts.
 *
 * @module
 */

/** Counters of a card, in the order they are shown; each is an index of {@linkcode NetCounters.values}. */
export const NetCounter = {
  /** Frames given to the driver. */
  rxPackets: 0,
  /** Their bytes, without the virtio-net header. */
  rxBytes: 1,
  /** The driver does not want the address or the VLAN. */
  rxDroppedFilter: 2,
  /** Longer than the MTU allows. */
  rxDroppedOversized: 3,
  /** Shorter than an Ethernet header. */
  rxDroppedRunt: 4,
  /** Did not fit into the buffers that the driver gave. */
  rxDroppedNoRoom: 5,
  /** The back end lost a frame. */
  rxErrors: 6,
  /** How often reception stopped because the driver gave too few buffers. */
  rxStarved: 7,
  /** Frames that the back end took. */
  txPackets: 8,
  /** Their bytes, without the virtio-net header. */
  txBytes: 9,
  /** The header or the Ethernet header is not all there. */
  txDroppedShort: 10,
  /** Longer than the MTU allows. */
  txDroppedOversized: 11,
  /** The header asks for an offload that was not negotiated. */
  txDroppedBadHeader: 12,
  /** The link is down. */
  txDroppedLinkDown: 13,
  /** The back end refused a frame, or lost it after it took it. */
  txErrors: 14,
  /** How often the back end made us wait. */
  txBlocked: 15,
  /** Control commands that were answered with VIRTIO_NET_OK. */
  ctrlCommands: 16,
  /** Control commands that were answered with VIRTIO_NET_ERR, or could not be answered. */
  ctrlErrors: 17,
  /** Frames given to the driver that are longer than a wire takes: several segments at once. */
  rxGsoPackets: 18,
  /** Frames that the back end took to cut into segments. */
  txGsoPackets: 19,
  /** The header has an offload that is off, as just after the driver turned it off. */
  rxDroppedBadHeader: 20,
  /** Interrupts that were not raised because one that is held back stands for them too. */
  coalescedInterrupts: 21,
  /** How often frames were kept from a driver that could not keep up. */
  rxRests: 22,
} as const;

const NAMES = Object.keys(NetCounter) as (keyof typeof NetCounter)[];

/** The counters of one card. */
export class NetCounters {
  /** By {@linkcode NetCounter}; doubles in place, so that counting allocates nothing. */
  readonly values: Float64Array<ArrayBuffer> = new Float64Array(NAMES.length);

  /** Adds to a counter. */
  add(counter: number, amount: number): void {
    this.values[counter]! += amount;
  }

  /** Goes on from what {@linkcode NetCounters.toRecord} gave; what it lacks is left as it is. */
  load(record: Readonly<Record<string, number>>): void {
    for (const name of NAMES) {
      this.values[NetCounter[name]] = record[name] ??
        this.values[NetCounter[name]]!;
    }
  }

  /** All of them by name. */
  toRecord(): Record<string, number> {
    const record: Record<string, number> = {};
    for (const name of NAMES) record[name] = this.values[NetCounter[name]]!;
    return record;
  }
}
