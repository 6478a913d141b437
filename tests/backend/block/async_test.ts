import {
  SLOT_BYTES,
  STORE_COUNTERS,
} from "../../../src/backend/block/async/driver.ts";
import { Counters } from "../../../src/core/counters.ts";
import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import {
  requestAt,
  RING,
  type Ring,
  SLOTS,
  StoreLink,
} from "../../../src/backend/block/async/link.ts";
import { BlockOp } from "../../../src/backend/block/contract.ts";
import {
  BLOCK_OPTIONS,
  type BlockOptions,
} from "../../../src/backend/block/options.ts";
import { openBlockBackend } from "../../../src/backend/block/open.ts";
import { Errno } from "../../../src/core/errno.ts";
import { ResourceBag, type Saved } from "../../../src/os/mod.ts";
import { openFds } from "../../resources.ts";
import { MOODS, MOODS_AT } from "./fixtures/moody_store.ts";
import { Controller, Host, pattern } from "./rig.ts";

const BLOCK = 4096;
const CALLS_AT = MOODS_AT - BLOCK;
const fixture = (name: string) =>
  new URL(`./fixtures/${name}_store.ts`, import.meta.url).pathname;
const MEMORY = BLOCK_OPTIONS.parse({ backend: fixture("memory") });

function moody(own: Record<string, string> = {}): BlockOptions {
  return BLOCK_OPTIONS.parse({ backend: fixture("moody"), ...own });
}

/** Offset at which a request is treated so. */
function at(mood: typeof MOODS[number]): number {
  return MOODS_AT + MOODS.indexOf(mood) * BLOCK;
}

/** Calls of the store since it was asked last. */
function calls(client: Controller): string {
  const text = new TextDecoder().decode(client.read(CALLS_AT, BLOCK));
  return text.replaceAll("\0", "");
}

/** Submits a read or a write of a block at an odd place, into the second half of guest memory. */
function submitAt(
  client: Controller,
  offset: number,
  op: BlockOp = BlockOp.READ,
) {
  const request = client.submit({ op, offset, at: [[8 << 20, BLOCK]] });
  client.backend.commit();
  return request;
}

/** Parts that another thread opens with, in place of a back end or beside it. */
function given(
  { backend }: Controller,
  beside: boolean,
): Disposable & Saved<unknown> {
  const bag = ResourceBag.of();
  const state = structuredClone(
    beside ? backend.share!(bag) : backend.save!(),
  );
  if (!beside) backend.handOver!(bag);
  return { state, bag, [Symbol.dispose]: () => bag[Symbol.dispose]() };
}

/** Descriptors that are open when a Worker has come and gone: the runtime keeps two of the last one's. */
function fdsAfterWorker(): number {
  {
    using host = new Host();
    new Controller(host, MEMORY)[Symbol.dispose]();
  }
  return openFds();
}

Deno.test("AsyncBackend keeps what is written, in any pieces and lengths", () => {
  using host = new Host();
  using client = new Controller(host, MEMORY);
  const { info, description } = client.backend;
  assertEquals(description, "store memory");
  assertEquals(info, {
    sizeBytes: 1 << 20,
    logicalBlockBytes: 512,
    physicalBlockBytes: 4096,
    optimalBytes: 0,
    readonly: false,
    volatileCache: true,
    discardGranularityBytes: 4096,
    maxTransferBytes: SLOT_BYTES,
  });
  for (const length of [512, BLOCK, 65536 + 512, SLOT_BYTES]) {
    assertEquals(client.write(1024, pattern(length, length)), 0);
    assertEquals(client.read(1024, length), pattern(length, length));
  }
  const pieces = [[1000, 1], [2001, 4000], [9000, 95]] as const;
  host.memory.write(1000, pattern(1, 1));
  host.memory.write(2001, pattern(4000, 2));
  host.memory.write(9000, pattern(95, 3));
  assertEquals(client.run({ op: BlockOp.WRITE, at: pieces }), 0);
  host.memory.write(0, new Uint8Array(10_000));
  assertEquals(client.run({ op: BlockOp.READ, at: pieces }), 0);
  const piece = new Uint8Array(4000);
  host.memory.read(2001, piece);
  assertEquals(piece, pattern(4000, 2));
  // Longer than a slot: zeroes are written piece by piece.
  client.write(0, pattern(SLOT_BYTES, 9));
  const zeroes = { op: BlockOp.WRITE_ZEROES, lengthBytes: 700 * 1024 };
  assertEquals(client.run(zeroes), 0);
  assertEquals(client.read(0, SLOT_BYTES), new Uint8Array(SLOT_BYTES));
  assertEquals(client.run({ op: BlockOp.DISCARD, lengthBytes: BLOCK }), 0);
  assertEquals(client.run({ op: BlockOp.FLUSH }), 0);
  assertEquals(client.count("discards"), 1);
  assertEquals(client.count("inFlight"), 0);
});

