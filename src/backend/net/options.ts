/**
 * From the command line's `key=value` texts to checked network options.
 *
 * @module
 */

import { formatIpv4, inNetwork, netmask, parseIpv4 } from "./frame/ipv4.ts";
import {
  type HostForward,
  NET_OPTIONS,
  NetKind,
  type NetOptions,
  TapEngine,
  type TapNetOptions,
  type UserNetOptions,
} from "./option_table.ts";
import { checkText, refuse } from "../../core/refuse.ts";
import {
  type GivenValues,
  parseDgram,
  parsePasst,
  parseStream,
} from "./socket/socket_options.ts";

// IFNAMSIZ less its NUL.
const IFNAME_MAX = 15;

/** Values by key as the command line splits them; a repeated key is an array. */
export type OptionValues = Readonly<Record<string, string | readonly string[]>>;

/** The given values, each checked to belong here. */
class Values implements GivenValues {
  readonly #values = new Map<string, readonly string[]>();

  constructor(values: OptionValues) {
    for (const [key, value] of Object.entries(values)) {
      const option = NET_OPTIONS.find(({ name }) => name === key);
      const list = typeof value === "string" ? [value] : value;
      if (option === undefined) {
        const names = NET_OPTIONS.map(({ name }) => name).join(", ");
        refuse(key, `it is no network option, they are ${names}`);
      }
      if (list.length > 1 && option.repeatable !== true) {
        refuse(`${key} ${list.length} times`, "it is allowed once");
      }
      if (list.length > 0) this.#values.set(key, list);
    }
    const kind = this.one("net") ?? NetKind.USER;
    for (const key of this.#values.keys()) {
      const { net } = NET_OPTIONS.find(({ name }) => name === key)!;
      if (net !== undefined && net !== kind) {
        refuse(`${key} with net=${kind}`, `it needs net=${net}`);
      }
    }
  }

  one(key: string): string | undefined {
    return this.#values.get(key)?.[0];
  }

  all(key: string): readonly string[] {
    return this.#values.get(key) ?? [];
  }

  onOff(key: string, fallback: boolean): boolean {
    const value = this.one(key);
    if (value === undefined) return fallback;
    if (value !== "on" && value !== "off") {
      refuse(`${key}=${value}`, "it is on or off");
    }
    return value === "on";
  }

  address(key: string, fallback: number): number {
    const value = this.one(key);
    if (value === undefined) return fallback;
    return parseIpv4(value) ??
      refuse(`${key}=${value}`, "an address like 10.0.2.2 is wanted");
  }

  /** Text of 1 to `max` bytes without control characters. */
  text(key: string, max: number): string | null {
    const value = this.one(key);
    return value === undefined ? null : checkText(key, value, max);
  }
}

/**
 * Parses and checks a device's network options.
 *
 * @param values Only the keys of {@linkcode NET_OPTIONS}
 * @throws {ErrnoError} EINVAL, with what is wrong and what would be right
 */
export function parseNetOptions(values: OptionValues): NetOptions {
  const given = new Values(values);
  const net = given.one("net") ?? NetKind.USER;
  switch (net) {
    case NetKind.USER:
      return parseUser(given);
    case NetKind.TAP:
      return parseTap(given);
    case NetKind.STREAM:
      return parseStream(given);
    case NetKind.DGRAM:
      return parseDgram(given);
    case NetKind.PASST:
      return parsePasst(given);
    case NetKind.NONE:
      return { net };
    default:
      return refuse(
        `net=${net}`,
        "it is user, tap, stream, dgram, passt or none",
      );
  }
}

function parseTap(given: Values): TapNetOptions {
  const ifname = parseIfname(given.one("ifname") ?? "tap%d");
  const text = given.one("engine") ?? TapEngine.AUTO;
  const engine = Object.values(TapEngine).find((name) => name === text) ??
    refuse(`engine=${text}`, "it is auto, io_uring or sync");
  return { net: NetKind.TAP, ifname, engine };
}

/** What the kernel's dev_valid_name() and dev_alloc_name() take. */
function parseIfname(ifname: string): string {
  if (
    !/^[^\s/:\0]+$/.test(ifname) || ifname === "." || ifname === ".." ||
    new TextEncoder().encode(ifname).length > IFNAME_MAX ||
    /%/.test(ifname.replace("%d", ""))
  ) {
    refuse(
      `ifname=${JSON.stringify(ifname)}`,
      `1 to ${IFNAME_MAX} bytes without blanks, "/" and ":" are allowed, and one %d for a number`,
    );
  }
  return ifname;
}

