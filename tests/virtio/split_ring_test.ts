import { assert, assertEquals, assertThrows } from "@std/assert";
import { Errno } from "../../src/core/errno.ts";
import { Features, VIRTIO_F } from "../../src/virtio/features.ts";
import { createQueue } from "../../src/virtio/queue/mod.ts";
import { needsEvent } from "../../src/virtio/queue/split_ring.ts";
import { ArrayMemory } from "../../src/memory/array_memory.ts";
import {
  BASE,
  DATA,
  fixture,
  LENGTH,
  TABLES,
  turnRing,
} from "./ring_fixture.ts";
import { NEXT } from "./naive_ring.ts";

const NONE = new Features(0, 0);

function text(value: string): Uint8Array {
  return new TextEncoder().encode(value);
}

Deno.test("SplitRing.pop gives the buffers of a chain in order", () => {
  const { queue, ring, chain, memory } = fixture();
  memory.write(DATA, text("hello world"));
  const head = ring.add([
    { iova: DATA, length: 5 },
    { iova: DATA + 6, length: 5 },
    { iova: DATA + 0x100, length: 7, write: true },
    { iova: DATA + 0x200, length: 9, write: true },
  ]);
  assertEquals(queue.pop(chain), 1);
  assertEquals(chain.head, head);
  assertEquals(chain.readable.count, 2);
  assertEquals(chain.readable.lengthBytes, 10);
  assertEquals(memory.bytes(chain.readable.base(0), 5), text("hello"));
  assertEquals(memory.bytes(chain.readable.base(1), 5), text("world"));
  assertEquals(chain.writable.count, 2);
  assertEquals(chain.writable.length(0), 7);
  assertEquals(chain.writable.length(1), 9);
  assertEquals(queue.inFlight, 1);
  assertEquals(queue.pop(chain), 0);
});

Deno.test("SplitRing.pop reads an indirect table behind direct descriptors", () => {
  const { queue, ring, chain, memory } = fixture();
  memory.write(DATA, text("abc"));
  ring.descriptor(2, { addr: DATA, len: 1, flags: NEXT, next: 5 });
  // WRITE on the descriptor that refers to the table must be ignored (2.7.5.3.2).
  ring.descriptor(5, { addr: TABLES + 3, len: 48, flags: 4 | 2 });
  ring.descriptorAt(TABLES + 3, {
    addr: DATA + 1,
    len: 1,
    flags: NEXT,
    next: 2,
  });
  ring.descriptorAt(TABLES + 35, { addr: DATA + 16, len: 4, flags: 2 });
  ring.offer(2);
  assertEquals(queue.pop(chain), 1, queue.lastError);
  assertEquals(chain.head, 2);
  assertEquals(chain.readable.lengthBytes, 2);
  assertEquals(chain.writable.lengthBytes, 4);
});

Deno.test("SplitRing.pop follows an indirect table longer than one batch", () => {
  const { queue, ring, chain } = fixture({ size: 256 });
  const buffers = Array.from(
    { length: 200 },
    (_, i) => ({ iova: DATA + i * 512, length: i + 1, write: i > 100 }),
  );
  // Unaligned, so that the words are put together from bytes.
  ring.add(buffers, TABLES + 5);
  ring.add(buffers, TABLES + 0x8000);
  for (let round = 0; round < 2; round++) {
    assertEquals(queue.pop(chain), 1, queue.lastError);
    assertEquals(chain.readable.count, 101);
    assertEquals(chain.writable.count, 99);
    assertEquals(chain.readable.lengthBytes, 101 * 102 / 2);
    assertEquals(chain.writable.length(98), 200);
  }
});

Deno.test("SplitRing.pop accepts a chain as long as the queue, and not longer", () => {
  const at = fixture({ size: 4 });
  at.ring.add(Array.from({ length: 4 }, () => ({ iova: DATA, length: 1 })));
  assertEquals(at.queue.pop(at.chain), 1);
  assertEquals(at.chain.readable.lengthBytes, 4);
});

Deno.test("SplitRing.pop holds indirect chains to the size the device offers", () => {
  const at = fixture({ size: 4, maxSize: 16 });
  const buffers = Array.from({ length: 16 }, () => ({ iova: DATA, length: 1 }));
  at.ring.add(buffers, TABLES);
  assertEquals(at.queue.pop(at.chain), 1);
  at.ring.add([...buffers, { iova: DATA, length: 1 }], TABLES);
  assertEquals(at.queue.pop(at.chain), -Errno.ELOOP);
});

