import { assert, assertEquals, assertThrows } from "@std/assert";
import { Errno } from "../../src/core/errno.ts";
import { ArrayMemory } from "../../src/memory/array_memory.ts";
import { Features, VIRTIO_F } from "../../src/virtio/features.ts";
import { createQueue } from "../../src/virtio/queue/mod.ts";
import { AVAIL, EVENT, USED, WRITE } from "./naive_packed_ring.ts";
import {
  BASE,
  DATA,
  LENGTH,
  type PackedFixture,
  packedFixture,
  TABLES,
  turnPackedRing,
} from "./ring_fixture.ts";

const PACKED = Features.of(VIRTIO_F.RING_PACKED);
const IN = { iova: DATA, length: 8 };
const OUT = { iova: DATA + 64, length: 8, write: true };

function text(value: string): Uint8Array {
  return new TextEncoder().encode(value);
}

/** Serves everything there is; returns the heads. */
function serve(at: PackedFixture, written = 0): number[] {
  const heads = [];
  while (at.queue.pop(at.chain) === 1) {
    heads.push(at.chain.head);
    at.queue.push(at.chain.head, written);
  }
  assertEquals(at.queue.lastError, "");
  return heads;
}

Deno.test("PackedRing.pop gives the buffers of a chain in order, known by the id in the last", () => {
  const { queue, ring, chain, memory } = packedFixture();
  memory.write(DATA, text("hello world"));
  const id = ring.add([
    { iova: DATA, length: 5 },
    { iova: DATA + 6, length: 5 },
    { iova: DATA + 0x100, length: 7, write: true },
    { iova: DATA + 0x200, length: 9, write: true },
  ]);
  assertEquals(queue.pop(chain), 1);
  assertEquals(chain.head, id);
  assertEquals(chain.readable.count, 2);
  assertEquals(memory.bytes(chain.readable.base(0), 5), text("hello"));
  assertEquals(memory.bytes(chain.readable.base(1), 5), text("world"));
  assertEquals(chain.writable.count, 2);
  assertEquals([chain.writable.length(0), chain.writable.length(1)], [7, 9]);
  assertEquals(queue.inFlight, 1);
  assertEquals(queue.pop(chain), 0);
});

Deno.test("PackedRing.pop finds nothing in a ring of zeros, nor where the marks are those of the other lap", () => {
  const { queue, ring, chain } = packedFixture();
  assertEquals(queue.pop(chain), 0);
  for (const flags of [0, USED, AVAIL | USED]) {
    ring.descriptor(0, { addr: DATA, len: 1, flags });
    assertEquals(queue.pop(chain), 0, `flags ${flags}`);
  }
  ring.descriptor(0, { addr: DATA, len: 1, flags: AVAIL });
  assertEquals(queue.pop(chain), 1);
});

Deno.test("PackedRing.pop takes a whole indirect table, longer than a batch, at any address", () => {
  const { queue, ring, chain } = packedFixture({ size: 200, maxSize: 256 });
  const buffers = Array.from(
    { length: 250 },
    (_, i) => ({ iova: DATA + i * 512, length: i + 1, write: i > 100 }),
  );
  ring.add(buffers, TABLES + 5);
  ring.add(buffers, TABLES + 0x8000);
  for (let round = 0; round < 2; round++) {
    assertEquals(queue.pop(chain), 1, queue.lastError);
    assertEquals(chain.readable.count, 101);
    assertEquals(chain.writable.count, 149);
    assertEquals(chain.writable.length(148), 250);
  }
});

Deno.test("PackedRing.pop ignores WRITE on a descriptor of a table, and every flag but WRITE in the table", () => {
  const { queue, ring, chain } = packedFixture();
  ring.descriptorAt(TABLES, { addr: DATA, len: 3, flags: 0xffff & ~WRITE });
  ring.descriptorAt(TABLES + 16, { addr: DATA, len: 4, flags: 0xffff });
  ring.offer([{ addr: TABLES, len: 32, id: 1, flags: 4 | WRITE }]);
  assertEquals(queue.pop(chain), 1, queue.lastError);
  assertEquals(chain.readable.lengthBytes, 3);
  assertEquals(chain.writable.lengthBytes, 4);
});

