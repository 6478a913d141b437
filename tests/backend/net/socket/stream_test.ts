import { assert, assertEquals, assertThrows } from "@std/assert";
import { Errno, ErrnoError } from "../../../../src/core/errno.ts";
import { listenUnix } from "../../../../src/os/mod.ts";
import type { NetBackend } from "../../../../src/backend/net/contract.ts";
import { openNetBackend } from "../../../../src/backend/net/open.ts";
import { NET_OPTIONS } from "../../../../src/backend/net/options.ts";
import { openFds } from "../../../resources.ts";
import { Card, Host } from "../card.ts";
import { be32, bytes } from "../frames.ts";
import { HostSocket, STREAM } from "../sockets.ts";
import type { OptionTexts } from "../../../../src/core/options.ts";

interface Scene {
  readonly host: Host;
  /** A folder of the test's own. */
  readonly folder: string;
  /** Path of a socket in it. */
  readonly path: string;
  readonly open: (values: OptionTexts) => NetBackend;
}

/** A test after which no descriptor and no file is left. */
function streamTest(name: string, run: (scene: Scene) => void): void {
  Deno.test(`StreamBackend ${name}`, () => {
    const folder = Deno.makeTempDirSync({ prefix: "outboard-stream-" });
    const before = openFds();
    try {
      {
        using host = new Host();
        run({
          host,
          folder,
          path: `${folder}/net.sock`,
          open: (values) =>
            openNetBackend(
              NET_OPTIONS.parse({ net: "stream", ...values }),
              host.context,
            ),
        });
      }
      assertEquals(openFds(), before);
      assertEquals([...Deno.readDirSync(folder)], []);
    } finally {
      Deno.removeSync(folder, { recursive: true });
    }
  });
}

function frame(length: number, seed: number): Uint8Array {
  return Uint8Array.from({ length }, (_, i) => (i * 5 + seed) & 0xff);
}

function isConnected(card: Card): boolean {
  return card.backend.counters!().connected === 1;
}

/** Sends one frame each way. */
function assertTalk(a: Card, b: Card, seed = 0): void {
  for (const [from, to] of [[a, b], [b, a]] as const) {
    const sent = frame(1514, seed);
    assertEquals(from.send(sent, 3), 0);
    to.turnUntil("a frame", () => to.received.length > 0);
    assertEquals(to.received.splice(0), [sent]);
  }
}

streamTest("connects two cards over a UNIX socket", ({ host, path, open }) => {
  using server = new Card(host, open({ path, server: "on" }));
  using client = new Card(host, open({ path }));
  assertEquals(server.backend.description, `stream, server at ${path}`);
  assertEquals(client.backend.description, `stream to ${path}`);
  assertEquals(Deno.statSync(path).mode! & 0o777, 0o600);
  client.turnUntil("connected", () => isConnected(server));
  assertTalk(server, client);
  assertEquals(host.warnings, []);
});

for (const [family, host4] of [["IPv4", "127.0.0.1"], ["IPv6", "[::1]"]]) {
  streamTest(`connects two cards over TCP, ${family}`, ({ host, open }) => {
    const addr = `${host4}:${HostSocket.freePort(STREAM)}`;
    using client = new Card(host, open({ addr }));
    client.turnUntil("told", () => host.warnings.length > 0);
    assertEquals(
      host.warnings[0],
      `Cannot connect to ${addr}: nobody listens there, start the other side; trying again until it succeeds`,
    );
    using server = new Card(host, open({ addr, server: "on" }));
    client.turnUntil("connected", () => isConnected(server));
    assertTalk(server, client);
    assertEquals(host.warnings.length, 1);
  });
}

streamTest("drops frames while nobody is there", ({ host, path, open }) => {
  using card = new Card(host, open({ path, server: "on" }));
  assertEquals(card.send(frame(60, 0)), -Errno.ENOTCONN);
  assertEquals(card.backend.counters!().txDropped, 1);
  assertEquals(card.fetchOne(), false);
});

streamTest(
  "has a link while a peer is there, and tells",
  ({ host, path, open }) => {
    using card = new Card(host, open({ path, server: "on" }));
    assertEquals([card.backend.linkUp, card.links], [false, []]);
    for (let i = 0; i < 2; i++) {
      card.links.length = 0;
      {
        using peer = new Card(host, open({ path }));
        card.turnUntil("up", () => card.links.length === 1);
        assertEquals(peer.backend.linkUp, true);
      }
      card.turnUntil("down", () => card.links.length === 2);
      assertEquals(card.links, [true, false]);
    }
  },
);

