import { assert, assertEquals } from "@std/assert";
import {
  BlockOp,
  BlockRequest,
} from "../../../../src/backend/block/contract.ts";
import { Errno } from "../../../../src/core/errno.ts";
import { Access } from "../../../../src/memory/guest_memory.ts";
import { NBD, NbdRig } from "./rig.ts";
import { pattern } from "../rig.ts";

const GUARD = 0x77;
/** Number of times faster timers run where a test waits for a timeout. */
const HURRY = 200;

for (
  const fault of [
    "hangUp",
    "halfReply",
    "badMagic",
    "otherCookie",
    "oldCookie",
    "simpleRead",
    "shutdown",
    "before",
    "behind",
    "far",
    "huge",
    "again",
    "short",
    "nothing",
    "emptyHole",
    "wideHole",
    "unknownType",
    "longMessage",
    "hugeError",
  ]
) {
  Deno.test(`NbdBackend survives a server that misbehaves, and asks again (${fault})`, async () => {
    await using rig = await NbdRig.start();
    const { client, host } = rig;
    assertEquals(client.write(4096, pattern(4096, 1)), 0);
    await rig.server.set({ fault });
    host.memory.write(0, new Uint8Array(12288).fill(GUARD));
    const result = client.run({
      op: BlockOp.READ,
      offset: 4096,
      at: [[4096, 4096]],
    });
    assertEquals(result, 0);
    const bytes = new Uint8Array(12288);
    host.memory.read(0, bytes);
    assertEquals(bytes.subarray(4096, 8192), pattern(4096, 1));
    // Nothing was written beside the buffer.
    assert(bytes.subarray(0, 4096).every((byte) => byte === GUARD));
    assert(bytes.subarray(8192).every((byte) => byte === GUARD));
    assertEquals(client.count("disconnects"), 1);
    assertEquals(client.count("reconnects"), 1);
    assertEquals(client.count("replays"), 1);
    // The write before it had not been flushed, and a person is told.
    assertEquals(client.count("unflushedAtLoss"), 1);
    assertEquals(host.warnings.length, 1);
    assert(host.warnings[0]!.includes("1 completed writes were not flushed"));
  });
}

Deno.test("NbdBackend survives a reply that comes twice", async () => {
  await using rig = await NbdRig.start({ structured: false });
  const { client } = rig;
  await rig.server.set({ fault: "twice" });
  const read = { op: BlockOp.READ, lengthBytes: 512 };
  assertEquals(client.run(read), -Errno.EIO);
  await rig.until(() => client.count("reconnects") === 1);
  assertEquals(client.run(read), 0);
});

Deno.test("NbdBackend takes back what a drain cuts short, and skips the replies that come later", async () => {
  for (const structured of [true, false]) {
    await using rig = await NbdRig.start({ structured, hold: true });
    const { client, host } = rig;
    host.memory.write(0, new Uint8Array(65536).fill(GUARD));
    const read = client.submit({ op: BlockOp.READ, lengthBytes: 65536 });
    client.backend.commit();
    // Not committed.
    const second = client.submit({ op: BlockOp.READ, lengthBytes: 512 });
    client.backend.drain();
    assertEquals(client.results.get(read.tag), -Errno.ECANCELED);
    assertEquals(client.results.get(second.tag), -Errno.ECANCELED);
    await rig.server.set({ hold: false });
    await rig.until(() => client.count("lateReplies") === 1);
    const bytes = new Uint8Array(65536);
    host.memory.read(0, bytes);
    assert(bytes.every((byte) => byte === GUARD));
    assertEquals(client.count("inFlight"), 0);
    assertEquals(client.write(0, pattern(4096, 2)), 0);
    assertEquals(client.read(0, 4096), pattern(4096, 2));
    assertEquals(await rig.server.connections(), 1);
  }
});

Deno.test("NbdBackend lets nothing overtake a write that a drain has given up", async () => {
  await using rig = await NbdRig.start({ hold: true });
  const { client, host } = rig;
  host.memory.write(0, pattern(4096, 1));
  const old = client.submit({ op: BlockOp.WRITE, lengthBytes: 4096 });
  client.backend.commit();
  client.backend.drain();
  assertEquals(client.results.get(old.tag), -Errno.ECANCELED);
  host.memory.write(0, pattern(4096, 2));
  const fresh = client.submit({ op: BlockOp.WRITE, lengthBytes: 4096 });
  client.backend.commit();
  // The server looks at its socket between two questions.
  const seen = async () => (await rig.server.requests()).length;
  await rig.until(async () => await seen() === 1);
  for (let i = 0; i < 10; i++) {
    host.loop.turn(1);
    assertEquals(await seen(), 1);
  }
  await rig.server.set({ hold: false });
  client.wait([fresh]);
  assertEquals(client.results.get(fresh.tag), 0);
  assertEquals(rig.stored(0, 4096), pattern(4096, 2));
  assertEquals(client.count("lateReplies"), 1);
});

