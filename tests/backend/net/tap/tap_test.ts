import { assert, assertEquals, assertThrows } from "@std/assert";
import { Errno, ErrnoError } from "../../../../src/core/errno.ts";
import { NET_OPTIONS } from "../../../../src/backend/net/options.ts";
import { openNetBackend } from "../../../../src/backend/net/open.ts";
import type { TapBackend } from "../../../../src/backend/net/tap/tap.ts";
import { heapGrowthPerOperation, openFds } from "../../../resources.ts";
import { Card, Host } from "../card.ts";
import { Access } from "../../../../src/memory/guest_memory.ts";
import {
  arpRequest,
  ethernet,
  GUEST_MAC,
  ip,
  parseIp,
  ping,
} from "../frames.ts";
import { NetworkNamespace, tapTests } from "../netns.ts";

const namespaceTest = tapTests(import.meta.url);

/** A test in a network namespace of its own; afterwards all descriptors are closed. */
function tapTest(
  name: string,
  run: (host: Host, namespace: NetworkNamespace) => void,
): void {
  namespaceTest(`TapBackend ${name}`, () => {
    const before = openFds();
    {
      using namespace = new NetworkNamespace();
      using host = new Host();
      run(host, namespace);
    }
    assertEquals(openFds(), before);
  });
}

function open(host: Host, ifname: string): TapBackend {
  const options = NET_OPTIONS.parse({ net: "tap", ifname });
  return openNetBackend(options, host.context) as TapBackend;
}

function arpFrom(address: string) {
  return (frame: Uint8Array) =>
    frame[12] === 8 && frame[13] === 6 && frame[21] === 2 &&
      frame.slice(28, 32).join(".") === address
      ? frame
      : null;
}

tapTest(
  "makes an interface, brings it up, and removes it on close",
  (host, namespace) => {
    const backend = open(host, "obtap0");
    assertEquals(backend.description, "tap obtap0");
    assertEquals(backend.hasVnetHeader, true);
    assertEquals(namespace.isUp("obtap0"), true);
    backend.close();
    assertEquals(namespace.exists("obtap0"), false);
    assertEquals(host.warnings, []);
  },
);

tapTest("lets the kernel number the interface", (host, namespace) => {
  using card = new Card(host, open(host, "ob%d"));
  assertEquals(card.backend.description, "tap ob0");
  assertEquals(namespace.exists("ob0"), true);
});

tapTest("sends to the host and receives from it", (host, namespace) => {
  using card = new Card(host, open(host, "obtap0"));
  namespace.setAddress("obtap0", "192.0.2.1");
  const request = arpRequest("192.0.2.2", "192.0.2.1");
  assertEquals(card.send(request, 5), request.length + 12);
  const reply = card.take("ARP reply", arpFrom("192.0.2.1"));
  assertEquals(reply.slice(0, 6), GUEST_MAC);
  assertEquals([...reply.slice(38, 42)], ip("192.0.2.2"));
  const hostMac = reply.slice(6, 12);
  const data = Uint8Array.from({ length: 1400 }, (_, i) => i & 255);
  card.send(ethernet(hostMac, 0x0800, ping("192.0.2.2", "192.0.2.1", data)), 3);
  const echo = card.take("echo reply", (frame) => {
    const packet = parseIp(frame);
    return packet?.protocol === 1 && packet.payload[0] === 0 ? packet : null;
  });
  assertEquals(echo.payload.slice(8), data);
});

tapTest(
  "counts and drops frames while the interface is down, and goes on after",
  (host, namespace) => {
    using card = new Card(host, open(host, "obtap0"));
    namespace.setAddress("obtap0", "192.0.2.1");
    namespace.setUp("obtap0", false);
    assertEquals(card.send(arpRequest("192.0.2.2", "192.0.2.1")), -Errno.EIO);
    assertEquals(card.backend.counters!().txDropped, 1);
    namespace.setUp("obtap0", true);
    card.send(arpRequest("192.0.2.2", "192.0.2.1"));
    card.take("ARP reply", arpFrom("192.0.2.1"));
  },
);

