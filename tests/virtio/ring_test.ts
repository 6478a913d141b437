import { assert, assertEquals, assertThrows } from "@std/assert";
import { Access } from "../../src/memory/guest_memory.ts";
import { ArrayMemory } from "../../src/memory/array_memory.ts";
import { Features, VIRTIO_F } from "../../src/virtio/features.ts";
import { Chain } from "../../src/virtio/queue/queue.ts";
import { createQueue } from "../../src/virtio/queue/mod.ts";
import type { Ring } from "../../src/virtio/queue/ring.ts";

const EINVAL = 22;
const PAGE = 0x1000;
const DESC = 0x10_0000;
const DRIVER = 0x20_0000;
const DEVICE = 0x30_0000;
const AT = { size: 8, descIova: DESC, availIova: DRIVER, usedIova: DEVICE };
const PLAIN = Features.of(VIRTIO_F.VERSION_1);
const FORMATS = {
  split: PLAIN,
  packed: Features.of(VIRTIO_F.VERSION_1, VIRTIO_F.RING_PACKED),
} as const;
/** Access to each part that the device must have. */
const RIGHTS = {
  split: [Access.READ, Access.READ, Access.WRITE],
  packed: [Access.READ | Access.WRITE, Access.READ, Access.WRITE],
} as const;
type Format = keyof typeof FORMATS;

/** A page for each part, with the rights that a driver must give at least. */
function ram(format: Format = "split"): ArrayMemory {
  return new ArrayMemory(
    [DESC, DRIVER, DEVICE].map((iova, i) => ({
      iova,
      lengthBytes: PAGE,
      access: RIGHTS[format][i]!,
    })),
  );
}

/** The driver's area of {@linkcode ram}, where the available index is. */
function driverArea(memory: ArrayMemory): Uint16Array {
  memory.unmap(DRIVER, PAGE);
  const buffer = memory.map({ iova: DRIVER, lengthBytes: PAGE });
  return new Uint16Array(buffer);
}

function core(memory: ArrayMemory): Ring {
  return createQueue(memory, 3, 8);
}

for (const format of ["split", "packed"] as const) {
  Deno.test(`Ring finds a ${format} ring when it is mapped, and again after a change`, () => {
    const memory = ram(format);
    const queue = core(memory);
    assert(!queue.ready() && !queue.enabled);
    assertEquals(queue.enable(FORMATS[format], AT), 0);
    assert(queue.enabled && !queue.resolved, "the ring is not touched yet");
    assert(queue.ready() && queue.resolved);
    const { desc } = queue;
    assert(queue.ready());
    assertEquals(queue.desc, desc, "it is looked for once");
    memory.unmap(DRIVER, PAGE);
    assert(!queue.resolved && !queue.ready());
    assertEquals(queue.desc.lengthBytes, 0, "nothing of it is kept");
    memory.map({ iova: DRIVER, lengthBytes: PAGE });
    assert(queue.ready() && queue.resolved);
  });

  Deno.test(`Ring needs a ${format} ring with the rights that the device uses`, () => {
    for (const [i, access] of RIGHTS[format].entries()) {
      const iova = [DESC, DRIVER, DEVICE][i]!;
      const memory = ram(format);
      const queue = core(memory);
      assertEquals(queue.enable(FORMATS[format], AT), 0);
      memory.unmap(iova, PAGE);
      // All but one of the rights that are needed.
      const lessened = access & ~(access & -access);
      const others = ~access & (Access.READ | Access.WRITE);
      memory.map({ iova, lengthBytes: PAGE, access: lessened | others });
      assert(!queue.ready());
      memory.unmap(iova, PAGE);
      memory.map({ iova, lengthBytes: PAGE, access });
      assert(queue.ready());
    }
  });
}

Deno.test("Ring does not reach for the event words without EVENT_IDX", () => {
  for (const eventIdx of [false, true]) {
    const queue = core(ram());
    // Flags, index and 8 entries of 2 bytes end with the page; the event word does not lie in it.
    const availIova = DRIVER + PAGE - 20;
    const features = eventIdx ? Features.of(VIRTIO_F.RING_EVENT_IDX) : PLAIN;
    assertEquals(queue.enable(features, { ...AT, availIova }), 0);
    assertEquals(queue.ready(), !eventIdx);
  }
});

