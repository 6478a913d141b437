import { assert, assertEquals, assertThrows } from "@std/assert";
import type { DeviceState } from "../../../src/core/state_form.ts";
import { Errno } from "../../../src/core/errno.ts";
import { Access } from "../../../src/memory/guest_memory.ts";
import type { NetPeer } from "../../../src/backend/net/contract.ts";
import { openNetBackend } from "../../../src/backend/net/open.ts";
import { NET_OPTIONS } from "../../../src/backend/net/options.ts";
import type { TapBackend } from "../../../src/backend/net/tap/tap.ts";
import { openFds } from "../../resources.ts";
import { Card, Host } from "./card.ts";
import { arpRequest, ethernet, GUEST_MAC, ping } from "./frames.ts";
import type { NamespaceTest } from "../../namespaces.ts";
import { NetworkNamespace, tapTests } from "./netns.ts";
import { testLibslirp } from "./libslirp.ts";
import { DGRAM, HostSocket, STREAM } from "./sockets.ts";
import { TcpPeer } from "./tcp_peer.ts";
import { ResourceBag, type Saved } from "../../../src/os/mod.ts";
import { give, MOVES, Traveller } from "./traveller.ts";
import type { OptionTexts } from "../../../src/core/options.ts";

interface Scene {
  /** Hosts that the card travels between. */
  readonly hosts: readonly [Host, Host];
  /** Host where others stay. */
  readonly far: Host;
  readonly folder: string;
  readonly open: (values: OptionTexts) => Card;
  readonly travel: (values: OptionTexts) => Traveller;
}

/** Our children, zombies included. */
function children(): string {
  return Deno.readTextFileSync(`/proc/self/task/${Deno.pid}/children`);
}

/** A test after which no descriptor, process or file is left. */
function moveTest(
  name: string,
  run: (scene: Scene) => void,
  register: NamespaceTest = Deno.test,
): void {
  const fn = () => {
    const folder = Deno.makeTempDirSync({ prefix: "outboard-move-" });
    const before = [openFds(), children()];
    try {
      {
        using far = new Host();
        using first = new Host();
        using second = new Host();
        const hosts = [first, second] as const;
        const open = (values: OptionTexts) =>
          new Card(far, openNetBackend(NET_OPTIONS.parse(values), far.context));
        const travel = (values: OptionTexts) => new Traveller(hosts, values);
        run({ hosts, far, folder, open, travel });
      }
      assertEquals([openFds(), children()], before);
      assertEquals([...Deno.readDirSync(folder)], []);
    } finally {
      Deno.removeSync(folder, { recursive: true });
    }
  };
  register(`handOver ${name}`, fn);
}

let serial = 0;

/** Frames of all lengths that carry a number each. */
function frames(count: number): Uint8Array[] {
  return Array.from({ length: count }, () => {
    const n = ++serial;
    const frame = new Uint8Array(60 + (n * 37) % 1455).fill(n);
    new DataView(frame.buffer).setUint32(20, n);
    return frame;
  });
}

/** Has a card send until nothing more goes; returns how many frames were taken. */
function sendUntilFull(card: Card, all: readonly Uint8Array[]): number {
  for (const [i, frame] of all.entries()) {
    const result = card.send(frame, 3);
    if (result === -Errno.EAGAIN) return i;
    assert(result >= 0, `${result}`);
  }
  return all.length;
}

/** Frames towards the traveller that are in the socket, read, half read and taken while it moves: in order, each once. */
function assertReceivesAcrossMoves(traveller: Traveller, far: Card): void {
  const fds = openFds();
  for (let i = 0; i < MOVES; i++) {
    const sent = frames(150);
    const count = sendUntilFull(far, sent);
    traveller.card.fetching = false;
    // Reads many frames, and takes some of them.
    for (let n = 0; n < i % 4; n++) traveller.card.fetchOne();
    traveller.move();
    let all = count;
    const got: Uint8Array[] = [];
    traveller.card.turnUntil("all frames", () => {
      far.host.loop.turn(0);
      all += sendUntilFull(far, sent.slice(all));
      got.push(...traveller.card.received.splice(0));
      return got.length >= sent.length;
    });
    assertEquals(got, sent);
    assertEquals(openFds(), fds);
  }
}