Deno.test("AsyncBackend has hundreds of requests in flight, which end in any order", () => {
  using host = new Host();
  using client = new Controller(host, MEMORY);
  host.memory.write(0, pattern(1 << 20, 5));
  const all = (op: BlockOp) => {
    const requests = Array.from(
      { length: 256 },
      (_, i) =>
        client.submit({ op, offset: i * BLOCK, at: [[i * BLOCK, BLOCK]] }),
    );
    client.backend.commit();
    client.wait(requests);
    for (const { tag } of requests) assertEquals(client.results.get(tag), 0);
  };
  all(BlockOp.WRITE);
  host.memory.write(0, new Uint8Array(1 << 20));
  all(BlockOp.READ);
  const bytes = new Uint8Array(1 << 20);
  host.memory.read(0, bytes);
  assertEquals(bytes, pattern(1 << 20, 5));
  assertEquals(client.count("queued"), 2 * (256 - SLOTS));
});

Deno.test("AsyncBackend calls what the store has, and is read-only or without a cache where it has less", () => {
  using host = new Host();
  {
    using client = new Controller(host, moody());
    assertEquals(client.write(0, pattern(512, 1), true), 0);
    assertEquals(client.write(0, pattern(1024, 1)), 0);
    assertEquals(calls(client), "write:512 flush write:1024");
    assertEquals(client.backend.setWriteCache(false), 0);
    assertEquals(client.write(0, pattern(512, 1)), 0);
    const range = { offset: 8192, lengthBytes: 512 * 1024 };
    client.run({ op: BlockOp.WRITE_ZEROES, ...range });
    client.run({ op: BlockOp.DISCARD, ...range });
    assertEquals(
      calls(client),
      `write:512 flush zero:${range.lengthBytes} flush discard:${range.lengthBytes}`,
    );
    assertEquals(client.backend.info.optimalBytes, 65536);
    assertEquals(host.infos, ["store moody: hello"]);
  }
  {
    using client = new Controller(host, moody({ parts: "write" }));
    const { info } = client.backend;
    assertEquals(info.volatileCache, false);
    assertEquals(info.discardGranularityBytes, 0);
    assertEquals(client.write(0, pattern(512, 1), true), 0);
    assertEquals(client.run({ op: BlockOp.FLUSH }), 0);
    const discard = { op: BlockOp.DISCARD, lengthBytes: BLOCK };
    assertEquals(client.run(discard), -Errno.EOPNOTSUPP);
  }
  for (const own of [{ parts: "read" }, { readonly: "on" }]) {
    using client = new Controller(host, moody(own));
    assertEquals(client.backend.info.readonly, true);
    assertEquals(client.write(0, pattern(512, 1)), -Errno.EROFS);
    assertEquals(client.run({ op: BlockOp.FLUSH }), 0);
    assertEquals(client.read(512, 512), new Uint8Array(512));
  }
});

Deno.test("AsyncBackend gives the guest the error numbers of a store, and tells of other errors once", () => {
  using host = new Host();
  using client = new Controller(host, moody());
  const read = (mood: typeof MOODS[number]) =>
    client.run({ op: BlockOp.READ, offset: at(mood), lengthBytes: BLOCK });
  assertEquals(read("code"), -Errno.ENOSPC);
  assertEquals(read("nodeErrno"), -Errno.EACCES);
  assertEquals(host.warnings, []);
  // None that is known.
  assertEquals(read("errno"), -Errno.EIO);
  for (let i = 0; i < 3; i++) {
    assertEquals(read("plainError"), -Errno.EIO);
    assertEquals(read("noError"), -Errno.EIO);
  }
  client.turnUntil(() => host.warnings.length === 3);
  const lines = Deno.readTextFileSync(fixture("moody")).split("\n");
  const line = 1 + lines.findIndex((text) => text.includes("`a plain error"));
  const told = host.warnings.find((text) => text.includes("a plain error"))!;
  assertStringIncludes(told, `store moody, ${fixture("moody")}:${line}:`);
  assertStringIncludes(told, "(in read; the guest is told of an I/O error)");
  // What was done to one buffer is not done to another request.
  assertEquals(read("transfers"), 0);
  assertEquals(client.write(0, pattern(BLOCK, 1)), 0);
  assertEquals(client.read(0, BLOCK), pattern(BLOCK, 1));
  assertEquals(client.count("failed"), 9);
});

