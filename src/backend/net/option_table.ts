/**
 * The network options of a device as data: the table of keys, and the checked options.
 *
 * @module
 */

import {
  formatInetAddress,
  type InetAddress,
} from "../../core/inet_address.ts";

/** One row of the option table, for help and for parsing. */
export interface NetOption {
  /** The key on the command line. */
  readonly name: string;
  /** Which kind of network it belongs to; any when absent. */
  readonly net?: NetKind;
  /** What its value looks like. */
  readonly syntax: string;
  /** One line for people. */
  readonly help: string;
  /** The value when it is not given; none when absent. */
  readonly default?: string;
  /** Whether it may be given several times. */
  readonly repeatable?: boolean;
}

/** The kinds of network. */
export const NetKind = {
  /** User-mode networking: libslirp, or the built-in gateway without it. */
  USER: "user",
  /** A TAP interface of the host. */
  TAP: "tap",
  /** A stream socket, as QEMU's `-netdev stream`. */
  STREAM: "stream",
  /** A datagram socket, as QEMU's `-netdev dgram`. */
  DGRAM: "dgram",
  /** A passt process. */
  PASST: "passt",
  /** Not plugged in. */
  NONE: "none",
} as const;

/** A kind of network. */
export type NetKind = typeof NetKind[keyof typeof NetKind];

/** The network options in the order help prints them. */
export const NET_OPTIONS: readonly NetOption[] = [
  {
    name: "net",
    syntax: "user|tap|stream|dgram|passt|none",
    help: "what the card is plugged into",
    default: "user",
  },
  {
    name: "hostfwd",
    net: "user",
    syntax: "tcp|udp:[hostaddr]:hostport-[guestaddr]:guestport",
    help: "forward a port of the host to the guest",
    repeatable: true,
  },
  {
    name: "restrict",
    net: "user",
    syntax: "on|off",
    help: "keep the guest from reaching the host and the outside",
    default: "off",
  },
  {
    name: "subnet",
    net: "user",
    syntax: "addr/prefix",
    help: "the guest's IPv4 network",
    default: "10.0.2.0/24",
  },
  {
    name: "host",
    net: "user",
    syntax: "addr",
    help: "the address the guest knows the host and its router by",
    default: "10.0.2.2",
  },
  {
    name: "dns",
    net: "user",
    syntax: "addr",
    help: "the address the guest knows the host's name server by",
    default: "10.0.2.3",
  },
  {
    name: "dhcpstart",
    net: "user",
    syntax: "addr",
    help: "the first address that DHCP gives out",
    default: "10.0.2.15",
  },
  {
    name: "ipv6",
    net: "user",
    syntax: "on|off",
    help: "IPv6 on fec0::/64",
    default: "on",
  },
  {
    name: "hostname",
    net: "user",
    syntax: "name",
    help: "the guest's name, told by DHCP",
  },
  {
    name: "domainname",
    net: "user",
    syntax: "name",
    help: "the guest's domain, told by DHCP",
  },
  {
    name: "dnssearch",
    net: "user",
    syntax: "domain",
    help: "a domain to look names up in, told by DHCP",
    repeatable: true,
  },
  {
    name: "tftp",
    net: "user",
    syntax: "directory",
    help: "serve a directory of the host, read-only, by TFTP",
  },
  {
    name: "bootfile",
    net: "user",
    syntax: "path",
    help: "the file to boot from by TFTP, told by DHCP",
  },
  {
    name: "ifname",
    net: "tap",
    syntax: "name",
    help: "the interface to attach to; made when there is none of that name",
    default: "tap%d",
  },
  {
    name: "engine",
    net: "tap",
    syntax: "auto|io_uring|sync",
    help: "how frames are sent: many at once by io_uring, or one by one",
    default: "auto",
  },
  {
    name: "path",
    net: "stream",
    syntax: "path",
    help: "the UNIX socket to connect to, or to listen at",
  },
  {
    name: "addr",
    net: "stream",
    syntax: "addr:port",
    help: "the TCP address to connect to, or to listen at",
  },
  {
    name: "server",
    net: "stream",
    syntax: "on|off",
    help: "listen instead of connecting",
    default: "off",
  },
  {
    name: "reconnect-ms",
    net: "stream",
    syntax: "milliseconds",
    help: "the longest pause between attempts to connect, 0 for one attempt",
    default: "1000",
  },
  {
    name: "local-path",
    net: "dgram",
    syntax: "path",
    help: "the UNIX socket to receive at",
  },
  {
    name: "remote-path",
    net: "dgram",
    syntax: "path",
    help: "the UNIX socket to send to",
  },
  {
    name: "local",
    net: "dgram",
    syntax: "addr:port",
    help: "the UDP address to receive at",
  },
  {
    name: "remote",
    net: "dgram",
    syntax: "addr:port",
    help: "the UDP address to send to and to receive from",
  },
  {
    name: "passt",
    net: "passt",
    syntax: "program",
    help: "the program to start",
    default: "passt",
  },
  {
    name: "tcp-ports",
    net: "passt",
    syntax: "spec",
    help: "forward TCP ports of the host, as passt's option of that name",
    repeatable: true,
  },
  {
    name: "udp-ports",
    net: "passt",
    syntax: "spec",
    help: "forward UDP ports of the host, as passt's option of that name",
    repeatable: true,
  },
];

