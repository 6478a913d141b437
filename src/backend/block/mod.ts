/**
 * Storage that a controller can serve.
 *
 * @module
 */

export * from "./contract.ts";
export * from "./open.ts";
export * from "./option_table.ts";
export * from "./options.ts";
export * from "./size.ts";