Deno.test("AsyncBackend takes what a store never answers out of flight, and late data goes nowhere", () => {
  using host = new Host();
  using client = new Controller(host, moody());
  const requests = [
    submitAt(client, at("never")),
    submitAt(client, at("late")),
    submitAt(client, at("late"), BlockOp.WRITE),
  ];
  client.backend.drain();
  for (const { tag } of requests) {
    assertEquals(client.results.get(tag), -Errno.ECANCELED);
  }
  // A write that was given up may be done beneath this one, which therefore waits.
  const later = submitAt(client, at("late"), BlockOp.WRITE);
  assertEquals(client.write(0, pattern(BLOCK, 1)), 0);
  assert(!client.results.has(later.tag));
  const before = new Uint8Array(BLOCK);
  host.memory.read(8 << 20, before);
  assertEquals(client.count("inFlight"), 4);
  client.backend.drain();
  assertEquals(client.results.get(later.tag), -Errno.ECANCELED);
  assertEquals(
    client.run({
      op: BlockOp.READ,
      offset: at("releaseLate"),
      lengthBytes: 512,
    }),
    0,
  );
  client.turnUntil(() => client.count("lateReplies") === 2);
  const after = new Uint8Array(BLOCK);
  host.memory.read(8 << 20, after);
  assertEquals(after, before);
  assertEquals(client.count("inFlight"), 1);
});

Deno.test("AsyncBackend serves on, request by request, when every slot is held by reads that never end", () => {
  using host = new Host();
  host.speed = 100;
  using client = new Controller(host, moody({ timeout: "1" }));
  const stuck = Array.from(
    { length: SLOTS + 10 },
    () => submitAt(client, at("never")),
  );
  client.wait(stuck);
  for (const { tag } of stuck) {
    assertEquals(client.results.get(tag), -Errno.ETIMEDOUT);
  }
  assertEquals(client.count("timeouts"), SLOTS + 10);
  assertEquals(host.warnings.length, 1);
  assertMatch(host.warnings[0]!, /^store moody has not answered for 1 s/);
});

for (const timeout of ["0", "2"]) {
  Deno.test(`AsyncBackend tells once that only requests which were given up hold others up: timeout=${timeout}`, () => {
    using host = new Host();
    host.speed = 100;
    using client = new Controller(host, moody({ timeout }));
    for (let i = 0; i < SLOTS; i++) submitAt(client, at("never"));
    client.backend.drain();
    assertEquals(host.warnings, []);
    for (let i = 0; i < 2; i++) {
      submitAt(client, 0);
      client.turnUntil(() => host.warnings.length > 0);
      for (let j = 0; j < 30; j++) host.loop.turn(5);
      client.backend.drain();
    }
    assertMatch(
      host.warnings[0]!,
      /^store moody has not ended 128 requests that a guest gave up, .*; what is asked .* restart this process/,
    );
    const others = host.warnings.slice(1);
    assert(others.every((it) => it.includes("not answered for 2 s")));
  });
}

for (
  const [mood, told] of [
    ["exit", "it has called exit()"],
    ["processExit", "it has called exit()"],
    ["close", "it has called close()"],
    ["rejection", "nobody waits, in a promise that nobody waits for"],
    ["timer", "in a timer"],
  ] as const
) {
  Deno.test(`AsyncBackend fails what is asked of a store that has ended: ${mood}`, () => {
    const fds = fdsAfterWorker();
    {
      using host = new Host();
      using other = new Controller(host, MEMORY);
      using client = new Controller(host, moody());
      const never = submitAt(client, at("never"));
      client.wait([never, submitAt(client, at(mood), BlockOp.WRITE)]);
      for (const result of client.results.values()) {
        assertEquals(result, -Errno.EIO);
      }
      assertEquals(host.warnings.length, 1, host.warnings.join("\n"));
      assertStringIncludes(host.warnings[0]!, "store moody has ended: ");
      assertStringIncludes(host.warnings[0]!, told);
      assertEquals(client.run({ op: BlockOp.FLUSH }), -Errno.EIO);
      assertEquals(other.write(0, pattern(BLOCK, 1)), 0);
      assertEquals(other.read(0, BLOCK), pattern(BLOCK, 1));
    }
    // What never came to an end keeps its memory, and the two eventfds.
    assertEquals(openFds(), fds + 2);
  });
}