Deno.test("NbdBackend ends a write that is half sent from a copy when it is drained", async () => {
  await using rig = await NbdRig.start({ deaf: true });
  const { client, host } = rig;
  // More than a socket takes.
  const length = 2 << 20;
  const bytes = pattern(length, 3);
  host.memory.write(0, bytes);
  const half = client.submit({ op: BlockOp.WRITE, lengthBytes: length });
  const unsent = client.submit({
    op: BlockOp.WRITE,
    offset: 4 << 20,
    lengthBytes: length,
  });
  client.backend.commit();
  client.backend.drain();
  assertEquals(client.results.get(half.tag), -Errno.ECANCELED);
  assertEquals(client.results.get(unsent.tag), -Errno.ECANCELED);
  // The memory is somebody else's from here on.
  host.memory.write(0, new Uint8Array(length).fill(GUARD));
  const next = client.submit({
    op: BlockOp.READ,
    at: [[4 << 20, 4096]],
  });
  client.backend.commit();
  await rig.server.set({ deaf: false });
  client.wait([next]);
  assertEquals(client.results.get(next.tag), 0);
  assertEquals(rig.stored(0, length), bytes);
  assertEquals(rig.stored(4 << 20, 4096), new Uint8Array(4096));
  assertEquals(await rig.server.connections(), 1);
});

Deno.test("NbdBackend skips the rest of a read that is half received when it is drained", async () => {
  await using rig = await NbdRig.start();
  const { client, host } = rig;
  const length = 8 << 20;
  using file = Deno.openSync(rig.file, { write: true });
  file.writeSync(pattern(length, 4));
  host.memory.write(0, new Uint8Array(length).fill(GUARD));
  await rig.server.set({ stall: length / 2 });
  const read = client.submit({ op: BlockOp.READ, lengthBytes: length });
  client.backend.commit();
  const first = new Uint8Array(1);
  const tail = new Uint8Array(1);
  await rig.until(() => {
    host.memory.read(0, first);
    return first[0] !== GUARD;
  });
  host.memory.read(length - 1, tail);
  assertEquals(tail[0], GUARD);
  client.backend.drain();
  assertEquals(client.results.get(read.tag), -Errno.ECANCELED);
  host.memory.write(0, new Uint8Array(length).fill(GUARD));
  await rig.server.set({ stall: Infinity });
  await rig.until(() => client.count("lateReplies") === 1);
  const bytes = new Uint8Array(length);
  host.memory.read(0, bytes);
  assert(bytes.every((byte) => byte === GUARD));
  assertEquals(client.read(512, 512), pattern(length, 4).subarray(512, 1024));
});

Deno.test("NbdBackend fails requests that a server does not answer in time", async () => {
  await using rig = await NbdRig.start({ hold: true });
  const { client, host } = rig;
  host.speed = HURRY;
  const began = performance.now();
  assertEquals(
    client.run({ op: BlockOp.READ, lengthBytes: 512 }),
    -Errno.ETIMEDOUT,
  );
  const took = performance.now() - began;
  assert(took >= 0.9 * NBD.timeoutMs / HURRY, `${took} ms`);
  assertEquals(client.count("timeouts"), 1);
  assert(host.warnings[0]!.includes("no answer for"));
  // What comes now has time again.
  host.speed = 1;
  await rig.server.set({ hold: false });
  await rig.until(() => client.count("reconnects") >= 1);
  assertEquals(client.write(0, pattern(512, 1)), 0);
});

Deno.test("NbdBackend fails requests that find no server in time, and takes new ones", async () => {
  await using rig = await NbdRig.start();
  const { client, host } = rig;
  host.speed = HURRY;
  await rig.server[Symbol.asyncDispose]();
  await rig.until(() => client.count("connected") === 0);
  assertEquals(
    client.run({ op: BlockOp.WRITE, lengthBytes: 512 }),
    -Errno.ETIMEDOUT,
  );
  assertEquals(client.run({ op: BlockOp.FLUSH }), -Errno.ETIMEDOUT);
  const pending = client.submit({ op: BlockOp.READ, lengthBytes: 512 });
  client.backend.commit();
  client.backend.drain();
  assertEquals(client.results.get(pending.tag), -Errno.ECANCELED);
  assertEquals(host.warnings.length, 1);
});

Deno.test("NbdBackend notices that an export has another size after a reconnect", async () => {
  await using rig = await NbdRig.start();
  const { client } = rig;
  Deno.truncateSync(rig.file, 16 << 20);
  await rig.server.hangUp();
  await rig.until(() => client.count("reconnects") === 1);
  assertEquals(client.resizes, 1);
  assertEquals(client.backend.info.sizeBytes, 16 << 20);
  assertEquals(client.read((16 << 20) - 512, 512), new Uint8Array(512));
});

Deno.test("NbdBackend closes while it waits for a server", async () => {
  await using rig = await NbdRig.start();
  await rig.server[Symbol.asyncDispose]();
  await rig.until(() => rig.client.count("connected") === 0);
  rig.client.submit({ op: BlockOp.READ, lengthBytes: 512 });
  await rig.until(() => rig.client.count("failedConnects") > 0);
});

Deno.test("NbdBackend refuses nothing but gives up on nothing without a timeout", async () => {
  await using rig = await NbdRig.start({ hold: true }, { timeoutMs: 0 });
  const { client, host } = rig;
  const request = new BlockRequest(host.memory, 4, 999);
  request.op = BlockOp.READ;
  request.lengthBytes = 512;
  host.memory.translate(0, 512, Access.WRITE, request.buffers);
  client.backend.submit(request);
  client.backend.commit();
  for (let i = 0; i < 20; i++) host.loop.turn(5);
  assertEquals(client.results.size, 0);
  await rig.server.set({ hold: false });
  await rig.until(() => client.results.get(999) === 0);
});