Deno.test("SplitRing.pop takes empty buffers for what they are", () => {
  const { queue, ring, chain } = fixture();
  ring.add([
    { iova: 0xdead_0000_0000, length: 0 },
    { iova: DATA, length: 3, write: true },
    { iova: 0, length: 0, write: true },
  ]);
  assertEquals(queue.pop(chain), 1);
  assertEquals(chain.readable.count, 0);
  assertEquals(chain.writable.lengthBytes, 3);
});

Deno.test("SplitRing.push and publish show used chains all at once", () => {
  const { queue, ring, chain } = fixture();
  const heads = [];
  for (let i = 0; i < 3; i++) {
    heads.push(ring.add([{ iova: DATA, length: 8, write: true }]));
    assertEquals(queue.pop(chain), 1);
  }
  queue.push(heads[2]!, 8);
  queue.push(heads[0]!, 0);
  assertEquals(ring.usedIdx, 0);
  assert(queue.publish());
  assertEquals(ring.collect(), [
    { id: heads[2]!, len: 8 },
    { id: heads[0]!, len: 0 },
  ]);
  assert(!queue.publish(), "nothing to publish, nothing to interrupt for");
  assertEquals(queue.inFlight, 1);
});

Deno.test("SplitRing.push refuses a chain that the device does not hold", () => {
  const { queue, ring, chain } = fixture();
  const head = ring.add([{ iova: DATA, length: 8 }]);
  assertThrows(() => queue.push(head, 0), Error, "Cannot push chain");
  queue.pop(chain);
  queue.push(head, 0);
  assertThrows(() => queue.push(head, 0), Error, "Cannot push chain");
});

Deno.test("SplitRing.unpop gives chains back in reverse order", () => {
  const { queue, ring, chain } = fixture();
  const heads = [0, 1, 2].map(() => ring.add([{ iova: DATA, length: 8 }]));
  for (let i = 0; i < 3; i++) queue.pop(chain);
  queue.unpop(2);
  assertEquals(queue.inFlight, 1);
  assertEquals(queue.pop(chain), 1);
  assertEquals(chain.head, heads[1]);
  assertEquals(queue.pop(chain), 1);
  assertEquals(chain.head, heads[2]);
  assertEquals(queue.pop(chain), 0);
  for (const head of heads) queue.push(head, 0);
  queue.publish();
  assertEquals(ring.usedIdx, 3);
});

Deno.test("SplitRing.unpop ignores what the driver did to the available ring meanwhile", () => {
  const { queue, ring, chain } = fixture();
  const head = ring.add([{ iova: DATA, length: 8 }]);
  queue.pop(chain);
  ring.view.setUint16(ring.places.avail + 4 - BASE, 7, true);
  queue.unpop(1);
  assertEquals(queue.inFlight, 0);
  assertThrows(() => queue.push(head, 0), Error, "Cannot push");
});

Deno.test("SplitRing goes on from index 65535 to 0", () => {
  const at = fixture({ size: 16 });
  turnRing(at, 65530);
  assertEquals(at.ring.usedIdx, 65530);
  for (let round = 0; round < 3; round++) {
    const heads = [];
    for (let i = 0; i < 9; i++) {
      heads.push(at.ring.add([{ iova: DATA + i, length: 1 }]));
    }
    for (const head of heads) {
      assertEquals(at.queue.pop(at.chain), 1);
      assertEquals(at.chain.head, head);
    }
    at.queue.unpop(5);
    for (let i = 0; i < 5; i++) assertEquals(at.queue.pop(at.chain), 1);
    assertEquals(at.queue.pop(at.chain), 0);
    for (const head of heads) at.queue.push(head, 0);
    at.queue.publish();
    assertEquals(at.ring.collect().map((it) => it.id), heads);
  }
  assertEquals(at.ring.usedIdx, (65530 + 27) & 0xffff);
});

Deno.test("SplitRing works at the largest size", () => {
  const at = fixture({ size: 32768 });
  const heads = [];
  for (let i = 0; i < 32768; i++) {
    heads.push(at.ring.add([{ iova: DATA, length: 1 }]));
  }
  for (const head of heads) {
    assertEquals(at.queue.pop(at.chain), 1);
    assertEquals(at.chain.head, head);
    at.queue.push(head, 0);
  }
  assert(at.queue.publish());
  assertEquals(at.ring.usedIdx, 32768);
});

