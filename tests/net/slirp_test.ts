import { assert, assertEquals, assertThrows } from "@std/assert";
import { Errno, ErrnoError } from "../../src/errno.ts";
import type { UserNetOptions } from "../../src/net/option_table.ts";
import { type OptionValues, parseNetOptions } from "../../src/net/options.ts";
import { openNetBackend } from "../../src/net/open.ts";
import { SlirpBackend } from "../../src/net/slirp.ts";
import {
  isSupportedVersion,
  openLibslirp,
  SLIRP_CB,
  SLIRP_CONFIG,
} from "../../src/net/slirp_symbols.ts";
import { buildSlirpConfig } from "../../src/net/slirp_config.ts";
import { heapGrowthPerOperation, openFds } from "../resources.ts";
import { Access } from "../../src/memory/guest_memory.ts";
import { Card, Host } from "./card.ts";
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
} from "./frames.ts";
import { testLibslirp } from "./libslirp.ts";
import { DGRAM, HostSocket, STREAM } from "./sockets.ts";
import { TcpPeer } from "./tcp_peer.ts";
import { MOVES } from "./traveller.ts";

const GATEWAY_MAC = Uint8Array.of(0x52, 0x55, 10, 0, 2, 2);
const GUEST = "10.0.2.15";
const ROUTER = "10.0.2.2";

const libslirp = await testLibslirp();

// libffi opens the executable for its trampolines when the first callback is made, and keeps it open.
new Deno.UnsafeCallback({ parameters: [], result: "void" }, () => {}).close();

function options(values: OptionValues = {}): UserNetOptions {
  return parseNetOptions(values) as UserNetOptions;
}

function open(host: Host, values: OptionValues = {}): SlirpBackend {
  if ("skip" in libslirp) throw new Error(libslirp.skip);
  const library = openLibslirp(libslirp.library);
  if ("reason" in library) throw new Error(library.reason);
  return new SlirpBackend(options(values), host.context, library);
}

