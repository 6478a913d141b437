/**
 * What a command line is checked against before anything runs: of these numbers the command can tell without
 * any permission, so this imports nothing that needs one.
 *
 * @module
 */

/** How many IOThreads a process may have. */
export const IOTHREADS_MAX = 64;
