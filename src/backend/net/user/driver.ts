/**
 * `net=user`: user-mode networking.
 *
 * @module
 */

import { type CounterTable, indicesOf } from "../../../core/counters.ts";
import { BACKEND_ERRORS } from "../../../core/families.ts";
import {
  type Infer,
  list,
  onOff,
  option,
  options,
  refuse,
  text,
} from "../../../core/options.ts";
import { PEER_COUNTERS, RX_DROPPED } from "../counters.ts";
import type { NetDriver } from "../driver.ts";
import { SLIRP_COUNTERS } from "../slirp/counters.ts";
import { formatIpv4, inNetwork, netmask, parseIpv4 } from "../frame/ipv4.ts";

// Host parts of the default addresses, as QEMU has them: in a larger network they are x.y.2.2 and so on.
const HOST_PART = 0x0202;
const DNS_PART = 0x0203;
const DHCP_PART = 0x020f;
const HOSTNAME_MAX = 32;
const DOMAIN_MAX = 255;
const BOOTFILE_MAX = 127;

/** An address in host order; null for the usual one of the network. */
function address(name: string, usual: string, help: string) {
  return option(
    name,
    { syntax: "addr", help, otherwise: usual },
    (text, refuse) =>
      parseIpv4(text) ?? refuse("an address like 10.0.2.2 is wanted"),
  );
}

function parsePort(text: string): number {
  const port = /^\d{1,5}$/.test(text) ? Number(text) : 0;
  return port <= 65535 ? port : 0;
}

/** Ports of the host that lead to the guest; null for the guest's usual address. */
const FORWARDS = list(option("hostfwd", {
  syntax: "tcp|udp:[hostaddr]:hostport-[guestaddr]:guestport",
  help: "forward a port of the host to the guest",
}, (text, refuse) => {
  const [, protocol, hostText, hostPortText, guestText, guestPortText] =
    /^(?:(tcp|udp)?):([^:-]*):([^:-]*)-([^:-]*):([^:-]*)$/.exec(text) ?? refuse(
      "tcp|udp:[hostaddr]:hostport-[guestaddr]:guestport is wanted," +
        " such as tcp:127.0.0.1:2222-:22",
    );
  const parseAddress = (text: string) =>
    parseIpv4(text) ?? refuse("its addresses are to be like 127.0.0.1");
  const hostPort = parsePort(hostPortText!);
  const guestPort = parsePort(guestPortText!);
  const hostAddress = hostText === "" ? 0 : parseAddress(hostText!);
  const guestAddress = guestText === "" ? null : parseAddress(guestText!);
  if (hostPort === 0 || guestPort === 0) {
    refuse("its ports are to be from 1 to 65535");
  }
  return {
    protocol: protocol === "udp" ? "udp" as const : "tcp" as const,
    hostAddress,
    hostPort,
    guestAddress,
    guestPort,
  };
}));

/** A port of the host that leads to the guest; addresses in host order, of the host's 0 for all. */
export type HostForward = Infer<typeof FORWARDS>[number] & {
  readonly guestAddress: number;
};

function forwardsTo(
  guest: number,
  forwards: Infer<typeof FORWARDS>,
): HostForward[] {
  return forwards.map((forward, i) => {
    const { protocol, hostAddress, hostPort, guestAddress } = forward;
    const same = forwards.findIndex((other) =>
      other.protocol === protocol && other.hostAddress === hostAddress &&
      other.hostPort === hostPort
    );
    if (same < i) {
      const place = `${protocol}:${formatIpv4(hostAddress)}:${hostPort}`;
      refuse(`hostfwd=${place}-…`, "that host port is forwarded already");
    }
    return { ...forward, guestAddress: guestAddress ?? guest };
  });
}

const OPTIONS = options({
  hostForwards: FORWARDS,
  restrict: onOff("restrict", {
    help: "keep the guest from reaching the host and the outside",
    default: "off",
  }),
  subnet: option("subnet", {
    syntax: "addr/prefix",
    help: "the guest's IPv4 network",
    default: "10.0.2.0/24",
  }, (text, refuse) => {
    const [, quad, bits] = /^([\d.]+)\/(\d{1,2})$/.exec(text) ?? [];
    const address = quad === undefined ? null : parseIpv4(quad);
    const prefixLength = Number(bits);
    // Below /28 the default addresses (host part up to 15) would not be distinct hosts.
    return address === null || prefixLength < 4 || prefixLength > 27
      ? refuse("a network like 10.0.2.0/24 with a prefix of 4 to 27 is wanted")
      : { network: (address & netmask(prefixLength)) >>> 0, prefixLength };
  }),
  host: address(
    "host",
    "10.0.2.2",
    "the address the guest knows the host and its router by",
  ),
  dns: address(
    "dns",
    "10.0.2.3",
    "the address the guest knows the host's name server by",
  ),
  dhcpStart: address(
    "dhcpstart",
    "10.0.2.15",
    "the first address that DHCP gives out",
  ),
  ipv6: onOff("ipv6", { help: "IPv6 on fec0::/64", default: "on" }),
  hostname: text("hostname", {
    syntax: "name",
    help: "the guest's name, told by DHCP",
    maxBytes: HOSTNAME_MAX,
  }),
  domainName: text("domainname", {
    syntax: "name",
    help: "the guest's domain, told by DHCP",
    maxBytes: DOMAIN_MAX,
  }),
  dnsSearch: list(text("dnssearch", {
    syntax: "domain",
    help: "a domain to look names up in, told by DHCP",
    maxBytes: DOMAIN_MAX,
  })),
  tftp: text("tftp", {
    syntax: "directory",
    help: "serve a directory of the host, read-only, by TFTP",
  }),
  bootFile: text("bootfile", {
    syntax: "path",
    help: "the file to boot from by TFTP, told by DHCP",
    maxBytes: BOOTFILE_MAX,
  }),
}, ({ subnet, ...values }) => {
  const { network, prefixLength } = subnet;
  const hostMask = ~netmask(prefixLength);
  const at = (part: number) => (network | (part & hostMask)) >>> 0;
  const host = values.host ?? at(HOST_PART);
  const dns = values.dns ?? at(DNS_PART);
  const dhcpStart = values.dhcpStart ?? at(DHCP_PART);
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
  if (values.restrict) inside("dns", dns);
  if (dns === host || dns === dhcpStart || host === dhcpStart) {
    refuse("host, dns and dhcpstart", "they must be three addresses");
  }
  return {
    ...values,
    network,
    prefixLength,
    host,
    dns,
    dhcpStart,
    hostForwards: forwardsTo(dhcpStart, values.hostForwards),
  };
});

/** Counters of the built-in gateway. */
export const GATEWAY_COUNTERS = {
  answered: null,
  ignored: null,
  ...RX_DROPPED,
  txErrors: [BACKEND_ERRORS, { kind: "transmit" }],
} satisfies CounterTable;

/** Indices of {@linkcode GATEWAY_COUNTERS}. */
export const GatewayCounter = indicesOf(GATEWAY_COUNTERS);

/** User-mode networking. IPv4 addresses are numbers in host order. */
export type UserNetOptions = Infer<typeof OPTIONS>;

/** User-mode networking: libslirp, or the built-in gateway without it. */
export const USER: NetDriver<UserNetOptions> = {
  options: OPTIONS,
  counters: { ...GATEWAY_COUNTERS, ...PEER_COUNTERS, ...SLIRP_COUNTERS },
  load: async () => (await import("./open.ts")).openUser,
  multiQueue: false,
};