Deno.test("PackedRing.pop holds indirect chains to the size the device offers", () => {
  const at = packedFixture({ size: 4, maxSize: 16 });
  const buffers = Array.from({ length: 16 }, () => ({ iova: DATA, length: 1 }));
  at.ring.add(buffers, TABLES);
  assertEquals(at.queue.pop(at.chain), 1);
  at.ring.add([...buffers, IN], TABLES);
  assertEquals(at.queue.pop(at.chain), -Errno.ELOOP);
});

for (const size of [1, 2, 3, 4, 5, 7, 8]) {
  Deno.test(`PackedRing of ${size} goes round and round with chains of every length`, () => {
    const at = packedFixture({ size });
    for (let round = 0; round < 50; round++) {
      const length = round % size + 1;
      const id = at.ring.add(
        Array.from(
          { length },
          (_, i) => ({ iova: DATA + i * 16, length: 1 + i }),
        ),
      );
      assertEquals(at.queue.pop(at.chain), 1, at.queue.lastError);
      assertEquals(at.chain.head, id);
      assertEquals(at.chain.readable.lengthBytes, length * (length + 1) / 2);
      assertEquals(at.queue.pop(at.chain), 0);
      at.queue.push(id, 0);
      assert(at.queue.publish());
      assertEquals(at.ring.collect(), [{ id, len: 0, told: true }]);
      assertEquals(at.ring.free, size);
      assertEquals(at.ring.nextUsed, at.ring.next);
    }
  });
}

Deno.test("PackedRing works at the largest size", () => {
  const at = packedFixture({ size: 32768 });
  for (let lap = 0; lap < 2; lap++) {
    const ids = [];
    for (let i = 0; i < 32768; i++) ids.push(at.ring.add([IN]));
    assertEquals(serve(at).length, 32768);
    assert(at.queue.publish());
    assertEquals(at.ring.collect().map(({ id }) => id), ids);
  }
});

Deno.test("PackedRing.push and publish show used chains all at once, in the order they were pushed", () => {
  const { queue, ring, chain } = packedFixture();
  const ids = [];
  for (let i = 0; i < 3; i++) {
    ids.push(ring.add([OUT]));
    assertEquals(queue.pop(chain), 1);
  }
  queue.push(ids[2]!, 8);
  queue.push(ids[0]!, 0);
  assertEquals(ring.collect(), []);
  assert(queue.publish());
  assertEquals(ring.collect(), [
    { id: ids[2]!, len: 8, told: true },
    { id: ids[0]!, len: 0, told: true },
  ]);
  assert(!queue.publish(), "nothing to publish, nothing to interrupt for");
  assertEquals(queue.inFlight, 1);
});

Deno.test("PackedRing.publish sets WRITE in a used descriptor only when something was written", () => {
  const at = packedFixture();
  for (const written of [0, 5]) {
    at.ring.add([OUT]);
    const place = at.ring.nextUsed;
    serve(at, written);
    at.queue.publish();
    assertEquals(
      at.ring.read(place).flags,
      AVAIL | USED | (written > 0 ? WRITE : 0),
    );
    at.ring.collect();
  }
});

Deno.test("PackedRing.publish shows the first used descriptor last, and by Atomics", () => {
  const at = packedFixture();
  turnPackedRing(at, 6);
  const stores: string[] = [];
  const make = at.memory.window.bind(at.memory);
  at.memory.window = (iova, length, access) => {
    const window = make(iova, length, access);
    if (window === null || iova !== at.places.desc) return window;
    return new Proxy(window, {
      get: (target, name: keyof typeof window) => {
        const value = target[name];
        if (typeof value !== "function") return value;
        return (offset: number, ...rest: number[]) => {
          if (/^(set|store)/.test(name)) stores.push(`${name} ${offset}`);
          return (value as (...args: number[]) => number)
            .call(target, offset, ...rest);
        };
      },
    });
  };
  at.queue.suspend();
  at.queue.resume();
  for (let i = 0; i < 3; i++) at.ring.add([IN]);
  serve(at);
  at.queue.publish();
  assertEquals(stores.at(-1), `storeU16 ${6 * 16 + 14}`);
  assertEquals(stores.filter((it) => it.endsWith(` ${6 * 16 + 14}`)).length, 1);
  for (const index of [7, 0]) {
    const flags = stores.indexOf(`setU16 ${index * 16 + 14}`);
    assert(flags > stores.indexOf(`setU32 ${index * 16 + 8}`));
    assert(flags > stores.indexOf(`setU16 ${index * 16 + 12}`));
  }
});

