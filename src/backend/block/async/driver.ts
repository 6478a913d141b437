/**
 * `backend=`: storage that an author has written.
 *
 * @module
 */

import { type CounterTable, indicesOf } from "../../../core/counters.ts";
import { BLOCK_COUNTERS, QUEUED, REPLY_COUNTERS } from "../counters.ts";
import {
  type Infer,
  type Options,
  options,
  type OptionTexts,
  text,
} from "../../../core/options.ts";
import {
  type BlockDriver,
  checkBlocks,
  COMMON_FIELDS,
  TIMEOUT,
} from "../driver.ts";

/** Longest READ and WRITE. */
export const SLOT_BYTES = 256 * 1024;

/** Counters of such a back end. */
export const STORE_COUNTERS = {
  ...BLOCK_COUNTERS,
  ...REPLY_COUNTERS,
  ...QUEUED,
  inFlight: null,
} satisfies CounterTable;

/** Indices of {@linkcode STORE_COUNTERS}. */
export const StoreCounter = indicesOf(STORE_COUNTERS);

/** Options that the author's file declares, of which nothing is known before it is loaded. */
const OWN: Options<OptionTexts> = {
  rows: [],
  has: () => false,
  takesRest: (texts) => texts.backend !== undefined,
  parse: (texts) => texts,
};

const OPTIONS = options({
  reference: text("backend", {
    syntax: "file",
    help:
      "keep the blocks in a store of your own, with its options beside this one: backend=./store.ts,help",
  }),
  timeout: TIMEOUT,
  ...COMMON_FIELDS,
  own: OWN,
}, ({ reference, timeout, ...values }) => {
  checkBlocks(values);
  return { ...values, reference: reference!, timeoutMs: timeout * 1000 };
});

/** A store of an author's own. */
export type StoreBlockOptions = Infer<typeof OPTIONS>;

/** Stores of authors' own. */
export const BACKEND: BlockDriver<StoreBlockOptions> = {
  options: OPTIONS,
  counters: STORE_COUNTERS,
  load: async () => (await import("./async.ts")).openAsync,
  loadBegin: async () => (await import("./async.ts")).beginOpenAsync,
  maxTransferBytes: SLOT_BYTES,
  check: async ({ reference, own }) => {
    const { loadStore, parseStoreOptions } = await import("./load.ts");
    parseStoreOptions(await loadStore(reference), own);
  },
  identity: ({ reference, own }) =>
    `backend:${reference},${JSON.stringify(own)}`,
};
