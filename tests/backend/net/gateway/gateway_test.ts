import { assert, assertEquals, assertMatch, assertThrows } from "@std/assert";
import fc from "fast-check";
import { Errno, ErrnoError } from "../../../../src/core/errno.ts";
import { GatewayBackend } from "../../../../src/backend/net/gateway/gateway.ts";
import { GatewayReplies } from "../../../../src/backend/net/gateway/replies.ts";
import {
  NET_OPTIONS,
  type NetOptions,
} from "../../../../src/backend/net/options.ts";
import { openNetBackend } from "../../../../src/backend/net/open.ts";
import { openFds } from "../../../resources.ts";
import { Card, Host } from "../card.ts";
import {
  arpRequest,
  BROADCAST_MAC,
  bytes,
  checksum,
  dhcp,
  ethernet,
  GUEST_MAC,
  ip,
  parseDhcp,
  parseIp,
  ping,
} from "../frames.ts";
import type { OptionTexts } from "../../../../src/core/options.ts";

const GATEWAY_MAC = Uint8Array.of(0x52, 0x55, 10, 0, 2, 2);

function options(
  values: OptionTexts = {},
): Extract<NetOptions, { net: "user" }> {
  return NET_OPTIONS.parse(values) as Extract<NetOptions, { net: "user" }>;
}

function plug(
  host: Host,
  values: OptionTexts = {},
): Card {
  return new Card(host, new GatewayBackend(options(values), host.context));
}

const none = (card: Card) => {
  for (let i = 0; i < 3; i++) card.host.loop.turn(0);
  return card.received.length === 0;
};

Deno.test("GatewayBackend answers ARP for its own address, byte for byte", () => {
  using host = new Host();
  using card = plug(host);
  assertEquals(card.send(arpRequest("10.0.2.15", "10.0.2.2"), 5), 0);
  const reply = card.take("ARP reply", (frame) => frame);
  assertEquals(
    reply,
    // deno-fmt-ignore
    bytes(GUEST_MAC, GATEWAY_MAC, [8, 6, 0, 1, 8, 0, 6, 4, 0, 2],
      GATEWAY_MAC, ip("10.0.2.2"), GUEST_MAC, ip("10.0.2.15")),
  );
});

Deno.test("GatewayBackend does not answer ARP for other addresses", () => {
  using host = new Host();
  using card = plug(host);
  card.send(arpRequest("10.0.2.15", "10.0.2.99"));
  assert(none(card));
});

Deno.test("GatewayBackend leases the address by DISCOVER and REQUEST", () => {
  using host = new Host();
  using card = plug(host, { hostname: "box", domainname: "example.org" });
  card.send(dhcp([53, 1, 1]));
  const offer = card.take("offer", parseDhcp);
  assertEquals(offer.address, "10.0.2.15");
  assertEquals(offer.options.get(53), [2]);
  assertEquals(offer.options.get(54), ip("10.0.2.2"));
  assertEquals(offer.options.get(1), ip("255.255.255.0"));
  assertEquals(offer.options.get(3), ip("10.0.2.2"));
  assertEquals(offer.options.get(51), [0, 1, 0x51, 0x80]);
  assertEquals(offer.options.get(12), [..."box"].map((c) => c.charCodeAt(0)));
  assertEquals(offer.options.get(15)?.length, "example.org".length);
  assertEquals(offer.options.has(26), false);

  card.send(
    dhcp([53, 1, 3, 50, 4, ...ip("10.0.2.15"), 54, 4, ...ip("10.0.2.2")]),
    3,
  );
  const ack = card.take("ack", parseDhcp);
  assertEquals(ack.address, "10.0.2.15");
  assertEquals(ack.options.get(53), [5]);
});

Deno.test("GatewayBackend copies the DHCP transaction and the client's address", () => {
  using host = new Host();
  using card = plug(host);
  card.send(dhcp([53, 1, 1]));
  const frame = card.take("offer", (frame) => frame);
  assertEquals(frame.slice(0, 6), GUEST_MAC);
  assertEquals(parseIp(frame)!.dst, "10.0.2.15");
  const message = frame.slice(14 + 20 + 8);
  assertEquals([...message.slice(0, 8)], [2, 1, 6, 0, 0xca, 0xfe, 0xf0, 0x0d]);
  assertEquals(message.slice(28, 34), GUEST_MAC);
  assert(message.length >= 300);
});

Deno.test("GatewayBackend broadcasts DHCP replies where the client asks for it", () => {
  using host = new Host();
  using card = plug(host);
  card.send(dhcp([53, 1, 1], { flags: 0x8000 }));
  const frame = card.take("offer", (frame) => frame);
  assertEquals(frame.slice(0, 6), BROADCAST_MAC);
  assertEquals(parseIp(frame)!.dst, "255.255.255.255");
});

