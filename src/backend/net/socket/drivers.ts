/**
 * `net=stream` and `net=dgram`: a socket that leads to another card, a switch or a network.
 *
 * @module
 */

import type { CounterTable } from "../../../core/counters.ts";
import { BACKEND_ERRORS } from "../../../core/families.ts";
import {
  formatInetAddress,
  type InetAddress,
  isAnyAddress,
  isGroupAddress,
  parseInetAddress,
} from "../../../core/inet_address.ts";
import {
  type Infer,
  integer,
  onOff,
  option,
  type Options,
  options,
  refuse,
} from "../../../core/options.ts";
import { RX_ERRORS, STREAM_COUNTERS, TX_DROPPED } from "../counters.ts";
import type { NetDriver } from "../driver.ts";

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
 * @param net Network that has them, such as `net=stream`
 * @param pathKey For a UNIX socket, with what help says of it
 * @param addressKey For an Internet socket, likewise
 */
function endpoint(
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

const RECONNECT_DEFAULT_MS = 1000;

const STREAM_OPTIONS = options({
  endpoint: endpoint(
    "net=stream",
    ["path", "the UNIX socket to connect to, or to listen at"],
    ["addr", "the TCP address to connect to, or to listen at"],
  ),
  server: onOff("server", {
    help: "listen instead of connecting",
    default: "off",
  }),
  reconnectMs: integer("reconnect-ms", {
    syntax: "milliseconds",
    help: "the longest pause between attempts to connect, 0 for one attempt",
    min: 0,
    max: 3_600_000,
    otherwise: `${RECONNECT_DEFAULT_MS}`,
  }),
}, ({ endpoint, server, reconnectMs }) => {
  if (server && reconnectMs !== null) {
    refuse("reconnect-ms with server=on", "it is the client that connects");
  }
  if (
    !server && endpoint.family === "inet" && isAnyAddress(endpoint.address)
  ) {
    refuse(
      `addr=${formatEndpoint(endpoint)}`,
      "nothing can be reached there",
    );
  }
  return {
    endpoint,
    server,
    reconnectMs: reconnectMs ?? RECONNECT_DEFAULT_MS,
  };
});

/** A stream socket. */
export type StreamNetOptions = Infer<typeof STREAM_OPTIONS>;

/** Stream sockets, as QEMU's `-netdev stream`. */
export const STREAM: NetDriver<StreamNetOptions> = {
  options: STREAM_OPTIONS,
  counters: STREAM_COUNTERS,
  load: async () => (await import("./stream.ts")).openStream,
  multiQueue: false,
};

const DGRAM_OPTIONS = options({
  local: endpoint(
    "net=dgram",
    ["local-path", "the UNIX socket to receive at"],
    ["local", "the UDP address to receive at"],
  ),
  remote: endpoint(
    "net=dgram",
    ["remote-path", "the UNIX socket to send to"],
    ["remote", "the UDP address to send to and to receive from"],
  ),
}, (ends) => {
  const { local, remote } = ends;
  if (local.family === "unix" && remote.family === "unix") {
    if (local.path === remote.path) {
      refuse(`remote-path=${remote.path}`, "that is the card's own socket");
    }
    return ends;
  }
  if (local.family !== "inet" || remote.family !== "inet") {
    return refuse(
      "a path with an address",
      "local-path goes with remote-path, local with remote",
    );
  }
  const to = remote.address;
  const written = `remote=${formatEndpoint(remote)}`;
  if (local.address.host.length !== to.host.length) {
    refuse(written, "local and remote are to be both IPv4 or both IPv6");
  }
  if (isAnyAddress(to) || isGroupAddress(to)) {
    refuse(written, "one host's address is wanted");
  }
  return ends;
});

/** Counters of a datagram socket. */
export const DGRAM_COUNTERS = {
  ...TX_DROPPED,
  txUnreachable: [BACKEND_ERRORS, { kind: "transmit_unreachable" }],
  ...RX_ERRORS,
} satisfies CounterTable;

/** A datagram socket; both ends are of one family. */
export type DgramNetOptions = Infer<typeof DGRAM_OPTIONS>;

/** Datagram sockets, as QEMU's `-netdev dgram`. */
export const DGRAM: NetDriver<DgramNetOptions> = {
  options: DGRAM_OPTIONS,
  counters: DGRAM_COUNTERS,
  load: async () => (await import("./dgram.ts")).openDgram,
  multiQueue: false,
};