streamTest(
  "reconnects a client, and serves one peer after another",
  (scene) => {
    const { host, path, open } = scene;
    using client = new Card(host, open({ path }));
    assertEquals(host.warnings.length, 1);
    for (let round = 1; round <= 3; round++) {
      using server = new Card(host, open({ path, server: "on" }));
      client.turnUntil(
        "connected",
        () => isConnected(server) && isConnected(client),
      );
      assertTalk(server, client, round);
    }
    client.turnUntil("noticed", () => !isConnected(client));
    using server = new Card(host, open({ path, server: "on" }));
    server.turnUntil("connected", () => isConnected(server));
    assertTalk(server, client, 9);
    client.backend.close();
    // A new peer takes the place of the one that went.
    using next = new Card(host, open({ path }));
    server.turnUntil(
      "connected",
      () => server.backend.counters!().connections === 2,
    );
    assertTalk(server, next, 10);
    // Every end and every beginning is told, and once that nobody is there, however often it is tried.
    const ended = host.warnings.filter((line) => line.includes("has ended"));
    assertEquals(ended.length, 4);
    for (const [i, line] of host.warnings.entries()) {
      if (line.startsWith("Cannot")) assert(line !== host.warnings[i + 1]);
    }
    assertEquals(
      host.news.filter((line) => line === `Connected at ${path}`).length,
      10,
    );
  },
);

streamTest("has a second peer wait for the first to go", (scene) => {
  const { host, path, open } = scene;
  using server = new Card(host, open({ path, server: "on" }));
  using first = new Card(host, open({ path }));
  server.turnUntil("connected", () => isConnected(server));
  using second = new Card(host, open({ path }));
  assertEquals(second.send(frame(100, 7)), 0);
  assertTalk(server, first);
  assertEquals(server.received, []);
  first.backend.close();
  server.turnUntil("the second's frame", () => server.received.length > 0);
  assertEquals(server.received, [frame(100, 7)]);
});

streamTest(
  "holds a card up while the peer does not read, and loses nothing",
  (scene) => {
    const { host, path, open } = scene;
    using server = new Card(host, open({ path, server: "on" }));
    using client = new Card(host, open({ path }));
    server.turnUntil("connected", () => isConnected(server));
    server.backend.setReceiving(false);
    let sent = 0;
    while (client.send(frame(1514, sent), 2) === 0) sent++;
    assert(sent > 20, `${sent} frames`);
    for (let i = 0; i < 3; i++) host.loop.turn(0);
    assertEquals(client.writableCalls, 0);
    assertEquals(server.readableCalls, 0);
    server.backend.setReceiving(true);
    client.turnUntil("room", () => client.writableCalls > 0);
    assertEquals(client.send(frame(1514, sent)), 0);
    sent++;
    server.turnUntil("all frames", () => server.received.length === sent);
    server.received.forEach((got, i) => assertEquals(got, frame(1514, i)));
  },
);

streamTest("calls again while frames wait that were read already", (scene) => {
  const { host, path, open } = scene;
  using server = new Card(host, open({ path, server: "on" }));
  using client = new Card(host, open({ path }));
  server.turnUntil("connected", () => isConnected(server));
  server.fetching = false;
  for (let i = 0; i < 4; i++) client.send(frame(80, i));
  // Takes one, and by that all into the buffer; the socket has nothing more to tell of.
  server.turnUntil("told", () => server.readableCalls > 0);
  assert(server.fetchOne());
  const calls = server.readableCalls;
  server.turnUntil("told again", () => server.readableCalls > calls + 1);
  server.backend.setReceiving(false);
  for (let i = 0; i < 3; i++) host.loop.turn(0);
  const paused = server.readableCalls;
  for (let i = 0; i < 3; i++) host.loop.turn(0);
  assertEquals(server.readableCalls, paused);
  server.fetching = true;
  server.backend.setReceiving(true);
  server.turnUntil("the others", () => server.received.length === 4);
});

streamTest("throws away what comes while its card is stopped", (scene) => {
  const { host, path, open } = scene;
  using server = new Card(host, open({ path, server: "on" }));
  using client = new Card(host, open({ path }));
  server.turnUntil("connected", () => isConnected(server));
  server.backend.stop();
  // Far more than a socket holds: the peer is not to be held up.
  for (let i = 0; i < 2_000; i++) {
    if (client.send(frame(1514, i)) === 0) continue;
    client.turnUntil("room", () => client.writableCalls > 0);
    client.writableCalls = 0;
  }
  while (host.loop.turn(0));
  server.backend.start(server);
  assertTalk(server, client);
});

streamTest(
  "lets a card go on that waited for a peer that has gone",
  (scene) => {
    const { host, path, open } = scene;
    using server = new Card(host, open({ path, server: "on" }));
    {
      using client = new Card(host, open({ path }));
      server.turnUntil("connected", () => isConnected(server));
      client.backend.setReceiving(false);
      while (server.send(frame(1514, 0)) === 0);
    }
    server.turnUntil("told", () => server.writableCalls > 0);
    assertEquals(server.send(frame(60, 0)), -Errno.ENOTCONN);
  },
);

