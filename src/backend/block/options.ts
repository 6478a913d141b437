/**
 * From the command line's `key=value` texts to checked storage options.
 *
 * @module
 */

import { checkText, refuse } from "../../core/refuse.ts";
import { UnknownNameError } from "../../core/unknown_name.ts";
import {
  BLOCK_OPTIONS,
  BlockKind,
  type BlockOptions,
  type CommonBlockOptions,
} from "./option_table.ts";
import { parseNbdUri } from "./nbd/uri.ts";
import { parseSize, SIZE_WANTED } from "./size.ts";

/** Values by key as the command line splits them; a repeated key is an array. */
export type BlockOptionValues = Readonly<
  Record<string, string | readonly string[]>
>;

const KINDS: readonly BlockKind[] = Object.values(BlockKind);
const DEFAULT_MEMORY = "64M";
const DEFAULT_TIMEOUT = "120";
const PATH_MAX = 4095;

/** The given values, each checked to belong here. */
class Values {
  readonly kind: BlockKind;
  readonly #values = new Map<string, string>();

  constructor(values: BlockOptionValues) {
    for (const [key, value] of Object.entries(values)) {
      const list = typeof value === "string" ? [value] : value;
      const names = BLOCK_OPTIONS.map(({ name }) => name);
      if (!names.includes(key)) {
        throw new UnknownNameError(
          `Cannot use ${key}: it is no storage option, they are ${
            names.join(", ")
          }`,
          key,
          names,
        );
      }
      if (list.length > 1) {
        refuse(`${key} ${list.length} times`, "it is allowed once");
      }
      if (list.length > 0) this.#values.set(key, list[0]!);
    }
    const chosen = KINDS.filter((kind) => this.#values.has(kind));
    if (chosen.length > 1) {
      refuse(chosen.join(" and "), "storage is one of file, memory and nbd");
    }
    this.kind = chosen[0] ?? BlockKind.MEMORY;
    for (const key of this.#values.keys()) {
      const { kinds } = BLOCK_OPTIONS.find(({ name }) => name === key)!;
      if (kinds !== undefined && !kinds.includes(this.kind)) {
        refuse(`${key} with ${this.kind}`, `it needs ${kinds.join(" or ")}`);
      }
    }
  }

  one(key: string): string | undefined {
    return this.#values.get(key);
  }

  choice<T extends string>(key: string, allowed: readonly [T, ...T[]]): T {
    const value = this.one(key) ?? allowed[0];
    return allowed.find((each) => each === value) ??
      refuse(`${key}=${value}`, `it is ${allowed.join(" or ")}`);
  }

  blockSize(key: string): 512 | 4096 | null {
    const value = this.one(key);
    if (value === undefined) return null;
    if (value === "512") return 512;
    if (value === "4096") return 4096;
    return refuse(`${key}=${value}`, "it is 512 or 4096");
  }

  size(key: string, text: string, blockBytes: number): number {
    const bytes = parseSize(text) ??
      refuse(`${key}=${text}`, SIZE_WANTED);
    if (bytes < blockBytes) {
      refuse(
        `${key}=${text}`,
        `at least one block of ${blockBytes} bytes is wanted`,
      );
    }
    if (bytes % blockBytes !== 0) {
      refuse(
        `${key}=${text}`,
        `a multiple of the block of ${blockBytes} bytes is wanted`,
      );
    }
    return bytes;
  }

  /** Text of 1 to 4095 bytes without control characters. */
  text(key: string): string {
    return checkText(key, this.one(key)!, PATH_MAX);
  }
}

function parseCommon(given: Values): CommonBlockOptions {
  const logicalBlockBytes = given.blockSize("block-size") ?? 512;
  const physicalBlockBytes = given.blockSize("physical-block-size");
  if (physicalBlockBytes !== null && physicalBlockBytes < logicalBlockBytes) {
    refuse(
      `physical-block-size=${physicalBlockBytes}`,
      `it is at least the block-size, ${logicalBlockBytes}`,
    );
  }
  return {
    readonly: given.choice("readonly", ["off", "on"]) === "on",
    logicalBlockBytes,
    physicalBlockBytes,
  };
}

function parseNbd(given: Values, common: CommonBlockOptions): BlockOptions {
  const uri = given.text("nbd");
  parseNbdUri(uri);
  const timeout = given.one("timeout") ?? DEFAULT_TIMEOUT;
  if (!/^\d{1,6}$/.test(timeout)) {
    refuse(`timeout=${timeout}`, "whole seconds are wanted, 0 waits for ever");
  }
  return {
    kind: BlockKind.NBD,
    ...common,
    uri,
    timeoutMs: Number(timeout) * 1000,
  };
}

/**
 * Parses and checks a device's storage options.
 *
 * @param values Only the keys of {@linkcode BLOCK_OPTIONS}
 * @throws {ErrnoError} EINVAL, with what is wrong and what would be right
 * @throws {UnknownNameError} An option that there is not
 */
export function parseBlockOptions(values: BlockOptionValues): BlockOptions {
  const given = new Values(values);
  const common = parseCommon(given);
  const block = common.logicalBlockBytes;
  const discard = given.choice("discard", ["unmap", "ignore"]) === "unmap";
  const { kind } = given;
  switch (kind) {
    case BlockKind.FILE: {
      const create = given.one("create");
      if (create !== undefined && common.readonly) {
        refuse("create with readonly=on", "a new image could hold nothing");
      }
      return {
        kind,
        ...common,
        discard,
        path: given.text("file"),
        createBytes: create === undefined
          ? null
          : given.size("create", create, block),
        direct: given.choice("cache", ["writeback", "none"]) === "none",
      };
    }
    case BlockKind.MEMORY: {
      const size = given.one("memory") ?? DEFAULT_MEMORY;
      const sizeBytes = given.size("memory", size, block);
      return { kind, ...common, discard, sizeBytes };
    }
    case BlockKind.NBD:
      return parseNbd(given, common);
    default:
      return refuse(`${kind satisfies never}`, "it is no kind of storage");
  }
}
