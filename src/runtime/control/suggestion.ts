/**
 * Errors for people, with what they may have meant.
 *
 * @module
 */

import { UnknownNameError } from "../../core/unknown_name.ts";

/** Of two letters, one may be wrong: two that changed places count as two. */
const LETTERS_PER_MISTAKE = 2;

async function suggestion({ given, known }: UnknownNameError): Promise<string> {
  if (known.length === 0) return "";
  // Most runs do without.
  const [{ closestString }, { levenshteinDistance }] = await Promise.all([
    import("@std/text/closest-string"),
    import("@std/text/levenshtein-distance"),
  ]);
  const closest = closestString(given, [...known]);
  const mistakes = levenshteinDistance(given.toLowerCase(), closest);
  return mistakes * LETTERS_PER_MISTAKE > given.length
    ? ""
    : `; did you mean ${closest}?`;
}

/** The message of an error; for a misspelt name, wherever it was found, with the one that is meant. */
export async function messageForPeople(error: unknown): Promise<string> {
  if (!(error instanceof Error)) return String(error);
  for (let cause: unknown = error; cause instanceof Error;) {
    if (cause instanceof UnknownNameError) {
      return error.message + await suggestion(cause);
    }
    ({ cause } = cause);
  }
  return error.message;
}
