import { assert, assertEquals, assertThrows } from "@std/assert";
import { Errno } from "../../../../src/core/errno.ts";
import { bindUnixDatagram } from "../../../../src/os/mod.ts";
import { Access } from "../../../../src/memory/guest_memory.ts";
import type { NetBackend } from "../../../../src/backend/net/contract.ts";
import { openNetBackend } from "../../../../src/backend/net/open.ts";
import { NET_OPTIONS } from "../../../../src/backend/net/options.ts";
import { heapGrowthPerOperation, openFds } from "../../../resources.ts";
import { Card, Host } from "../card.ts";
import { DGRAM, HostSocket } from "../sockets.ts";
import type { OptionTexts } from "../../../../src/core/options.ts";

/** Seconds of looking for a datagram that was sent. */
const TRIES_MAX = 10_000_000;

interface Scene {
  readonly host: Host;
  readonly open: (values: OptionTexts) => NetBackend;
  /** The options of one end and of the other. */
  readonly ends: readonly [OptionTexts, OptionTexts];
}

function unixEnds(folder: string): [OptionTexts, OptionTexts] {
  const [a, b] = [`${folder}/a`, `${folder}/b`];
  return [{ "local-path": a, "remote-path": b }, {
    "local-path": b,
    "remote-path": a,
  }];
}

function udpEnds(host: string): [OptionTexts, OptionTexts] {
  const a = `${host}:${HostSocket.freePort(DGRAM)}`;
  let b = a;
  while (b === a) b = `${host}:${HostSocket.freePort(DGRAM)}`;
  return [{ local: a, remote: b }, { local: b, remote: a }];
}

const FAMILIES = {
  UNIX: unixEnds,
  IPv4: () => udpEnds("127.0.0.1"),
  IPv6: () => udpEnds("[::1]"),
};

/** A test for each family named, after which no descriptor and no file is left. */
function dgramTest(
  name: string,
  families: readonly (keyof typeof FAMILIES)[],
  run: (scene: Scene) => void,
): void {
  for (const family of families) {
    Deno.test(`DgramBackend ${name} (${family})`, () => {
      const folder = Deno.makeTempDirSync({ prefix: "outboard-dgram-" });
      const before = openFds();
      try {
        {
          using host = new Host();
          const open = (values: OptionTexts) =>
            openNetBackend(
              NET_OPTIONS.parse({ net: "dgram", ...values }),
              host.context,
            );
          run({ host, open, ends: FAMILIES[family](folder) });
        }
        assertEquals(openFds(), before);
        assertEquals([...Deno.readDirSync(folder)], []);
      } finally {
        Deno.removeSync(folder, { recursive: true });
      }
    });
  }
}

function frame(length: number, seed: number): Uint8Array {
  return Uint8Array.from({ length }, (_, i) => (i * 5 + seed) & 0xff);
}

dgramTest("connects two cards", ["UNIX", "IPv4", "IPv6"], (scene) => {
  const { host, open, ends } = scene;
  using a = new Card(host, open(ends[0]));
  using b = new Card(host, open(ends[1]));
  for (const [from, to] of [[a, b], [b, a]] as const) {
    for (let i = 0; i < 5; i++) {
      assertEquals(from.send(frame(1514 - i, i), 3), 1514 - i);
    }
    to.turnUntil("frames", () => to.received.length === 5);
    to.received.splice(0).forEach((got, i) =>
      assertEquals(got, frame(1514 - i, i))
    );
  }
  assertEquals(a.errors, []);
  assertEquals(host.warnings, []);
});

dgramTest("drops frames for nobody, and goes on once somebody is there", [
  "UNIX",
  "IPv4",
  "IPv6",
], (scene) => {
  const { host, open, ends } = scene;
  using a = new Card(host, open(ends[0]));
  for (let round = 0; round < 2; round++) {
    for (let i = 0; i < 10; i++) {
      assert(a.send(frame(60, i)) !== -Errno.EAGAIN);
      host.loop.turn(0);
    }
    {
      using b = new Card(host, open(ends[1]));
      // UDP may tell of the last loss first.
      a.send(frame(60, 0));
      a.send(frame(61, 1));
      b.turnUntil("a frame", () => b.received.some((f) => f.length === 61));
      b.send(frame(62, 2));
      a.turnUntil("the answer", () => a.received.length === 1 + round);
    }
    // Nothing is left that could wake the loop.
    while (host.loop.turn(0));
    assertEquals(host.loop.turn(0), false);
  }
  const counters = a.backend.counters!();
  assert(counters.txUnreachable! + counters.rxErrors! > 0);
  assertEquals(counters.txDropped, 0);
});

dgramTest(
  "gives the true length of a frame that was cut",
  ["UNIX", "IPv4"],
  (scene) => {
    const { host, open, ends } = scene;
    using a = new Card(host, open(ends[0]));
    using b = new Card(host, open(ends[1]));
    a.fetching = false;
    b.send(frame(1514, 0));
    b.send(frame(70, 1));
    a.turnUntil("told", () => a.readableCalls > 0);
    const into = host.memory.createScatterGather(2);
    host.memory.translate(4096, 100, Access.WRITE, into);
    assertEquals(a.backend.receive(into), 1514);
    a.fetch();
    assertEquals(a.received, [frame(70, 1)]);
  },
);

