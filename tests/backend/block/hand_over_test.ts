import { assert, assertEquals, assertThrows } from "@std/assert";
import type { DeviceState } from "../../../src/core/state_form.ts";
import { BlockOp } from "../../../src/backend/block/contract.ts";
import { openBlockBackend } from "../../../src/backend/block/open.ts";
import {
  BLOCK_OPTIONS,
  type BlockOptions,
} from "../../../src/backend/block/options.ts";
import { ResourceBag } from "../../../src/os/mod.ts";
import { openFds, sharedMappings } from "../../resources.ts";
import { NbdRig } from "./nbd/rig.ts";
import { Controller, FILE, Folder, Host, MEMORY, pattern } from "./rig.ts";

const BYTES = 1 << 20;
const BLOCK = 4096;
const MOVES = 50;

/** State and descriptors of a back end, on their way. */
interface Given {
  readonly state: unknown;
  readonly fds: Readonly<Record<string, number>>;
}

/** A back end of the same options on a loop of its own, from what another gave. */
function succeed(host: Host, options: BlockOptions, { state, fds }: Given) {
  using bag = ResourceBag.of(fds);
  return new Controller(host, options, { state: structuredClone(state), bag });
}

/** As {@linkcode succeed}, in vain: what was given is there for another attempt. */
function fail(host: Host, options: BlockOptions, { state, fds }: Given) {
  const bag = ResourceBag.of(fds);
  try {
    assertThrows(
      () => openBlockBackend(options, host.context, { state, bag }),
      Error,
      "Cannot ",
    );
  } finally {
    bag.release();
  }
}

function giveAway({ backend }: Controller): Given {
  const bag = ResourceBag.of();
  const state = backend.save!();
  backend.handOver!(bag);
  backend.close();
  return { state, fds: bag.release() };
}

const CASES: readonly {
  readonly name: string;
  options(folder: Folder): BlockOptions;
}[] = [
  {
    name: "a file through its ring",
    options: (folder) => ({
      ...FILE,
      path: folder.image("disk", BYTES),
      engine: "ring",
      depth: 8,
    }),
  },
  {
    name: "a file from the page cache",
    options: (folder) => ({ ...FILE, path: folder.image("disk", BYTES) }),
  },
  { name: "memory", options: () => ({ ...MEMORY, sizeBytes: BYTES }) },
  {
    name: "a store",
    options: () =>
      BLOCK_OPTIONS.parse({
        backend: new URL("./fixtures/memory_store.ts", import.meta.url)
          .pathname,
      }),
  },
];

for (const { name, options } of CASES) {
  Deno.test(`handOver moves ${name} fifty times and leaves nothing behind`, () => {
    using folder = new Folder();
    const ours = options(folder);
    const hosts = [new Host(), new Host()];
    try {
      let client = new Controller(hosts[0]!, ours);
      let fds = 0;
      let mappings = 0;
      for (let i = 0; i < MOVES; i++) {
        assertEquals(client.write(i * BLOCK, pattern(BLOCK, i)), 0);
        client = succeed(hosts[(i + 1) % 2]!, ours, giveAway(client));
        // What the first moves make once, such as compiled code, is not counted.
        if (i === 1) [fds, mappings] = [openFds(), sharedMappings()];
      }
      assertEquals([openFds(), sharedMappings()], [fds, mappings]);
      for (let i = 0; i < MOVES; i++) {
        assertEquals(client.read(i * BLOCK, BLOCK), pattern(BLOCK, i));
      }
      assertEquals(client.count("writes"), MOVES);
      assertEquals(client.count("writtenBytes"), MOVES * BLOCK);
      client.backend.close();
    } finally {
      for (const host of hosts) host[Symbol.dispose]();
    }
  });

  Deno.test(`handOver of ${name} is undone by another back end on the same thread`, () => {
    using folder = new Folder();
    using host = new Host();
    const ours = options(folder);
    const first = new Controller(host, ours);
    assertEquals(first.write(0, pattern(BLOCK, 1)), 0);
    const given = giveAway(first);
    const fds = openFds();
    // A successor of the wrong kind, and one that is given nothing, fail and leave all as it was.
    const other: BlockOptions = ours.kind === "memory"
      ? { ...FILE, path: "/dev/null" }
      : MEMORY;
    fail(host, other, given);
    fail(host, ours, { ...given, state: {} });
    fail(host, ours, { ...given, fds: {} });
    assertEquals(openFds(), fds);
    using again = succeed(host, ours, given);
    assertEquals(again.read(0, BLOCK), pattern(BLOCK, 1));
  });
}

