/**
 * Networks that a card can be plugged into.
 *
 * @module
 */

export * from "./contract.ts";
export * from "./open.ts";
export * from "./option_table.ts";
export * from "./options.ts";
