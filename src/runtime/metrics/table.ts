/**
 * What counters are called outside: from the plain names that devices count by to families with labels.
 *
 * @module
 */

import type { LoopCounters } from "../../loop/event_loop.ts";
import type { MetricFamily } from "./metrics.ts";

/** A family without its values. */
export type FamilyShape = Omit<MetricFamily, "samples">;

/** Where a counter goes. */
export interface CounterRule {
  readonly family: FamilyShape;
  /** What tells it apart in the family. */
  readonly labels: Readonly<Record<string, string>>;
}

function counter(
  name: string,
  help: string,
  unit: FamilyShape["unit"] = "",
): FamilyShape {
  return { name: `outboard_${name}`, help, type: "counter", unit };
}

function gauge(
  name: string,
  help: string,
  unit: FamilyShape["unit"] = "",
): FamilyShape {
  return { name: `outboard_${name}`, help, type: "gauge", unit };
}

function info(name: string, help: string): FamilyShape {
  return { name: `outboard_${name}`, help, type: "info", unit: "" };
}

/** Families whose values are made here. The names of the process are those of all Prometheus clients. */
export const METRIC_FAMILIES = {
  build: info("build", "What runs"),
  device: info("device", "Which devices there are, and how they are set up"),
  connected: gauge("device_connected", "Whether a client is connected"),
  dmaMaps: gauge("device_dma_maps", "Ranges of guest memory in reach"),
  dmaBytes: gauge(
    "device_dma_mapped_bytes",
    "Guest memory in reach",
    "bytes",
  ),
  cpuSeconds: {
    name: "process_cpu_seconds",
    help: "User and system CPU time spent",
    type: "counter",
    unit: "seconds",
  },
  residentBytes: {
    name: "process_resident_memory_bytes",
    help: "Resident memory, shared guest memory included",
    type: "gauge",
    unit: "bytes",
  },
  openFds: {
    name: "process_open_fds",
    help: "Open file descriptors",
    type: "gauge",
    unit: "",
  },
  startTime: {
    name: "process_start_time_seconds",
    help: "When the process started, since the epoch",
    type: "gauge",
    unit: "seconds",
  },
} as const satisfies Record<string, FamilyShape>;

/** Whether there are values of an IOThread and its devices. */
export const IOTHREAD_UP: FamilyShape = gauge(
  "iothread_up",
  "Whether the IOThread answers",
);

/** One family for each counter of an event loop. */
export const LOOP_FAMILIES: Readonly<Record<keyof LoopCounters, FamilyShape>> =
  {
    turns: counter("iothread_turns", "Turns of the event loop"),
    wakeUps: counter("iothread_wakeups", "Wake-ups by the main thread"),
    events: counter("iothread_events", "Ready descriptors that were handled"),
    sleeps: counter("iothread_sleeps", "How often it went to sleep"),
    sleptSeconds: counter(
      "iothread_sleep_seconds",
      "Time spent asleep",
      "seconds",
    ),
    awakeSeconds: counter(
      "iothread_awake_seconds",
      "Time spent working and polling",
      "seconds",
    ),
    pollHits: counter("iothread_poll_hits", "Polling that found work"),
    pollMisses: counter(
      "iothread_poll_misses",
      "Polling that found nothing until its time was over",
    ),
    pollRounds: counter(
      "iothread_poll_rounds",
      "How often everything that is polled was looked at",
    ),
  };

/** For what no rule knows: counters of models from outside, above all. */
export const FALLBACK: FamilyShape = counter(
  "device_others",
  "What else a device model counts, by the name it gives it",
);

