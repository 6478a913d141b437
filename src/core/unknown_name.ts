/**
 * Error of a misspelt name.
 *
 * @module
 */

/** A name that is none of those there are; whoever tells a person may look for what was meant. */
export class UnknownNameError extends Error {
  override readonly name: string = "UnknownNameError";
  /** Name that was given. */
  readonly given: string;
  /** Names that there are. */
  readonly known: readonly string[];

  /** @param message Says what is wrong, and what would be right */
  constructor(message: string, given: string, known: readonly string[]) {
    super(message);
    this.given = given;
    this.known = known;
  }
}
