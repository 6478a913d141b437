/**
 * The command line of the benches.
 *
 * @module
 */

import { parseArgs } from "@std/cli/parse-args";

/** Result of parsing the command line. */
export interface BenchArguments {
  /** True if help is all that is wanted. */
  readonly help: boolean;
  /** Names of suites, in the order in which they run. */
  readonly suites: readonly string[];
  /** See BenchSettings. */
  readonly scale: number;
  /** File for figures as JSON; null for none. */
  readonly json: string | null;
}

/**
 * Parses and checks a command line.
 *
 * @param known Names of all suites
 * @throws {Error} With one line that says what is wrong and what would be right
 */
export function parseBenchArguments(
  args: readonly string[],
  known: readonly string[],
): BenchArguments {
  const parsed = parseArgs([...args], {
    string: ["json", "scale"],
    boolean: ["help"],
    alias: { help: "h" },
    unknown: (name: string, key?: string) => {
      if (key === undefined) return true;
      throw new Error(
        `Cannot use ${name}: the options are --scale FACTOR, --json FILE and --help`,
      );
    },
  });
  const { scale = "1", json = null } = parsed;
  if (!(Number(scale) > 0)) {
    throw new Error(`Cannot use --scale ${scale}: it is a number above 0`);
  }
  if (json === "") {
    throw new Error("Cannot use --json alone: name the file to write");
  }
  const named: string[] = parsed._.map(String);
  const help = parsed.help || named.includes("help");
  const unknown = named.find((name) => !known.includes(name));
  if (!help && unknown !== undefined) {
    throw new Error(
      `Cannot run bench ${unknown}: known are ${known.join(", ")}`,
    );
  }
  const suites = named.length > 0 ? named : known;
  return { help, suites, scale: Number(scale), json };
}