Deno.test("AsyncBackend closes a store that does not return, and one with nothing in flight leaves nothing", () => {
  const fds = fdsAfterWorker();
  assertEquals(fdsAfterWorker(), fds);
  using host = new Host();
  const client = new Controller(host, moody());
  submitAt(client, at("endless"));
  // It is in the midst of it when it no longer wants to be woken.
  for (let i = 0; i < 10; i++) host.loop.turn(10);
  client.backend.close();
  assertMatch(host.warnings.join(), /^store moody has not closed within 4 s/);
});

Deno.test("AsyncBackend closes its store when the last thread is about to close, and answers nothing more", () => {
  const hosts = [new Host(), new Host()] as const;
  try {
    const options = moody({ open: "once" });
    const home = new Controller(hosts[0], options);
    using shared = given(home, true);
    const other = new Controller(hosts[1], options, shared);
    hosts[0].loop.beginClose();
    hosts[0].loop.beginClose();
    assertEquals(other.read(0, BLOCK), new Uint8Array(BLOCK));
    hosts[1].loop.beginClose();
    const { tag } = submitAt(other, 0);
    for (let i = 0; i < 20; i++) hosts[1].loop.turn(10);
    assertEquals([other.results.has(tag), hosts[1].warnings], [false, []]);
    other.backend.close();
    assertEquals(other.results.get(tag), -Errno.ECANCELED);
    home.backend.close();
    assertMatch(hosts[0].warnings.join(), /it cannot be shut \(in close\)$/);
  } finally {
    for (const host of hosts) host[Symbol.dispose]();
  }
});

for (
  const [own, message] of [
    [{ open: "badly" }, /: store moody, .*moody_store\.ts:\d+:\d+: the door/],
    [{ open: "exit" }, /it has called exit\(\)/],
    [
      { open: "empty" },
      /^Cannot use .*_store\.ts as a store: .*`info\.sizeBytes` is 0/,
    ],
    [{ open: "wide" }, /^Cannot use open=wide/],
    [{ closed: "on" }, /^Cannot use option closed: store moody has open/],
  ] as const
) {
  Deno.test(`AsyncBackend says why a store is not open: ${JSON.stringify(own)}`, () => {
    const fds = fdsAfterWorker();
    const options = moody(own as Record<string, string>);
    {
      using host = new Host();
      const error = assertThrows(() => new Controller(host, options), Error);
      assertMatch(error.message, message);
    }
    assertEquals(openFds(), fds);
  });
}

Deno.test("AsyncBackend tells what a store says when it is closed", () => {
  using host = new Host();
  new Controller(host, moody({ open: "once" }))[Symbol.dispose]();
  assertMatch(
    host.warnings.join(),
    /^store moody, .*: it cannot be shut \(in close\)$/,
  );
});

Deno.test("AsyncBackend waits for a store that opens slowly", () => {
  using host = new Host();
  using client = new Controller(host, moody({ open: "slowly" }));
  assertEquals(client.read(0, 512), new Uint8Array(512));
});

Deno.test("AsyncBackend moves with what the store has not come to an end of", () => {
  const hosts = [new Host(), new Host()] as const;
  try {
    const options = moody();
    const first = new Controller(hosts[0], options);
    assertEquals(first.write(0, pattern(BLOCK, 1)), 0);
    submitAt(first, at("late"), BlockOp.WRITE);
    assertThrows(() => first.backend.save!(), Error, "in flight");
    first.backend.drain();
    using moved = given(first, false);
    first.backend.close();
    // In vain, and then once more.
    openBlockBackend(options, hosts[1].context, moved).close();
    using second = new Controller(hosts[1], options, moved);
    assertEquals(second.read(0, BLOCK), pattern(BLOCK, 1));
    assertEquals(second.count("writes"), 1);
    assertEquals(second.count("inFlight"), 1);
    const waits = submitAt(second, at("late"), BlockOp.WRITE);
    const release = submitAt(second, at("releaseLate"));
    second.wait([release, waits]);
    assertEquals(second.results.get(waits.tag), 0);
    assertEquals(second.count("lateReplies"), 1);
    second.backend.drain();
  } finally {
    for (const host of hosts) host[Symbol.dispose]();
  }
});

