/**
 * Sockets whose frames are kept.
 *
 * @module
 */

import { Epoll } from "../../../os/mod.ts";

/**
 * What a socket is watched for while frames are kept: errors and hang-ups cannot be masked, but with this they are told
 * once and not in every turn.
 */
export const PARKED_EVENTS: number = Epoll.ONESHOT;
