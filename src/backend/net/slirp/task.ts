/**
 * Argument, words and exit status of the program that runs libslirp for a card.
 *
 * @module
 */

import type { UserNetOptions } from "../user/driver.ts";

/** The program's argument. */
export interface SlirpTask {
  readonly options: UserNetOptions;
  /** The card's, in bytes. */
  readonly mtu: number;
  /** File, or name for the dynamic linker; null for the usual one. */
  readonly library: string | null;
}

/** Exit status when there is no libslirp. Below it, an error number; what is wrong is what the program said last. */
export const EXIT_NO_LIBRARY = 200;

/** Words of the program once it runs; the version is the first group. */
export const READY: RegExp = /^libslirp ([\d.]{1,20}) is ready$/m;
