import { assert, assertEquals, assertThrows } from "@std/assert";
import { Errno, ErrnoError } from "../../../../src/core/errno.ts";
import {
  NET_OPTIONS,
  type NetOptions,
} from "../../../../src/backend/net/options.ts";
import { openNetBackend } from "../../../../src/backend/net/open.ts";
import type { NetBackend } from "../../../../src/backend/net/contract.ts";
import { STREAM_FRAME_MAX } from "../../../../src/backend/net/socket/frame_stream.ts";
import {
  isSupportedVersion,
  openLibslirp,
  SLIRP_CB,
  SLIRP_CONFIG,
} from "../../../../src/backend/net/slirp/symbols.ts";
import { buildSlirpConfig } from "../../../../src/backend/net/slirp/config.ts";
import { openFds } from "../../../resources.ts";
import { Card, Host } from "../card.ts";
import {
  arpReply,
  arpRequest,
  bytes,
  checksum,
  dhcp,
  ethernet,
  GUEST_MAC,
  ip,
  parseDhcp,
  parseIp,
  ping,
  udp,
} from "../frames.ts";
import { PATIENCE_MS } from "../../../until.ts";
import { testLibslirp } from "../libslirp.ts";
import { DGRAM, HostSocket, STREAM } from "../sockets.ts";
import { TcpPeer } from "../tcp_peer.ts";
import type { OptionTexts } from "../../../../src/core/options.ts";

const GATEWAY_MAC = Uint8Array.of(0x52, 0x55, 10, 0, 2, 2);
const GUEST = "10.0.2.15";
const ROUTER = "10.0.2.2";

const libslirp = await testLibslirp();

function options(
  values: OptionTexts = {},
): Extract<NetOptions, { net: "user" }> {
  return NET_OPTIONS.parse(values) as Extract<NetOptions, { net: "user" }>;
}

function open(host: Host, values: OptionTexts = {}): NetBackend {
  return openNetBackend(options(values), host.context);
}

/** Our children, zombies included. */
function children(): string {
  return Deno.readTextFileSync(`/proc/self/task/${Deno.pid}/children`);
}