/** A test with a card on libslirp; afterwards all descriptors are closed. */
function slirpTest(
  name: string,
  values: () => OptionValues,
  run: (card: Card, values: OptionValues) => void,
): void {
  const reason = "skip" in libslirp ? ` (ignored: ${libslirp.skip})` : "";
  Deno.test({
    name: `SlirpBackend ${name}${reason}`,
    ignore: reason !== "",
    fn() {
      const before = openFds();
      {
        using host = new Host();
        const given = values();
        using card = new Card(host, open(host, given));
        run(card, given);
      }
      assertEquals(openFds(), before);
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
  "stops reading from the host while the card takes nothing, and goes on after",
  () => ({
    hostfwd: `udp:127.0.0.1:${HostSocket.freePort(DGRAM)}-:7`,
  }),
  (card, values) => {
    joinNetwork(card);
    const port = Number(/:(\d+)-/.exec(values.hostfwd as string)![1]);
    using client = HostSocket.connect(DGRAM, port);
    const { loop } = card.host;
    card.backend.setReceiving(false);
    const calls = card.readableCalls;
    // libslirp reads one datagram a turn.
    for (let i = 0; i < 2500; i++) {
      client.write(bytes(i >>> 8, i & 255));
      loop.turn(0);
    }
    assertEquals(card.readableCalls, calls);
    assertEquals(card.backend.counters!().rxDropped, 0);
    // Three quarters of the ring; the rest stays in the kernel.
    card.fetch();
    const waiting = card.received.length;
    assert(waiting > 1900 && waiting < 2200, `${waiting} frames waited`);
    assertEquals(loop.turn(0), true);
    card.backend.setReceiving(true);
    card.turnUntil("what was left", () => card.received.length > waiting);
    for (let i = 0; i < 50; i++) loop.turn(0);
    card.received.length = 0;
    client.write(bytes(0xab, 0xcd));
    card.take("a new datagram", (frame) => {
      const payload = parseIp(frame)?.payload;
      return payload?.[8] === 0xab && payload[9] === 0xcd ? frame : null;
    });
  },
);

slirpTest(
  "calls nothing after stop and drops what waits",
  () => ({}),
  (card) => {
    card.send(arpRequest(GUEST, ROUTER));
    card.backend.stop();
    for (let i = 0; i < 5; i++) card.host.loop.turn(0);
    assertEquals(card.readableCalls, 0);
    card.fetch();
    assertEquals(card.received, []);
    card.backend.start(card);
    joinNetwork(card);
  },
);

slirpTest(
  "reports a frame that does not fit, and goes on",
  () => ({}),
  (card) => {
    card.fetching = false;
    card.send(dhcp([53, 1, 1]));
    card.send(arpRequest(GUEST, ROUTER));
    assert(card.fetchOne(100));
    assertEquals(card.errors, [-Errno.EMSGSIZE]);
    assert(card.fetchOne());
    assertEquals(card.received.length, 1);
    assertEquals(card.backend.counters!().rxDropped, 1);
  },
);

slirpTest(
  "refuses frames longer than any and survives short ones",
  () => ({}),
  (card) => {
    assertEquals(card.send(new Uint8Array(65535 + 19)), -Errno.EMSGSIZE);
    for (const length of [0, 1, 13, 14, 33, 60]) {
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

slirpTest("sleeps when nothing is connected", () => ({}), (card) => {
  joinNetwork(card);
  for (let i = 0; i < 10; i++) card.host.loop.turn(0);
  assertEquals(card.host.loop.turn(600), false);
});

slirpTest("takes frames without allocating", () => ({}), (card) => {
  const { memory } = card.host;
  const whole = memory.createScatterGather(4);
  const parts = memory.createScatterGather(4);
  // Zeroes are a frame of a type that libslirp ignores.
  memory.translate(0, 1514, Access.READ, whole);
  memory.translate(0, 54, Access.READ, parts);
  memory.translate(100, 1460, Access.READ, parts);
  const send = (operations: number) => {
    for (let i = 0; i < operations; i++) {
      card.backend.send(whole);
      card.backend.send(parts);
    }
  };
  send(600_000);
  const growth = heapGrowthPerOperation(50_000, send);
  assert(growth < 1, `${growth} bytes for two frames`);
});

Deno.test({
  name: "SlirpBackend works on several threads at once",
  ignore: "skip" in libslirp,
  async fn() {
    const script = `${import.meta.dirname}/slirp_threads.ts`;
    const command = new Deno.Command(Deno.execPath(), {
      args: ["run", "--allow-all", "--no-check", script],
      stdin: "null",
    });
    const { stdout, stderr } = await command.output();
    const text = new TextDecoder();
    assertEquals(
      text.decode(stdout),
      `${GUEST}\n${GUEST}\n`,
      text.decode(stderr),
    );
  },
});

Deno.test({
  name: "SlirpBackend moves between threads with a connection on it",
  ignore: "skip" in libslirp,
  async fn() {
    if ("skip" in libslirp) throw new Error(libslirp.skip);
    const { library } = libslirp;
    const script = `${import.meta.dirname}/slirp_move.ts`;
    const command = new Deno.Command(Deno.execPath(), {
      args: ["run", "--allow-all", "--no-check", script],
      // Found by its name there, so that only those who use it hold it.
      env: library.includes("/")
        ? { LD_LIBRARY_PATH: library.slice(0, library.lastIndexOf("/")) }
        : {},
      stdin: "null",
    });
    const { stdout, stderr, success } = await command.output();
    const text = new TextDecoder();
    assert(success, text.decode(stderr));
    const { advertisements, fdsGained, ...result } = JSON.parse(
      text.decode(stdout),
    );
    assertEquals(result, {
      sentBytes: 2_100_000,
      gotBytes: 2_100_000,
      same: true,
      guestBytes: 2_100_000,
      free: true,
    });
    // The runtime opens one or two whenever it likes; a descriptor left behind would be one a move.
    assert(fdsGained < MOVES / 2, `${fdsGained} descriptors more`);
    assert(advertisements > 0, "a timer of the first thread fired");
  },
});

Deno.test({
  name: "SlirpBackend says which port it cannot forward, before anything runs",
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
  name: "SlirpBackend refuses an MTU that libslirp cannot have",
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
  // One that was provided is loaded by now, and the dynamic linker finds it by its name.
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