const DEFAULT_NETWORK = 0x0a00_0200;
const DEFAULT_PREFIX_LENGTH = 24;
// Host parts of the default addresses, as QEMU has them: in a larger network they are x.y.2.2 and so on.
const HOST_PART = 0x0202;
const DNS_PART = 0x0203;
const DHCP_PART = 0x020f;
const HOSTNAME_MAX = 32;
const DOMAIN_MAX = 255;
const PATH_MAX = 4095;
const BOOTFILE_MAX = 127;

function parseSubnet(value: string | undefined): [number, number] {
  if (value === undefined) return [DEFAULT_NETWORK, DEFAULT_PREFIX_LENGTH];
  const [, quad, bits] = /^([\d.]+)\/(\d{1,2})$/.exec(value) ?? [];
  const address = quad === undefined ? null : parseIpv4(quad);
  const prefixLength = Number(bits);
  // Below /28 the default addresses (host part up to 15) would not be distinct hosts.
  if (address === null || prefixLength < 4 || prefixLength > 27) {
    refuse(
      `subnet=${value}`,
      "a network like 10.0.2.0/24 with a prefix of 4 to 27 is wanted",
    );
  }
  return [(address & netmask(prefixLength)) >>> 0, prefixLength];
}

function parseUser(given: Values): UserNetOptions {
  const [network, prefixLength] = parseSubnet(given.one("subnet"));
  const hostMask = ~netmask(prefixLength);
  const at = (part: number) => (network | (part & hostMask)) >>> 0;
  const restrict = given.onOff("restrict", false);
  const host = given.address("host", at(HOST_PART));
  const dns = given.address("dns", at(DNS_PART));
  const dhcpStart = given.address("dhcpstart", at(DHCP_PART));
  const inside = (key: string, address: number) => {
    const broadcast = (network | hostMask) >>> 0;
    if (
      !inNetwork(address, network, prefixLength) || address === network ||
      address === broadcast
    ) {
      const subnet = `${formatIpv4(network)}/${prefixLength}`;
      refuse(
        `${key}=${formatIpv4(address)}`,
        `it is no host of the network ${subnet}`,
      );
    }
  };
  inside("host", host);
  inside("dhcpstart", dhcpStart);
  if (restrict) inside("dns", dns);
  if (dns === host || dns === dhcpStart || host === dhcpStart) {
    refuse("host, dns and dhcpstart", "they must be three addresses");
  }
  return {
    net: NetKind.USER,
    restrict,
    network,
    prefixLength,
    host,
    dns,
    dhcpStart,
    ipv6: given.onOff("ipv6", true),
    hostname: given.text("hostname", HOSTNAME_MAX),
    domainName: given.text("domainname", DOMAIN_MAX),
    dnsSearch: given.all("dnssearch").map((domain) =>
      checkText("dnssearch", domain, DOMAIN_MAX)
    ),
    tftp: given.text("tftp", PATH_MAX),
    bootFile: given.text("bootfile", BOOTFILE_MAX),
    hostForwards: parseForwards(given.all("hostfwd"), dhcpStart),
  };
}

function parsePort(text: string): number {
  const port = /^\d{1,5}$/.test(text) ? Number(text) : 0;
  return port <= 65535 ? port : 0;
}

function parseForwards(
  values: readonly string[],
  guest: number,
): HostForward[] {
  const forwards: HostForward[] = [];
  for (const value of values) {
    const forward = parseForward(value, guest);
    const same = forwards.some((other) =>
      other.protocol === forward.protocol &&
      other.hostAddress === forward.hostAddress &&
      other.hostPort === forward.hostPort
    );
    if (same) refuse(`hostfwd=${value}`, "that host port is forwarded already");
    forwards.push(forward);
  }
  return forwards;
}

function parseForward(value: string, guest: number): HostForward {
  const match = /^(?:(tcp|udp)?):([^:-]*):([^:-]*)-([^:-]*):([^:-]*)$/
    .exec(value);
  const right = "tcp|udp:[hostaddr]:hostport-[guestaddr]:guestport is wanted," +
    " such as tcp:127.0.0.1:2222-:22";
  if (match === null) return refuse(`hostfwd=${value}`, right);
  const [, protocol, hostText, hostPortText, guestText, guestPortText] = match;
  const hostAddress = hostText === "" ? 0 : parseIpv4(hostText!);
  const guestAddress = guestText === "" ? guest : parseIpv4(guestText!);
  const hostPort = parsePort(hostPortText!);
  const guestPort = parsePort(guestPortText!);
  if (hostAddress === null || guestAddress === null) {
    return refuse(`hostfwd=${value}`, "its addresses are to be like 127.0.0.1");
  }
  if (hostPort === 0 || guestPort === 0) {
    return refuse(`hostfwd=${value}`, "its ports are to be from 1 to 65535");
  }
  return {
    protocol: protocol === "udp" ? "udp" : "tcp",
    hostAddress,
    hostPort,
    guestAddress,
    guestPort,
  };
}
