/**
 * Endpoint of metrics, as people write it. Apart from the server, which most runs do not load.
 *
 * @module
 */

import type { SocketPath } from "../../os/socket/socket_file.ts";
import {
  formatInetAddress,
  parseInetAddress,
} from "../../core/inet_address.ts";

/** Endpoint of metrics. */
export type MetricsEndpoint =
  | {
    readonly kind: "tcp";
    /** A numeric address. */
    readonly hostname: string;
    /** 0 has the kernel choose. */
    readonly port: number;
  }
  | { readonly kind: "path" } & SocketPath;

const LOOPBACK = "127.0.0.1";
const PORT_MAX = 65535;

/**
 * Takes `PORT`, `ADDRESS:PORT` or a path, which has a slash, apart; a port alone is one of the loopback interface.
 *
 * @returns null when it is none of these
 */
export function parseMetricsEndpoint(text: string): MetricsEndpoint | null {
  if (/^\d+$/.test(text)) {
    const port = Number(text);
    return port > PORT_MAX ? null : { kind: "tcp", hostname: LOOPBACK, port };
  }
  if (text === "") return null;
  if (text.includes("/")) return { kind: "path", path: text };
  const address = parseInetAddress(text);
  // What may be meant as an address, or as a name of one, shall not become a file.
  if (address === null) return null;
  const written = formatInetAddress(address);
  const hostname = written.slice(0, written.lastIndexOf(":"))
    .replace(/^\[|\]$/g, "");
  return { kind: "tcp", hostname, port: address.port };
}