/** A port of the host that leads to the guest. */
export interface HostForward {
  /** The transport. */
  readonly protocol: "tcp" | "udp";
  /** Where to listen; 0 on every address. */
  readonly hostAddress: number;
  /** The port to listen on, 1–65535. */
  readonly hostPort: number;
  /** The guest's address. */
  readonly guestAddress: number;
  /** The guest's port, 1–65535. */
  readonly guestPort: number;
}

/** User-mode networking. IPv4 addresses are numbers in host order. */
export interface UserNetOptions {
  readonly net: typeof NetKind.USER;
  /** Whether the guest is kept from everything but this network. */
  readonly restrict: boolean;
  /** The network's first address. */
  readonly network: number;
  /** The network's prefix length, 4–30. */
  readonly prefixLength: number;
  /** The host and router as the guest sees it. */
  readonly host: number;
  /** The name server as the guest sees it. */
  readonly dns: number;
  /** The guest's address by DHCP. */
  readonly dhcpStart: number;
  /** Whether there is IPv6. */
  readonly ipv6: boolean;
  /** Names that DHCP tells; null for none. */
  readonly hostname: string | null;
  /** The guest's domain; null for none. */
  readonly domainName: string | null;
  /** Domains to search. */
  readonly dnsSearch: readonly string[];
  /** Directory served by TFTP; null for none. */
  readonly tftp: string | null;
  /** What to boot by TFTP; null for none. */
  readonly bootFile: string | null;
  /** Forwarded ports. */
  readonly hostForwards: readonly HostForward[];
}

/** How frames are sent to a TAP. */
export const TapEngine = {
  /** Many at once by io_uring, a few by a system call each, and so all of them where io_uring is refused. */
  AUTO: "auto",
  /** All by io_uring, even a lone one, which is slower; with a warning where it is refused. */
  RING: "io_uring",
  /** A system call for each. */
  SYNC: "sync",
} as const;

/** A way to send frames to a TAP. */
export type TapEngine = typeof TapEngine[keyof typeof TapEngine];

/** A TAP interface. */
export interface TapNetOptions {
  readonly net: typeof NetKind.TAP;
  /** Its name, which may hold one `%d` for the kernel to number. */
  readonly ifname: string;
  /** How frames are sent to it; {@linkcode TapEngine.AUTO} unless told. */
  readonly engine?: TapEngine;
}

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

/** A stream socket. */
export interface StreamNetOptions {
  readonly net: typeof NetKind.STREAM;
  /** Where to connect to, or to listen at. */
  readonly endpoint: SocketEndpoint;
  /** Whether to listen. */
  readonly server: boolean;
  /** The longest pause between attempts to connect; 0 for one attempt. */
  readonly reconnectMs: number;
}

/** A datagram socket; both ends are of one family. */
export interface DgramNetOptions {
  readonly net: typeof NetKind.DGRAM;
  /** Where to receive at. */
  readonly local: SocketEndpoint;
  /** Where to send to. */
  readonly remote: SocketEndpoint;
}

/** A passt process. */
export interface PasstNetOptions {
  readonly net: typeof NetKind.PASST;
  /** Name or path of the program; null for the usual one. */
  readonly program: string | null;
  /** Ports to forward, as passt takes them. */
  readonly tcpPorts: readonly string[];
  /** Ports to forward, as passt takes them. */
  readonly udpPorts: readonly string[];
}

/** No network. */
export interface NoNetOptions {
  readonly net: typeof NetKind.NONE;
}

/** What a card is plugged into; plain data that can be sent to a Worker. */
export type NetOptions =
  | UserNetOptions
  | TapNetOptions
  | StreamNetOptions
  | DgramNetOptions
  | PasstNetOptions
  | NoNetOptions;
