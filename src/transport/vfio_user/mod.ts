/**
 * The server side of the vfio-user protocol.
 *
 * @module
 */

export * from "./server.ts";
export type { ServerState } from "./client_state.ts";
export type { ServerLimits } from "./version.ts";