/**
 * Frames of the traveller, the last of which has left in part when it moves.
 *
 * @param fills Whether so many fill the socket; those of TCP grow
 */
function assertSendsAcrossMoves(
  traveller: Traveller,
  far: Card,
  fills: boolean,
): void {
  for (let i = 0; i < MOVES; i++) {
    const sent = frames(600);
    far.backend.setReceiving(false);
    let count = sendUntilFull(traveller.card, sent);
    if (fills) assert(count < sent.length, "the socket is full");
    traveller.move();
    far.backend.setReceiving(true);
    const got: Uint8Array[] = [];
    far.turnUntil("all frames", () => {
      traveller.host.loop.turn(0);
      count += sendUntilFull(traveller.card, sent.slice(count));
      got.push(...far.received.splice(0));
      return got.length >= sent.length;
    });
    assertEquals(got, sent);
  }
}

for (const role of ["server", "client"]) {
  for (const family of ["unix", "inet"]) {
    moveTest(`of a ${family} stream's ${role} loses no byte`, (scene) => {
      const at: OptionTexts = family === "unix"
        ? { path: `${scene.folder}/net.sock` }
        : { addr: `127.0.0.1:${HostSocket.freePort(STREAM)}` };
      const values = { net: "stream", ...at };
      const server = { ...values, server: "on" };
      const isServer = role === "server";
      using stack = new DisposableStack();
      const first = isServer ? null : stack.use(scene.open(server));
      const traveller = stack.use(scene.travel(isServer ? server : values));
      let far = first ?? stack.use(scene.open(values));
      const connected = () => {
        traveller.host.loop.turn(0);
        far.host.loop.turn(0);
        return far.backend.counters!().connected === 1 &&
          traveller.card.backend.counters!().connected === 1;
      };
      traveller.card.turnUntil("connected", connected);
      assertReceivesAcrossMoves(traveller, far);
      assertSendsAcrossMoves(traveller, far, family === "unix");
      assertEquals(traveller.card.backend.counters!(), {
        connected: 1,
        connections: 1,
        txDropped: 0,
        rxDroppedRunt: 0,
        rxBadLengths: 0,
      });
      // The end of the connection is noticed, and the next one made.
      far.backend.close();
      traveller.move();
      traveller.card.turnUntil(
        "noticed",
        () => traveller.card.backend.counters!()["connected"] === 0,
      );
      traveller.move();
      far = stack.use(scene.open(isServer ? values : server));
      traveller.card.turnUntil("connected", connected);
      assertEquals(traveller.card.backend.counters!()["connections"], 2);
    });
  }
}

moveTest(
  "of a stream whose card is unplugged sends the rest of a frame",
  (scene) => {
    const path = `${scene.folder}/net.sock`;
    const values = { net: "stream", path };
    using far = scene.open({ ...values, server: "on" });
    using traveller = scene.travel(values);
    far.turnUntil("connected", () => {
      traveller.host.loop.turn(0);
      return far.backend.counters!()["connected"] === 1;
    });
    far.backend.setReceiving(false);
    // Longer than what the kernel takes at once or not at all.
    const sent = frames(50).map((frame) => {
      const long = new Uint8Array(60_000);
      long.set(frame);
      return long;
    });
    const count = sendUntilFull(traveller.card, sent);
    assert(count < sent.length, "the socket is full");
    const { backend } = traveller.card;
    backend.stop();
    using given = give(backend);
    backend.close();
    const { stream } = (given.state as DeviceState<
      { stream: { unsent: Uint8Array } }
    >).body;
    assert(stream.unsent.length > 0, "a part is left");
    const [, host] = scene.hosts;
    const moved = openNetBackend(
      NET_OPTIONS.parse(values),
      host.context,
      given,
    );
    far.backend.setReceiving(true);
    far.turnUntil("all frames", () => {
      host.loop.turn(0);
      return far.received.length >= count;
    });
    const numbers = (all: readonly Uint8Array[]) =>
      all.map(({ buffer }) => new DataView(buffer).getUint32(20));
    assertEquals(numbers(far.received), numbers(sent.slice(0, count)));
    moved.close();
  },
);

