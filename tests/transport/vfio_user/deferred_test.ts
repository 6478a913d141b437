/** Commands that wait for requests in flight, while everything else goes on. */

import { assert, assertEquals } from "@std/assert";
import type { ResetReason } from "../../../src/pci/device.ts";
import { createMemfd } from "../../../src/os/mod.ts";
import { allowMastering } from "../../pci/sample.ts";
import { concat, message, type RawClient, words } from "./raw_client.ts";
import { Rig, TimelessLoop } from "./rig.ts";

const READ = 9;
const WRITE = 10;
const WRITE_MULTI = 15;
const RESET = 13;
const MAP = 2;
const UNMAP = 3;
const CONFIG = 7;
const PAGE = 4096n;
const NO_REPLY = 0x10;
/** Register that ends requests when 0 is written, and another. */
const STATUS = 0x40;
const OTHER = 0x44;

class ClockLoop extends TimelessLoop {
  ms = 0;

  override now(): number {
    return this.ms;
  }
}

/** A rig whose device has requests in flight, which end when the test says so. */
class SlowRig extends Rig {
  inFlight = 0;
  held = false;
  /** Guest address of the memory that they use. */
  uses = 0;
  readonly did: string[] = [];

  readonly clock: ClockLoop;

  constructor(clock = new ClockLoop()) {
    super({}, clock);
    this.clock = clock;
    const { device } = this;
    const note = (what: string) =>
      this.did.push(`${what}, ${this.inFlight} in flight`);
    Object.assign(device, {
      hold: () => {
        this.held = true;
        return this.inFlight;
      },
      start: () => {
        this.held = false;
      },
      unfinished: (iova?: number, lengthBytes?: number) =>
        iova === undefined ||
          (iova <= this.uses && this.uses < iova + lengthBytes!)
          ? this.inFlight
          : 0,
      endsRequests: (_bar: number, at: number, _width: number, value: number) =>
        at === STATUS && value === 0,
      reset: (reason: ResetReason) => note(reason),
    });
  }

  /** Lets a few milliseconds pass for everybody. */
  rest(): void {
    for (let i = 0; i < 5; i++) this.loop.turn(2);
  }

  reply(client: RawClient) {
    for (let i = 0; i < 1000; i++) {
      this.loop.turn(2);
      const reply = client.receive();
      if (reply !== null) return reply;
    }
    throw new Error("no reply");
  }
}

function read(offset: number, id: number): Uint8Array {
  return message(READ, words(BigInt(offset), 0, 4), { id });
}

function write(offset: number, value: number, id: number, flags = 0) {
  return message(WRITE, words(BigInt(offset), 0, 4, value), { id, flags });
}

Deno.test("DEVICE_RESET is answered once nothing is in flight; what comes behind it waits, but reads", () => {
  using rig = new SlowRig();
  using client = rig.client();
  client.request(rig.loop, write(OTHER, 5, 1));
  rig.inFlight = 2;
  client.send(concat(
    message(RESET, undefined, { id: 2 }),
    read(OTHER, 3),
    write(OTHER, 6, 4),
    read(OTHER, 5),
  ));
  const early = rig.reply(client);
  assertEquals([early.id, early.payload.getUint32(16, true)], [3, 5]);
  rig.rest();
  assertEquals(client.receive(), null);
  assertEquals([rig.did, rig.held], [[], true]);
  rig.inFlight = 0;
  assertEquals([2, 4].map(() => rig.reply(client).id), [2, 4]);
  const late = rig.reply(client);
  assertEquals([late.id, late.payload.getUint32(16, true)], [5, 6]);
  assertEquals(rig.did, ["device_reset, 0 in flight"]);
  // It goes on as soon as it may access memory again.
  allowMastering(rig.pci);
  assertEquals(rig.held, false);
});

Deno.test("a write to a BAR that ends requests is answered at once, and done once nothing is in flight", () => {
  for (const flags of [0, NO_REPLY]) {
    using rig = new SlowRig();
    using client = rig.client();
    client.request(rig.loop, write(STATUS, 15, 1));
    rig.inFlight = 1;
    client.send(concat(write(STATUS, 0, 2, flags), read(STATUS, 3)));
    if (flags === 0) assertEquals(rig.reply(client).id, 2);
    const before = rig.reply(client);
    assertEquals([before.id, before.payload.getUint32(16, true)], [3, 15]);
    client.send(write(OTHER, 1, 4));
    rig.rest();
    assertEquals(client.receive(), null);
    rig.inFlight = 0;
    assertEquals(rig.reply(client).id, 4);
    client.send(read(STATUS, 5));
    assertEquals(rig.reply(client).payload.getUint32(16, true), 0);
  }
});

