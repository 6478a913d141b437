/**
 * Where an NBD export is, as people write it.
 *
 * @module
 */

import { refuse as refuseOption } from "../../../core/options.ts";
import { NBD_DEFAULT_PORT, NBD_MAX_STRING } from "./protocol.ts";

/** An export of a server. */
export interface NbdLocation {
  /** Path of the server's UNIX socket; null for TCP. */
  readonly path: string | null;
  /** Name or address of the server; empty for a UNIX socket. */
  readonly host: string;
  /** Its TCP port. */
  readonly port: number;
  /** Name of the export; empty for the server's default. */
  readonly exportName: string;
}

const RIGHT =
  "nbd://HOST[:PORT]/[EXPORT], nbd+unix:///[EXPORT]?socket=PATH, tcp://HOST[:PORT][/EXPORT] or unix:PATH[?EXPORT] is wanted";

function refuse(uri: string, right: string): never {
  refuseOption(`nbd=${uri}`, right);
}

function decode(uri: string, text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return refuse(uri, `${text} has a % that is followed by no two digits`);
  }
}

function checked(uri: string, location: NbdLocation): NbdLocation {
  const bytes = (text: string) => new TextEncoder().encode(text).length;
  if (bytes(location.exportName) > NBD_MAX_STRING) {
    refuse(uri, `the export's name is longer than ${NBD_MAX_STRING} bytes`);
  }
  if (location.exportName.includes("\0") || location.path?.includes("\0")) {
    refuse(uri, "a NUL is no part of a name");
  }
  if (location.path === "") refuse(uri, "the path of the socket is missing");
  if (location.path !== null && bytes(location.path) > 107) {
    refuse(uri, "107 bytes are the longest path of a socket");
  }
  return location;
}

function parseTcp(uri: string, authority: string, name: string): NbdLocation {
  const match = /^(?:\[([0-9a-f:.%]+)\]|([^[\]:@]+))(?::(\d{1,5}))?$/i.exec(
    authority,
  );
  if (match === null) return refuse(uri, RIGHT);
  const [, address, host, portText] = match;
  const port = portText === undefined ? NBD_DEFAULT_PORT : Number(portText);
  if (port < 1 || port > 65535) refuse(uri, "a port is from 1 to 65535");
  return checked(uri, {
    path: null,
    host: address ?? decode(uri, host!),
    port,
    exportName: decode(uri, name),
  });
}

function parseUnixUri(uri: string, rest: string): NbdLocation {
  const match = /^\/\/\/?([^?]*)\?(?:.*&)?socket=([^&]*)/.exec(rest);
  if (match === null) {
    return refuse(uri, "the socket is missing, as in nbd+unix:///?socket=PATH");
  }
  return checked(uri, {
    path: decode(uri, match[2]!),
    host: "",
    port: 0,
    exportName: decode(uri, match[1]!),
  });
}

/**
 * Parses an NBD URI (NetworkBlockDevice/nbd, doc/uri.md), or a short form: `tcp://host:port/export`,
 * `unix:/path?export`.
 *
 * @throws {OptionError} With what is wrong and what would be right
 */
export function parseNbdUri(uri: string): NbdLocation {
  const [, scheme, rest] = /^([a-z+]+):(.*)$/is.exec(uri) ??
    refuse(uri, RIGHT);
  switch (scheme!.toLowerCase()) {
    case "nbd":
    case "tcp": {
      const [, authority, name] = /^\/\/([^/?#]*)(?:\/([^?#]*))?$/.exec(
        rest!,
      ) ?? refuse(uri, RIGHT);
      return parseTcp(uri, authority!, name ?? "");
    }
    case "nbd+unix":
      return parseUnixUri(uri, rest!);
    case "unix": {
      const at = rest!.indexOf("?");
      return checked(uri, {
        path: at < 0 ? rest! : rest!.slice(0, at),
        host: "",
        port: 0,
        exportName: at < 0 ? "" : rest!.slice(at + 1),
      });
    }
    case "nbds":
    case "nbds+unix":
      return refuse(
        uri,
        "TLS is not spoken here; take nbd or nbd+unix through a tunnel (ssh -L, stunnel)",
      );
    default:
      return refuse(uri, RIGHT);
  }
}
