/**
 * The kinds of storage there are, and the options of a device that has one of them.
 *
 * @module
 */

import { oneOfKinds } from "../../core/option_groups.ts";
import { type Infer, type Options, refuse } from "../../core/options.ts";
import type { StateReader } from "../../core/state_reader.ts";
import type { BlockDriver } from "./driver.ts";
import { BACKEND } from "./async/driver.ts";
import { FILE } from "./file/driver.ts";
import { MEMORY } from "./memory/driver.ts";
import { NBD } from "./nbd/driver.ts";

/** Each kind of storage, called as the option that chooses it. */
export const BLOCK_DRIVERS = {
  file: FILE,
  memory: MEMORY,
  nbd: NBD,
  backend: BACKEND,
};

/** A kind of storage. */
export type BlockKind = keyof typeof BLOCK_DRIVERS;

const KINDS = Object.keys(BLOCK_DRIVERS) as BlockKind[];

/** By the key that one of them has; memory without any. */
const KIND: Options<BlockKind> = {
  rows: KINDS.flatMap((kind) =>
    BLOCK_DRIVERS[kind].options.rows.filter(({ name }) => name === kind)
  ),
  has: (key) => KINDS.some((kind) => kind === key),
  parse(texts) {
    const chosen = KINDS.filter((kind) => texts[kind] !== undefined);
    if (chosen.length > 1) {
      refuse(
        chosen.join(" and "),
        `storage is one of ${KINDS.join(", ")}`,
      );
    }
    return chosen[0] ?? "memory";
  },
};

/** The storage options of a device. */
export const BLOCK_OPTIONS = oneOfKinds(
  "kind",
  BLOCK_DRIVERS,
  KIND,
  (kind) => kind,
  "storage",
);

/** Storage of a controller's blocks; plain data that can be sent to a Worker. */
export type BlockOptions = Infer<typeof BLOCK_OPTIONS>;

/**
 * Takes saved options of storage that is open, of which little but the kind is used again.
 *
 * @throws {import("../../core/errno.ts").ErrnoError} EINVAL when there is no such kind
 */
export function parseBlockOptions(reader: StateReader): BlockOptions {
  const kind = reader.text("kind");
  if (!Object.hasOwn(BLOCK_DRIVERS, kind)) {
    throw reader.refused(`there is no storage of kind ${kind}`);
  }
  return reader.fields as unknown as BlockOptions;
}

/** Declaration of the kind of storage that was chosen. */
export function blockDriver(options: BlockOptions): BlockDriver<BlockOptions> {
  return BLOCK_DRIVERS[options.kind] as unknown as BlockDriver<BlockOptions>;
}