const KICKS = counter("device_kicks", "Work found, by the way it was told of");
const NOTIFICATIONS = counter(
  "device_notifications",
  "Notifications by the driver, in whatever way",
);
const LATE_KICKS = counter(
  "device_late_kicks",
  "Notifications of what had been taken already",
);
const INTERRUPTS = counter(
  "device_interrupts",
  "Interrupts raised, before masks",
);
const SUPPRESSED = counter(
  "device_suppressed_interrupts",
  "Interrupts spared: the driver wanted none, or several became one",
);
const REQUESTS = counter("device_requests", "Requests that succeeded");
const IN_FLIGHT = gauge("device_requests_in_flight", "Requests under way");
const REISSUED = counter(
  "device_reissued_requests",
  "Requests that were issued again because guest memory changed",
);
const ABANDONED = counter(
  "device_abandoned_requests",
  "Requests that a reset has thrown away",
);
const TRANSFER = counter(
  "device_transfer_bytes",
  "Bytes of data moved",
  "bytes",
);
const PACKETS = counter("device_packets", "Frames moved");
const GSO_PACKETS = counter("device_gso_packets", "Of those, segmented ones");
const DROPPED = counter("device_dropped_packets", "Frames lost, by reason");
const STALLS = counter("device_stalls", "How often work had to wait");
const ERRORS = counter("device_errors", "What went wrong, by kind");
const RESETS = counter("device_resets", "Resets by the driver");
const PAIR_PACKETS = counter(
  "device_pair_packets",
  "Frames moved by each queue pair",
);
const PAIR_TRANSFER = counter(
  "device_pair_transfer_bytes",
  "Bytes moved by each queue pair",
  "bytes",
);
const CLIENTS = counter("connection_clients", "Clients that connected");
const MESSAGES = counter("connection_messages", "Messages received");
const REFUSED = counter(
  "connection_errors",
  "Commands that were answered with an error",
);
const STRAY = counter(
  "connection_stray_replies",
  "Replies that nobody waited for",
);
const ACCESSES = counter(
  "connection_region_accesses",
  "Region reads and writes by message",
);
const DELIVERED = counter(
  "connection_interrupts",
  "Interrupts delivered to the client",
);
const BELLS = counter("connection_doorbells", "Doorbells rung by eventfd");
const BACKEND_REQUESTS = counter(
  "backend_requests",
  "Requests that the storage completed",
);
const BACKEND_TRANSFER = counter(
  "backend_transfer_bytes",
  "Bytes that the storage moved",
  "bytes",
);
const BACKEND_SERVED = counter(
  "backend_served",
  "How the storage served requests",
);
const BACKEND_ERRORS = counter(
  "backend_errors",
  "What went wrong behind the device, by kind",
);
const BACKEND_STATE = gauge("backend_state", "What a back end is at, by name");
const BACKEND_FALLBACK = counter(
  "backend_others",
  "What else a back end counts, by the name it gives it",
);

type Rules = Readonly<Record<string, CounterRule>>;

function rows(
  family: FamilyShape,
  label: string,
  names: Readonly<Record<string, string>>,
): [string, CounterRule][] {
  return Object.entries(names).map(([name, value]) => [
    name,
    { family, labels: { [label]: value } },
  ]);
}

function row(family: FamilyShape, name: string): [string, CounterRule] {
  return [name, { family, labels: {} }];
}

const BLOCK_OPS = {
  reads: "read",
  writes: "write",
  flushes: "flush",
  discards: "discard",
  writeZeroes: "write_zeroes",
} as const;

const PACKET_DIRECTIONS = { rxPackets: "receive", txPackets: "transmit" };
const BYTE_DIRECTIONS = { rxBytes: "receive", txBytes: "transmit" };
const STORAGE_DIRECTIONS = { readBytes: "read", writtenBytes: "write" };

function dropped(
  direction: string,
  reasons: Readonly<Record<string, string>>,
): [string, CounterRule][] {
  return Object.entries(reasons).map(([name, reason]) => [
    name,
    { family: DROPPED, labels: { direction, reason } },
  ]);
}

/** Counters of the vfio-user server. */
const CONNECTION_RULES: Rules = Object.fromEntries([
  row(CLIENTS, "clients"),
  row(MESSAGES, "messages"),
  row(REFUSED, "errors"),
  row(STRAY, "strayReplies"),
  ...rows(ACCESSES, "op", { regionReads: "read", regionWrites: "write" }),
  row(DELIVERED, "interrupts"),
  row(BELLS, "doorbells"),
]);

