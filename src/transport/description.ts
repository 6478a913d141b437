/**
 * The ways to reach devices, for people.
 *
 * @module
 */

import type { TransportDescription } from "./contract.ts";
import { vfioUserDescription } from "./vfio_user/qemu_arguments.ts";

/** The transport of a device that names none. */
export const DEFAULT_DESCRIPTION: TransportDescription = vfioUserDescription;