Deno.test("SplitRing.enable checks size, alignment and range", () => {
  const queue = createQueue(new ArrayMemory(), 0, 256);
  const good = { size: 256, descIova: 0, availIova: 0x2000, usedIova: 0x4000 };
  assertEquals(queue.enable(NONE, good), 0);
  assert(queue.enabled);
  assertEquals(queue.size, 256);
  const bad: [Partial<typeof good>, RegExp][] = [
    [{ size: 0 }, /queue size 0/],
    [{ size: 3 }, /queue size 3/],
    [{ size: 512 }, /queue size 512/],
    [{ size: 1.5 }, /queue size 1.5/],
    [{ descIova: 8 }, /descriptor table at 0x8 is not aligned to 16/],
    [{ availIova: 0x2001 }, /available ring at 0x2001 is not aligned to 2/],
    [{ usedIova: 0x4002 }, /used ring at 0x4002 is not aligned to 4/],
    [{ descIova: 2 ** 64 - 2048 }, /descriptor table .* ends above/],
    [{ availIova: 2 ** 53 - 2 }, /available ring .* ends above/],
    [{ usedIova: 2 ** 53 - 2052 }, /used ring .* ends above/],
  ];
  for (const [change, message] of bad) {
    assertEquals(queue.enable(NONE, { ...good, ...change }), -Errno.EINVAL);
    assert(message.test(queue.lastError), queue.lastError);
    assert(!queue.enabled);
  }
});

Deno.test("SplitRing.enable touches nothing, so that a driver may zero the ring afterwards", () => {
  const at = fixture();
  new Uint8Array(at.buffer).fill(0xff);
  at.queue.enable(at.features, {
    size: 8,
    descIova: at.places.desc,
    availIova: at.places.avail,
    usedIova: at.places.used,
  });
  assert(new Uint8Array(at.buffer).every((byte) => byte === 0xff));
  new Uint8Array(at.buffer).fill(0);
  at.ring.add([{ iova: DATA, length: 1 }]);
  assertEquals(at.queue.pop(at.chain), 1);
});

Deno.test("SplitRing without EVENT_IDX does not need the event words to be mapped", () => {
  const memory = new ArrayMemory([]);
  // Exactly as long as each part is without its event word.
  memory.map({ iova: 0x1000, lengthBytes: 16 * 4 });
  memory.map({ iova: 0x2000, lengthBytes: 4 + 2 * 4 });
  memory.map({ iova: 0x3000, lengthBytes: 4 + 8 * 4 });
  const at = { size: 4, descIova: 0x1000, availIova: 0x2000, usedIova: 0x3000 };
  const queue = createQueue(memory, 0, 4);
  queue.enable(NONE, at);
  queue.enableNotifications();
  assert(queue.resolved);
  queue.enable(Features.of(VIRTIO_F.RING_EVENT_IDX), at);
  queue.enableNotifications();
  assert(!queue.resolved);
});

Deno.test("SplitRing.disable forgets everything, and late completions are ignored", () => {
  const { queue, ring, chain } = fixture();
  const head = ring.add([{ iova: DATA, length: 8 }]);
  queue.pop(chain);
  queue.disable();
  queue.push(head, 8);
  queue.unpop(1);
  assert(!queue.publish());
  assert(!queue.enableNotifications());
  queue.disableNotifications();
  assertEquals(queue.pop(chain), 0);
  assertEquals(queue.size, 0);
  assertEquals(ring.usedIdx, 0);
  assertEquals(ring.usedFlags, 0);
});

