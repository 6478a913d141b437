/**
 * Options, each declared once: what is written, what help says, and which values come of it.
 *
 * ```ts
 * const OPTIONS = options({
 *   queues: integer("queues", { help: "how many", min: 1, max: 16, default: "1" }),
 *   serial: text("serial", { help: "what it is known by", maxBytes: 20 }),
 * });
 * OPTIONS.parse({ queues: "4" }); // { queues: 4, serial: null }
 * ```
 *
 * @module
 */

import { isPowerOfTwo } from "./bits.ts";
import { parseSize, SIZE_WANTED } from "./size.ts";
import { UnknownNameError } from "./unknown_name.ts";

/** Options as they are written; a key that is written more than once has all its texts. */
export type OptionTexts = Readonly<Record<string, string | readonly string[]>>;

/** One line of help. */
export interface OptionRow {
  /** The key. */
  readonly name: string;
  /** The look of a value, such as `bytes` or `up|down`; empty for a flag. */
  readonly syntax: string;
  /** One line for people. */
  readonly help: string;
  /** The range of its values; in the syntax when absent. */
  readonly allowed?: string;
  /** Text that stands for a key that is not given; nothing in particular when absent. */
  readonly default?: string;
  /** True if the key may be given more than once; not unless told. */
  readonly repeatable?: boolean;
}

/** Options that belong together, or one alone. */
export interface Options<out T> {
  /** Help, in its order. */
  readonly rows: readonly OptionRow[];
  /** True if a key is one of these. */
  has(key: string): boolean;
  /** True if these are given every key that nobody has, beside what else is written; not unless told. */
  takesRest?(texts: OptionTexts): boolean;
  /**
   * Checks and converts what is written.
   *
   * @param owner Whose options they are, for the message on a key that there is not
   * @returns Plain data
   * @throws {OptionError} For a text that is refused
   * @throws {UnknownNameError} For a key that is none of these
   */
  parse(texts: OptionTexts, owner?: string): T;
}

/** Type that {@linkcode Options.parse} returns. */
export type Infer<O> = O extends Options<infer T> ? T : never;

/** Description of an option. */
export interface OptionSpec {
  /** One line for people. */
  readonly help: string;
  /** The look of a value; follows from the kind unless told. */
  readonly syntax?: string;
  /** The range of its values, for help. */
  readonly allowed?: string;
  /** The text that stands for one that is not given. Without it, the value is null then. */
  readonly default?: string;
  /** Text of the help on an option that is not given and has no default. */
  readonly otherwise?: string;
}

/** The value of an option: null, if it was not given and has no default. */
export type OptionValue<T, S extends OptionSpec> = S extends
  { readonly default: string } ? T : T | null;

/** Says what would be right. @throws {OptionError} Always */
export type Refuse = (right: string) => never;

/** An option that is refused: one line that says what is wrong and what would be right. */
export class OptionError extends Error {
  /** The name of the class. */
  override readonly name: string = "OptionError";
}

/** Refuses what is written. @throws {OptionError} Always */
export function refuse(what: string, right: string): never {
  throw new OptionError(`Cannot use ${what}: ${right}`);
}

/** As in `a, b or c`. */
export function either(words: readonly unknown[]): string {
  return words.join(", ").replace(/, ([^,]*)$/, " or $1");
}

/** A key with its text, which is quoted where it would be lost in a line. */
function written(key: string, text: string): string {
  return `${key}=${/^[!-~]+$/.test(text) ? text : JSON.stringify(text)}`;
}

/**
 * The part of the texts that is for these options.
 *
 * @param all These and those beside them
 */
export function textsFor(
  options: Options<unknown>,
  all: readonly Options<unknown>[],
  texts: OptionTexts,
): OptionTexts {
  const rest = options.takesRest?.(texts) ?? false;
  return Object.fromEntries(
    Object.entries(texts).filter(([key]) =>
      options.has(key) || (rest && !all.some((other) => other.has(key)))
    ),
  );
}