moveTest("of a stream that listens keeps its path", (scene) => {
  const path = `${scene.folder}/net.sock`;
  using traveller = scene.travel({ net: "stream", path, server: "on" });
  const { ino } = Deno.lstatSync(path);
  for (let i = 0; i < MOVES; i++) traveller.move();
  assertEquals(Deno.lstatSync(path).ino, ino);
  using far = scene.open({ net: "stream", path });
  traveller.card.turnUntil(
    "connected",
    () => traveller.card.backend.counters!()["connected"] === 1,
  );
  assertReceivesAcrossMoves(traveller, far);
});

moveTest("of a stream takes a connection in the making along", (scene) => {
  const addr = `127.0.0.1:${HostSocket.freePort(STREAM)}`;
  using far = scene.open({ net: "stream", addr, server: "on" });
  using traveller = scene.travel({ net: "stream", addr });
  // Its loop has not turned: nobody has seen yet that the connection is made.
  for (let i = 0; i < MOVES; i++) traveller.move();
  traveller.card.turnUntil("connected", () => {
    far.host.loop.turn(0);
    return traveller.card.backend.counters!()["connected"] === 1;
  });
  assertReceivesAcrossMoves(traveller, far);
  assertEquals(traveller.card.backend.counters!()["connections"], 1);
});

moveTest("of a stream goes on trying to connect", (scene) => {
  const path = `${scene.folder}/net.sock`;
  using traveller = scene.travel({ net: "stream", path });
  for (let i = 0; i < MOVES; i++) traveller.move();
  assertEquals(traveller.hosts[1].warnings, []);
  using far = scene.open({ net: "stream", path, server: "on" });
  traveller.card.turnUntil("connected", () => {
    far.host.loop.turn(0);
    return traveller.card.backend.counters!()["connected"] === 1;
  });
});

for (const family of ["unix", "inet"]) {
  moveTest(`of a ${family} datagram socket loses no datagram`, (scene) => {
    const [here, there] = family === "unix"
      ? [`${scene.folder}/here`, `${scene.folder}/there`]
      : [1, 2].map(() => `127.0.0.1:${HostSocket.freePort(DGRAM)}`);
    const suffix = family === "unix" ? "-path" : "";
    const ends = (local: string, remote: string) => ({
      net: "dgram",
      [`local${suffix}`]: local,
      [`remote${suffix}`]: remote,
    });
    using traveller = scene.travel(ends(here!, there!));
    using far = scene.open(ends(there!, here!));
    const fds = openFds();
    for (let i = 0; i < MOVES; i++) {
      const sent = frames(8);
      assertEquals(sendUntilFull(far, sent), 8);
      traveller.card.fetching = false;
      for (let n = 0; n < i % 3; n++) traveller.card.fetchOne();
      traveller.move();
      assertEquals(traveller.take(8), sent);
      const answers = frames(8);
      assertEquals(sendUntilFull(traveller.card, answers), 8);
      traveller.move();
      far.turnUntil("all frames", () => far.received.length >= 8);
      assertEquals(far.received.splice(0), answers);
      assertEquals(openFds(), fds);
    }
    assertEquals(traveller.card.backend.counters!(), {
      txDropped: 0,
      txUnreachable: 0,
      rxErrors: 0,
    });
  });
}

/** Reads frames and sends each back, as a program at the other end of the socket. */
const ECHO = "#!/bin/sh\nexec dd bs=65536 status=none <&3 >&3\n";

