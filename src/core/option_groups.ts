/**
 * Groups of options: those of one of several kinds, and those of several things that have numbers.
 *
 * @module
 */

import {
  checkNames,
  either,
  type Infer,
  type OptionRow,
  type Options,
  type OptionTexts,
  refuse,
  textsFor,
} from "./options.ts";

/** Kinds by name, each with its options. */
export type Kinds = Readonly<
  Record<string, { readonly options: Options<object> }>
>;

/** Options of one of several kinds, with the name of the kind as a field. */
export type OfKinds<Tag extends string, K extends Kinds> = {
  [Kind in keyof K]:
    & { readonly [_ in Tag]: Kind }
    & Infer<K[Kind]["options"]>;
}[keyof K];

/**
 * The options of one of several kinds; others than those of the kind that is chosen are refused.
 *
 * @param tag The field of the kind's name
 * @param choose Which kind; its keys may be the kinds' own
 * @param name A kind as it is written
 * @param owner Of them all
 */
export function oneOfKinds<const Tag extends string, K extends Kinds>(
  tag: Tag,
  kinds: K,
  choose: Options<keyof K & string>,
  name: (kind: string) => string,
  owner: string,
): Options<OfKinds<Tag, K>> {
  const all = [choose, ...Object.values(kinds).map(({ options }) => options)];
  const rows = all.flatMap(({ rows }) => rows);
  return {
    rows: [...new Map(rows.map((row) => [row.name, row])).values()],
    has: (key) => all.some((part) => part.has(key)),
    takesRest: (texts) => all.some((part) => part.takesRest?.(texts)),
    parse(texts, by = owner) {
      checkNames(this, texts, by);
      const kind = choose.parse(textsFor(choose, all, texts));
      const own = kinds[kind]!.options;
      // Those of other kinds are nobody's, beside one that takes the rest.
      const ours = textsFor(own, [choose, own], texts);
      for (const key of Object.keys(texts)) {
        if (Object.hasOwn(ours, key) || choose.has(key)) continue;
        const others = Object.keys(kinds)
          .filter((other) => kinds[other]!.options.has(key));
        const right = `it needs ${either(others.map(name))}`;
        refuse(`${key} with ${name(kind)}`, right);
      }
      const values = own.parse(ours);
      return { [tag]: kind, ...values } as OfKinds<Tag, K>;
    },
  };
}

/** One value and its number, see {@linkcode numbered}. */
export interface Numbered<T> {
  /** From 1. */
  readonly number: number;
  /** Its options. */
  readonly options: T;
}

/**
 * The options of several things that are told apart by a number, as in `ns2.file`. Without a number they are of the
 * first, which is there when nothing is written at all.
 *
 * @param row Its name is a word before the number, such as `ns`
 * @param max The largest number
 */
export function numbered<T>(
  row: OptionRow,
  max: number,
  each: Options<T>,
): Options<readonly Numbered<T>[]> {
  const { name } = row;
  const pattern = new RegExp(`^${name}(\\d+)\\.(.+)$`);
  return {
    rows: [...each.rows, { ...row, name: `${name}N.OPTION` }],
    has: (key) => pattern.test(key) || each.has(key),
    takesRest: (texts) => each.takesRest?.(texts) ?? false,
    parse(texts) {
      const groups = new Map<number, OptionTexts>();
      for (const [key, given] of Object.entries(texts)) {
        const [, digits = "1", own = key] = pattern.exec(key) ?? [];
        const number = Number(digits);
        if (number < 1 || number > max) {
          refuse(key, `${name} is numbered from 1 to ${max}`);
        }
        const group = groups.get(number) ?? {};
        if (Object.hasOwn(group, own)) {
          refuse(
            `${own} beside ${name}${number}.${own}`,
            `both are of ${name}${number}, give one`,
          );
        }
        groups.set(number, { ...group, [own]: given });
      }
      if (groups.size === 0) groups.set(1, {});
      return [...groups].sort(([a], [b]) => a - b)
        .map(([number, group]) => ({ number, options: each.parse(group) }));
    },
  };
}
