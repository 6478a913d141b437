/**
 * The ways to reach devices.
 *
 * @module
 */

import type { TransportKind } from "./contract.ts";
import { vfioUser } from "./vfio_user/transport.ts";

export * from "./contract.ts";

/** The transport of a device that names none. */
export const DEFAULT_TRANSPORT: TransportKind = vfioUser;
