/**
 * Checks of a command line before anything runs: of these numbers the command can tell without
 * any permission, so this imports nothing that needs one.
 *
 * @module
 */

/** Number of IOThreads a process may have. */
export const IOTHREADS_MAX = 64;
