/**
 * Addresses of Internet sockets as people write them.
 *
 * @module
 */

/** Address of a socket of the Internet families; plain data. */
export interface InetAddress {
  /** The address in network order: 4 bytes for IPv4, 16 for IPv6. */
  readonly host: readonly number[];
  /** 0–65535; 0 has the kernel choose when binding. */
  readonly port: number;
}

/** Parses a dotted quad, no shorter or octal form; null when the text is none. */
export function parseIpv4Bytes(text: string): number[] | null {
  if (!/^(0|[1-9]\d{0,2})(\.(0|[1-9]\d{0,2})){3}$/.test(text)) return null;
  const bytes = text.split(".").map(Number);
  return bytes.every((byte) => byte <= 255) ? bytes : null;
}

function parseIpv6(text: string): number[] | null {
  // The URL standard's parser is strict, and writes every form as groups of hexadecimal digits.
  if (!/^[0-9a-f:.]+$/i.test(text)) return null;
  let groups: string;
  try {
    groups = new URL(`http://[${text}]/`).hostname.slice(1, -1);
  } catch {
    return null;
  }
  const [head = "", tail] = groups.split("::");
  const words = (part: string) =>
    part === "" ? [] : part.split(":").map((word) => parseInt(word, 16));
  const before = words(head);
  const after = words(tail ?? "");
  const zeroes = new Array<number>(8 - before.length - after.length).fill(0);
  return [...before, ...zeroes, ...after]
    .flatMap((word) => [word >>> 8, word & 0xff]);
}

function parseHost(text: string): number[] | null {
  if (text === "localhost") return [127, 0, 0, 1];
  if (text.startsWith("[") && text.endsWith("]")) {
    return parseIpv6(text.slice(1, -1));
  }
  return parseIpv4Bytes(text);
}

/**
 * Parses `127.0.0.1:4444`, `[::1]:4444` or `localhost:4444`. Other names are not looked up.
 *
 * @returns null when it is none of these, or the port is not from 1 to 65535
 */
export function parseInetAddress(text: string): InetAddress | null {
  const [, hostText, portText] = /^(.+):(\d{1,5})$/.exec(text) ?? [];
  if (hostText === undefined) return null;
  const host = parseHost(hostText);
  const port = Number(portText);
  if (host === null || port < 1 || port > 65535) return null;
  return { host, port };
}

/** As it is written: `127.0.0.1:80`, `[::1]:80`. */
export function formatInetAddress(address: InetAddress): string {
  const { host, port } = address;
  if (host.length === 4) return `${host.join(".")}:${port}`;
  const groups: string[] = [];
  for (let i = 0; i < host.length; i += 2) {
    groups.push((host[i]! << 8 | host[i + 1]!).toString(16));
  }
  return `${new URL(`http://[${groups.join(":")}]/`).hostname}:${port}`;
}

/** True if nobody in particular has the address (0.0.0.0 and ::). */
export function isAnyAddress(address: InetAddress): boolean {
  return address.host.every((byte) => byte === 0);
}

/** True if the address stands for a group of receivers (224.0.0.0/4 and ff00::/8), or for all (255.255.255.255). */
export function isGroupAddress(address: InetAddress): boolean {
  const first = address.host[0]!;
  return address.host.length === 4
    ? first >= 224 && first < 240 || address.host.every((byte) => byte === 255)
    : first === 0xff;
}
