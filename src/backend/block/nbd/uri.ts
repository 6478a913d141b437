/**
 * Location of an NBD export, as people write it.
 *
 * @module
 */

import { refuse } from "../../../core/options.ts";
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
const TCP =
  /^(?:nbd|tcp):\/\/(?:\[([0-9a-f:.%]+)\]|([^[\]:@/?#]+))(?::(\d{1,5}))?(?:\/([^?#]*))?$/i;
const UNIX_URI = /^nbd\+unix:\/\/\/?([^?]*)\?(?:.*&)?socket=([^&]*)/i;
const UNIX = /^unix:([^?]*)(?:\?(.*))?$/is;

/** Any of the forms, its names decoded; null for none. */
function parseForm(uri: string): NbdLocation | null {
  const tcp = TCP.exec(uri);
  if (tcp !== null) {
    const [, address, host, port, name = ""] = tcp;
    return {
      path: null,
      host: address ?? decodeURIComponent(host!),
      port: port === undefined ? NBD_DEFAULT_PORT : Number(port),
      exportName: decodeURIComponent(name),
    };
  }
  const unixUri = UNIX_URI.exec(uri);
  if (unixUri !== null) {
    const [exportName, path] = unixUri.slice(1).map(decodeURIComponent);
    return { path: path!, host: "", port: 0, exportName: exportName! };
  }
  const unix = UNIX.exec(uri);
  if (unix === null) return null;
  return { path: unix[1]!, host: "", port: 0, exportName: unix[2] ?? "" };
}

/** @returns The fault; null for none */
function fault(uri: string, location: NbdLocation | null): string | null {
  if (/^nbds(\+unix)?:/i.test(uri)) {
    return "TLS is not spoken here; take nbd or nbd+unix through a tunnel (ssh -L, stunnel)";
  }
  if (location === null) {
    return /^nbd\+unix:/i.test(uri)
      ? "the socket is missing, as in nbd+unix:///?socket=PATH"
      : RIGHT;
  }
  const { path, port, exportName } = location;
  const bytes = (text: string) => new TextEncoder().encode(text).length;
  if (path === null && (port < 1 || port > 65535)) {
    return "a port is from 1 to 65535";
  }
  if (bytes(exportName) > NBD_MAX_STRING) {
    return `the export's name is longer than ${NBD_MAX_STRING} bytes`;
  }
  if (exportName.includes("\0") || path?.includes("\0")) {
    return "a NUL is no part of a name";
  }
  if (path === "") return "the path of the socket is missing";
  if (path !== null && bytes(path) > 107) {
    return "107 bytes are the longest path of a socket";
  }
  return null;
}

/**
 * Parses an NBD URI (NetworkBlockDevice/nbd, doc/uri.md), or a short form: `tcp://host:port/export`,
 * `unix:/path?export`.
 *
 * @throws {OptionError} With what is wrong and what would be right
 */
export function parseNbdUri(uri: string): NbdLocation {
  let location: NbdLocation | null;
  try {
    location = parseForm(uri);
  } catch {
    return refuse(`nbd=${uri}`, "it has a % that is followed by no two digits");
  }
  const wrong = fault(uri, location);
  return wrong === null ? location! : refuse(`nbd=${uri}`, wrong);
}