Deno.test("SplitRing finds nothing while its ring is not mapped, and goes on when it is again", () => {
  const { queue, ring, chain, memory, buffer } = fixture();
  const first = ring.add([{ iova: DATA, length: 8, write: true }]);
  const second = ring.add([{ iova: DATA, length: 8, write: true }]);
  assertEquals(queue.pop(chain), 1);
  assertEquals(queue.pop(chain), 1);
  queue.push(first, 1);
  memory.unmap(BASE, LENGTH);
  assert(!queue.resolved);
  ring.add([{ iova: DATA, length: 8, write: true }]);
  assertEquals(queue.pop(chain), 0);
  queue.push(second, 2);
  assert(!queue.publish(), "an unreachable driver needs no interrupt");
  queue.disableNotifications();
  assert(!queue.enableNotifications());
  assertEquals(ring.usedIdx, 0);
  memory.map({ iova: BASE, lengthBytes: LENGTH, buffer });
  assertEquals(queue.pop(chain), 1);
  queue.push(chain.head, 3);
  assert(queue.publish());
  assertEquals(ring.collect().map((it) => it.len), [1, 2, 3]);
});

Deno.test("SplitRing enabled before its ring is mapped waits for it", () => {
  const memory = new ArrayMemory([]);
  const other = fixture();
  const queue = createQueue(memory, 0, 8);
  assertEquals(
    queue.enable(other.features, {
      size: 8,
      descIova: other.places.desc,
      availIova: other.places.avail,
      usedIova: other.places.used,
    }),
    0,
  );
  assertEquals(queue.pop(other.chain), 0);
  other.ring.add([{ iova: DATA, length: 4 }]);
  memory.map({ iova: BASE, lengthBytes: LENGTH, buffer: other.buffer });
  assertEquals(queue.pop(other.chain), 1);
});

Deno.test("SplitRing needs read access to what it reads and write access to what it writes", () => {
  const at = fixture();
  for (const access of [1, 2]) {
    at.memory.unmap(BASE, LENGTH);
    at.memory.map({
      iova: BASE,
      lengthBytes: LENGTH,
      buffer: at.buffer,
      access,
    });
    at.queue.enableNotifications();
    assert(!at.queue.resolved, `with access ${access}`);
  }
});

Deno.test("SplitRing.suspend keeps completions until resume", () => {
  const { queue, ring, chain } = fixture();
  const head = ring.add([{ iova: DATA, length: 8, write: true }]);
  ring.add([{ iova: DATA, length: 8, write: true }]);
  queue.pop(chain);
  queue.suspend();
  assertEquals(queue.pop(chain), 0);
  queue.push(head, 5);
  assert(!queue.publish());
  assertEquals(ring.usedIdx, 0);
  queue.resume();
  assert(queue.publish());
  assertEquals(ring.collect(), [{ id: head, len: 5 }]);
  assertEquals(queue.pop(chain), 1);
});

Deno.test("needsEvent is true when the event lies in the interval, wrap included", () => {
  for (const before of [0, 1, 100, 65530, 65535]) {
    for (const added of [1, 2, 5, 256, 32768]) {
      const after = (before + added) & 0xffff;
      for (let i = -3; i < added + 3; i += added > 100 ? 97 : 1) {
        const event = (before + i) & 0xffff;
        assertEquals(
          needsEvent(event, after, before),
          i >= 0 && i < added,
          `event ${event}, from ${before} to ${after}`,
        );
      }
    }
  }
});

Deno.test("SplitRing.publish obeys NO_INTERRUPT without EVENT_IDX", () => {
  const { queue, ring, chain } = fixture();
  // used_event must be ignored (2.7.7.2).
  ring.usedEvent = 100;
  for (const [flags, wanted] of [[0, true], [1, false], [0, true]] as const) {
    ring.availFlags = flags;
    ring.add([{ iova: DATA, length: 1 }]);
    queue.pop(chain);
    queue.push(chain.head, 0);
    assertEquals(queue.publish(), wanted);
  }
});

Deno.test("SplitRing.publish obeys used_event with EVENT_IDX, wrap included", () => {
  const at = fixture({ size: 16, eventIdx: true });
  // The flag must be ignored (2.7.7.2).
  at.ring.availFlags = 1;
  let index = 0;
  for (const start of [0, 65533]) {
    turnRing(at, start - index);
    index = start;
    for (const batch of [1, 3, 7]) {
      for (let offset = -1; offset <= batch; offset++) {
        at.ring.usedEvent = (index + offset) & 0xffff;
        for (let i = 0; i < batch; i++) {
          at.ring.add([{ iova: DATA, length: 1 }]);
          at.queue.pop(at.chain);
          at.queue.push(at.chain.head, 0);
        }
        assertEquals(at.queue.publish(), offset >= 0 && offset < batch);
        at.ring.collect();
        index = (index + batch) & 0xffff;
      }
    }
  }
});

