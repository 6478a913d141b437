/**
 * From checked options to an open back end.
 *
 * @module
 */

import { environmentVariable } from "../../core/environment.ts";
import { Errno, ErrnoError } from "../../core/errno.ts";
import type { NetBackend, NetContext } from "./contract.ts";
import { DgramBackend } from "./socket/dgram.ts";
import {
  GATEWAY_KIND,
  GatewayBackend,
  INSTALL_LIBSLIRP,
} from "./gateway/gateway.ts";
import { isGiven, takeGiven } from "./given.ts";
import { NoneBackend } from "./none.ts";
import {
  NetKind,
  type NetOptions,
  type PasstNetOptions,
  type UserNetOptions,
} from "./option_table.ts";
import { Passt, PASST_KIND } from "./peer/passt.ts";
import { type GivenPeer, PeerBackend } from "./peer/backend.ts";
import { NoLibslirpError, Slirp, SLIRP_KIND } from "./slirp/slirp.ts";
import { StreamBackend } from "./socket/stream.ts";
import { TapBackend } from "./tap/tap.ts";
import { TAP_SHARE_KIND, TapTwin } from "./tap/twin.ts";

/**
 * The environment variable that names the libslirp to load, as a file or a name for the dynamic linker. `none` loads
 * none and takes the built-in gateway.
 */
export const LIBSLIRP_VARIABLE = "OUTBOARD_LIBSLIRP";

/**
 * Opens the network that the options ask for; to be called on the thread of the card's event loop.
 *
 * @param inherited What {@linkcode NetBackend.handOver} of a predecessor with the same options gave: used instead of
 * opening it anew, and owned from here on. When this throws, it is as it was, for another attempt on any thread
 * @throws {ErrnoError} With what is wrong and the remedy
 * @throws {Error} When `inherited` is not of a back end of this kind
 */
export function openNetBackend(
  options: NetOptions,
  context: NetContext,
  inherited?: unknown,
): NetBackend {
  switch (options.net) {
    case NetKind.USER:
      return inherited === undefined
        ? openUser(options, context)
        : inheritUser(options, context, inherited);
    case NetKind.TAP:
      return isGiven(inherited, TAP_SHARE_KIND)
        ? new TapTwin(options, context, inherited)
        : new TapBackend(options, context, inherited);
    case NetKind.STREAM:
      return new StreamBackend(options, context, inherited);
    case NetKind.DGRAM:
      return new DgramBackend(options, context, inherited);
    case NetKind.PASST:
      return openPasst(options, context, inherited);
    case NetKind.NONE:
      return new NoneBackend(inherited);
    default:
      throw new ErrnoError(
        Errno.EINVAL,
        `Cannot open network ${options satisfies never}`,
      );
  }
}

function openPasst(
  options: PasstNetOptions,
  context: NetContext,
  inherited?: unknown,
): NetBackend {
  const given = takePeer(inherited, PASST_KIND);
  const passt = new Passt(options, context.mtu, given?.program);
  return new PeerBackend(passt, context, given);
}

function takePeer(inherited: unknown, kind: string): GivenPeer | null {
  return inherited === undefined ? null : takeGiven<GivenPeer>(inherited, kind);
}

/** What was chosen at first stays: a guest does not lose its connections because a variable has changed. */
function inheritUser(
  options: UserNetOptions,
  context: NetContext,
  inherited: unknown,
): NetBackend {
  return isGiven(inherited, GATEWAY_KIND)
    ? new GatewayBackend(options, context, inherited)
    : openSlirp(options, context, inherited);
}

function openSlirp(
  options: UserNetOptions,
  context: NetContext,
  inherited?: unknown,
): NetBackend {
  const given = takePeer(inherited, SLIRP_KIND);
  const library = environmentVariable(LIBSLIRP_VARIABLE) ?? null;
  const slirp = new Slirp(options, context.mtu, library, given?.program);
  return new PeerBackend(slirp, context, given);
}

/** The library says nothing of a folder that it cannot read: its guests wait for files in vain. */
function checkFolder(key: string, path: string): void {
  try {
    Deno.readDirSync(path).next();
  } catch (error) {
    throw new ErrnoError(
      Errno.EINVAL,
      `Cannot use ${key}=${path}: ${
        error instanceof Deno.errors.NotFound
          ? "there is no such folder, make it first"
          : error instanceof Deno.errors.NotADirectory
          ? "it is no folder, name the one that the files are in"
          : "it cannot be read, run as a user who may"
      }`,
      { cause: error },
    );
  }
}

function openUser(options: UserNetOptions, context: NetContext): NetBackend {
  if (options.tftp !== null) checkFolder("tftp", options.tftp);
  const chosen = environmentVariable(LIBSLIRP_VARIABLE);
  if (chosen === "none") return new GatewayBackend(options, context);
  try {
    return openSlirp(options, context);
  } catch (error) {
    if (!(error instanceof NoLibslirpError)) throw error;
    if (chosen !== undefined) {
      throw new ErrnoError(
        Errno.ENOENT,
        `Cannot use ${LIBSLIRP_VARIABLE}=${chosen}: ${error.reason}; name libslirp 4.7 or later, or "none" for the built-in gateway`,
      );
    }
    const gateway = new GatewayBackend(options, context);
    context.log.warn(
      `The guest gets an address but reaches nothing outside: for connections, ${INSTALL_LIBSLIRP}`,
      { reason: error.reason },
    );
    return gateway;
  }
}
