/**
 * Options that every virtio device has: which features of its rings a driver may choose from, how it notifies, and how
 * it is interrupted.
 *
 * @module
 */

import { oneOf, onOff, type Options, options } from "../core/options.ts";
import { Features, VIRTIO_F } from "./features.ts";

/**
 * Features of rings and of memory that are offered, and ways to notify; plain data that can be sent to a
 * Worker.
 */
export interface VirtioOptions {
  /** RING_PACKED. */
  readonly packed: boolean;
  /** IN_ORDER. */
  readonly inOrder: boolean;
  /** RING_EVENT_IDX. */
  readonly eventIdx: boolean;
  /** RING_INDIRECT_DESC. */
  readonly indirect: boolean;
  /** NOTIFICATION_DATA. */
  readonly notificationData: boolean;
  /** ACCESS_PLATFORM. */
  readonly iommuPlatform: boolean;
  /** True when interrupts can be MSI-X messages; else they are INTA#. */
  readonly msix: boolean;
  /** The way drivers notify the device; `auto` leaves the choice to us. */
  readonly doorbells: "auto" | "message" | "mmap";
}

/**
 * Options for a virtio device, among those of its model.
 *
 * @param inOrder Whether IN_ORDER is offered unless someone chooses
 */
export function virtioOptions(inOrder: boolean = true): Options<VirtioOptions> {
  return options({
    packed: onOff("packed", {
      help: "offer packed queues, where each descriptor ring is all there is",
      default: "off",
    }),
    inOrder: onOff("in-order", {
      help:
        "offer to return buffers in the order in which they were made available",
      otherwise: inOrder ? "on" : "off",
    }),
    eventIdx: onOff("event-idx", {
      help: "offer to notify at a certain buffer, and be notified so",
      default: "on",
    }),
    indirect: onOff("indirect", {
      help: "offer to take tables of descriptors outside the queue",
      default: "on",
    }),
    notificationData: onOff("notification-data", {
      help: "ask drivers to say in a notification how far they have come",
      default: "off",
    }),
    iommuPlatform: onOff("iommu-platform", {
      help:
        "say that memory is reached through the machine's IOMMU where there is one; without it a guest passes that by, and the device fails behind one",
      default: "on",
    }),
    msix: onOff("msix", {
      help:
        "have MSI-X; without it interrupts are INTA#, and QEMU can unplug the device",
      default: "on",
    }),
    doorbells: oneOf("doorbells", ["auto", "message", "mmap"], {
      help:
        "drivers notify by messages and eventfds, or by a page that the client maps and we look at " +
        "at least once a millisecond (mmap; auto is message); a client that never " +
        "notifies, as SPDK's, needs mmap or --poll always",
      default: "auto",
    }),
  }, (values) => ({
    ...values,
    // Linux' first drivers with IN_ORDER take the slot of a split queue's used entry for the head of its chain, which is
    // true only while every chain is one descriptor, as with indirect tables. So not without them, unless asked for.
    inOrder: values.inOrder ?? (inOrder && values.indirect),
  }));
}

/** Offer unless someone chooses. */
export const VIRTIO_DEFAULTS: VirtioOptions = virtioOptions().parse({});

/** The options that are a feature each. */
const FEATURES = {
  packed: VIRTIO_F.RING_PACKED,
  inOrder: VIRTIO_F.IN_ORDER,
  eventIdx: VIRTIO_F.RING_EVENT_IDX,
  indirect: VIRTIO_F.RING_INDIRECT_DESC,
  notificationData: VIRTIO_F.NOTIFICATION_DATA,
  iommuPlatform: VIRTIO_F.ACCESS_PLATFORM,
} as const satisfies Partial<Record<keyof VirtioOptions, number>>;

/** Value of `VirtioPciOptions.ringFeatures` for these options; RING_RESET is always offered. */
export function ringFeatures(options: VirtioOptions): Features {
  const chosen = Object.entries(FEATURES)
    .filter(([field]) => options[field as keyof typeof FEATURES]);
  return Features.of(VIRTIO_F.RING_RESET, ...chosen.map(([, bit]) => bit));
}

/**
 * Value of `VirtioPciOptions.mapNotify` for these options.
 *
 * `auto` is no. To look at a page costs wake-ups while the loop sleeps, and up to a millisecond; while the loop polls,
 * drivers are told not to notify, in whatever way. And QEMU waits for the answer to every register write of a device of
 * which it can map something.
 */
export function mapsNotify(options: VirtioOptions): boolean {
  return options.doorbells === "mmap";
}
