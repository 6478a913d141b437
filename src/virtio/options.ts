/**
 * Options that every virtio device has: which features of its rings a driver may choose from, how it notifies, and how
 * it is interrupted.
 *
 * @module
 */

import { Errno, ErrnoError } from "../core/errno.ts";
import { Features, VIRTIO_F } from "./features.ts";

/** One row of the option table, for help and for parsing. */
export interface VirtioOption {
  /** The key on the command line. */
  readonly name: string;
  /** What its value looks like. */
  readonly syntax: string;
  /** One line for people. */
  readonly help: string;
  /** The value when it is not given. */
  readonly default: string;
}

/** The way drivers notify a device; `auto` leaves the choice to us. */
export type DoorbellMode = "auto" | "message" | "mmap";

const DOORBELLS: readonly DoorbellMode[] = ["auto", "message", "mmap"];

/** Which features of rings and of memory are offered, and how one notifies the other; plain data that can be sent to a Worker. */
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
  /** Whether interrupts can be MSI-X messages; else they are INTA#. */
  readonly msix: boolean;
  /** How drivers notify. */
  readonly doorbells: DoorbellMode;
}

/** The fields of {@linkcode VirtioOptions} that are on or off. */
type Switch = Exclude<keyof VirtioOptions, "doorbells">;

/** What is offered unless someone chooses; a model may have reasons for other defaults. */
export const VIRTIO_DEFAULTS: VirtioOptions = {
  packed: false,
  inOrder: true,
  eventIdx: true,
  indirect: true,
  notificationData: false,
  iommuPlatform: true,
  msix: true,
  doorbells: "auto",
};

/** Key, field of {@linkcode VirtioOptions}, feature bit where it is one, help. */
const ROWS: readonly (readonly [
  name: string,
  field: Switch,
  feature: number | null,
  help: string,
])[] = [
  [
    "packed",
    "packed",
    VIRTIO_F.RING_PACKED,
    "offer packed queues, where each descriptor ring is all there is",
  ],
  [
    "in-order",
    "inOrder",
    VIRTIO_F.IN_ORDER,
    "offer to return buffers in the order in which they were made available",
  ],
  [
    "event-idx",
    "eventIdx",
    VIRTIO_F.RING_EVENT_IDX,
    "offer to notify at a certain buffer, and be notified so",
  ],
  [
    "indirect",
    "indirect",
    VIRTIO_F.RING_INDIRECT_DESC,
    "offer to take tables of descriptors outside the queue",
  ],
  [
    "notification-data",
    "notificationData",
    VIRTIO_F.NOTIFICATION_DATA,
    "ask drivers to say in a notification how far they have come",
  ],
  [
    "iommu-platform",
    "iommuPlatform",
    VIRTIO_F.ACCESS_PLATFORM,
    "say that memory is reached through the machine's IOMMU where there is one; without it a guest passes that by, and the device fails behind one",
  ],
  [
    "msix",
    "msix",
    null,
    "have MSI-X; without it interrupts are INTA#, and QEMU can unplug the device",
  ],
];

const DOORBELLS_ROW: Omit<VirtioOption, "default"> = {
  name: "doorbells",
  syntax: DOORBELLS.join("|"),
  help:
    "drivers notify by messages and eventfds, or by a page that the client maps and we look at " +
    "at least once a millisecond (mmap; auto is message); a client that never " +
    "notifies, as SPDK's, needs mmap or --poll always",
};

/**
 * The rows for the option table of a device model.
 *
 * @param defaults Where the model differs from {@linkcode VIRTIO_DEFAULTS}
 */
export function virtioOptionTable(
  defaults: Partial<VirtioOptions> = {},
): readonly VirtioOption[] {
  const values = { ...VIRTIO_DEFAULTS, ...defaults };
  const switches = ROWS.map(([name, field, , help]) => ({
    name,
    syntax: "on|off",
    help,
    default: values[field] ? "on" : "off",
  }));
  return [...switches, { ...DOORBELLS_ROW, default: values.doorbells }];
}

/** Whether a key belongs to {@linkcode virtioOptionTable}. */
export function isVirtioOption(key: string): boolean {
  return key === DOORBELLS_ROW.name || ROWS.some(([name]) => name === key);
}

/**
 * Parses and checks ring options.
 *
 * @param values Only keys for which {@linkcode isVirtioOption} is true; a repeated key is an array
 * @param defaults Where the model differs from {@linkcode VIRTIO_DEFAULTS}
 * @throws {ErrnoError} EINVAL, with what is wrong and what would be right
 */
export function parseVirtioOptions(
  values: Readonly<Record<string, string | readonly string[]>>,
  defaults: Partial<VirtioOptions> = {},
): VirtioOptions {
  const chosen: { -readonly [K in keyof VirtioOptions]: VirtioOptions[K] } = {
    ...VIRTIO_DEFAULTS,
    ...defaults,
  };
  for (const [key, value] of Object.entries(values)) {
    if (key === DOORBELLS_ROW.name) {
      chosen.doorbells = parseDoorbells(value);
      continue;
    }
    const row = ROWS.find(([name]) => name === key);
    if (row === undefined) {
      const names = [...ROWS, [DOORBELLS_ROW.name]].map(([name]) => name)
        .join(", ");
      throw refused(key, `it is no option of virtio queues, they are ${names}`);
    }
    chosen[row[1]] = parseOnOff(key, value);
  }
  // Linux' first drivers with IN_ORDER take the slot of a split queue's used entry for the head of its chain, which is
  // true only while every chain is one descriptor, as with indirect tables. So not without them, unless asked for.
  if (!chosen.indirect && values["in-order"] === undefined) {
    chosen.inOrder = false;
  }
  return chosen;
}

/** What `VirtioPciOptions.ringFeatures` is to be for these options; RING_RESET is always offered. */
export function ringFeatures(options: VirtioOptions): Features {
  const bits: number[] = [VIRTIO_F.RING_RESET];
  for (const [, field, feature] of ROWS) {
    if (feature !== null && options[field]) bits.push(feature);
  }
  return Features.of(...bits);
}

/**
 * What `VirtioPciOptions.mapNotify` is to be for these options.
 *
 * `auto` is no. To look at a page costs wake-ups while the loop sleeps, and up to a millisecond; while the loop polls,
 * drivers are told not to notify, in whatever way. And QEMU waits for the answer to every register write of a device of
 * which it can map something.
 */
export function mapsNotify(options: VirtioOptions): boolean {
  return options.doorbells === "mmap";
}

function parseDoorbells(value: string | readonly string[]): DoorbellMode {
  const key = DOORBELLS_ROW.name;
  if (typeof value !== "string") {
    throw refused(`${key} ${value.length} times`, "give it once");
  }
  const mode = DOORBELLS.find((each) => each === value);
  if (mode === undefined) {
    throw refused(`${key}=${value}`, `it is ${DOORBELLS.join(", ")}`);
  }
  return mode;
}

function parseOnOff(key: string, value: string | readonly string[]): boolean {
  if (typeof value !== "string") {
    throw refused(`${key} ${value.length} times`, "give it once");
  }
  if (value !== "on" && value !== "off") {
    throw refused(`${key}=${value}`, "it is on or off");
  }
  return value === "on";
}

function refused(what: string, right: string): ErrnoError {
  return new ErrnoError(Errno.EINVAL, `Cannot use ${what}: ${right}`);
}