Deno.test("GatewayBackend refuses other addresses with a NAK", () => {
  using host = new Host();
  using card = plug(host);
  card.send(dhcp([53, 1, 3, 50, 4, ...ip("10.0.2.77")]));
  const nak = card.take("NAK", parseDhcp);
  assertEquals(nak.options.get(53), [6]);
  assertEquals(nak.address, "0.0.0.0");
});

Deno.test("GatewayBackend renews the lease of a bound client and informs one with an address", () => {
  using host = new Host();
  using card = plug(host);
  card.send(dhcp([53, 1, 3], { ciaddr: "10.0.2.15" }));
  assertEquals(card.take("ack", parseDhcp).options.get(53), [5]);
  card.send(dhcp([53, 1, 8], { ciaddr: "10.0.2.40" }));
  const inform = card.take("inform", parseDhcp);
  assertEquals(inform.options.get(53), [5]);
  assertEquals(inform.address, "0.0.0.0");
  assertEquals(inform.options.has(51), false);
});

Deno.test("GatewayBackend leaves requests to other DHCP servers alone", () => {
  using host = new Host();
  using card = plug(host);
  card.send(dhcp([53, 1, 3, 54, 4, ...ip("10.0.2.9")]));
  assert(none(card));
});

Deno.test("GatewayBackend names no router in a restricted network, and the MTU of a jumbo one", () => {
  using host = new Host(9000);
  using card = plug(host, { restrict: "on" });
  card.send(dhcp([53, 1, 1]));
  const offer = card.take("offer", parseDhcp);
  assertEquals(offer.options.has(3), false);
  assertEquals(offer.options.get(26), [9000 >>> 8, 9000 & 255]);
});

Deno.test("GatewayBackend answers ping to itself only", () => {
  using host = new Host();
  using card = plug(host);
  const data = bytes(...Array.from({ length: 57 }, (_, i) => i));
  card.send(
    ethernet(GATEWAY_MAC, 0x0800, ping("10.0.2.15", "10.0.2.2", data)),
    4,
  );
  const reply = card.take("echo reply", parseIp);
  assertEquals([reply.src, reply.dst], ["10.0.2.2", "10.0.2.15"]);
  assertEquals(reply.payload[0], 0);
  assertEquals(checksum(reply.payload), 0);
  assertEquals(reply.payload.slice(8), data);
  card.send(ethernet(GATEWAY_MAC, 0x0800, ping("10.0.2.15", "9.9.9.9", data)));
  assert(none(card));
});

Deno.test("GatewayBackend drops a ping with a wrong checksum", () => {
  using host = new Host();
  using card = plug(host);
  const frame = ethernet(
    GATEWAY_MAC,
    0x0800,
    ping("10.0.2.15", "10.0.2.2", bytes(1, 2, 3)),
  );
  frame[frame.length - 1]! ^= 1;
  card.send(frame);
  assert(none(card));
  assertEquals(card.backend.counters!().ignored, 1);
});

Deno.test("GatewayBackend tells the card again while frames wait, unless it pauses", () => {
  using host = new Host();
  using card = plug(host);
  card.fetching = false;
  card.send(arpRequest("10.0.2.15", "10.0.2.2"));
  for (let i = 0; i < 5; i++) host.loop.turn(0);
  assert(card.readableCalls >= 3);
  card.backend.setReceiving(false);
  const before = card.readableCalls;
  for (let i = 0; i < 5; i++) host.loop.turn(0);
  assertEquals(card.readableCalls, before);
  card.fetching = true;
  card.backend.setReceiving(true);
  card.take("the frame that waited", (frame) => frame);
});

Deno.test("GatewayBackend keeps a bounded number of answers and drops them on stop", () => {
  using host = new Host();
  using card = plug(host);
  card.fetching = false;
  for (let i = 0; i < 100; i++) card.send(arpRequest("10.0.2.15", "10.0.2.2"));
  assertEquals(card.backend.counters!().rxDropped, 36);
  card.backend.stop();
  const calls = card.readableCalls;
  for (let i = 0; i < 3; i++) host.loop.turn(0);
  assertEquals(card.readableCalls, calls);
  card.fetch();
  assertEquals(card.received.length, 0);
});

Deno.test("GatewayBackend reports a frame that does not fit, and goes on", () => {
  using host = new Host();
  using card = plug(host);
  card.fetching = false;
  card.send(dhcp([53, 1, 1]));
  card.send(arpRequest("10.0.2.15", "10.0.2.2"));
  card.fetchOne(100);
  assertEquals(card.errors, [-Errno.EMSGSIZE]);
  card.fetchOne();
  assertEquals(card.received.length, 1);
});