moveTest("of passt keeps the process and its connection", (scene) => {
  const program = `${scene.folder}/passt`;
  Deno.writeTextFileSync(program, ECHO, { mode: 0o755 });
  {
    using traveller = scene.travel({ net: "passt", passt: program });
    const { pid } = traveller.card.backend.counters!();
    const before = [openFds(), children()];
    for (let i = 0; i < MOVES; i++) {
      const sent = frames(20);
      for (const frame of sent) assert(traveller.card.send(frame) >= 0);
      traveller.move();
      assertEquals(traveller.take(20), sent);
      assertEquals([openFds(), children()], before);
    }
    assertEquals(traveller.card.backend.counters!()["pid"], pid);
    // Its end is noticed wherever the card is, and it is started again.
    Deno.kill(pid!, "SIGKILL");
    traveller.card.turnUntil(
      "ended",
      () => traveller.card.backend.counters!()["pid"] === 0,
    );
    traveller.move();
    traveller.card.turnUntil(
      "started again",
      () => traveller.card.backend.counters!()["starts"] === 2,
    );
    traveller.move();
    assertEquals([openFds(), children().split(" ").length], [
      before[0],
      (before[1] as string).split(" ").length,
    ]);
  }
  Deno.removeSync(program);
});

moveTest("of passt sees what ended while it moved", (scene) => {
  const program = `${scene.folder}/passt`;
  Deno.writeTextFileSync(program, ECHO, { mode: 0o755 });
  {
    using traveller = scene.travel({ net: "passt", passt: program });
    const { pid } = traveller.card.backend.counters!();
    Deno.kill(pid!, "SIGKILL");
    traveller.move();
    traveller.card.turnUntil(
      "started again",
      () => traveller.card.backend.counters!()["starts"] === 2,
    );
    assertEquals(traveller.host.warnings.length, 1);
  }
  Deno.removeSync(program);
});

const libslirp = await testLibslirp();

moveTest(
  "of libslirp keeps its process and a connection, byte for byte",
  (scene) => {
    const port = HostSocket.freePort(STREAM);
    using traveller = scene.travel({ hostfwd: `tcp:127.0.0.1:${port}-:80` });
    const gateway = Uint8Array.of(0x52, 0x55, 10, 0, 2, 2);
    traveller.card.send(arpRequest("10.0.2.15", "10.0.2.2"));
    traveller.card.turnUntil(
      "joined",
      () => traveller.card.received.length > 0,
    );
    const { pid } = traveller.card.backend.counters!();
    const peer = new TcpPeer(traveller.card, gateway, "10.0.2.15", 80);
    using client = HostSocket.connect(STREAM, port);
    const before = openFds();
    const all = Uint8Array.from({ length: 40_000 * MOVES }, (_, i) => i >> 5);
    let sent = 0;
    for (let i = 1; i <= MOVES; i++) {
      peer.moveTo(traveller.card);
      traveller.card.onFrame = (frame) => peer.onFrame(frame);
      // It moves while bytes are under way.
      traveller.card.turnUntil("bytes", () => {
        sent += client.write(all.subarray(sent, 40_000 * i));
        return peer.receivedBytes > 40_000 * i - 20_000;
      });
      for (const frame of traveller.card.received.splice(0)) {
        peer.onFrame(frame);
      }
      traveller.move();
      assertEquals(openFds(), before);
    }
    peer.moveTo(traveller.card);
    traveller.card.onFrame = (frame) => peer.onFrame(frame);
    traveller.card.turnUntil(
      "all bytes",
      () => peer.receivedBytes === all.length,
    );
    let at = 0;
    for (const chunk of peer.chunks) {
      for (const byte of chunk) assert(byte === all[at++], `byte ${at - 1}`);
    }
    assertEquals(traveller.card.backend.counters!()["pid"], pid);
  },
  "skip" in libslirp
    ? (name, fn) =>
      Deno.test({
        name: `${name} (ignored: ${libslirp.skip})`,
        ignore: true,
        fn,
      })
    : Deno.test,
);

