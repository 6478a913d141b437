/**
 * Logger that the parts of Outboard are given, with the four levels in use.
 *
 * The command line backs it with LogTape; a unit test hands in {@linkcode silentLog} or an array.
 *
 * @module
 */

/**
 * A logger. Properties are for machines; the message alone must make sense to a person. With a property `event`, a name
 * such as `LINK_CHANGED`, programs on the control socket are told of it, with the other properties.
 */
export interface Log {
  /** For whoever debugs a device or a client; check {@linkcode Log.debugEnabled} before building costly text. */
  debug(message: string, properties?: Record<string, unknown>): void;
  /** Logs news for an operator. */
  info(message: string, properties?: Record<string, unknown>): void;
  /** Something is wrong and work goes on; say what to do. */
  warn(message: string, properties?: Record<string, unknown>): void;
  /** Something failed. */
  error(message: string, properties?: Record<string, unknown>): void;
  /** True if debug messages go anywhere. */
  readonly debugEnabled: boolean;
}

function ignore(): void {}

/** A logger that says nothing. */
export const silentLog: Log = {
  debug: ignore,
  info: ignore,
  warn: ignore,
  error: ignore,
  debugEnabled: false,
};