Deno.test("GatewayBackend drops a frame longer than any", () => {
  using host = new Host();
  using card = plug(host);
  assertEquals(card.send(new Uint8Array(65535 + 19)), -Errno.EINVAL);
  assertEquals(card.send(new Uint8Array(65535 + 18)), 0);
  assertEquals(card.send(new Uint8Array(0)), 0);
});

Deno.test("GatewayReplies never throws and answers well-formed frames only, whatever it gets", () => {
  const gateway = new GatewayReplies(options({ hostname: "box" }), 1500);
  const samples = [
    arpRequest("10.0.2.15", "10.0.2.2"),
    dhcp([53, 1, 1]),
    dhcp([53, 1, 3, 50, 4, ...ip("10.0.2.15"), 54, 4, ...ip("10.0.2.2")]),
    ethernet(
      GATEWAY_MAC,
      0x0800,
      ping("10.0.2.15", "10.0.2.2", new Uint8Array(40)),
    ),
  ];
  // Mostly real packets with a few bytes changed and a tail cut: those get deepest.
  const mutated = fc.tuple(
    fc.constantFrom(...samples),
    fc.array(fc.tuple(fc.nat(400), fc.nat(255)), { maxLength: 6 }),
    fc.option(fc.nat(400)),
  ).map(([sample, changes, cut]) => {
    const frame = sample.slice(0, cut ?? sample.length);
    for (const [at, value] of changes) if (at < frame.length) frame[at] = value;
    // Half of the changes are in the IP header: mend its checksum so that they matter.
    if (frame.length >= 34 && frame[12] === 8 && frame[13] === 0) {
      const end = Math.min(14 + (frame[14]! & 15) * 4, frame.length);
      if (end >= 34) {
        frame.set([0, 0], 24);
        const sum = checksum(frame.slice(14, end));
        frame.set([sum >>> 8, sum & 255], 24);
      }
    }
    return frame;
  });
  const noise = fc.uint8Array({ maxLength: 400 }).map((a) =>
    Uint8Array.from(a)
  );
  let answered = 0;
  fc.assert(
    fc.property(fc.oneof({ weight: 4, arbitrary: mutated }, noise), (frame) => {
      const reply = gateway.reply(frame);
      if (reply === null) return;
      answered++;
      assertEquals(reply.slice(6, 12), GATEWAY_MAC);
      if (reply[13] === 0) {
        const packet = parseIp(reply)!;
        assertEquals(packet.src, "10.0.2.2");
        if (packet.protocol === 17) parseDhcp(reply);
      }
    }),
    { numRuns: 5000, verbose: true },
  );
  assert(answered > 500, `only ${answered} frames were answered`);
});

Deno.test("GatewayBackend refuses what takes libslirp, and says what to install", () => {
  using host = new Host();
  for (
    const values of [{ hostfwd: "tcp::2222-:22" }, { tftp: "/srv/tftp" }]
  ) {
    const error = assertThrows(
      () => new GatewayBackend(options(values), host.context),
      ErrnoError,
      "apt install libslirp0",
    );
    assertEquals(error.errno, Errno.EOPNOTSUPP);
  }
});

/** Runs with a variable of the environment set. */
function withVariable(value: string, run: () => void): void {
  const name = "OUTBOARD_LIBSLIRP";
  const before = Deno.env.get(name);
  Deno.env.set(name, value);
  try {
    run();
  } finally {
    if (before === undefined) Deno.env.delete(name);
    else Deno.env.set(name, before);
  }
}

Deno.test("openNetBackend takes the gateway when OUTBOARD_LIBSLIRP is none, and holds no descriptors", () => {
  using host = new Host();
  const before = openFds();
  withVariable("none", () => {
    using card = new Card(host, openNetBackend(options(), host.context));
    assertEquals(card.backend.description, "user (built-in gateway)");
    assertEquals(card.backend.hasVnetHeader, false);
  });
  assertEquals(openFds(), before);
  assertEquals(host.warnings, []);
});

Deno.test("openNetBackend says that the libslirp it was told to load is not there", () => {
  using host = new Host();
  withVariable("/nowhere/libslirp.so.0", () => {
    const error = assertThrows(
      () => openNetBackend(options(), host.context),
      ErrnoError,
    );
    assertMatch(
      error.message,
      /^Cannot use OUTBOARD_LIBSLIRP=\/nowhere\S+: \/nowhere\S+ cannot be loaded \(\/nowhere.*\); name libslirp 4.7 or later, or "none"/,
    );
    assertEquals(host.warnings, []);
  });
});

Deno.test("openNetBackend with net=none takes all frames and has none", () => {
  using host = new Host();
  using card = new Card(
    host,
    openNetBackend(NET_OPTIONS.parse({ net: "none" }), host.context),
  );
  assertEquals(card.send(arpRequest("10.0.2.15", "10.0.2.2")), 0);
  card.fetch();
  assertEquals(card.received, []);
  assertEquals(card.backend.counters!(), { txDropped: 1 });
});