moveTest("of the built-in gateway keeps its answers", ({ hosts }) => {
  const options = NET_OPTIONS.parse({ net: "user" });
  Deno.env.set("OUTBOARD_LIBSLIRP", "none");
  try {
    let card = new Card(hosts[0], openNetBackend(options, hosts[0].context));
    // What was chosen at first stays.
    Deno.env.delete("OUTBOARD_LIBSLIRP");
    for (let i = 1; i <= MOVES; i++) {
      card.send(arpRequest("10.0.2.15", "10.0.2.2"));
      card.send(arpRequest("10.0.2.15", "10.0.2.2"));
      const host = hosts[i % 2]!;
      using given = give(card.backend);
      card.backend.close();
      card = new Card(host, openNetBackend(options, host.context, given));
      card.turnUntil("answers", () => card.received.length === 2);
      assertEquals(card.backend.counters!()["answered"], 2 * i);
    }
    card.backend.close();
  } finally {
    Deno.env.delete("OUTBOARD_LIBSLIRP");
  }
});

moveTest("of a card without a network goes on counting", ({ travel }) => {
  using traveller = travel({ net: "none" });
  for (let i = 1; i <= MOVES; i++) {
    traveller.card.send(new Uint8Array(60));
    traveller.move();
    assertEquals(traveller.card.backend.counters!(), { txDropped: i });
  }
});

moveTest("of a stopped back end drops what waits, as ever", (scene) => {
  const path = `${scene.folder}/net.sock`;
  using far = scene.open({ net: "stream", path, server: "on" });
  using traveller = scene.travel({ net: "stream", path });
  far.turnUntil(
    "connected",
    () => far.backend.counters!()["connected"] === 1,
  );
  sendUntilFull(far, frames(5));
  const { backend } = traveller.card;
  backend.stop();
  const { hosts: [, host], values } = traveller;
  const options = NET_OPTIONS.parse(values);
  using given = give(backend);
  backend.close();
  const next = openNetBackend(options, host.context, given);
  // Without a card it reads and drops.
  for (let i = 0; i < 5; i++) host.loop.turn(0);
  using card = new Card(host, next);
  const sent = frames(5);
  sendUntilFull(far, sent);
  card.turnUntil("frames", () => card.received.length >= 5);
  assertEquals(card.received, sent);
});

moveTest("of a stream that had started keeps what waits", (scene) => {
  const path = `${scene.folder}/net.sock`;
  using far = scene.open({ net: "stream", path, server: "on" });
  using traveller = scene.travel({ net: "stream", path });
  far.turnUntil(
    "connected",
    () => far.backend.counters!()["connected"] === 1,
  );
  const sent = frames(5);
  sendUntilFull(far, sent);
  const { hosts: [, host], values, card: { backend } } = traveller;
  const options = NET_OPTIONS.parse(values);
  using given = give(backend);
  backend.close();
  const next = openNetBackend(options, host.context, given);
  for (let i = 0; i < 5; i++) host.loop.turn(0);
  // Nor does the end of the connection make the loop spin, or drop anything.
  far.backend.close();
  host.loop.turn(0);
  assertEquals(host.loop.turn(0), false);
  using card = new Card(host, next);
  card.turnUntil("frames", () => card.received.length >= 5);
  assertEquals(card.received, sent);
  card.turnUntil("its end", () => next.counters!()["connected"] === 0);
});

moveTest("that fails leaves what was given to the giver", (scene) => {
  const program = `${scene.folder}/passt`;
  Deno.writeTextFileSync(program, ECHO, { mode: 0o755 });
  const path = `${scene.folder}/net.sock`;
  {
    using far = scene.open({ net: "stream", path, server: "on" });
    using stream = scene.travel({ net: "stream", path });
    using server = scene.travel({
      ...{ net: "stream", path: `${scene.folder}/other.sock`, server: "on" },
    });
    const [here, there] = [`${scene.folder}/here`, `${scene.folder}/there`];
    const ends = (local: string, remote: string) => ({
      net: "dgram",
      "local-path": local,
      "remote-path": remote,
    });
    using dgram = scene.travel(ends(here, there));
    using other = scene.open(ends(there, here));
    using passt = scene.travel({ net: "passt", passt: program });
    far.turnUntil(
      "connected",
      () => far.backend.counters!()["connected"] === 1,
    );
    const before = [openFds(), children()];
    for (let i = 0; i < 3; i++) {
      for (const traveller of [stream, server, dgram, passt]) {
        assertEquals(traveller.moveInVain(), "Cannot watch: no room (ENOSPC)");
      }
      assertEquals([openFds(), children()], before);
      const sent = frames(3);
      for (const frame of sent) {
        for (const card of [far, other, passt.card]) {
          assert(card.send(frame) >= 0);
        }
      }
      for (const traveller of [stream, dgram, passt]) {
        assertEquals(traveller.take(3), sent);
      }
    }
  }
  Deno.removeSync(program);
});