/** Refuses keys that there are not. @throws {UnknownNameError} */
export function checkNames(
  options: Options<unknown>,
  texts: OptionTexts,
  owner: string,
): void {
  for (const key of Object.keys(texts)) {
    if (options.has(key) || options.takesRest?.(texts)) continue;
    const known = options.rows.map(({ name }) => name);
    const list = known.join(", ") || "no options";
    const message = `Cannot use option ${key}: ${owner} has ${list}`;
    throw new UnknownNameError(message, key, known);
  }
}

/**
 * An option of any kind; there are shorter ways to the usual ones.
 *
 * @param name The key
 * @param read Converts one text, or refuses it
 * @throws {OptionError} For a default that is refused
 */
export function option<T, const S extends OptionSpec>(
  name: string,
  spec: S,
  read: (text: string, refuse: Refuse) => T,
): Options<OptionValue<T, S>> {
  const { help, syntax = "text", allowed = "", otherwise } = spec;
  const convert = (text: string): unknown =>
    read(text, (right) => refuse(written(name, text), right));
  if (spec.default !== undefined) convert(spec.default);
  const told = spec.default ?? otherwise ?? "";
  return {
    rows: [{
      name,
      syntax,
      help,
      ...(allowed === "" ? {} : { allowed }),
      ...(told === "" ? {} : { default: told }),
    }],
    has: (key) => key === name,
    parse({ [name]: given = [] }) {
      const texts = [given].flat();
      if (texts.length > 1) {
        refuse(`${name} ${texts.length} times`, "give it once");
      }
      const text = texts[0] ?? spec.default;
      return (text === undefined ? null : convert(text)) as OptionValue<T, S>;
    },
  };
}

/** An option that may be given any number of times: the values of each. */
export function list<T>(one: Options<T>): Options<readonly NonNullable<T>[]> {
  const { name } = one.rows[0]!;
  return {
    rows: one.rows.map((row) => ({ ...row, repeatable: true })),
    has: (key) => one.has(key),
    parse: ({ [name]: given = [] }) =>
      [given].flat().map((text) => one.parse({ [name]: text })!),
  };
}

/** A word that is there or not: a flag of a command line. */
export function flag(name: string, spec: { help: string }): Options<boolean> {
  const off = { ...spec, syntax: "" };
  const there = option(name, off, () => true);
  return { ...there, parse: (texts) => there.parse(texts) ?? false };
}

/** `on` or `off`; a key alone means on. */
export function onOff<const S extends OptionSpec>(
  name: string,
  spec: S,
): Options<OptionValue<boolean, S>> {
  return option(name, { syntax: "on|off", ...spec }, (text, refuse) => {
    if (text !== "on" && text !== "off") refuse("it is on or off");
    return text === "on";
  }) as Options<never>;
}

/** One of several words or numbers. */
export function oneOf<
  const V extends string | number,
  const S extends OptionSpec,
>(
  name: string,
  values: readonly V[],
  spec: S,
): Options<OptionValue<V, S>> {
  return option(
    name,
    { syntax: values.join("|"), ...spec },
    (text, refuse) =>
      values.find((value) => `${value}` === text) ??
        refuse(`it is ${either(values)}`),
  ) as Options<never>;
}

/** A whole number in a range; its unit is the syntax. */
export function integer<
  const S extends OptionSpec & {
    readonly min: number;
    readonly max: number;
    readonly powerOfTwo?: boolean;
  },
>(name: string, spec: S): Options<OptionValue<number, S>> {
  const { min, max, powerOfTwo = false, syntax } = spec;
  const range = `${powerOfTwo ? "a power of two from " : ""}${min} to ${max}`;
  const right = powerOfTwo
    ? `${range} is wanted`
    : syntax === undefined
    ? `a number from ${range} is wanted`
    : `${range} ${syntax} are wanted`;
  const told = { ...spec, allowed: range, syntax: syntax ?? "number" };
  return option(name, told, (text, refuse) => {
    const value = Number(text);
    const fits = /^\d+$/.test(text) && value >= min && value <= max;
    return fits && (!powerOfTwo || isPowerOfTwo(value)) ? value : refuse(right);
  }) as Options<never>;
}

