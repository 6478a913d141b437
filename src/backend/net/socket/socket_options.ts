/**
 * The options of networks that are a socket or a process at the other end of one.
 *
 * @module
 */

import {
  isAnyAddress,
  isGroupAddress,
  parseInetAddress,
} from "../../../core/inet_address.ts";
import {
  type DgramNetOptions,
  NetKind,
  type PasstNetOptions,
  type SocketEndpoint,
  type StreamNetOptions,
} from "../option_table.ts";
import { refuse } from "../../../core/refuse.ts";

/** The values that were given, by key. */
export interface GivenValues {
  /** The value of a key that is allowed once. */
  one(key: string): string | undefined;
  /** The values of a key that may be repeated. */
  all(key: string): readonly string[];
  /** `on` or `off`. */
  onOff(key: string, fallback: boolean): boolean;
}

// sizeof(sun_path) less a NUL.
const UNIX_PATH_MAX = 107;
const RECONNECT_DEFAULT_MS = 1000;
const RECONNECT_MAX_MS = 3_600_000;

function parsePath(key: string, path: string): SocketEndpoint {
  const length = new TextEncoder().encode(path).length;
  if (length === 0 || length > UNIX_PATH_MAX || path.includes("\0")) {
    refuse(
      `${key}=${JSON.stringify(path)}`,
      `a UNIX socket's path has 1 to ${UNIX_PATH_MAX} bytes`,
    );
  }
  return { family: "unix", path };
}

function parseAddress(key: string, text: string): SocketEndpoint {
  const address = parseInetAddress(text) ?? refuse(
    `${key}=${text}`,
    "an address and port like 127.0.0.1:4444 or [::1]:4444 is wanted, names are not looked up",
  );
  return { family: "inet", address };
}

/** One of two keys, a path or an address; exactly one. */
function parseEither(
  given: GivenValues,
  pathKey: string,
  addressKey: string,
): SocketEndpoint {
  const path = given.one(pathKey);
  const address = given.one(addressKey);
  const net = `net=${given.one("net")}`;
  if (path !== undefined && address !== undefined) {
    refuse(`${pathKey} with ${addressKey}`, `${net} takes one of them`);
  }
  if (path !== undefined) return parsePath(pathKey, path);
  if (address !== undefined) return parseAddress(addressKey, address);
  return refuse(
    `${net} alone`,
    `it needs ${pathKey}=PATH for a UNIX socket or ${addressKey}=ADDRESS:PORT`,
  );
}

/** @throws {ErrnoError} EINVAL */
export function parseStream(given: GivenValues): StreamNetOptions {
  const endpoint = parseEither(given, "path", "addr");
  const server = given.onOff("server", false);
  const text = given.one("reconnect-ms");
  if (server && text !== undefined) {
    refuse("reconnect-ms with server=on", "it is the client that connects");
  }
  const reconnectMs = text === undefined ? RECONNECT_DEFAULT_MS : Number(text);
  if (
    text !== undefined && !/^\d+$/.test(text) || reconnectMs > RECONNECT_MAX_MS
  ) {
    refuse(`reconnect-ms=${text}`, `0 to ${RECONNECT_MAX_MS} is wanted`);
  }
  if (
    !server && endpoint.family === "inet" && isAnyAddress(endpoint.address)
  ) {
    refuse(`addr=${given.one("addr")}`, "nothing can be reached there");
  }
  return { net: NetKind.STREAM, endpoint, server, reconnectMs };
}

/** @throws {ErrnoError} EINVAL */
export function parseDgram(given: GivenValues): DgramNetOptions {
  const local = parseEither(given, "local-path", "local");
  const remote = parseEither(given, "remote-path", "remote");
  if (local.family === "unix" && remote.family === "unix") {
    if (local.path === remote.path) {
      refuse(`remote-path=${remote.path}`, "that is the card's own socket");
    }
    return { net: NetKind.DGRAM, local, remote };
  }
  if (local.family !== "inet" || remote.family !== "inet") {
    return refuse(
      "a path with an address",
      "local-path goes with remote-path, local with remote",
    );
  }
  const to = remote.address;
  if (local.address.host.length !== to.host.length) {
    refuse(
      `remote=${given.one("remote")}`,
      "local and remote are to be both IPv4 or both IPv6",
    );
  }
  if (isAnyAddress(to) || isGroupAddress(to)) {
    refuse(`remote=${given.one("remote")}`, "one host's address is wanted");
  }
  return { net: NetKind.DGRAM, local, remote };
}

/** @throws {ErrnoError} EINVAL */
export function parsePasst(given: GivenValues): PasstNetOptions {
  const program = given.one("passt") ?? null;
  if (program === "") refuse("passt=", "the program's name or path is wanted");
  for (const key of ["tcp-ports", "udp-ports"]) {
    for (const spec of given.all(key)) {
      // What passt(1) allows in a specification of ports: numbers, ranges, addresses, interfaces, exclusions.
      if (!/^[\w.:%/,~[\]-]+$/.test(spec) || spec.startsWith("-")) {
        refuse(
          `${key}=${JSON.stringify(spec)}`,
          `ports as passt(1) takes them are wanted, such as ${key}=2222:22`,
        );
      }
    }
  }
  return {
    net: NetKind.PASST,
    program,
    tcpPorts: [...given.all("tcp-ports")],
    udpPorts: [...given.all("udp-ports")],
  };
}
