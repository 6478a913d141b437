/**
 * `nbd=`: a network block device.
 *
 * @module
 */

import { NBD_COUNTERS } from "./counters.ts";
import { type Infer, options, text } from "../../../core/options.ts";
import {
  type BlockDriver,
  checkBlocks,
  COMMON_FIELDS,
  TIMEOUT,
} from "../driver.ts";
import { parseNbdUri } from "./uri.ts";

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