Deno.test("AsyncBackend shares a store with another thread, each with a ring of its own", () => {
  const hosts = [new Host(), new Host()] as const;
  try {
    using home = new Controller(hosts[0], MEMORY);
    using shared = given(home, true);
    using twin = new Controller(hosts[1], MEMORY, shared);
    for (let i = 0; i < 50; i++) {
      const [one, other] = i % 2 === 0 ? [home, twin] : [twin, home];
      assertEquals(one.write(i * BLOCK, pattern(BLOCK, i)), 0);
      assertEquals(other.read(i * BLOCK, BLOCK), pattern(BLOCK, i));
    }
    assertEquals(twin.count("writes"), 25);
    twin.backend.close();
    assertEquals(home.read(0, BLOCK), pattern(BLOCK, 0));
    // Threads come and go more often than there can be rings.
    for (let i = 0; i < 100; i++) {
      using again = given(home, true);
      using next = new Controller(hosts[1], MEMORY, again);
      assertEquals(next.read(BLOCK, BLOCK), pattern(BLOCK, 1));
    }
  } finally {
    for (const host of hosts) host[Symbol.dispose]();
  }
});

/** A back end whose Worker is the test. */
class Hostile implements Disposable {
  readonly host = new Host();
  readonly link = StoreLink.make();
  readonly ring: Ring = this.link.takeRing();
  readonly client: Controller;
  #done = 0;

  constructor(threadId: number) {
    this.link.begin(threadId);
    this.link.opened(null);
    using bag = ResourceBag.of();
    bag.put("backend", this.ring.eventFd);
    const body = {
      description: "store hostile",
      pid: Deno.pid,
      info: {
        sizeBytes: 1 << 20,
        logicalBlockBytes: 512,
        physicalBlockBytes: 4096,
        optimalBytes: 0,
        readonly: false,
        volatileCache: false,
        discardGranularityBytes: 0,
        maxTransferBytes: SLOT_BYTES,
      },
      linkHva: this.link.hva,
      ringHva: this.ring.hva,
      shared: false,
      durable: false,
      abandoned: [],
      counters: new Counters(STORE_COUNTERS).toRecord(),
    };
    const state = { kind: "backend", version: 1, body };
    this.client = new Controller(this.host, MEMORY, { state, bag });
  }

  answer(slot: number, result: number): void {
    const { words } = this.ring;
    const to = RING.COMPLETION + 2 * (this.#done & (SLOTS - 1));
    words[to] = slot;
    words[to + 1] = result;
    this.jump(1);
  }

  jump(count: number): void {
    this.#done = (this.#done + count) | 0;
    Atomics.store(this.ring.words, RING.DONE, this.#done);
    this.ring.notify();
    this.client.host.loop.turn(10);
  }

  [Symbol.dispose](): void {
    this.client[Symbol.dispose]();
    this.host[Symbol.dispose]();
  }
}

Deno.test("AsyncBackend ignores answers to what was not asked, and says so once", () => {
  // A thread that there cannot be: closing waits for no one.
  using hostile = new Hostile(0x7fff_fff0);
  const { client, ring, host } = hostile;
  const request = submitAt(client, 0);
  hostile.answer(request.slot ^ 1, 0);
  for (const slot of [SLOTS, -1, 0x7fff_ffff, -0x8000_0000]) {
    hostile.answer(slot, 0);
  }
  hostile.jump(SLOTS + 1);
  hostile.jump(-5);
  assertEquals(client.results.size, 0);
  assertEquals(host.warnings.length, 1);
  assertStringIncludes(host.warnings[0]!, "which is none");
  // Fields of a request are nobody's to change, and change nothing here.
  ring.words.fill(-1, requestAt(0), requestAt(SLOTS));
  hostile.answer(request.slot, 5);
  assertEquals(client.results.get(request.tag), -Errno.EIO);
  hostile.answer(request.slot, 0);
  assertEquals(client.results.size, 1);
});

Deno.test("AsyncBackend finds out that its Worker is gone", () => {
  using hostile = new Hostile(0x7fff_fff0);
  const { client, host } = hostile;
  host.speed = 100;
  const request = submitAt(client, 0);
  client.wait([request]);
  assertEquals(client.results.get(request.tag), -Errno.EIO);
  assertMatch(
    host.warnings.join(),
    /^store hostile has ended: its Worker is gone/,
  );
});
