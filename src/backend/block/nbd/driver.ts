/**
 * `nbd=`: a network block device.
 *
 * @module
 */

import { type CounterTable, indicesOf } from "../../../core/counters.ts";
import { BACKEND_ERRORS, BACKEND_STATE } from "../../../core/families.ts";
import { BLOCK_COUNTERS, REPLY_COUNTERS } from "../counters.ts";
import { type Infer, options, text } from "../../../core/options.ts";
import {
  type BlockDriver,
  checkBlocks,
  COMMON_FIELDS,
  TIMEOUT,
} from "../driver.ts";
import { parseNbdUri } from "./uri.ts";

/** Counters of an NBD client. */
export const NBD_COUNTERS = {
  ...BLOCK_COUNTERS,
  ...REPLY_COUNTERS,
  /** Connections that were lost, and that were found again. */
  disconnects: [BACKEND_ERRORS, { kind: "disconnect" }],
  reconnects: null,
  /** Attempts to connect that failed. */
  failedConnects: [BACKEND_ERRORS, { kind: "connect" }],
  /** Commands that were sent again over another connection. */
  replays: null,
  /** Completed writes that no flush had covered when the connection was lost. */
  unflushedAtLoss: [BACKEND_ERRORS, { kind: "unflushed_write" }],
  connected: [BACKEND_STATE, { name: "connected" }],
  inFlight: null,
  unflushedWrites: null,
} satisfies CounterTable;

/** Indices of {@linkcode NBD_COUNTERS}. */
export const NbdCounter = indicesOf(NBD_COUNTERS);

const OPTIONS = options({
  uri: text("nbd", {
    syntax: "uri",
    help: "keep the blocks on a network block device server",
  }),
  timeout: TIMEOUT,
  ...COMMON_FIELDS,
}, ({ uri, timeout, ...values }) => {
  checkBlocks(values);
  parseNbdUri(uri!);
  return { ...values, uri: uri!, timeoutMs: timeout * 1000 };
});

/** A network block device. */
export type NbdBlockOptions = Infer<typeof OPTIONS>;

/** Network block devices. */
export const NBD: BlockDriver<NbdBlockOptions> = {
  options: OPTIONS,
  counters: NBD_COUNTERS,
  load: async () => (await import("./nbd.ts")).openNbd,
  identity: ({ uri }) => `nbd:${uri}`,
};
