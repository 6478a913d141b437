import { assert, assertEquals } from "@std/assert";
import { closeFd, createEventFd, createMemfd } from "../../../src/os/mod.ts";
import {
  concat,
  message,
  RawClient,
  versionMessage,
  words,
} from "./raw_client.ts";
import { memfdMappings, openFds, Rig } from "./rig.ts";

/** Numbers that are the same for the same seed (mulberry32). */
function random(seed: number): (below: number) => number {
  return (below) => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) % below;
  };
}

/** Messages that are sound, one of every kind, to be damaged. */
const SOUND: readonly Uint8Array[] = [
  versionMessage(),
  message(2, words(32, 3, 0n, 0x1000n, 0x2000n)),
  message(2, words(32, 1, 0x1000n, 0x10_0000n, 0x1000n)),
  message(3, words(24, 0, 0x1000n, 0x2000n)),
  message(3, words(24, 2, 0n, 0n)),
  message(4, words(16, 0, 0, 0)),
  message(5, words(4096, 0, 2, 0, 0n, 0n)),
  message(6, words(4096, 0, 0, 0)),
  message(7, words(16, 0, 2, 0)),
  message(8, words(20, 0x24, 2, 0, 2)),
  message(8, words(20, 0x14, 0, 0, 1)),
  message(8, words(20, 0x21, 2, 0, 3)),
  message(8, words(20, 0x11, 0, 0, 1)),
  message(9, words(0x10n, 0, 64)),
  message(9, words(0n, 7, 256)),
  message(9, words(0n, 4, 128)),
  message(10, concat(words(0x10n, 0, 8), words(1, 2))),
  message(10, concat(words(4n, 7, 4), words(0x407))),
  message(10, concat(words(12n, 4, 4), words(0))),
  message(13),
  message(15, concat(words(1n), words(0x10n, 0, 4), words(1, 0))),
  message(16, words(8, 0x1_0001)),
  message(11, words(0n, 4n), { flags: 1 }),
];

const TRICKY = [0, 1, 0x7f, 0x80, 0xff];

/** A sound message with a few bytes changed; its size stays true most of the time, so that framing survives. */
function damaged(next: (below: number) => number): Uint8Array {
  const bytes = SOUND[next(SOUND.length)]!.slice();
  for (let n = next(4); n > 0; n--) {
    let at = next(bytes.length);
    if (at >= 4 && at < 8 && next(20) !== 0) at = 8 % bytes.length;
    bytes[at] = next(2) === 0 ? TRICKY[next(TRICKY.length)]! : next(256);
  }
  return next(30) === 0 ? bytes.slice(0, next(bytes.length)) : bytes;
}

function exchange(rig: Rig, client: RawClient): void {
  rig.settle();
  for (;;) {
    const reply = client.receive();
    if (reply === null) return;
    reply.fds.forEach(closeFd);
    assertEquals(reply.flags & 0xf, 1);
    assert((reply.flags & 0x20) === 0 || reply.payload.byteLength === 0);
  }
}

function fuzz(seed: number, rounds: number): void {
  const next = random(seed);
  using rig = new Rig();
  using memfd = createMemfd("fuzz-ram", 0x4000);
  using eventFd = createEventFd();
  const kinds = [memfd.number, eventFd.number];
  rig.client().close();
  rig.settle();
  const fds = openFds();
  const mappings = memfdMappings();
  for (let round = 0; round < rounds; round++) {
    const client = RawClient.connect(rig.path);
    if (next(10) !== 0) {
      client.send(versionMessage('{"capabilities":{"write_multiple":true}}'));
    }
    for (let i = 0; i < 40; i++) {
      const send = Array.from(
        { length: next(4) === 0 ? next(4) : 0 },
        () => kinds[next(kinds.length)]!,
      );
      const bytes = next(50) === 0
        ? Uint8Array.from({ length: 1 + next(100) }, () => next(256))
        : damaged(next);
      if (bytes.length > 0 && client.send(bytes, send) < 0) break;
      if (next(3) === 0) exchange(rig, client);
      if (next(8) === 0) rig.interrupts.setLevel(next(2) === 0);
      if (next(8) === 0) rig.interrupts.raise(next(8));
    }
    if (next(2) === 0) exchange(rig, client);
    client.close();
    rig.settle();
    assertEquals(rig.memory.count, 0, `mappings, round ${round}`);
    assertEquals(openFds(), fds, `descriptors, round ${round}`);
  }
  assertEquals(memfdMappings(), mappings);
  const faults = rig.logged.filter((line) => line.startsWith("error"));
  assertEquals(faults, []);
  using client = rig.client();
  assertEquals(client.request(rig.loop, message(13)).errno, 0);
}

Deno.test("VfioUserServer survives random and damaged messages and leaks nothing", () => {
  const seed = Number(Deno.env.get("FUZZ_SEED") ?? Date.now() % 1_000_000);
  for (const it of [1, 2, 3, seed]) {
    try {
      fuzz(it, 60);
    } catch (error) {
      throw new Error(`failed with FUZZ_SEED=${it}`, { cause: error });
    }
  }
});