streamTest("notices that its peer has gone while it is paused", (scene) => {
  const { host, path, open } = scene;
  using server = new Card(host, open({ path, server: "on" }));
  server.backend.setReceiving(false);
  {
    using client = new Card(host, open({ path }));
    server.turnUntil("connected", () => isConnected(server));
    client.send(frame(60, 0));
  }
  server.turnUntil("noticed", () => !isConnected(server));
  // Nothing is left that could wake the loop.
  while (host.loop.turn(0));
  assertEquals(host.loop.turn(0), false);
});

streamTest(
  "drops a peer that speaks another protocol, says so and serves the next",
  (scene) => {
    const { host, open } = scene;
    const port = HostSocket.freePort(STREAM);
    using server = new Card(
      host,
      open({ addr: `127.0.0.1:${port}`, server: "on" }),
    );
    for (let i = 0; i < 3; i++) {
      using peer = HostSocket.connect(STREAM, port);
      peer.write(new TextEncoder().encode("GET / HTTP/1.1\r\n\r\n"));
      server.turnUntil(
        "dropped",
        () => server.backend.counters!().rxBadLengths === i + 1,
      );
    }
    assertEquals(host.warnings.length, 3);
    for (const line of host.warnings) {
      assert(line.includes("frame of 1195725856 bytes"), line);
    }
    using peer = HostSocket.connect(STREAM, port);
    peer.write(bytes(be32(60), frame(60, 1)));
    server.turnUntil("a frame", () => server.received.length === 1);
    assertEquals(server.received, [frame(60, 1)]);
  },
);

streamTest("takes frames that come a byte at a time", ({ host, open }) => {
  const port = HostSocket.freePort(STREAM);
  using server = new Card(
    host,
    open({ addr: `127.0.0.1:${port}`, server: "on" }),
  );
  using peer = HostSocket.connect(STREAM, port);
  for (const byte of bytes(be32(40), frame(40, 3))) {
    assertEquals(server.received, []);
    peer.write(Uint8Array.of(byte));
    host.loop.turn(20);
  }
  server.turnUntil("the frame", () => server.received.length === 1);
  assertEquals(server.received, [frame(40, 3)]);
});

streamTest("replaces a socket that a killed process left behind", (scene) => {
  const { host, path, open } = scene;
  listenUnix(path).close();
  assert(Deno.lstatSync(path).isSocket);
  using server = new Card(host, open({ path, server: "on" }));
  using client = new Card(host, open({ path }));
  server.turnUntil("connected", () => isConnected(server));
  assertTalk(server, client);
});

streamTest("leaves alone what is at its path, and says what to do", (scene) => {
  const { host, folder, path, open } = scene;
  using server = new Card(host, open({ path, server: "on" }));
  const fds = openFds();
  const taken = assertThrows(() => open({ path, server: "on" }), Error);
  assert(taken.message.includes("another process is serving it"));
  using client = new Card(host, open({ path }));
  server.turnUntil("connected", () => isConnected(server));
  assertTalk(server, client);
  client.backend.close();
  const file = `${folder}/file`;
  Deno.writeTextFileSync(file, "precious");
  assertThrows(() => open({ path: file, server: "on" }), Error, "not a socket");
  assertEquals(Deno.readTextFileSync(file), "precious");
  Deno.removeSync(file);
  const nowhere = { path: `${folder}/no/where`, server: "on" };
  const missing = assertThrows(() => open(nowhere), Error);
  assert(missing.message.includes("its folder does not exist"));
  while (host.loop.turn(0));
  assertEquals(openFds(), fds);
});

streamTest("fails at once when it is not to try again", (scene) => {
  const { host, path, open } = scene;
  const fds = openFds();
  const error = assertThrows(
    () => open({ path, "reconnect-ms": "0" }),
    ErrnoError,
  );
  assertEquals(error.errno, Errno.ENOENT);
  assert(error.message.includes("nobody listens there"));
  assertEquals(openFds(), fds);
  using server = new Card(host, open({ path, server: "on" }));
  using client = new Card(host, open({ path, "reconnect-ms": "0" }));
  server.turnUntil("connected", () => isConnected(server));
  server.backend.close();
  client.turnUntil("noticed", () => !isConnected(client));
  assert(host.warnings[0]!.includes("there will be no other"));
  while (host.loop.turn(0));
  assertEquals(isConnected(client), false);
});

streamTest("is closed while it waits to connect", ({ host, path, open }) => {
  const client = open({ path });
  assertEquals(client.counters!().connected, 0);
  client.close();
  client.close();
  using _listener = listenUnix(path);
  for (let i = 0; i < 8; i++) assertEquals(host.loop.turn(20), false);
  Deno.removeSync(path);
});

streamTest(
  "is closed while a connection is in the making",
  ({ host, open }) => {
    using listener = HostSocket.bound(STREAM);
    const client = open({ addr: `127.0.0.1:${listener.port}` });
    assertEquals(client.counters!().connected, 0);
    client.close();
    client.close();
    assertEquals(host.loop.turn(0), false);
  },
);
