/**
 * User-mode networking, by libslirp where there is one.
 *
 * @module
 */

import { environmentVariable } from "../../../core/environment.ts";
import { Errno, ErrnoError } from "../../../core/errno.ts";
import type { NetBackend, NetContext } from "../contract.ts";
import type { OpenNet } from "../driver.ts";
import {
  GATEWAY_FORM,
  GatewayBackend,
  INSTALL_LIBSLIRP,
} from "../gateway/gateway.ts";
import type { Saved } from "../../../os/resource_bag.ts";
import { PeerConnector } from "../peer/connector.ts";
import { NoLibslirpError, Slirp, SLIRP_KIND } from "../slirp/slirp.ts";
import { StreamBackend } from "../socket/stream_backend.ts";
import type { UserNetOptions } from "./driver.ts";

/**
 * The environment variable that names the libslirp to load, as a file or a name for the dynamic linker. `none` loads
 * none and takes the built-in gateway.
 */
const LIBSLIRP_VARIABLE = "OUTBOARD_LIBSLIRP";

/** Opens user-mode networking. */
export const openUser: OpenNet<UserNetOptions> = (options, context, saved) => {
  if (saved === undefined) return openFirst(options, context);
  // What was chosen at first stays: a guest does not lose its connections because a variable has changed.
  return GATEWAY_FORM.matches(saved.state)
    ? new GatewayBackend(options, context, saved.state)
    : openSlirp(options, context, saved);
};

function openSlirp(
  options: UserNetOptions,
  context: NetContext,
  saved?: Saved<unknown>,
): NetBackend {
  const library = environmentVariable(LIBSLIRP_VARIABLE) ?? null;
  const task = { options, mtu: context.mtu, library };
  return new StreamBackend(
    SLIRP_KIND,
    context,
    (context, saved) =>
      new PeerConnector((saved) => new Slirp(task, saved), context, saved),
    saved,
  );
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

function openFirst(options: UserNetOptions, context: NetContext): NetBackend {
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
