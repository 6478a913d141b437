/**
 * The server side of the vfio-user protocol.
 *
 * @module
 */

export * from "./server.ts";
export { discardServer } from "./baggage.ts";
export type { ServerBaggage } from "./baggage.ts";
export type { ServerLimits } from "./version.ts";