Deno.test("PackedRing writes used descriptors over those of chains that are still in flight", () => {
  const at = packedFixture({ size: 4 });
  const long = at.ring.add([IN, IN, OUT]);
  const short = at.ring.add([OUT]);
  at.queue.pop(at.chain);
  at.queue.pop(at.chain);
  at.queue.push(short, 3);
  at.queue.publish();
  assertEquals(at.ring.collect(), [{ id: short, len: 3, told: true }]);
  // The place of the long chain's first descriptor is the driver's again.
  const again = at.ring.add([OUT]);
  assertEquals(at.queue.pop(at.chain), 1, at.queue.lastError);
  assertEquals(at.chain.head, again);
  at.queue.push(again, 1);
  at.queue.push(long, 2);
  at.queue.publish();
  assertEquals(at.ring.collect().map(({ len }) => len), [1, 2]);
  assertEquals(at.ring.free, 4);
});

Deno.test("PackedRing.push refuses a chain that the device does not hold", () => {
  const { queue, ring, chain } = packedFixture();
  const id = ring.add([IN]);
  for (const head of [id, 8, 9999]) {
    assertThrows(() => queue.push(head, 0), Error, `Cannot push chain ${head}`);
  }
  queue.pop(chain);
  queue.push(id, 0);
  assertThrows(() => queue.push(id, 0), Error, "Cannot push chain");
  assertThrows(() => queue.unpop(1), Error, "Cannot unpop");
});

Deno.test("PackedRing.unpop gives chains back in reverse order, across the end of the ring too", () => {
  for (const turned of [0, 3, 5, 6, 7]) {
    const at = packedFixture();
    turnPackedRing(at, turned);
    const ids = [[IN], [IN, OUT], [IN, IN, OUT]].map((it) => at.ring.add(it));
    for (let i = 0; i < 3; i++) assertEquals(at.queue.pop(at.chain), 1);
    at.queue.unpop(2);
    assertEquals(at.queue.inFlight, 1);
    // What the driver writes meanwhile to what it has given away does not count.
    for (const id of ids.slice(1)) {
      assertEquals(at.queue.pop(at.chain), 1, at.queue.lastError);
      assertEquals(at.chain.head, id);
    }
    assertEquals(at.queue.pop(at.chain), 0);
    at.queue.unpop(3);
    assertEquals(serve(at), ids);
    at.queue.publish();
    assertEquals(at.ring.collect().map(({ id }) => id), ids);
  }
});

Deno.test("PackedRing.enable checks size, alignment and range", () => {
  const queue = createQueue(new ArrayMemory(), 0, 256);
  const good = { size: 255, descIova: 0, availIova: 0x2000, usedIova: 0x2004 };
  assertEquals(queue.enable(PACKED, good), 0);
  assert(queue.enabled);
  assertEquals(queue.size, 255);
  const bad: [Partial<typeof good>, RegExp][] = [
    [{ size: 0 }, /queue size 0/],
    [{ size: 257 }, /queue size 257/],
    [{ size: 1.5 }, /queue size 1.5/],
    [{ descIova: 8 }, /descriptor ring at 0x8 is not aligned to 16/],
    [{ availIova: 0x2002 }, /driver event suppression .* not aligned to 4/],
    [{ usedIova: 0x2002 }, /device event suppression .* not aligned to 4/],
    [{ descIova: 2 ** 64 - 2048 }, /descriptor ring .* ends above/],
    [{ availIova: 2 ** 53 - 4 }, /driver event suppression .* ends above/],
    [{ usedIova: 2 ** 53 - 4 }, /device event suppression .* ends above/],
  ];
  for (const [change, message] of bad) {
    assertEquals(queue.enable(PACKED, { ...good, ...change }), -Errno.EINVAL);
    assert(message.test(queue.lastError), queue.lastError);
    assert(!queue.enabled);
  }
  for (const size of [0, 32769, -1, 2.5]) {
    assertThrows(() => createQueue(new ArrayMemory(), 0, size), RangeError);
  }
});