dgramTest(
  "holds a card up while the other's queue is full",
  ["UNIX"],
  (scene) => {
    const { host, open, ends } = scene;
    using a = new Card(host, open(ends[0]));
    using b = new Card(host, open(ends[1]));
    b.backend.setReceiving(false);
    let sent = 0;
    while (a.send(frame(1000, sent)) > 0) sent++;
    assertEquals(a.send(frame(1000, sent)), -Errno.EAGAIN);
    // Told again and again, at ever longer pauses, since nothing tells the back end.
    for (let i = 0; i < 5; i++) {
      const calls = a.writableCalls;
      a.turnUntil("told", () => a.writableCalls > calls);
      assertEquals(a.send(frame(1000, sent)), -Errno.EAGAIN);
    }
    b.backend.setReceiving(true);
    b.turnUntil("frames", () => b.received.length === sent);
    const calls = a.writableCalls;
    a.turnUntil("told", () => a.writableCalls > calls);
    assertEquals(a.send(frame(1000, sent)), 1000);
    b.turnUntil("the last", () => b.received.length === sent + 1);
    b.received.forEach((got, i) => assertEquals(got, frame(1000, i)));
  },
);

dgramTest(
  "throws away what comes while its card is stopped",
  ["UNIX", "IPv4"],
  (scene) => {
    const { host, open, ends } = scene;
    using a = new Card(host, open(ends[0]));
    using b = new Card(host, open(ends[1]));
    b.backend.stop();
    for (let i = 0; i < 1000; i++) {
      assert(a.send(frame(60, i)) > 0, `frame ${i}`);
      if (i % 8 === 7) host.loop.turn(0);
    }
    a.send(frame(60, 0));
    b.backend.start(b);
    a.send(frame(61, 0));
    b.turnUntil("a frame", () => b.received.length > 0);
    assertEquals(b.received, [frame(61, 0)]);
  },
);

dgramTest("pauses", ["UNIX", "IPv4"], ({ host, open, ends }) => {
  using a = new Card(host, open(ends[0]));
  using b = new Card(host, open(ends[1]));
  b.backend.setReceiving(false);
  a.send(frame(60, 0));
  for (let i = 0; i < 3; i++) host.loop.turn(0);
  assertEquals(b.readableCalls, 0);
  b.backend.setReceiving(true);
  b.turnUntil("the frame", () => b.received.length === 1);
});

dgramTest("drops a frame that is longer than a datagram", ["IPv4"], (scene) => {
  const { host, open, ends } = scene;
  using a = new Card(host, open(ends[0]));
  assertEquals(a.send(frame(65_508, 0)), -Errno.EMSGSIZE);
  assertEquals(a.backend.counters!().txDropped, 1);
});

dgramTest("takes UDP from the other end only", ["IPv4"], (scene) => {
  const { host, open, ends } = scene;
  using a = new Card(host, open(ends[0]));
  using b = new Card(host, open(ends[1]));
  const port = Number((ends[0]["local"] as string).split(":")[1]);
  using stranger = HostSocket.connect(DGRAM, port);
  stranger.write(frame(60, 9));
  b.send(frame(60, 1));
  a.turnUntil("a frame", () => a.received.length > 0);
  assertEquals(a.received, [frame(60, 1)]);
});

dgramTest("says that its address is taken", ["UNIX", "IPv4"], (scene) => {
  const { host, open, ends } = scene;
  using _a = new Card(host, open(ends[0]));
  const before = openFds();
  const error = assertThrows(() => open(ends[0]), Error);
  assert(
    /process is serving it|port is in use/.test(error.message),
    error.message,
  );
  assertEquals(openFds(), before);
});

dgramTest(
  "replaces a socket that a killed process left behind",
  ["UNIX"],
  (scene) => {
    const { host, open, ends } = scene;
    bindUnixDatagram(ends[0]["local-path"] as string).close();
    using _a = new Card(host, open(ends[0]));
  },
);

dgramTest("moves frames without allocating", ["UNIX", "IPv4"], (scene) => {
  const { host, open, ends } = scene;
  using cardA = new Card(host, open(ends[0]));
  using cardB = new Card(host, open(ends[1]));
  const [a, b] = [cardA.backend, cardB.backend];
  const list = host.memory.createScatterGather(4);
  host.memory.translate(0, 200, Access.READ, list);
  host.memory.translate(300, 1200, Access.READ, list);
  const into = host.memory.createScatterGather(4);
  host.memory.translate(65536, 12, Access.WRITE, into);
  host.memory.translate(70000, 2000, Access.WRITE, into);
  let wrong = 0;
  const growth = heapGrowthPerOperation(100_000, (operations) => {
    for (let i = 0; i < operations; i++) {
      if (a.send(list) !== 1400) wrong++;
      let n = b.receive(into);
      // The kernel may put a datagram off when it has much to do.
      for (let tries = 0; n === -Errno.EAGAIN && tries < TRIES_MAX; tries++) {
        n = b.receive(into);
      }
      if (n !== 1400) wrong++;
    }
  });
  assertEquals(wrong, 0);
  assert(growth < 1, `${growth} bytes a frame`);
});
