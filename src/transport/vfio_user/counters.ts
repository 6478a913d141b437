/**
 * Counters of a server.
 *
 * @module
 */

import { counter, type CounterTable } from "../../core/counters.ts";

const ACCESSES = counter(
  "connection_region_accesses",
  "Region reads and writes by message",
);

/** Counters of a server, over all its clients. */
export const CONNECTION_COUNTERS = {
  clients: [counter("connection_clients", "Clients that connected")],
  messages: [counter("connection_messages", "Messages received")],
  errors: [counter(
    "connection_errors",
    "Commands that were answered with an error",
  )],
  strayReplies: [counter(
    "connection_stray_replies",
    "Replies that nobody waited for",
  )],
  regionReads: [ACCESSES, { op: "read" }],
  /** One REGION_WRITE_MULTI counts once. */
  regionWrites: [ACCESSES, { op: "write" }],
  interrupts: [counter(
    "connection_interrupts",
    "Interrupts delivered to the client",
  )],
  doorbells: [counter(
    "connection_doorbells",
    "Doorbells rung by eventfd",
  )],
} satisfies CounterTable;

/** Counts of a server. */
export type Counters = {
  -readonly [K in keyof typeof CONNECTION_COUNTERS]: number;
};