Deno.test("SplitRing.disableNotifications and enableNotifications set the flag without EVENT_IDX", () => {
  const { queue, ring, chain } = fixture();
  ring.availEvent = 0x1234;
  queue.disableNotifications();
  assertEquals(ring.usedFlags, 1);
  queue.disableNotifications();
  assert(!queue.enableNotifications());
  assertEquals(ring.usedFlags, 0);
  ring.add([{ iova: DATA, length: 1 }]);
  assert(queue.enableNotifications(), "a chain came in meanwhile");
  assertEquals(queue.pop(chain), 1);
  assert(!queue.enableNotifications());
  assertEquals(ring.availEvent, 0x1234);
});

Deno.test("SplitRing.enableNotifications sets avail_event with EVENT_IDX, wrap included", () => {
  const at = fixture({ size: 16, eventIdx: true });
  turnRing(at, 65534);
  for (let i = 0; i < 4; i++) {
    const index = (65534 + i) & 0xffff;
    at.queue.disableNotifications();
    assertEquals(at.ring.usedFlags, 0);
    assert(!at.queue.enableNotifications());
    assertEquals(at.ring.availEvent, index);
    turnRing(at, 1);
    assertEquals(at.ring.availEvent, index);
  }
  at.ring.add([{ iova: DATA, length: 1 }]);
  assert(at.queue.enableNotifications());
});

Deno.test("SplitRing that is polled never asks for a notification", () => {
  for (const eventIdx of [false, true]) {
    const { queue, ring, chain } = fixture({ polled: true, eventIdx });
    ring.availEvent = 0x4321;
    queue.disableNotifications();
    assert(!queue.enableNotifications());
    assertEquals(ring.usedFlags, eventIdx ? 0 : 1);
    assertEquals(ring.availEvent, 0x4321);
    ring.add([{ iova: DATA, length: 1 }]);
    assert(queue.enableNotifications());
    assertEquals(queue.pop(chain), 1);
  }
});

Deno.test("SplitRing.endPolling asks for what the device wants, and tells what came in meanwhile", () => {
  for (const eventIdx of [false, true]) {
    const { queue, ring, chain } = fixture({ eventIdx });
    ring.availEvent = 0x4321;
    queue.beginPolling();
    queue.disableNotifications();
    assert(!queue.enableNotifications());
    assertEquals(ring.availEvent, 0x4321);
    assert(!queue.endPolling());
    assertEquals([ring.usedFlags, ring.availEvent], [0, eventIdx ? 0 : 0x4321]);
    queue.beginPolling();
    ring.add([{ iova: DATA, length: 1 }]);
    assert(queue.endPolling(), "came in while nobody had looked");
    assertEquals(queue.pop(chain), 1);
    // A device that does not want to be told is not.
    queue.disableNotifications();
    queue.beginPolling();
    ring.availEvent = 0x4321;
    ring.add([{ iova: DATA, length: 1 }]);
    assert(!queue.endPolling());
    assertEquals(ring.availEvent, 0x4321);
  }
});

Deno.test("SplitRing.endPolling asks for what comes behind chains that the device leaves in the ring", () => {
  const { queue, ring, chain } = fixture({ eventIdx: true });
  queue.beginPolling();
  ring.add([{ iova: DATA, length: 1 }]);
  assert(queue.poll());
  assertEquals(queue.pop(chain), 1);
  queue.unpop(1);
  assert(queue.enableNotifications());
  assert(!queue.endPolling(), "nothing came in since it was looked at");
  // A driver compares its next index with this: 0 it has passed already.
  assertEquals(ring.availEvent, 1);
});

Deno.test("SplitRing.poll tells new chains from those left in the ring", () => {
  const { queue, ring, chain } = fixture();
  assert(!queue.poll());
  ring.add([{ iova: DATA, length: 1 }]);
  ring.add([{ iova: DATA, length: 1 }]);
  assert(queue.poll());
  assert(!queue.poll(), "known already, though nothing was popped");
  assertEquals(queue.pop(chain), 1);
  assert(!queue.poll());
  ring.add([{ iova: DATA, length: 1 }]);
  assertEquals(queue.pop(chain), 1);
  assert(queue.poll());
  queue.suspend();
  ring.add([{ iova: DATA, length: 1 }]);
  assert(!queue.poll());
});
