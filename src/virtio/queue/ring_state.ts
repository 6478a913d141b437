/**
 * Place and position of a queue, as plain data.
 *
 * @module
 */

import { StateReader } from "../../core/state_reader.ts";

/** State of queues of either format. */
export interface RingPlace {
  /** True when the driver has enabled the queue; nothing else counts when it has not. */
  readonly enabled: boolean;
  /** Entries of the ring. */
  readonly size: number;
  /** Addresses of descriptor area, driver area and device area. */
  readonly descIova: number;
  readonly availIova: number;
  readonly usedIova: number;
}

/** A split queue (virtio 1.3, section 2.7). */
export interface SplitRingState extends RingPlace {
  readonly format: "split";
  /** The available index up to which chains were taken, 16 bits. */
  readonly availIdx: number;
  /** The used index as the driver knows it, 16 bits. */
  readonly usedIdx: number;
  /** True when the driver was last told that notifications are not needed. */
  readonly notificationsOff: boolean;
}

/** A packed queue (virtio 1.3, section 2.8). */
export interface PackedRingState extends RingPlace {
  readonly format: "packed";
  /** Descriptor that is looked at for the next chain, and the wrap counter there. */
  readonly availAt: number;
  readonly availWrap: boolean;
  /** Place of the next used descriptor, and the wrap counter there. */
  readonly usedAt: number;
  readonly usedWrap: boolean;
  /** The flags of the device's event suppression structure, VRING_PACKED_EVENT_FLAG. */
  readonly eventFlags: number;
}

/** A queue of either format; see {@linkcode Ring.save}. */
export type RingState = SplitRingState | PackedRingState;

const U16_MAX = 0xffff;

/**
 * Parses the state of a queue.
 *
 * @param what The queue, for messages
 * @throws {ErrnoError} EINVAL when it is none; whether it fits the queue is for {@linkcode Ring.load} to say
 */
export function parseRingState(value: unknown, what: string): RingState {
  const state = new StateReader(value, what);
  const place: RingPlace = {
    enabled: state.flag("enabled"),
    size: state.integer("size", U16_MAX),
    descIova: state.integer("descIova", Number.MAX_SAFE_INTEGER),
    availIova: state.integer("availIova", Number.MAX_SAFE_INTEGER),
    usedIova: state.integer("usedIova", Number.MAX_SAFE_INTEGER),
  };
  const format = state.text("format");
  switch (format) {
    case "split":
      return {
        format,
        ...place,
        availIdx: state.integer("availIdx", U16_MAX),
        usedIdx: state.integer("usedIdx", U16_MAX),
        notificationsOff: state.flag("notificationsOff"),
      };
    case "packed":
      return {
        format,
        ...place,
        availAt: state.integer("availAt", U16_MAX),
        availWrap: state.flag("availWrap"),
        usedAt: state.integer("usedAt", U16_MAX),
        usedWrap: state.flag("usedWrap"),
        eventFlags: state.integer("eventFlags", 3),
      };
    default:
      throw state.refused(`there is no ring format ${format}`);
  }
}