Deno.test("PackedRing.enable touches nothing, so that a driver may zero the ring afterwards", () => {
  const at = packedFixture();
  new Uint8Array(at.buffer).fill(0xff);
  at.queue.enable(at.features, {
    size: 8,
    descIova: at.places.desc,
    availIova: at.places.driver,
    usedIova: at.places.device,
  });
  assert(new Uint8Array(at.buffer).every((byte) => byte === 0xff));
  new Uint8Array(at.buffer).fill(0);
  at.ring.add([IN]);
  assertEquals(at.queue.pop(at.chain), 1);
});

Deno.test("PackedRing begins anew, wrap counters too, when it is enabled again", () => {
  const at = packedFixture();
  turnPackedRing(at, 11);
  at.ring.add([IN]);
  at.queue.pop(at.chain);
  new Uint8Array(at.buffer).fill(0);
  at.queue.enable(at.features, {
    size: 8,
    descIova: at.places.desc,
    availIova: at.places.driver,
    usedIova: at.places.device,
  });
  at.ring.next = 0;
  at.ring.offer([{ addr: DATA, len: 1, id: 6 }]);
  assertEquals(at.queue.pop(at.chain), 1);
  at.queue.push(6, 0);
  at.queue.publish();
  assertEquals([at.ring.read(0).id, at.ring.read(0).flags], [6, AVAIL | USED]);
});

Deno.test("PackedRing.disable forgets everything, and late completions are ignored", () => {
  const { queue, ring, chain } = packedFixture();
  const id = ring.add([OUT]);
  queue.pop(chain);
  queue.disable();
  queue.push(id, 8);
  queue.unpop(1);
  assert(!queue.publish());
  assert(!queue.enableNotifications());
  queue.disableNotifications();
  assert(!queue.poll());
  assert(!queue.hasTaken(0x8000));
  assertEquals(queue.pop(chain), 0);
  assertEquals([queue.size, queue.inFlight, queue.enabled], [0, 0, false]);
  assertEquals(ring.collect(), []);
  assertEquals(ring.deviceEvent, [0, 0]);
});

Deno.test("PackedRing finds nothing while its ring is not mapped, and goes on when it is again", () => {
  const { queue, ring, chain, memory, buffer } = packedFixture();
  const first = ring.add([OUT]);
  const second = ring.add([OUT]);
  assertEquals(queue.pop(chain), 1);
  assertEquals(queue.pop(chain), 1);
  queue.push(first, 1);
  memory.unmap(BASE, LENGTH);
  assert(!queue.resolved);
  ring.add([OUT]);
  assertEquals(queue.pop(chain), 0);
  queue.push(second, 2);
  assert(!queue.publish(), "an unreachable driver needs no interrupt");
  queue.disableNotifications();
  assert(!queue.enableNotifications());
  assert(!queue.poll());
  assertEquals(ring.collect(), []);
  memory.map({ iova: BASE, lengthBytes: LENGTH, buffer });
  assertEquals(queue.pop(chain), 1);
  queue.push(chain.head, 3);
  assert(queue.publish());
  assertEquals(ring.collect().map((it) => it.len), [1, 2, 3]);
});

Deno.test("PackedRing needs to read and write its ring, read one event structure and write the other", () => {
  const at = packedFixture();
  at.memory.unmap(BASE, LENGTH);
  const part = (iova: number, access: number) => ({
    iova: iova - iova % 0x1000,
    lengthBytes: 0x1000,
    access,
    buffer: at.buffer.slice(
      iova - iova % 0x1000 - BASE,
      iova - iova % 0x1000 - BASE + 0x1000,
    ),
  });
  const cases = [
    [3, 1, 2, true],
    [1, 1, 2, false],
    [2, 1, 2, false],
    [3, 2, 2, false],
    [3, 1, 1, false],
  ] as const;
  for (const [desc, driver, device, good] of cases) {
    at.memory.map(part(at.places.desc, desc));
    at.memory.map(part(at.places.driver, driver));
    at.memory.map(part(at.places.device, device));
    at.queue.enableNotifications();
    assertEquals(at.queue.resolved, good, `${desc} ${driver} ${device}`);
    at.memory.unmapAll();
  }
});

