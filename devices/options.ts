/**
 * Sorts the options of a device by whose they are.
 *
 * @module
 */

import { UnknownNameError } from "../src/core/unknown_name.ts";
import type { OptionSpec } from "./model.ts";

/** Options as a model's `parse` is given them; a repeated key has all its values. */
export type OptionValues = Readonly<
  Record<string, string | readonly string[]>
>;

/** Where the options of one owner go; see {@linkcode sortOptions}. */
export interface OptionGroup {
  /** Whether a key is this owner's. */
  has(key: string): boolean;
  /** What it was given. */
  readonly values: Record<string, string | readonly string[]>;
}

/** A group for the keys of an option table. */
export function optionGroup(
  table: readonly { readonly name: string }[],
): OptionGroup {
  return {
    has: (key) => table.some(({ name }) => name === key),
    values: {},
  };
}

/** The model that options are sorted for. */
export interface OptionOwner {
  /** The model's name, for messages. */
  readonly name: string;
  /** Its own options, each of which is given once at most. */
  readonly own: readonly { readonly name: string }[];
  /** Everything it knows, for messages. */
  readonly all: readonly { readonly name: string }[];
}

/** For a key that a model does not know. */
export function unknownOption(
  key: string,
  model: Omit<OptionOwner, "own">,
): UnknownNameError {
  const known = model.all.map(({ name }) => name);
  return new UnknownNameError(
    `Cannot use option ${key}: ${model.name} has ${
      known.join(", ") || "no options"
    }`,
    key,
    known,
  );
}

/** Parts between commas; one that is written twice is part of a part, as in QEMU. */
export function splitAtCommas(text: string): string[] {
  return text.replaceAll(",,", "\0").split(",")
    .map((part) => part.replaceAll("\0", ","));
}

/** `KEY=VALUE` parts as options; a key alone means `on`, and one that comes again has all its values. */
export function parseOptionParts(parts: readonly string[]): OptionValues {
  const options: Record<string, string | string[]> = Object.create(null);
  for (const part of parts) {
    const [, key = "", value = "on"] = /^([^=]*)(?:=(.*))?$/s.exec(part)!;
    const before = options[key];
    options[key] = before === undefined ? value : [before, value].flat();
  }
  return options;
}

/** The value of an option that is given once at most. */
function once(key: string, value: string | readonly string[]): string {
  if (typeof value === "string") return value;
  throw new Error(`Cannot use ${key} ${value.length} times: give it once`);
}

/**
 * Checks options against all that a model declares.
 *
 * @throws {Error} For a key that is not declared, or one given twice that is not declared as repeatable
 */
export function checkOptions(
  options: OptionValues,
  model: { readonly name: string; readonly options: readonly OptionSpec[] },
): void {
  for (const [key, value] of Object.entries(options)) {
    const declared = model.options.find(({ name }) => name === key);
    if (declared === undefined) {
      throw unknownOption(key, { name: model.name, all: model.options });
    }
    if (declared.repeatable !== true) once(key, value);
  }
}

/**
 * Hands each option to the first group that has it; the rest are the model's own.
 *
 * @returns The model's own options
 * @throws {Error} For a key that nobody has, or an own one that is given twice
 */
export function sortOptions(
  options: OptionValues,
  model: OptionOwner,
  groups: readonly OptionGroup[],
): Map<string, string> {
  const own = new Map<string, string>();
  for (const [key, value] of Object.entries(options)) {
    const group = groups.find((group) => group.has(key));
    if (group !== undefined) {
      group.values[key] = value;
    } else if (!model.own.some(({ name }) => name === key)) {
      throw unknownOption(key, model);
    } else own.set(key, once(key, value));
  }
  return own;
}