moveTest("refuses what another kind or version gave", ({ far }) => {
  const wrong: [OptionTexts, unknown][] = [
    [{ net: "none" }, { kind: "none", version: 2, body: {} }],
    [{ net: "none" }, { kind: "tap", version: 1, body: {} }],
    [{ net: "tap" }, null],
    [{ net: "stream", path: "/x" }, 7],
    [{ net: "passt" }, {}],
    [{ net: "user" }, { kind: "none", version: 1, body: {} }],
    [{ net: "dgram", "local-path": "/a", "remote-path": "/b" }, []],
  ];
  using bag = ResourceBag.of();
  for (const [values, state] of wrong) {
    const options = NET_OPTIONS.parse(values);
    assertThrows(
      () => openNetBackend(options, far.context, { state, bag }),
      Error,
      "Cannot load a network of kind",
    );
  }
});

/** Tries to go on with one field of a state wrong, each of them in turn, and then with all as it was. */
function spoil(scene: Scene, values: OptionTexts): void {
  const card = scene.open(values);
  using given = give(card.backend);
  card.backend.close();
  const { body, ...label } = given.state as DeviceState;
  const options = NET_OPTIONS.parse(values);
  const before = openFds();
  for (const name of Object.keys(body as object)) {
    for (const value of [undefined, Symbol.for("no data")]) {
      const spoilt = { ...body as object, [name]: value };
      const state = { ...label, body: spoilt };
      assertThrows(
        () =>
          openNetBackend(options, scene.far.context, { state, bag: given.bag }),
        Error,
        "Cannot load ",
        `${values.net} with another ${name}`,
      );
      assertEquals(openFds(), before);
    }
  }
  using _taken = new Card(
    scene.far,
    openNetBackend(options, scene.far.context, given),
  );
}

moveTest("refuses states of which a part is something else", (scene) => {
  const at = (name: string) => `${scene.folder}/${name}`;
  spoil(scene, { net: "none" });
  spoil(scene, { net: "stream", path: at("a"), server: "on" });
  spoil(scene, { net: "stream", path: at("b") });
  spoil(scene, {
    net: "dgram",
    "local-path": at("c"),
    "remote-path": at("d"),
  });
});

const PAIRS = 4;
const HEADER_BYTES = 12;
const namespaceTest = tapTests(import.meta.url);

class Silent implements NetPeer {
  onReadable(): void {}
  onWritable(): void {}
}

function sendOn(
  host: Host,
  backend: TapBackend,
  pair: number,
  frame: Uint8Array,
): void {
  const list = host.memory.createScatterGather(1);
  const bytes = new Uint8Array(HEADER_BYTES + frame.length);
  bytes.set(frame, HEADER_BYTES);
  host.memory.write(0, bytes);
  host.memory.translate(0, bytes.length, Access.READ, list);
  assert(backend.send(list, pair) >= 0);
}

function drain(host: Host, backend: TapBackend, pair: number): Uint8Array[] {
  const list = host.memory.createScatterGather(1);
  host.memory.translate(65536, 65536, Access.WRITE, list);
  const got: Uint8Array[] = [];
  for (let n; (n = backend.receive(list, pair)) >= 0;) {
    const bytes = new Uint8Array(n);
    host.memory.read(65536, bytes);
    got.push(bytes.slice(HEADER_BYTES));
  }
  return got;
}