Deno.test("PackedRing.suspend keeps completions until resume", () => {
  const { queue, ring, chain } = packedFixture();
  const id = ring.add([OUT]);
  ring.add([OUT]);
  queue.pop(chain);
  queue.suspend();
  assertEquals(queue.pop(chain), 0);
  queue.push(id, 5);
  assert(!queue.publish());
  assertEquals(ring.collect(), []);
  queue.resume();
  assert(queue.publish());
  assertEquals(ring.collect(), [{ id, len: 5, told: true }]);
  assertEquals(queue.pop(chain), 1);
});

Deno.test("PackedRing.publish obeys ENABLE and DISABLE, and takes what must not be there for ENABLE", () => {
  for (const eventIdx of [false, true]) {
    const at = packedFixture({ eventIdx });
    const cases = [
      [EVENT.ENABLE, true],
      [EVENT.DISABLE, false],
      // Only valid with EVENT_IDX; the event lies far away.
      [EVENT.DESC, !eventIdx],
      [3, true],
      // Bits 2 to 15 are reserved.
      [0xfffc | EVENT.DISABLE, false],
    ] as const;
    for (const [flags, wanted] of cases) {
      at.ring.driverEvent(flags, 0x7fff);
      at.ring.add([IN]);
      serve(at);
      assertEquals(at.queue.publish(), wanted, `flags ${flags}, ${eventIdx}`);
      at.ring.collect();
    }
  }
});

Deno.test("PackedRing.publish obeys DESC with EVENT_IDX, whatever the lap and the batch", () => {
  for (const size of [5, 8]) {
    for (let start = 0; start < 2 * size; start++) {
      for (const batch of [1, 2, size]) {
        for (let offset = -size; offset < size; offset++) {
          const at = packedFixture({ size, eventIdx: true });
          turnPackedRing(at, start);
          // The n-th descriptor ever; what lies before the first is as good as two laps on.
          const n = (start + offset + 2 * size) % (2 * size);
          at.ring.driverEvent(EVENT.DESC, at.ring.offWrap(n));
          for (let i = 0; i < batch; i++) at.ring.add([IN]);
          assertEquals(serve(at).length, batch);
          assertEquals(
            at.queue.publish(),
            offset >= 0 && offset < batch,
            `size ${size}, from ${start}, batch ${batch}, event ${offset}`,
          );
        }
      }
    }
  }
});

Deno.test("PackedRing.publish counts every descriptor of a chain, not only where the used one is written", () => {
  const cases = [[0, true], [1, true], [2, true], [3, false]] as const;
  for (const [event, wanted] of cases) {
    const at = packedFixture({ eventIdx: true });
    at.ring.driverEvent(EVENT.DESC, at.ring.offWrap(event));
    at.ring.add([IN, IN, OUT]);
    serve(at);
    assertEquals(at.queue.publish(), wanted, `event ${event}`);
  }
});

Deno.test("PackedRing.disableNotifications and enableNotifications set the flags without EVENT_IDX", () => {
  const { queue, ring, chain } = packedFixture();
  queue.disableNotifications();
  assertEquals(ring.deviceEvent, [EVENT.DISABLE, 0]);
  assert(!queue.enableNotifications());
  assertEquals(ring.deviceEvent, [EVENT.ENABLE, 0]);
  queue.disableNotifications();
  ring.add([IN]);
  assert(queue.enableNotifications(), "a chain came in meanwhile");
  assertEquals(queue.pop(chain), 1);
  assert(!queue.enableNotifications());
});