/** Counters of device models. */
const DEVICE_RULES: Rules = Object.fromEntries([
  row(NOTIFICATIONS, "kicks"),
  ...rows(KICKS, "path", {
    eventFdKicks: "ioeventfd",
    messageKicks: "message",
    doorbells: "message",
    pageKicks: "page",
    polledKicks: "poll",
  }),
  row(LATE_KICKS, "lateKicks"),
  ...rows(INTERRUPTS, "kind", {
    interrupts: "queue",
    configInterrupts: "config",
  }),
  ...rows(SUPPRESSED, "reason", {
    suppressedInterrupts: "unwanted",
    coalescedInterrupts: "coalesced",
  }),
  ...rows(REQUESTS, "op", {
    ...BLOCK_OPS,
    getIds: "get_id",
    adminCommands: "admin",
    others: "other",
    ctrlCommands: "control",
  }),
  row(IN_FLIGHT, "inFlight"),
  row(REISSUED, "reissued"),
  row(ABANDONED, "dropped"),
  ...rows(TRANSFER, "direction", {
    ...STORAGE_DIRECTIONS,
    ...BYTE_DIRECTIONS,
  }),
  ...rows(PACKETS, "direction", PACKET_DIRECTIONS),
  ...rows(GSO_PACKETS, "direction", {
    rxGsoPackets: "receive",
    txGsoPackets: "transmit",
  }),
  ...dropped("receive", {
    rxDroppedFilter: "filter",
    rxDroppedOversized: "oversized",
    rxDroppedRunt: "runt",
    rxDroppedNoRoom: "no_room",
    rxDroppedBadHeader: "bad_header",
  }),
  ...dropped("transmit", {
    txDroppedShort: "short",
    txDroppedOversized: "oversized",
    txDroppedBadHeader: "bad_header",
    txDroppedLinkDown: "link_down",
  }),
  ...rows(STALLS, "reason", {
    rxStarved: "no_buffers",
    rxRests: "overloaded_driver",
    txBlocked: "backend",
    completionQueueFull: "completion_queue_full",
  }),
  ...rows(ERRORS, "kind", {
    failures: "driver",
    errors: "request",
    unsupported: "unsupported",
    rxErrors: "receive",
    txErrors: "transmit",
    ctrlErrors: "control",
    failedCommands: "request",
    mediaErrors: "media",
    invalidDoorbells: "doorbell",
    fatalErrors: "driver",
  }),
  ...rows(RESETS, "kind", {
    resets: "device",
    controllerResets: "controller",
  }),
]);

/** Counters of what is behind a device. */
const BACKEND_RULES: Rules = Object.fromEntries([
  ...rows(BACKEND_REQUESTS, "op", BLOCK_OPS),
  ...rows(BACKEND_TRANSFER, "direction", STORAGE_DIRECTIONS),
  ...rows(BACKEND_SERVED, "path", {
    servedAtOnce: "at_once",
    servedByRing: "ring",
  }),
  ...rows(BACKEND_ERRORS, "kind", {
    failed: "request",
    timeouts: "timeout",
    disconnects: "disconnect",
    failedConnects: "connect",
    unflushedAtLoss: "unflushed_write",
    rxErrors: "receive",
    txErrors: "transmit",
    guestErrors: "guest",
    pollErrors: "poll",
    rxBadLengths: "bad_length",
    rxDropped: "receive_dropped",
    rxDroppedRunt: "receive_runt",
    txDropped: "transmit_dropped",
    txUnreachable: "transmit_unreachable",
  }),
  ...rows(BACKEND_STATE, "name", {
    connected: "connected",
    sockets: "sockets",
    pid: "pid",
    ringSubmissionsPerEnter: "ring_submissions_per_enter",
  }),
]);

const PAIR_RULES: Rules = Object.fromEntries([
  ...rows(PAIR_PACKETS, "direction", PACKET_DIRECTIONS),
  ...rows(PAIR_TRANSFER, "direction", BYTE_DIRECTIONS),
]);

function own(rules: Rules, name: string): CounterRule | undefined {
  return Object.hasOwn(rules, name) ? rules[name] : undefined;
}

function labelled(
  rule: CounterRule | undefined,
  labels: Readonly<Record<string, string>>,
): CounterRule | undefined {
  return rule === undefined
    ? undefined
    : { family: rule.family, labels: { ...labels, ...rule.labels } };
}

/**
 * Where a counter goes. Names with a dot are of a part of the device: `backend.`, `nsN.` (the storage of a namespace) and
 * `pairN.`.
 *
 * @returns undefined for an unknown one, which is for {@linkcode FALLBACK}
 */
export function ruleFor(
  scope: "connection" | "device",
  name: string,
): CounterRule | undefined {
  if (scope === "connection") return own(CONNECTION_RULES, name);
  const [, part, number, rest] = /^(backend|ns|pair)(\d*)\.(.+)$/.exec(name) ??
    [];
  if (part === undefined) return own(DEVICE_RULES, name);
  if (part === "pair") {
    return labelled(own(PAIR_RULES, rest!), { pair: number! });
  }
  const labels: Record<string, string> = part === "ns"
    ? { namespace: number! }
    : {};
  const rule = own(BACKEND_RULES, rest!);
  return rule === undefined
    ? { family: BACKEND_FALLBACK, labels: { ...labels, name: rest! } }
    : labelled(rule, labels);
}
