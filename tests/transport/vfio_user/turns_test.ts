/** Turns of a loop: whatever one client asks for costs the others one. */

import { assert, assertEquals } from "@std/assert";
import { ErrnoError } from "../../../src/core/errno.ts";
import { EventLoop } from "../../../src/loop/event_loop.ts";
import {
  createEventFd,
  createMemfd,
  signalEventFd,
} from "../../../src/os/mod.ts";
import { concat, message, type RawClient, words } from "./raw_client.ts";
import { Rig } from "./rig.ts";

const PAGE = 4096n;

/** A loop on which each look at the clock is a millisecond after the last. */
class BusyLoop extends EventLoop {
  #ms = 0;

  override now(): number {
    return this.#ms++;
  }
}

/** Counts the turns that somebody else on the loop has until a reply is there. */
function turnsUntilReply(rig: Rig, client: RawClient, bytes: Uint8Array) {
  using other = createEventFd();
  let turns = 0;
  using _watch = rig.loop.watchEventFd(other.number, () => {
    turns++;
    signalEventFd(other.number);
  });
  signalEventFd(other.number);
  client.send(bytes);
  const reply = client.await(rig.loop);
  return { turns, reply };
}

function range(i: number): Uint8Array {
  return words(32, 3, 0n, BigInt(i) * 2n * PAGE, PAGE);
}

Deno.test("REGION_WRITE_MULTI leaves others their turns, and writes each once and in order", () => {
  using rig = new Rig({}, new BusyLoop());
  using client = rig.client(
    '{"capabilities":{"max_msg_fds":16,"write_multiple":true}}',
  );
  const writes = Array.from(
    { length: 400 },
    (_, i) => words(BigInt(i % 1000), 0, 1, BigInt(i & 0xff)),
  );
  const { turns, reply } = turnsUntilReply(
    rig,
    client,
    message(15, concat(words(BigInt(writes.length)), ...writes)),
  );
  assertEquals(reply.errno, 0);
  assert(turns >= 10, `${turns} turns`);
  assertEquals(rig.device.registers[399], 399 & 0xff);
  assertEquals(
    rig.device.writes,
    Array.from({ length: 100 }, (_, i) => `0:${i}:1:${i}`),
  );
  assertEquals(rig.server.counters().regionWrites, 1);
});

Deno.test("REGION_READ and REGION_WRITE of a whole BAR leave others their turns", () => {
  using rig = new Rig({}, new BusyLoop());
  using client = rig.client();
  const data = Uint8Array.from({ length: 4093 }, (_, i) => i * 7);
  const at = words(3n, 0, data.length);
  const write = turnsUntilReply(rig, client, message(10, concat(at, data)));
  assertEquals(write.reply.errno, 0);
  const read = turnsUntilReply(rig, client, message(9, at));
  assertEquals(new Uint8Array(read.reply.payload.buffer).slice(16), data);
  assert(write.turns >= 20 && read.turns >= 20);
  assertEquals(rig.device.writes.slice(0, 3), [
    "0:3:1:0",
    `0:4:4:${0x1c150e07}`,
    `0:8:4:${0x38312a23}`,
  ]);
  const { regionReads, regionWrites, messages } = rig.server.counters();
  assertEquals([regionReads, regionWrites, messages], [1, 1, 3]);
});

Deno.test("An access that fails midway is over, and the next one begins at its beginning", () => {
  using rig = new Rig({}, new BusyLoop());
  using client = rig.client();
  const access = words(0n, 0, 4096);
  client.send(message(10, concat(access, new Uint8Array(4096).fill(1))));
  for (let i = 0; i < 4; i++) rig.loop.turn(0);
  rig.device.failure = new ErrnoError(5, "Cannot write");
  assertEquals(client.await(rig.loop).errno, 5);
  rig.device.failure = null;
  rig.device.writes.length = 0;
  client.request(
    rig.loop,
    message(10, concat(access, new Uint8Array(4096).fill(2))),
  );
  assertEquals(rig.device.writes[0], `0:0:4:${0x02020202}`);
});

Deno.test("DMA_UNMAP of everything, and a client's end, leave others their turns", () => {
  using rig = new Rig({}, new BusyLoop());
  const client = rig.client();
  using memfd = createMemfd("guest", 4096);
  const map = () => {
    for (let i = 0; i < 200; i++) {
      client.send(message(2, range(i)), [memfd.number]);
      client.await(rig.loop);
    }
    assertEquals(rig.memory.count, 200);
  };
  map();
  const unmap = message(3, words(24, 2, 0n, 0n));
  const { turns, reply } = turnsUntilReply(rig, client, unmap);
  assertEquals([reply.errno, rig.memory.count], [0, 0]);
  assert(turns >= 5, `${turns} turns`);
  map();
  client.close();
  let left = 200;
  for (let i = 0; left > 0; i++) {
    rig.loop.turn(0);
    assert(left - rig.memory.count <= 64, "in one turn");
    assert(i < 100);
    left = rig.memory.count;
  }
  rig.settle();
  using next = rig.client();
  assertEquals(next.request(rig.loop, message(13)).errno, 0);
});

Deno.test("A server that is closed while it forgets a client has forgotten it", () => {
  const rig = new Rig({}, new BusyLoop());
  const client = rig.client();
  using memfd = createMemfd("guest", 4096);
  for (let i = 0; i < 200; i++) {
    client.send(message(2, range(i)), [memfd.number]);
    client.await(rig.loop);
  }
  client.close();
  rig.loop.turn(0);
  rig.server.close();
  assertEquals([rig.memory.count, rig.clients.length], [0, 2]);
  rig.close();
});