Deno.test("PackedRing.enableNotifications names the next descriptor with EVENT_IDX, wrap included", () => {
  const at = packedFixture({ size: 5, eventIdx: true });
  at.queue.disableNotifications();
  assertEquals(at.ring.deviceEvent, [EVENT.DISABLE, 0]);
  for (let n = 0; n < 12; n++) {
    assert(!at.queue.enableNotifications());
    assertEquals(at.ring.deviceEvent, [EVENT.DESC, at.ring.offWrap(n)]);
    at.queue.disableNotifications();
    assertEquals(at.ring.deviceEvent, [EVENT.DESC, at.ring.offWrap(n)]);
    turnPackedRing(at, 1);
  }
  at.ring.add([IN]);
  assert(at.queue.enableNotifications());
});

Deno.test("PackedRing that is polled never asks for a notification", () => {
  for (const eventIdx of [false, true]) {
    const { queue, ring, chain } = packedFixture({ polled: true, eventIdx });
    queue.disableNotifications();
    assert(!queue.enableNotifications());
    assertEquals(ring.deviceEvent, [EVENT.DISABLE, 0]);
    ring.add([IN]);
    assert(queue.enableNotifications());
    assertEquals(queue.pop(chain), 1);
  }
});

Deno.test("PackedRing.endPolling asks for what the device wants, and tells what came in meanwhile", () => {
  for (const eventIdx of [false, true]) {
    const { queue, ring, chain } = packedFixture({ eventIdx });
    queue.beginPolling();
    queue.disableNotifications();
    assert(!queue.enableNotifications());
    assertEquals(ring.deviceEvent[0], EVENT.DISABLE);
    assert(!queue.endPolling());
    assert(ring.deviceEvent[0] !== EVENT.DISABLE);
    queue.beginPolling();
    ring.add([IN]);
    assert(queue.endPolling(), "came in while nobody had looked");
    assertEquals(queue.pop(chain), 1);
    queue.disableNotifications();
    queue.beginPolling();
    ring.add([IN]);
    assert(!queue.endPolling(), "the device does not want to be told");
  }
});

Deno.test("PackedRing.endPolling asks for what comes behind chains that the device leaves in the ring", () => {
  const { queue, ring, chain } = packedFixture({ eventIdx: true });
  queue.beginPolling();
  ring.add([IN]);
  assert(queue.poll());
  assertEquals(queue.pop(chain), 1);
  queue.unpop(1);
  assert(queue.poll() || queue.enableNotifications());
  assert(!queue.endPolling(), "nothing came in since it was looked at");
  const [flags, offset] = ring.deviceEvent;
  assertEquals([flags, offset! & 0x7fff], [EVENT.DESC, 1]);
});

Deno.test("PackedRing.poll tells new chains from those left in the ring", () => {
  for (const turned of [0, 6, 7]) {
    const at = packedFixture();
    const { queue, ring, chain } = at;
    turnPackedRing(at, turned);
    assert(!queue.poll());
    ring.add([IN, OUT]);
    ring.add([IN]);
    assert(queue.poll());
    assert(!queue.poll(), "known already, though nothing was popped");
    assertEquals(queue.pop(chain), 1);
    assert(!queue.poll());
    queue.unpop(1);
    assert(!queue.poll(), "it was given back, not new");
    assertEquals(queue.pop(chain), 1);
    ring.add([IN]);
    assertEquals(queue.pop(chain), 1);
    assert(queue.poll());
    queue.suspend();
    ring.add([IN]);
    assert(!queue.poll());
  }
});

Deno.test("PackedRing.hasTaken compares a notification with what was popped", () => {
  const at = packedFixture({ size: 5 });
  for (let n = 0; n < 12; n++) {
    assert(at.queue.hasTaken(at.ring.offWrap(n)));
    at.ring.add([IN]);
    assert(!at.queue.hasTaken(at.ring.offWrap(n + 1)));
    assertEquals(at.queue.pop(at.chain), 1);
    assert(at.queue.hasTaken(at.ring.offWrap(n + 1)));
    at.queue.unpop(1);
    assert(!at.queue.hasTaken(at.ring.offWrap(n + 1)));
    serve(at);
    at.queue.publish();
    at.ring.collect();
  }
});
