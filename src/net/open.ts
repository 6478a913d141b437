/**
 * From checked options to an open back end.
 *
 * @module
 */

import { Errno, ErrnoError } from "../errno.ts";
import type { NetBackend, NetContext } from "./backend.ts";
import { DgramBackend } from "./dgram.ts";
import { GatewayBackend, INSTALL_LIBSLIRP } from "./gateway.ts";
import { NoneBackend } from "./none.ts";
import {
  NetKind,
  type NetOptions,
  type UserNetOptions,
} from "./option_table.ts";
import { PasstBackend } from "./passt.ts";
import { SlirpBackend } from "./slirp.ts";
import { openLibslirp } from "./slirp_symbols.ts";
import { StreamBackend } from "./stream.ts";
import { TapBackend } from "./tap.ts";

/**
 * The environment variable that names the libslirp to load, as a file or a name for the dynamic linker. `none` loads
 * none and takes the built-in gateway.
 */
export const LIBSLIRP_VARIABLE = "OUTBOARD_LIBSLIRP";

/**
 * Opens the network that the options ask for; to be called on the thread of the card's event loop.
 *
 * @throws {ErrnoError} With what is wrong and the remedy
 */
export function openNetBackend(
  options: NetOptions,
  context: NetContext,
): NetBackend {
  switch (options.net) {
    case NetKind.USER:
      return openUser(options, context);
    case NetKind.TAP:
      return new TapBackend(options, context);
    case NetKind.STREAM:
      return new StreamBackend(options, context);
    case NetKind.DGRAM:
      return new DgramBackend(options, context);
    case NetKind.PASST:
      return new PasstBackend(options, context);
    case NetKind.NONE:
      return new NoneBackend();
    default:
      throw new ErrnoError(
        Errno.EINVAL,
        `Cannot open network ${options satisfies never}`,
      );
  }
}

function openUser(options: UserNetOptions, context: NetContext): NetBackend {
  const chosen = Deno.env.get(LIBSLIRP_VARIABLE);
  if (chosen === "none") return new GatewayBackend(options, context);
  const library = openLibslirp(chosen);
  if (!("reason" in library)) {
    return new SlirpBackend(options, context, library);
  }
  if (chosen !== undefined) {
    throw new ErrnoError(
      Errno.ENOENT,
      `Cannot use ${LIBSLIRP_VARIABLE}=${chosen}: ${library.reason}`,
    );
  }
  const gateway = new GatewayBackend(options, context);
  context.log.warn(
    `The guest gets an address but reaches nothing outside: for connections, ${INSTALL_LIBSLIRP}`,
    { reason: library.reason },
  );
  return gateway;
}
