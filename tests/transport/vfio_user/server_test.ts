import { assert, assertEquals } from "@std/assert";
import type { Timer } from "../../../src/loop/event_loop.ts";
import { closeFd, createMemfd } from "../../../src/os/mod.ts";
import { message, RawClient, versionMessage, words } from "./raw_client.ts";
import { memfdMappings, openFds, Rig, TimelessLoop } from "./rig.ts";

const EINVAL = 22;
const EMSGSIZE = 90;
const REPLY = 1;
const REPLY_ERROR = 0x21;

/** A loop whose timers fire when the test says so. */
class TimedLoop extends TimelessLoop {
  readonly #armed = new Map<() => void, number>();

  /** For how long those are armed that are. */
  get armed(): number[] {
    return [...this.#armed.values()];
  }

  override timer(callback: () => void): Timer {
    const cancel = () => {
      this.#armed.delete(callback);
    };
    return {
      arm: (delayMs) => {
        this.#armed.set(callback, delayMs);
      },
      cancel,
      close: cancel,
      [Symbol.dispose]: cancel,
    };
  }

  fire(): void {
    for (const callback of [...this.#armed.keys()]) {
      this.#armed.delete(callback);
      callback();
    }
  }
}

Deno.test("VfioUserServer answers VERSION and the questions about the device", () => {
  using rig = new Rig();
  using client = rig.client();
  const info = client.request(rig.loop, message(4, words(16, 0, 0, 0)));
  assertEquals([info.id, info.command, info.flags, info.errno], [
    0x1234,
    4,
    REPLY,
    0,
  ]);
  assertEquals(info.payload.byteLength, 16);
  assertEquals(info.payload.getUint32(0, true), 16);
  assertEquals(info.payload.getUint32(4, true), 3, "reset and PCI");
  assertEquals(info.payload.getUint32(8, true), 9);
  assertEquals(info.payload.getUint32(12, true), 5);
});

Deno.test("VfioUserServer refuses DEVICE_GET_INFO that is too short or has a small argsz", () => {
  using rig = new Rig();
  using client = rig.client();
  for (
    const payload of [words(), words(16), words(16, 0, 0), words(15, 0, 0, 0)]
  ) {
    const reply = client.request(rig.loop, message(4, payload));
    assertEquals(reply.errno, EINVAL);
    assertEquals(reply.flags, REPLY_ERROR);
    assertEquals(reply.payload.byteLength, 0);
  }
  const long = client.request(
    rig.loop,
    message(4, words(64, 0, 0, 0, 1, 2, 3, 4)),
  );
  assertEquals(long.errno, 0);
});

Deno.test("VfioUserServer refuses commands before VERSION and VERSION twice, and stays", () => {
  using rig = new Rig();
  using client = RawClient.connect(rig.path);
  for (const command of [2, 3, 4, 5, 6, 7, 8, 9, 10, 13, 15, 16, 999]) {
    const reply = client.request(
      rig.loop,
      message(command, words(16, 0, 0, 0)),
    );
    assertEquals([reply.command, reply.errno], [command, EINVAL]);
  }
  assertEquals(client.request(rig.loop, versionMessage()).errno, 0);
  assertEquals(client.request(rig.loop, versionMessage()).errno, EINVAL);
  const info = client.request(rig.loop, message(4, words(16, 0, 0, 0)));
  assertEquals(info.errno, 0);
});

Deno.test("VfioUserServer refuses a VERSION that is not sound and takes a sound one after it", () => {
  using rig = new Rig();
  using client = RawClient.connect(rig.path);
  const bad = [
    message(1),
    message(1, new Uint8Array([0, 0, 1])),
    versionMessage("{}", 1),
    versionMessage("{"),
    versionMessage('{"capabilities":{"max_msg_fds":-1}}'),
    message(1, new Uint8Array([0, 0, 1, 0, 0x7b, 0x7d])),
  ];
  for (const bytes of bad) {
    assertEquals(client.request(rig.loop, bytes).errno, EINVAL);
  }
  assertEquals(client.request(rig.loop, versionMessage(null)).errno, 0);
});

Deno.test("VfioUserServer refuses VERSION with descriptors and closes them", () => {
  using rig = new Rig();
  using client = RawClient.connect(rig.path);
  rig.settle();
  using memfd = createMemfd("test", 4096);
  const before = openFds();
  const reply = client.request(rig.loop, versionMessage(), [memfd.number]);
  assertEquals(reply.errno, EINVAL);
  assertEquals(openFds(), before);
});

Deno.test("VfioUserServer refuses unknown and unsupported commands and closes their descriptors", () => {
  using rig = new Rig();
  using client = rig.client();
  using memfd = createMemfd("test", 4096);
  const before = openFds();
  for (const command of [0, 11, 12, 14, 16, 17, 18, 19, 999, 65535]) {
    const reply = client.request(
      rig.loop,
      message(command, words(16, 0, 0, 0)),
      [memfd.number, memfd.number],
    );
    assertEquals([reply.command, reply.errno], [command, EINVAL]);
  }
  assertEquals(openFds(), before);
});

Deno.test("VfioUserServer resets the device on DEVICE_RESET", () => {
  using rig = new Rig();
  using client = rig.client();
  const reply = client.request(rig.loop, message(13));
  assertEquals([reply.errno, reply.payload.byteLength], [0, 0]);
  assertEquals(rig.device.resets, ["device_reset"]);
});

Deno.test("VfioUserServer does not answer No_reply commands, failed ones neither", () => {
  using rig = new Rig();
  using client = rig.client();
  const NO_REPLY = 0x10;
  client.send(message(13, words(), { flags: NO_REPLY }));
  client.send(message(999, words(1), { flags: NO_REPLY }));
  const reply = client.request(rig.loop, message(13, words(), { id: 7 }));
  assertEquals(reply.id, 7);
  assertEquals(client.receive(), null);
  assertEquals(rig.device.resets.length, 2);
  assertEquals(rig.server.counters().errors, 1);
});

Deno.test("VfioUserServer drops replies that nobody waits for", () => {
  using rig = new Rig();
  using client = rig.client();
  client.send(message(11, words(0n, 0n), { flags: REPLY }));
  const reply = client.request(rig.loop, message(13, words(), { id: 8 }));
  assertEquals(reply.id, 8);
  assertEquals(rig.server.counters().strayReplies, 1);
});

Deno.test("VfioUserServer answers and drops a client whose framing is lost", () => {
  for (
    const [size, errno] of [[15, EINVAL], [0, EINVAL], [0xffff_ffff, EMSGSIZE]]
  ) {
    using rig = new Rig();
    using client = rig.client();
    const reply = client.request(
      rig.loop,
      message(4, words(16, 0, 0, 0), { size: size! }),
    );
    assertEquals([reply.errno, reply.payload.byteLength], [errno, 0]);
    rig.settle();
    client.receive();
    assert(client.ended);
    assertEquals(rig.device.resets, ["client_gone"]);
    using next = rig.client();
    assertEquals(next.request(rig.loop, message(13)).errno, 0);
  }
});

Deno.test("VfioUserServer answers EIO and drops the client when a model throws", () => {
  using rig = new Rig();
  using client = rig.client();
  rig.device.failure = new TypeError("a mistake in the model");
  const reply = client.request(rig.loop, message(9, words(0n, 0, 4)));
  assertEquals(reply.errno, 5);
  rig.settle();
  client.receive();
  assert(client.ended);
  assert(rig.logged.some((line) => line.startsWith("error: REGION_READ")));
  rig.device.failure = null;
  using next = rig.client();
  assertEquals(next.request(rig.loop, message(13)).errno, 0);
});

Deno.test("VfioUserServer serves one client, lets the second wait and says so once", () => {
  using rig = new Rig();
  const first = rig.client();
  using second = RawClient.connect(rig.path);
  second.send(versionMessage());
  rig.settle();
  assertEquals(second.receive(), null);
  assertEquals(first.request(rig.loop, message(13)).errno, 0);
  rig.settle();
  const waiting = rig.logged.filter((line) => line.includes("waiting"));
  assertEquals(waiting.length, 1);
  assert(!rig.loop.turn(0), "the loop does not spin");
  first.close();
  assertEquals(second.await(rig.loop).errno, 0);
  assertEquals(rig.clients, [
    "connected self",
    "gone self",
    "connected self",
  ]);
});

Deno.test("VfioUserServer has nothing left after 20 clients with descriptors and mappings", () => {
  using rig = new Rig();
  using memfd = createMemfd("test-ram", 0x10000);
  rig.client().close();
  rig.settle();
  const fds = openFds();
  const mappings = memfdMappings();
  for (let round = 0; round < 20; round++) {
    using client = rig.client();
    const map = message(2, words(32, 3, 0n, 0n, 0x10000n));
    assertEquals(client.request(rig.loop, map, [memfd.number]).errno, 0);
    const set = message(8, words(20, 0x24, 2, 0, 2));
    using a = createMemfd("never-an-eventfd", 4096);
    assertEquals(
      client.request(rig.loop, set, [a.number, a.number]).errno,
      EINVAL,
    );
    const bells = client.request(rig.loop, message(6, words(1000, 0, 0, 0)));
    assertEquals(bells.fds.length, 2);
    bells.fds.forEach(closeFd);
    const region = client.request(
      rig.loop,
      message(5, words(96, 0, 2, 0, 0n, 0n)),
    );
    region.fds.forEach(closeFd);
    // Half a message, and one with descriptors, are under way when it goes.
    client.send(map.slice(0, 20), [memfd.number]);
    rig.settle();
    client.close();
    rig.settle();
    assertEquals(rig.memory.count, 0);
  }
  assertEquals(openFds(), fds);
  assertEquals(memfdMappings(), mappings);
  assertEquals(rig.device.resets.length, 21);
});

Deno.test("VfioUserServer.close drops the client and leaves the listening socket and no other descriptor", () => {
  const before = openFds();
  {
    using rig = new Rig();
    using client = rig.client();
    rig.server.close();
    client.receive();
    assert(client.ended);
    rig.server.close();
    assertEquals(rig.clients.at(-1), "gone self");
  }
  assertEquals(openFds(), before);
});

Deno.test("VfioUserServer answers a write before the device does what it asks for", () => {
  using rig = new Rig();
  using client = rig.client();
  const seen: (number | undefined)[] = [];
  const work = rig.loop.bottomHalf(() => seen.push(client.receive()?.id));
  rig.device.writeBar = () => work.schedule();
  client.send(message(10, words(0x10n, 0, 4, 1), { id: 77 }));
  rig.settle();
  assertEquals(seen, [77]);
});

Deno.test("VfioUserServer goes on when resetting the device fails after a client", () => {
  using rig = new Rig();
  const client = rig.client();
  rig.device.reset = () => {
    throw new TypeError("a mistake in the model");
  };
  using ram = createMemfd("test-ram", 4096);
  const map = message(2, words(32, 3, 0n, 0n, 4096n));
  assertEquals(client.request(rig.loop, map, [ram.number]).errno, 0);
  client.close();
  rig.settle();
  assertEquals(rig.memory.count, 0);
  assert(rig.logged.some((line) => line.includes("cannot reset the device")));
  using next = rig.client();
  assertEquals(next.request(rig.loop, message(4, words(16, 0, 0, 0))).errno, 0);
});

Deno.test("VfioUserServer warns of the first refused command of a client only", () => {
  using rig = new Rig();
  using client = rig.client();
  for (let i = 0; i < 3; i++) client.request(rig.loop, message(16));
  const warnings = rig.logged.filter((line) => line.startsWith("warn"));
  assertEquals(warnings, [
    "warn: refused DEVICE_FEATURE: Cannot do DEVICE_FEATURE: not supported (EINVAL)",
  ]);
});

Deno.test("VfioUserServer hangs up on a client that agrees on no version in time, and serves the next", () => {
  const version = versionMessage();
  for (const said of [new Uint8Array(), version.slice(0, 20), message(4)]) {
    using loop = new TimedLoop();
    const rig = new Rig({ helloTimeoutMs: 700 }, loop);
    const silent = RawClient.connect(rig.path);
    silent.send(said);
    rig.settle();
    const next = RawClient.connect(rig.path);
    next.send(version);
    rig.settle();
    assertEquals([loop.armed, rig.clients.length], [[700], 1]);
    loop.fire();
    rig.settle();
    while (silent.receive() !== null);
    assertEquals(silent.ended, true);
    assertEquals(next.await(loop).errno, 0);
    assertEquals(loop.armed, [], "a version is agreed");
    silent.close();
    next.close();
    rig.close();
  }
});