/** A size in bytes, written like `64M`. */
export function size<const S extends OptionSpec>(
  name: string,
  spec: S,
): Options<OptionValue<number, S>> {
  return option(
    name,
    { syntax: "size", ...spec },
    (text, refuse) => parseSize(text) ?? refuse(SIZE_WANTED),
  ) as Options<never>;
}

/** A text: what matches the pattern, or else up to 4095 bytes of anything but control characters. */
export function text<
  const S extends OptionSpec & {
    readonly maxBytes?: number;
    /** With what is wanted. */
    readonly pattern?: readonly [RegExp, string];
  },
>(name: string, spec: S): Options<OptionValue<string, S>> {
  const { maxBytes = 4095, pattern } = spec;
  const [regExp, right] = pattern ?? [
    // deno-lint-ignore no-control-regex
    /^[^\0-\x1f\x7f]+$/,
    `1 to ${maxBytes} bytes without control characters are allowed`,
  ];
  return option(name, spec, (text, refuse) => {
    const { length } = new TextEncoder().encode(text);
    return length <= maxBytes && regExp.test(text) ? text : refuse(right);
  }) as Options<never>;
}

/** Options by the fields that their values become. */
export type OptionFields = Readonly<Record<string, Options<unknown>>>;

/** The values of options, by field. */
export type OptionValues<F extends OptionFields> = {
  readonly [K in keyof F]: Infer<F[K]>;
};

/**
 * Several options, or groups of them, each with the field that its value becomes.
 *
 * @throws {Error} For a key that is declared twice
 */
export function options<F extends OptionFields>(
  fields: F,
): Options<OptionValues<F>>;
/**
 * Several options with rules between them.
 *
 * @param refine Checks the values, and may give others in their place: plain data
 * @throws {Error} For a key that is declared twice
 */
export function options<F extends OptionFields, T>(
  fields: F,
  refine: (values: OptionValues<F>) => T,
): Options<T>;
export function options<F extends OptionFields>(
  fields: F,
  refine: (values: OptionValues<F>) => unknown = (values) => values,
): Options<unknown> {
  const parts = Object.values(fields);
  const rows = parts.flatMap((part) => part.rows);
  for (const [i, { name }] of rows.entries()) {
    if (rows.findIndex((row) => row.name === name) < i) {
      throw new Error(`Cannot declare option ${name} twice`);
    }
  }
  return {
    rows,
    has: (key) => parts.some((part) => part.has(key)),
    takesRest: (texts) => parts.some((part) => part.takesRest?.(texts)),
    parse(texts, owner = "this") {
      checkNames(this, texts, owner);
      const values = Object.fromEntries(
        Object.entries(fields).map((
          [field, part],
        ) => [field, part.parse(textsFor(part, parts, texts))]),
      ) as OptionValues<F>;
      return refine(values);
    },
  };
}

/** Parts between commas; one that is written twice is part of a part, as in QEMU. */
export function splitAtCommas(text: string): string[] {
  return text.replaceAll(",,", "\0").split(",")
    .map((part) => part.replaceAll("\0", ","));
}

/** `KEY=VALUE` parts as options; a key alone means `on`. */
export function parseOptionParts(parts: readonly string[]): OptionTexts {
  const texts: Record<string, string | string[]> = Object.create(null);
  for (const part of parts) {
    const [, key = "", value = "on"] = /^([^=]*)(?:=(.*))?$/s.exec(part)!;
    const before = texts[key];
    texts[key] = before === undefined ? value : [before, value].flat();
  }
  return texts;
}