Deno.test("FileBackend hands its lock over with the descriptor, and gives it up at the end", () => {
  using folder = new Folder();
  using host = new Host();
  const options: BlockOptions = { ...FILE, path: folder.image("disk", BYTES) };
  const first = new Controller(host, options);
  const given = giveAway(first);
  const intrude = () => openBlockBackend(options, host.context).close();
  assertThrows(intrude, Error, "somebody else uses it");
  const second = succeed(host, options, given);
  assertThrows(intrude, Error, "somebody else uses it");
  second.backend.close();
  intrude();
});

Deno.test("a file that no successor can use stays open, and locked, for its predecessor", () => {
  using folder = new Folder();
  using host = new Host();
  const options: BlockOptions = { ...FILE, path: folder.image("disk", BYTES) };
  const given = giveAway(new Controller(host, options));
  const fds = openFds();
  fail(host, options, { ...given, fds: {} });
  // One that was opened, and is closed before it has begun.
  const bag = ResourceBag.of(given.fds);
  const { state } = given;
  openBlockBackend(options, host.context, { state, bag }).close();
  bag.release();
  assertEquals(openFds(), fds);
  assertThrows(
    () => openBlockBackend(options, host.context).close(),
    Error,
    "somebody else uses it",
  );
  using again = succeed(host, options, given);
  assertEquals(again.write(0, pattern(BLOCK, 3)), 0);
});

Deno.test("FileBackend hands over the cache mode and the size that the controller knows", () => {
  using folder = new Folder();
  using host = new Host();
  const path = folder.image("disk", BYTES);
  const options: BlockOptions = { ...FILE, path, engine: "ring" };
  const first = new Controller(host, options);
  assertEquals(first.backend.setWriteCache(false), 0);
  const { info } = first.backend;
  const given = giveAway(first);
  assert((given.state as DeviceState<{ durable: boolean }>).body.durable);
  Deno.truncateSync(path, 2 * BYTES);
  using second = succeed(host, options, given);
  assertEquals(second.backend.info, info);
  assert(second.backend.rescan!());
  assertEquals(second.backend.info.sizeBytes, 2 * BYTES);
  assertEquals(second.resizes, 1);
});

Deno.test("MemoryBackend hands over memory that was resized", () => {
  using host = new Host();
  const first = new Controller(host, MEMORY);
  first.backend.resize!(3 << 20);
  assertEquals(first.write(2 << 20, pattern(BLOCK, 5)), 0);
  const mappings = sharedMappings();
  using second = succeed(host, MEMORY, giveAway(first));
  assertEquals(sharedMappings(), mappings);
  assertEquals(second.backend.info.sizeBytes, 3 << 20);
  assertEquals(second.read(2 << 20, BLOCK), pattern(BLOCK, 5));
});

Deno.test("save refuses while requests are in flight, and changes nothing", async () => {
  using folder = new Folder();
  using host = new Host();
  using file = new Controller(host, {
    ...FILE,
    path: folder.image("disk", BYTES),
    engine: "ring",
  });
  const request = file.submit({ op: BlockOp.READ, lengthBytes: BLOCK });
  assertThrows(() => file.backend.save!(), Error, "1 requests");
  file.backend.commit();
  file.wait([request]);
  await using rig = await NbdRig.start({ hold: true });
  const held = rig.client.submit({ op: BlockOp.READ, lengthBytes: BLOCK });
  rig.client.backend.commit();
  assertThrows(() => rig.client.backend.save!(), Error, "1 requests");
  await rig.server.set({ hold: false });
  await rig.until(() => rig.client.results.has(held.tag));
  assertEquals(rig.client.results.get(held.tag), 0);
});