moveTest("of a TAP loses no frame of any queue", () => {
  using namespace = new NetworkNamespace();
  using first = new Host(1500, PAIRS);
  using second = new Host(1500, PAIRS);
  const hosts = [first, second] as const;
  const options = NET_OPTIONS.parse({ net: "tap", ifname: "obtap0" });
  const open = (host: Host, given?: Saved<unknown>) =>
    openNetBackend(options, host.context, given) as TapBackend;
  let host: Host = first;
  let backend = open(host);
  namespace.setAddress("obtap0", "192.0.2.1");
  backend.start(new Silent());
  sendOn(host, backend, 0, arpRequest("192.0.2.2", "192.0.2.1"));
  const reply = drain(host, backend, 0).find((frame) => frame[13] === 6)!;
  const mac = reply.slice(6, 12);
  assertEquals(backend.setQueuePairs(3), 0);
  assertEquals(backend.setOffloads(backend.offloads.give), 0);
  const { offloads } = backend;
  const fds = openFds();
  for (let i = 1; i <= MOVES; i++) {
    // The answers wait in whatever queue the kernel chooses.
    for (let pair = 0; pair < 3; pair++) {
      for (let n = 0; n < 10; n++) {
        const echo = ping("192.0.2.2", "192.0.2.1", new Uint8Array(i + n));
        sendOn(host, backend, pair, ethernet(mac, 0x0800, echo));
      }
    }
    using given = give(backend);
    if (i % 2 === 0) backend.close();
    const old = backend;
    host = hosts[i % 2]!;
    backend = open(host, given);
    old.close();
    given[Symbol.dispose]();
    assertEquals(backend.offloads, offloads);
    // As a card does that begins anew and then is told how far its predecessor was.
    assertEquals(backend.setQueuePairs(1), 0);
    assertEquals(backend.setQueuePairs(3), 0);
    backend.start(new Silent());
    const got = [0, 1, 2].flatMap((pair) => drain(host, backend, pair));
    assertEquals(got.filter((frame) => isEcho(frame)).length, 30);
    assertEquals(drain(host, backend, 3), []);
    assertEquals(openFds(), fds);
    assert(namespace.isUp("obtap0"));
  }
  // A pair less now is a pair less: its queue is detached, and the kernel does not use it.
  assertEquals(backend.setQueuePairs(1), 0);
  for (let pair = 0; pair < 3; pair++) {
    const echo = ping("192.0.2.2", "192.0.2.1", new Uint8Array(9));
    sendOn(host, backend, pair, ethernet(mac, 0x0800, echo));
  }
  assertEquals(drain(host, backend, 0).filter(isEcho).length, 3);
  {
    using given = give(backend);
    backend.close();
    open(first, given).close();
    assert(namespace.exists("obtap0"), "it goes with its last owner");
  }
  assertEquals(namespace.exists("obtap0"), false);
}, namespaceTest);

moveTest("of a TAP that was deleted stays without one", () => {
  using namespace = new NetworkNamespace();
  using host = new Host();
  const options = NET_OPTIONS.parse({ net: "tap", ifname: "obtap0" });
  const backend = openNetBackend(options, host.context);
  backend.start(new Silent());
  namespace.delete("obtap0");
  host.loop.turn(0);
  assertEquals(host.warnings.length, 1);
  const into = host.memory.createScatterGather(1);
  host.memory.translate(0, 2048, Access.WRITE, into);
  assertEquals(backend.receive(into), -Errno.EAGAIN);
  assertEquals(backend.counters!()["rxErrors"], 1);
  using given = give(backend);
  const next = openNetBackend(options, host.context, given);
  backend.close();
  next.start(new Silent());
  host.loop.turn(0);
  assertEquals(host.loop.turn(0), false);
  assertEquals(host.warnings.length, 1);
  // It goes on counting.
  assertEquals(next.receive(into), -Errno.EAGAIN);
  assertEquals(next.counters!()["rxErrors"], 2);
  next.close();
}, namespaceTest);

function isEcho(frame: Uint8Array): boolean {
  return frame[12] === 8 && frame[13] === 0 && frame[23] === 1 &&
    frame[34] === 0 && frame.slice(0, 6).join() === GUEST_MAC.join();
}
