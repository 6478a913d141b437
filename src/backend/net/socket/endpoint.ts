/**
 * Where the ends of a card's socket are.
 *
 * @module
 */

import {
  formatInetAddress,
  type InetAddress,
  parseInetAddress,
} from "../../../core/inet_address.ts";
import {
  option,
  type Options,
  options,
  refuse,
} from "../../../core/options.ts";

// sizeof(sun_path) less a NUL.
const UNIX_PATH_MAX = 107;

/** One end of a socket. */
export type SocketEndpoint =
  | { readonly family: "unix"; readonly path: string }
  | { readonly family: "inet"; readonly address: InetAddress };

/** As it is written on the command line. */
export function formatEndpoint(endpoint: SocketEndpoint): string {
  return endpoint.family === "unix"
    ? endpoint.path
    : formatInetAddress(endpoint.address);
}

/**
 * Two options, of which one is to be given.
 *
 * @param net Whose, such as `net=stream`
 * @param pathKey For a UNIX socket, with what help says of it
 * @param addressKey For an Internet socket, likewise
 */
export function endpoint(
  net: string,
  [pathKey, pathHelp]: readonly [string, string],
  [addressKey, addressHelp]: readonly [string, string],
): Options<SocketEndpoint> {
  return options({
    unix: option(pathKey, {
      syntax: "path",
      help: pathHelp,
    }, (path, refuse): SocketEndpoint => {
      const { length } = new TextEncoder().encode(path);
      if (length === 0 || length > UNIX_PATH_MAX || path.includes("\0")) {
        refuse(`a UNIX socket's path has 1 to ${UNIX_PATH_MAX} bytes`);
      }
      return { family: "unix", path };
    }),
    inet: option(addressKey, {
      syntax: "addr:port",
      help: addressHelp,
    }, (text, refuse): SocketEndpoint => ({
      family: "inet",
      address: parseInetAddress(text) ?? refuse(
        "an address and port like 127.0.0.1:4444 or [::1]:4444 is wanted, names are not looked up",
      ),
    })),
  }, ({ unix, inet }) => {
    if (unix !== null && inet !== null) {
      refuse(`${pathKey} with ${addressKey}`, `${net} takes one of them`);
    }
    return unix ?? inet ?? refuse(
      `${net} alone`,
      `it needs ${pathKey}=PATH for a UNIX socket or ${addressKey}=ADDRESS:PORT`,
    );
  });
}