Deno.test("Ring leaves the ring alone while suspended, and takes nothing while held", () => {
  const memory = ram();
  const area = driverArea(memory);
  const queue = core(memory);
  const chain = new Chain(memory, 1);
  const finds = () => {
    area[1]!++;
    const result = queue.pop(chain);
    if (result > 0) queue.unpop(1);
    return result !== 0 || queue.poll();
  };
  queue.enable(PLAIN, AT);
  assert(queue.ready());
  queue.suspend();
  assert(!queue.ready() && !finds() && !queue.resolved);
  queue.resume();
  assert(queue.ready() && finds());
  queue.hold();
  assert(queue.ready() && !finds());
  queue.disable();
  queue.enable(PLAIN, AT);
  assert(queue.ready() && !finds(), "a hold outlives disabling");
  queue.release();
  assert(finds());
  queue.suspend();
  queue.disable();
  queue.enable(PLAIN, AT);
  assert(finds(), "a suspension does not");
});

Deno.test("Ring takes features and size over, and forgets the ring when it is disabled", () => {
  const memory = ram();
  const queue = core(memory);
  const features = Features.of(
    VIRTIO_F.RING_EVENT_IDX,
    VIRTIO_F.RING_INDIRECT_DESC,
    VIRTIO_F.IN_ORDER,
  );
  queue.enable(features, AT);
  const { eventIdx, indirect, inOrder, size } = queue;
  assertEquals([eventIdx, indirect, inOrder, size], [true, true, true, 8]);
  const start = { availIdx: 0, usedIdx: 0, notificationsOff: false };
  assertEquals(queue.save(), {
    ...{ format: "split", enabled: true },
    ...AT,
    ...start,
  });
  queue.ledger.pop(5, new Chain(memory, 1));
  queue.disable();
  assertEquals([queue.size, queue.ledger.outstanding], [0, 0]);
  assertEquals(queue.save(), {
    ...{ format: "split", enabled: false, ...start },
    size: 0,
    descIova: 0,
    availIova: 0,
    usedIova: 0,
  });
  queue.enable(PLAIN, AT);
  assertEquals([queue.eventIdx, queue.indirect, queue.inOrder], [
    false,
    false,
    false,
  ]);
});

Deno.test("Ring stays disabled when the place is wrong, and says why", () => {
  const queue = core(ram());
  assertEquals(queue.enable(PLAIN, { ...AT, size: 6 }), -EINVAL);
  assertEquals(
    queue.lastError,
    "queue size 6 is not a power of two up to 8 (2.7)",
  );
  assert(!queue.enabled && !queue.ready());
  queue.disable();
  assertEquals(queue.lastError, "");
  assertEquals(queue.fail(5, "is odd"), -5);
  assertEquals(queue.lastError, "queue 3: is odd");
});

Deno.test("Ring takes only chains back that the device holds", () => {
  const memory = ram();
  const queue = core(memory);
  const chain = new Chain(memory, 1);
  assert(!queue.ledger.push(2, 0));
  queue.push(2, 0);
  queue.enable(PLAIN, AT);
  assertThrows(
    () => queue.push(2, 0),
    Error,
    "Cannot push chain 2 of queue 3: the device does not hold it",
  );
  queue.ledger.pop(2, chain);
  queue.ledger.pop(4, chain);
  queue.unpop(1);
  assert(!queue.ledger.has(4));
  assert(queue.ledger.push(2, 0));
  assertThrows(
    () => queue.unpop(1),
    Error,
    "Cannot unpop a chain of queue 3: the device does not hold it",
  );
});

Deno.test("Ring asks for notifications only of a ring in reach, and only if the device wants them", () => {
  const memory = ram();
  const queue = core(memory);
  const used = memory.window(DEVICE, 4, Access.WRITE)!;
  const spare = () => {
    queue.disableNotifications();
    assertEquals(used.getU16(0), 1);
  };
  queue.beginPolling();
  assert(queue.polled && !queue.endPolling(), "there is no ring");
  queue.enable(PLAIN, AT);
  spare();
  queue.endPolling();
  assertEquals(used.getU16(0), 1, "the device does not want them");
  queue.enableNotifications();
  assertEquals(used.getU16(0), 0);
  queue.beginPolling();
  spare();
  queue.enableNotifications();
  assertEquals(used.getU16(0), 1, "it is polled");
  queue.endPolling();
  assertEquals(used.getU16(0), 0);
  spare();
  queue.hold();
  assert(!queue.enableNotifications(), "there is nothing to look for");
  queue.endPolling();
  assertEquals(used.getU16(0), 0, "but the device wants them");
});

Deno.test("Ring has no size that the standard does not have", () => {
  const memory = ram();
  const sizes = [0, 1, 6, 1.5, 32768, 32769, 65536];
  const made = sizes.filter((size) => {
    try {
      createQueue(memory, 0, size);
      return true;
    } catch (error) {
      assert(error instanceof RangeError);
      return false;
    }
  });
  assertEquals(made, [1, 6, 32768]);
});
