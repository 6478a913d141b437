/**
 * `memory=`: memory that is gone with the process.
 *
 * @module
 */

import { BLOCK_COUNTERS } from "../counters.ts";
import { type Infer, options, size } from "../../../core/options.ts";
import {
  type BlockDriver,
  checkBlocks,
  checkSize,
  COMMON_FIELDS,
  DISCARD,
} from "../driver.ts";

const OPTIONS = options({
  sizeBytes: size("memory", {
    help:
      "keep the blocks in memory, when nothing else is given; on huge pages where " +
      "/sys/kernel/mm/transparent_hugepage/shmem_enabled says advise",
    default: "64M",
  }),
  discard: DISCARD,
  ...COMMON_FIELDS,
}, ({ discard, ...values }) => {
  checkBlocks(values);
  checkSize("memory", values.sizeBytes, values);
  return { ...values, discard: discard === "unmap" };
});

/** Memory. */
export type MemoryBlockOptions = Infer<typeof OPTIONS>;

/** Memory. */
export const MEMORY: BlockDriver<MemoryBlockOptions> = {
  options: OPTIONS,
  counters: BLOCK_COUNTERS,
  load: async () => (await import("./memory.ts")).openMemory,
  identity: () => null,
};