Deno.test("a write of the command register, and one of several that ends requests, wait", () => {
  using rig = new SlowRig();
  using client = rig.client();
  rig.inFlight = 1;
  client.send(message(
    WRITE,
    concat(words(4n, CONFIG, 2), words(0))
      .slice(0, 18),
  ));
  rig.rest();
  assertEquals(client.receive(), null);
  rig.inFlight = 0;
  assertEquals(rig.reply(client).errno, 0);
  assertEquals(rig.pci.config.mayMaster, false);

  using second = new SlowRig();
  using multi = second.client(
    '{"capabilities":{"max_msg_fds":16,"write_multiple":true}}',
  );
  second.inFlight = 1;
  const one = (offset: number, value: number) =>
    words(BigInt(offset), 0, 4, BigInt(value));
  multi.send(message(
    WRITE_MULTI,
    concat(words(2n), one(OTHER, 1), one(STATUS, 0)),
  ));
  second.rest();
  assertEquals(multi.receive(), null);
  assertEquals(second.device.writes, []);
  second.inFlight = 0;
  assertEquals(second.reply(multi).errno, 0);
  assertEquals(second.device.writes.length, 2);
});

Deno.test("DMA_UNMAP waits for requests that use the memory, and for no others", () => {
  using rig = new SlowRig();
  using client = rig.client();
  using fd = createMemfd("test", 3 * 4096);
  for (const i of [0n, 1n]) {
    const map = words(32, 3, i * PAGE, i * PAGE * 2n, PAGE);
    assertEquals(
      client.request(rig.loop, message(MAP, map), [fd.number]).errno,
      0,
    );
  }
  const unmap = (iova: bigint, flags = 0) =>
    message(UNMAP, words(24, flags, iova, flags === 0 ? PAGE : 0n));
  rig.inFlight = 1;
  rig.uses = 8192 + 100;
  assertEquals(client.request(rig.loop, unmap(0n)).errno, 0);
  client.send(unmap(8192n));
  rig.rest();
  assertEquals([client.receive(), rig.memory.count], [null, 1]);
  rig.inFlight = 0;
  assertEquals(rig.reply(client).errno, 0);
  assertEquals(rig.memory.count, 0);
  rig.inFlight = 1;
  client.send(unmap(0n, 2));
  rig.rest();
  assertEquals(client.receive(), null);
  rig.inFlight = 0;
  assertEquals(rig.reply(client).errno, 0);
});

Deno.test("a client whose command has waited too long is dropped; its memory is kept until the requests end", () => {
  using rig = new SlowRig();
  using client = rig.client();
  using fd = createMemfd("test", 4096);
  client.request(
    rig.loop,
    message(MAP, words(32, 3, 0n, 0n, PAGE)),
    [fd.number],
  );
  rig.inFlight = 1;
  client.send(message(RESET));
  rig.rest();
  rig.clock.ms = 4000;
  rig.rest();
  client.receive();
  assert(client.ended);
  assertEquals([rig.did, rig.memory.count], [[], 1]);
  assertEquals(rig.server.clientPid, Deno.pid);
  rig.inFlight = 0;
  rig.rest();
  assertEquals(rig.did, ["client_gone, 0 in flight"]);
  assertEquals([rig.memory.count, rig.server.clientPid], [0, null]);
  using next = rig.client();
  assertEquals(next.request(rig.loop, message(RESET)).errno, 0);
});

Deno.test("a client that leaves while its command waits is forgotten when its requests have ended", () => {
  using rig = new SlowRig();
  const client = rig.client();
  rig.inFlight = 1;
  client.send(concat(message(RESET), write(OTHER, 1, 2)));
  rig.rest();
  client.close();
  rig.rest();
  assertEquals(rig.did, []);
  rig.inFlight = 0;
  rig.rest();
  assertEquals(rig.did, ["client_gone, 0 in flight"]);
  assertEquals(rig.server.clientPid, null);
});

Deno.test("a server that closes waits for nobody", () => {
  const rig = new SlowRig();
  using client = rig.client();
  rig.inFlight = 1;
  client.send(message(RESET));
  rig.rest();
  rig.close();
  assertEquals(rig.did, ["client_gone, 1 in flight"]);
});