tapTest(
  "counts and drops what the kernel does not take for a frame",
  (host) => {
    using card = new Card(host, open(host, "obtap0"));
    assertEquals(card.send(new Uint8Array(3)), -Errno.EINVAL);
    assertEquals(card.backend.counters!().txDropped, 1);
  },
);

tapTest(
  "tells the card while frames wait, unless it pauses",
  (host, namespace) => {
    using card = new Card(host, open(host, "obtap0"));
    namespace.setAddress("obtap0", "192.0.2.1");
    card.fetching = false;
    card.send(arpRequest("192.0.2.2", "192.0.2.1"));
    card.turnUntil("told three times", () => card.readableCalls >= 3);
    card.backend.setReceiving(false);
    const calls = card.readableCalls;
    for (let i = 0; i < 5; i++) host.loop.turn(0);
    assertEquals(card.readableCalls, calls);
    card.fetching = true;
    card.backend.setReceiving(true);
    card.take("the reply that waited", arpFrom("192.0.2.1"));
  },
);

tapTest("drops on start what came while it was stopped", (host, namespace) => {
  using card = new Card(host, open(host, "obtap0"));
  namespace.setAddress("obtap0", "192.0.2.1");
  card.backend.stop();
  card.send(arpRequest("192.0.2.2", "192.0.2.1"));
  for (let i = 0; i < 3; i++) host.loop.turn(0);
  assertEquals(card.readableCalls, 0);
  card.backend.start(card);
  card.fetch();
  assertEquals(card.received.filter((f) => arpFrom("192.0.2.1")(f)), []);
});

tapTest(
  "survives the deletion of its interface and says so once",
  (host, namespace) => {
    using card = new Card(host, open(host, "obtap0"));
    assertEquals(card.backend.linkUp, true);
    namespace.delete("obtap0");
    assertEquals(namespace.exists("obtap0"), false);
    for (let i = 0; i < 5; i++) host.loop.turn(0);
    assertEquals(host.warnings.length, 1);
    assert(host.warnings[0]!.startsWith("obtap0 was deleted"));
    assertEquals(card.links, [false]);
    assert(card.send(arpRequest("192.0.2.2", "192.0.2.1")) < 0);
    // Nothing is left that could wake the loop.
    assertEquals(host.loop.turn(0), false);
    card.backend.stop();
    card.backend.start(card);
  },
);

tapTest("says that the interface is in use", (host) => {
  using _first = new Card(host, open(host, "obtap0"));
  const before = openFds();
  const error = assertThrows(() => open(host, "obtap0"), ErrnoError);
  assertEquals(error.errno, Errno.EBUSY);
  assertEquals(
    error.message,
    "Cannot attach to TAP interface obtap0: another process uses it, choose another name (EBUSY)",
  );
  assertEquals(openFds(), before);
});

tapTest("says that an interface of that name is no TAP", (host) => {
  const error = assertThrows(() => open(host, "lo"), ErrnoError);
  assert(error.message.includes("is no single-queue TAP"), error.message);
});

namespaceTest("TapBackend gives an interface of its own the card's MTU", () => {
  using namespace = new NetworkNamespace();
  using host = new Host(9000);
  using _card = new Card(host, open(host, "obtap0"));
  assertEquals(namespace.mtu("obtap0"), 9000);
});

tapTest("moves frames without allocating", (host) => {
  using backend = new Card(host, open(host, "obtap0"));
  const { memory } = host;
  const list = memory.createScatterGather(4);
  // Zeroes are an Ethernet frame of a type nobody handles.
  memory.translate(0, 200, Access.READ, list);
  const into = memory.createScatterGather(4);
  memory.translate(65536, 2048, Access.WRITE, into);
  let least = 0;
  const growth = heapGrowthPerOperation(5_000, (operations) => {
    for (let i = 0; i < operations; i++) {
      least = Math.min(least, backend.backend.send(list));
      backend.backend.receive(into);
    }
  });
  assertEquals(least, 0);
  assert(growth < 1, `${growth} bytes a frame`);
});