function isRunning(pid: number): boolean {
  try {
    return !/^State:\s+[ZX]/m.test(
      Deno.readTextFileSync(`/proc/${pid}/status`),
    );
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}

function counter(card: Card, name: string): number {
  return card.backend.counters!()[name]!;
}

/** A test with a card on libslirp; afterwards all descriptors are closed, and its process is gone. */
function slirpTest(
  name: string,
  values: () => OptionTexts,
  run: (card: Card, values: OptionTexts) => void,
): void {
  const reason = "skip" in libslirp ? ` (ignored: ${libslirp.skip})` : "";
  Deno.test({
    name: `net=user ${name}${reason}`,
    ignore: reason !== "",
    fn() {
      const before = [openFds(), children()];
      {
        using host = new Host();
        const given = values();
        using card = new Card(host, open(host, given));
        run(card, given);
      }
      assertEquals([openFds(), children()], before);
    },
  });
}

/** Tells libslirp where the guest is, and answers when it asks. */
function joinNetwork(card: Card): void {
  card.send(arpRequest(GUEST, ROUTER));
  const reply = card.take(
    "ARP reply",
    (frame) => frame[12] === 8 && frame[13] === 6 ? frame : null,
  );
  assertEquals(reply.slice(22, 28), GATEWAY_MAC);
  assertEquals([...reply.slice(28, 32)], ip(ROUTER));
}

function pattern(length: number): Uint8Array<ArrayBuffer> {
  return Uint8Array.from({ length }, (_, i) => (i * 7 + (i >>> 8)) & 255);
}

slirpTest(
  "leases an address by DHCP",
  () => ({ hostname: "box", dnssearch: ["a.example", "b.example"] }),
  (card) => {
    assert(/^user \(libslirp \d+\.\d+/.test(card.backend.description));
    assertEquals(card.send(dhcp([53, 1, 1]), 4), 0);
    const offer = card.take("offer", parseDhcp);
    assertEquals(offer.options.get(53), [2]);
    assertEquals(offer.address, GUEST);
    card.send(dhcp([53, 1, 3, 50, 4, ...ip(GUEST)]));
    const ack = card.take("ack", parseDhcp);
    assertEquals(ack.options.get(53), [5]);
    assertEquals(ack.options.get(1), ip("255.255.255.0"));
    assertEquals(ack.options.get(3), ip(ROUTER));
    assertEquals(ack.options.get(6), ip("10.0.2.3"));
    assertEquals(ack.options.get(12), [98, 111, 120]);
    assert(ack.options.has(119), "the search list");
  },
);

slirpTest("uses the subnet it is given", () => ({
  subnet: "192.168.76.0/24",
  dhcpstart: "192.168.76.20",
}), (card) => {
  card.send(dhcp([53, 1, 1]));
  const offer = card.take("offer", parseDhcp);
  assertEquals(offer.address, "192.168.76.20");
  assertEquals(offer.options.get(3), ip("192.168.76.2"));
});

slirpTest("answers ARP and ping for the router", () => ({}), (card) => {
  joinNetwork(card);
  const data = pattern(300);
  card.send(ethernet(GATEWAY_MAC, 0x0800, ping(GUEST, ROUTER, data)), 3);
  const reply = card.take(
    "echo reply",
    (frame) => parseIp(frame)?.protocol === 1 ? parseIp(frame) : null,
  );
  assertEquals([reply.src, reply.dst], [ROUTER, GUEST]);
  assertEquals(checksum(reply.payload), 0);
  assertEquals(reply.payload.slice(8), data);
});

slirpTest("answers IPv6 router solicitations", () => ({}), (card) => {
  // fe80::1 to ff02::2, next header ICMPv6, hop limit 255
  const source = [0xfe, 0x80, ...new Array(13).fill(0), 1];
  const target = [0xff, 0x02, ...new Array(13).fill(0), 2];
  const message = bytes([133, 0, 0, 0, 0, 0, 0, 0]);
  const pseudo = bytes(source, target, [0, 0, 0, 8, 0, 0, 0, 58], message);
  const sum = checksum(pseudo);
  message.set([sum >>> 8, sum & 255], 2);
  const packet = bytes(
    [0x60, 0, 0, 0, 0, 8, 58, 255],
    source,
    target,
    message,
  );
  card.send(ethernet(bytes(0x33, 0x33, 0, 0, 0, 2), 0x86dd, packet));
  const advertisement = card.take(
    "router advertisement",
    (frame) => frame[12] === 0x86 && frame[54] === 134 ? frame : null,
  );
  assert(advertisement.length > 54 + 16);
});

slirpTest(
  "forwards a TCP connection to the guest and back, byte for byte",
  () => ({
    hostfwd: `tcp:127.0.0.1:${HostSocket.freePort(STREAM)}-:80`,
  }),
  (card, values) => {
    joinNetwork(card);
    const peer = new TcpPeer(card, GATEWAY_MAC, GUEST, 80);
    card.onFrame = (frame) => peer.onFrame(frame);
    const port = Number(/:(\d+)-/.exec(values.hostfwd as string)![1]);
    using client = HostSocket.connect(STREAM, port);
    card.turnUntil("established", () => peer.established);

    const toGuest = pattern(600_000);
    let sent = 0;
    card.turnUntil("all bytes at the guest", () => {
      sent += client.write(toGuest.subarray(sent));
      return peer.receivedBytes === toGuest.length;
    });
    assertEquals(bytes(...peer.chunks), toGuest);

    const toHost = pattern(40_000).reverse();
    const got: Uint8Array[] = [];
    let gotBytes = 0;
    let written = 0;
    card.turnUntil("all bytes at the host", () => {
      // Keep below libslirp's receive buffer; it has no room for more in order.
      if (written < toHost.length && peer.inFlight < 10_000) {
        peer.write(toHost.subarray(written, written + 8000));
        written += 8000;
      }
      const part = client.read();
      if (part !== null) {
        got.push(part);
        gotBytes += part.length;
      }
      return gotBytes >= toHost.length;
    });
    assertEquals(bytes(...got), toHost);

    client.shutdown();
    card.turnUntil("FIN at the guest", () => peer.finReceived);
    peer.finish();
    let end = false;
    card.turnUntil("end of stream at the host", () => {
      end = client.read()?.length === 0;
      return end;
    });
    assertEquals(peer.reset, false);
    assertEquals(card.backend.counters!().rxDropped, 0);
  },
);

slirpTest(
  "connects the guest to the host by the router's address",
  () => ({}),
  (card) => {
    joinNetwork(card);
    using listener = HostSocket.bound(STREAM);
    const peer = new TcpPeer(card, GATEWAY_MAC, GUEST, 40_000);
    card.onFrame = (frame) => peer.onFrame(frame);
    peer.connect(ROUTER, listener.port);
    let accepted: HostSocket | null = null;
    card.turnUntil("accepted", () => (accepted ??= listener.accept()) !== null);
    using connection = accepted! as HostSocket;
    card.turnUntil("established", () => peer.established);
    peer.write(bytes(1, 2, 3));
    let request: Uint8Array | null = null;
    card.turnUntil("request", () => (request ??= connection.read()) !== null);
    assertEquals(request, bytes(1, 2, 3));
    connection.write(bytes(4, 5));
    card.turnUntil("answer", () => peer.receivedBytes === 2);
    assertEquals(peer.chunks, [bytes(4, 5)]);
  },
);

slirpTest(
  "resets a connection to a port where nobody listens",
  () => ({}),
  (card) => {
    joinNetwork(card);
    const peer = new TcpPeer(card, GATEWAY_MAC, GUEST, 40_001);
    card.onFrame = (frame) => peer.onFrame(frame);
    peer.connect(ROUTER, HostSocket.freePort(STREAM));
    card.turnUntil("reset", () => peer.reset);
  },
);

slirpTest(
  "keeps a restricted guest from the host",
  () => ({ restrict: "on" }),
  (card) => {
    joinNetwork(card);
    using listener = HostSocket.bound(STREAM);
    const peer = new TcpPeer(card, GATEWAY_MAC, GUEST, 40_002);
    card.onFrame = (frame) => peer.onFrame(frame);
    peer.connect(ROUTER, listener.port);
    // Traffic behind it is answered, so the SYN has been seen by then.
    card.send(ethernet(GATEWAY_MAC, 0x0800, ping(GUEST, ROUTER, pattern(8))));
    card.take("echo reply", (frame) => parseIp(frame));
    assertEquals(listener.accept(), null);
    assertEquals(peer.established, false);
  },
);

slirpTest("delivers what waits for ARP once the guest answers", () => ({
  hostfwd: `udp:127.0.0.1:${HostSocket.freePort(DGRAM)}-:7`,
}), (card, values) => {
  const port = Number(/:(\d+)-/.exec(values.hostfwd as string)![1]);
  using client = HostSocket.connect(DGRAM, port);
  client.write(pattern(100));
  const question = card.take(
    "ARP request",
    (frame) => frame[13] === 6 && frame[21] === 1 ? frame : null,
  );
  assertEquals([...question.slice(38, 42)], ip(GUEST));
  card.send(arpReply(question, GUEST));
  const datagram = card.take(
    "datagram",
    (frame) => parseIp(frame)?.protocol === 17 ? frame : null,
  );
  assertEquals(datagram.slice(0, 6), GUEST_MAC);
  const packet = parseIp(datagram)!;
  assertEquals(packet.payload.slice(8), pattern(100));
  // And back to where it came from.
  const source = packet.payload[0]! * 256 + packet.payload[1]!;
  const answer = udp(GUEST, 7, packet.src, source, bytes(9, 8, 7));
  card.send(ethernet(GATEWAY_MAC, 0x0800, answer));
  let got: Uint8Array | null = null;
  card.turnUntil("answer", () => (got ??= client.read()) !== null);
  assertEquals(got, bytes(9, 8, 7));
});

slirpTest(
  "refuses frames longer than any and survives short ones",
  () => ({}),
  (card) => {
    const long = new Uint8Array(STREAM_FRAME_MAX + 1);
    assertEquals(card.send(long), -Errno.EMSGSIZE);
    for (const length of [1, 13, 14, 33, 60]) {
      assertEquals(card.send(new Uint8Array(length).fill(0x45), 2), 0);
    }
    joinNetwork(card);
  },
);

slirpTest(
  "may be closed by the card while it is told of frames",
  () => ({}),
  (card) => {
    card.onFrame = () => {
      card.backend.close();
      return true;
    };
    card.send(arpRequest(GUEST, ROUTER));
    // The card stops fetching when it closes.
    card.fetching = false;
    card.onReadable = () => {
      card.readableCalls++;
      card.backend.close();
    };
    card.turnUntil("closed", () => card.readableCalls === 1);
    card.host.loop.turn(0);
    assertEquals(card.readableCalls, 1);
  },
);

/** A frame that ends libslirp 4.7.0. */
function killingFrame(): Uint8Array<ArrayBuffer> {
  const frame = new Uint8Array(252);
  frame.set([0x08, 0x00], 12);
  frame.set([0x45, 0, 0, 0xee, 0xbf, 0xbc, 0x98, 0], 14);
  frame.set([0x40, 0xe3, 0x09, 0x53, ...ip(GUEST), ...ip(GUEST)], 22);
  return frame;
}

/**
 * Has libslirp's process end, as a guest can by a frame where the library is old enough, and waits for the next.
 *
 * @returns By which signal; one that is sent must be one that nobody catches
 */
function crash(card: Card): number {
  const starts = counter(card, "starts");
  const pid = counter(card, "pid");
  card.send(killingFrame());
  const isOld = card.backend.description.includes("4.7.0");
  if (!isOld) Deno.kill(pid, "SIGKILL");
  card.turnUntil("the next process", () => counter(card, "starts") > starts);
  assert(counter(card, "pid") !== pid);
  return isOld ? 11 : 9;
}

/** Leases the address that is offered to somebody, or the one they ask for. */
function lease(card: Card, mac: number, asked?: string): string {
  const from = { mac: Uint8Array.of(0x52, 0x54, 0, 0, 0, mac) };
  card.send(dhcp([53, 1, 1], from));
  const offer = card.take("offer", parseDhcp);
  const address = asked ?? offer.address;
  card.send(dhcp([53, 1, 3, 50, 4, ...ip(address)], from));
  const ack = card.take("ack", parseDhcp);
  assertEquals(ack.options.get(53), [5]);
  return ack.address;
}

slirpTest(
  "goes on when a guest's frame ends libslirp: with its ports and leases, and says so",
  () => ({ hostfwd: `udp:127.0.0.1:${HostSocket.freePort(DGRAM)}-:7` }),
  (card, values) => {
    assertEquals([lease(card, 1), lease(card, 2)], [GUEST, "10.0.2.16"]);
    const signals: number[] = [];
    for (let i = 0; i < 2; i++) {
      signals.push(crash(card));
      // Whoever comes first would be given the first address, had it been forgotten whose it is.
      assertEquals([lease(card, 2), lease(card, 1)], ["10.0.2.16", GUEST]);
    }
    assertEquals(lease(card, 3), "10.0.2.17");
    joinNetwork(card);
    const port = Number(/:(\d+)-/.exec(values.hostfwd as string)![1]);
    using client = HostSocket.connect(DGRAM, port);
    client.write(bytes(1, 2, 3));
    card.take("datagram", (frame) => {
      const packet = parseIp(frame);
      return packet?.protocol === 17 && packet.payload[3] === 7 ? frame : null;
    });
    assertEquals(
      card.host.warnings,
      signals.map((signal) =>
        `libslirp's process has ended (signal ${signal}): the card is without a network until it is started again`
      ),
    );
    const again = "libslirp's process was started again";
    assertEquals(card.host.news, [again, again]);
  },
);

slirpTest(
  "bounds a guest's flows, which are none of this process's descriptors",
  () => ({}),
  (card) => {
    joinNetwork(card);
    using host = HostSocket.bound(DGRAM);
    const before = openFds();
    const pid = counter(card, "pid");
    for (let i = 0; i < 2000; i++) {
      const datagram = udp(GUEST, 1024 + i, ROUTER, host.port, bytes(i & 255));
      const frame = ethernet(GATEWAY_MAC, 0x0800, datagram);
      card.turnUntil("taken", () => card.send(frame) >= 0);
    }
    // Answered behind all of them.
    card.send(ethernet(GATEWAY_MAC, 0x0800, ping(GUEST, ROUTER, pattern(8))));
    card.take("echo reply", (frame) => {
      const packet = parseIp(frame);
      return packet?.protocol === 1 && packet.payload[0] === 0 ? frame : null;
    });
    assertEquals(openFds(), before);
    const theirs = [...Deno.readDirSync(`/proc/${pid}/fd`)].length;
    assert(theirs > 900 && theirs <= 1024, `${theirs} descriptors`);
    assertEquals(counter(card, "starts"), 1);
  },
);

Deno.test({
  name: "net=user leaves no process behind when this one dies",
  ignore: "skip" in libslirp,
  fn() {
    const url = (path: string) => JSON.stringify(import.meta.resolve(path));
    const script = `
      import { Card, Host } from ${url("../card.ts")};
      import { openNetBackend } from ${
      url("../../../../src/backend/net/open.ts")
    };
      import { NET_OPTIONS } from ${
      url("../../../../src/backend/net/options.ts")
    };
      const host = new Host();
      const options = NET_OPTIONS.parse({});
      const card = new Card(host, openNetBackend(options, host.context));
      console.log(card.backend.counters().pid);
      Deno.kill(Deno.pid, "SIGKILL");
    `;
    const ran = new Deno.Command(Deno.execPath(), { args: ["eval", script] })
      .outputSync();
    const pid = Number(new TextDecoder().decode(ran.stdout));
    assert(pid > 0, new TextDecoder().decode(ran.stderr));
    using host = new Host();
    const deadline = performance.now() + PATIENCE_MS;
    while (isRunning(pid)) {
      assert(performance.now() < deadline, "it outlives us");
      host.loop.turn(20);
    }
  },
});

Deno.test({
  name: "net=user says which port it cannot forward, before anything runs",
  ignore: "skip" in libslirp,
  fn() {
    using host = new Host();
    for (const [protocol, type] of [["tcp", STREAM], ["udp", DGRAM]] as const) {
      using taken = HostSocket.bound(type);
      const before = openFds();
      const error = assertThrows(
        () =>
          open(host, { hostfwd: `${protocol}:127.0.0.1:${taken.port}-:80` }),
        ErrnoError,
      );
      assertEquals(error.errno, Errno.EADDRINUSE);
      assertEquals(
        error.message,
        `Cannot forward ${protocol} 127.0.0.1:${taken.port} to the guest: ` +
          "the port is in use, choose another or stop what listens there (EADDRINUSE)",
      );
      assertEquals(openFds(), before);
    }
    const elsewhere = assertThrows(
      () => open(host, { hostfwd: "tcp:192.0.2.1:8080-:80" }),
      ErrnoError,
    );
    assertEquals(elsewhere.errno, Errno.EADDRNOTAVAIL);
  },
});

Deno.test({
  name: "net=user refuses an MTU that libslirp cannot have",
  ignore: "skip" in libslirp,
  fn() {
    for (const mtu of [67, 65522]) {
      using host = new Host(mtu);
      assertThrows(() => open(host), ErrnoError, "68 to 65521 are possible");
    }
    for (const mtu of [68, 65521]) {
      using host = new Host(mtu);
      open(host).close();
    }
  },
});

Deno.test({
  name: "openNetBackend takes libslirp for net=user where it is there",
  ignore: "skip" in libslirp || Deno.env.has("OUTBOARD_LIBSLIRP"),
  fn() {
    using host = new Host();
    using card = new Card(host, openNetBackend(options(), host.context));
    assert(card.backend.description.startsWith("user (libslirp 4."));
    assertEquals(host.warnings, []);
  },
});

Deno.test("openLibslirp says why there is none", () => {
  const missing = openLibslirp("libslirp-that-is-not.so.0");
  assert("reason" in missing && missing.reason.includes("cannot be loaded"));
  // A library, but another one.
  const other = openLibslirp("libc.so.6");
  assert("reason" in other && other.reason.includes("cannot be loaded"));
});

Deno.test("isSupportedVersion is true from 4.7 on", () => {
  for (const version of ["4.7.0", "4.9.1", "4.10.0", "5.0.0", "4.8.0-dev"]) {
    assertEquals(isSupportedVersion(version), true, version);
  }
  for (const version of ["4.6.1", "3.9.0", "", "x"]) {
    assertEquals(isSupportedVersion(version), false, version);
  }
});

Deno.test("SLIRP_CONFIG and SLIRP_CB are laid out by natural alignment", () => {
  // Name, size and alignment of each member, in the order of libslirp.h.
  // deno-fmt-ignore
  const members: [keyof typeof SLIRP_CONFIG, number, number][] = [
    ["VERSION", 4, 4], ["RESTRICTED", 4, 4], ["IN_ENABLED", 1, 1], ["VNETWORK", 4, 4], ["VNETMASK", 4, 4],
    ["VHOST", 4, 4], ["IN6_ENABLED", 1, 1], ["VPREFIX_ADDR6", 16, 4], ["VPREFIX_LEN", 1, 1], ["VHOST6", 16, 4],
    ["VHOSTNAME", 8, 8], ["TFTP_SERVER_NAME", 8, 8], ["TFTP_PATH", 8, 8], ["BOOTFILE", 8, 8],
    ["VDHCP_START", 4, 4], ["VNAMESERVER", 4, 4], ["VNAMESERVER6", 16, 4], ["VDNSSEARCH", 8, 8],
    ["VDOMAINNAME", 8, 8], ["IF_MTU", 8, 8], ["IF_MRU", 8, 8], ["DISABLE_HOST_LOOPBACK", 1, 1],
    ["ENABLE_EMU", 1, 1], ["OUTBOUND_ADDR", 8, 8], ["OUTBOUND_ADDR6", 8, 8], ["DISABLE_DNS", 1, 1],
    ["DISABLE_DHCP", 1, 1],
  ];
  let offset = 0;
  for (const [name, size, alignment] of members) {
    offset = Math.ceil(offset / alignment) * alignment;
    assertEquals(SLIRP_CONFIG[name], offset, name);
    offset += size;
  }
  assertEquals(SLIRP_CONFIG.SIZE, Math.ceil(offset / 8) * 8);
  assertEquals(members.length, Object.keys(SLIRP_CONFIG).length - 1);
  assertEquals(
    Object.values(SLIRP_CB),
    [0, 8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88],
  );
});

Deno.test("buildSlirpConfig points to terminated strings inside its own memory", () => {
  const given = options({
    hostname: "böx",
    bootfile: "/pxe",
    dnssearch: ["a.example", "b.example"],
  });
  using config = buildSlirpConfig(given, 1400);
  const at = SLIRP_CONFIG;
  const text = (pointer: number) => {
    const start = pointer - config.hva;
    const end = config.bytes.indexOf(0, start);
    return new TextDecoder().decode(config.bytes.slice(start, end));
  };
  const word = (offset: number) =>
    Number(config.view.getBigUint64(offset, true));
  assertEquals(text(word(at.VHOSTNAME)), "böx");
  assertEquals(text(word(at.BOOTFILE)), "/pxe");
  assertEquals(word(at.TFTP_PATH), 0);
  const list = word(at.VDNSSEARCH) - config.hva;
  assertEquals(text(word(list)), "a.example");
  assertEquals(text(word(list + 8)), "b.example");
  assertEquals(word(list + 16), 0);
  assertEquals([...config.bytes.slice(at.VNETWORK, at.VNETWORK + 12)], [
    ...ip("10.0.2.0"),
    ...ip("255.255.255.0"),
    ...ip("10.0.2.2"),
  ]);
  assertEquals(word(at.IF_MTU), 1400);
});