/** Moves a rig's client to another host; the rig closes what is left of it. */
function moveNbd(rig: NbdRig, host: Host): Controller {
  return succeed(host, rig.options, giveAway(rig.client));
}

Deno.test("NbdBackend goes on with its connection, which the server does not notice", async () => {
  await using rig = await NbdRig.start();
  let other = rig.client;
  assertEquals(rig.client.write(0, pattern(BLOCK, 7)), 0);
  const hosts = [new Host(), new Host()];
  try {
    let fds = 0;
    for (let i = 0; i < MOVES; i++) {
      other = succeed(hosts[i % 2]!, rig.options, giveAway(other));
      assertEquals(other.write(i * BLOCK, pattern(BLOCK, 7 + i)), 0);
      if (i === 1) fds = openFds();
    }
    // Fewer may be open by now: the runtime keeps some of a Worker's until it starts another.
    assert(openFds() <= fds);
    for (let i = 0; i < MOVES; i++) {
      assertEquals(other.read(i * BLOCK, BLOCK), pattern(BLOCK, 7 + i));
    }
    assertEquals(await rig.server.connections(), 1);
    assertEquals(other.count("writes"), MOVES + 1);
    assertEquals(other.count("disconnects"), 0);
    // No flush has covered them, wherever they were completed.
    assertEquals(other.count("unflushedWrites"), MOVES + 1);
    assertEquals(other.run({ op: BlockOp.FLUSH }), 0);
    assertEquals(other.count("unflushedWrites"), 0);
    other.backend.close();
  } finally {
    for (const host of hosts) host[Symbol.dispose]();
  }
});

Deno.test("NbdBackend that moves with its connection lost finds another", async () => {
  await using rig = await NbdRig.start();
  await rig.server.hangUp();
  await rig.until(() => rig.client.count("disconnects") === 1);
  using host = new Host();
  using other = moveNbd(rig, host);
  assertEquals(other.count("connected"), 0);
  other.turnUntil(() => other.count("connected") === 1);
  assertEquals(other.write(0, pattern(BLOCK, 9)), 0);
  assertEquals(rig.stored(0, BLOCK), pattern(BLOCK, 9));
  assertEquals(other.count("disconnects"), 1);
  assertEquals(other.count("reconnects"), 1);
});

Deno.test("NbdBackend that is owed replies to what was given up moves to a new connection", async () => {
  await using rig = await NbdRig.start({ hold: true });
  const { client } = rig;
  const write = client.submit({
    op: BlockOp.WRITE,
    offset: 0,
    lengthBytes: BLOCK,
  });
  client.backend.commit();
  client.backend.drain();
  assert(client.results.get(write.tag)! < 0);
  using host = new Host();
  using other = moveNbd(rig, host);
  assertEquals(other.count("disconnects"), 1);
  await rig.server.set({ hold: false });
  other.turnUntil(() => other.count("connected") === 1);
  assertEquals(other.write(0, pattern(BLOCK, 11)), 0);
  assertEquals(other.read(0, BLOCK), pattern(BLOCK, 11));
  assertEquals(other.count("inFlight"), 0);
});

Deno.test("NbdBackend hands over that every write is to be durable", async () => {
  await using rig = await NbdRig.start();
  assertEquals(rig.client.backend.setWriteCache(false), 0);
  using host = new Host();
  using other = moveNbd(rig, host);
  assertEquals(other.write(0, pattern(BLOCK, 13)), 0);
  const requests = await rig.server.requests();
  const FUA = 1;
  assertEquals(requests.map(({ flags }) => flags), [FUA]);
});
