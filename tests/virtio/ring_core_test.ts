import { assert, assertEquals, assertThrows } from "@std/assert";
import { Access } from "../../src/memory/guest_memory.ts";
import { ArrayMemory } from "../../src/memory/array_memory.ts";
import { Features, VIRTIO_F } from "../../src/virtio/features.ts";
import { Chain } from "../../src/virtio/queue/queue.ts";
import { RingCore } from "../../src/virtio/queue/ring_core.ts";
import {
  PACKED_LAYOUT,
  type RingLayout,
  SPLIT_LAYOUT,
} from "../../src/virtio/queue/ring_layout.ts";

const EINVAL = 22;
const PAGE = 0x1000;
const DESC = 0x10_0000;
const DRIVER = 0x20_0000;
const DEVICE = 0x30_0000;
const AT = { size: 8, descIova: DESC, availIova: DRIVER, usedIova: DEVICE };
const PLAIN = Features.of(VIRTIO_F.VERSION_1);

/** A page for each part, with the rights that a driver must give at least. */
function ram(layout: RingLayout): ArrayMemory {
  const descAccess = layout.format === "split"
    ? Access.READ
    : Access.READ | Access.WRITE;
  return new ArrayMemory([
    { iova: DESC, lengthBytes: PAGE, access: descAccess },
    { iova: DRIVER, lengthBytes: PAGE, access: Access.READ },
    { iova: DEVICE, lengthBytes: PAGE, access: Access.WRITE },
  ]);
}

function core(memory: ArrayMemory, layout = SPLIT_LAYOUT): RingCore {
  return new RingCore(memory, layout, 3, 8, false);
}

for (const layout of [SPLIT_LAYOUT, PACKED_LAYOUT]) {
  Deno.test(`RingCore finds a ${layout.format} ring when it is mapped, and again after a change`, () => {
    const memory = ram(layout);
    const queue = core(memory, layout);
    assert(!queue.ready() && !queue.enabled);
    assertEquals(queue.enable(PLAIN, AT), 0);
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

  Deno.test(`RingCore needs a ${layout.format} ring with the rights that the device uses`, () => {
    const parts = layout.parts(AT, true);
    for (
      const { iova, access } of [
        parts.desc,
        parts.driverArea,
        parts.deviceArea,
      ]
    ) {
      const memory = ram(layout);
      const queue = core(memory, layout);
      assertEquals(queue.enable(PLAIN, AT), 0);
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

Deno.test("RingCore does not reach for the event words without EVENT_IDX", () => {
  for (const eventIdx of [false, true]) {
    const queue = core(ram(SPLIT_LAYOUT));
    // Flags, index and 8 entries of 2 bytes end with the page; the event word does not lie in it.
    const availIova = DRIVER + PAGE - 20;
    const features = eventIdx ? Features.of(VIRTIO_F.RING_EVENT_IDX) : PLAIN;
    assertEquals(queue.enable(features, { ...AT, availIova }), 0);
    assertEquals(queue.ready(), !eventIdx);
  }
});

Deno.test("RingCore leaves the ring alone while suspended, and takes nothing while held", () => {
  const queue = core(ram(SPLIT_LAYOUT));
  queue.enable(PLAIN, AT);
  assert(queue.ready());
  queue.suspend();
  assert(!queue.ready() && !queue.readyToTake() && !queue.resolved);
  queue.resume();
  assert(queue.ready() && queue.readyToTake());
  queue.hold();
  assert(queue.ready() && !queue.readyToTake());
  queue.disable();
  queue.enable(PLAIN, AT);
  assert(queue.ready() && !queue.readyToTake(), "a hold outlives disabling");
  queue.release();
  assert(queue.readyToTake());
  queue.suspend();
  queue.disable();
  queue.enable(PLAIN, AT);
  assert(queue.readyToTake(), "a suspension does not");
});

Deno.test("RingCore takes features and size over, and forgets the ring when it is disabled", () => {
  const memory = ram(SPLIT_LAYOUT);
  const queue = core(memory);
  const features = Features.of(
    VIRTIO_F.RING_EVENT_IDX,
    VIRTIO_F.RING_INDIRECT_DESC,
    VIRTIO_F.IN_ORDER,
  );
  queue.enable(features, AT);
  const { eventIdx, indirect, inOrder, size } = queue;
  assertEquals([eventIdx, indirect, inOrder, size], [true, true, true, 8]);
  assertEquals(queue.save(), { enabled: true, ...AT });
  queue.ledger.pop(5, new Chain(memory, 1));
  queue.disable();
  assertEquals([queue.size, queue.ledger.outstanding], [0, 0]);
  assertEquals(queue.save(), {
    enabled: false,
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

Deno.test("RingCore stays disabled when the place is wrong, and says why", () => {
  const queue = core(ram(SPLIT_LAYOUT));
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
  assertEquals(queue.failFormat("packed"), -EINVAL);
  assertEquals(
    queue.lastError,
    "queue 3: a packed queue was saved, this is a split one",
  );
});

Deno.test("RingCore takes only chains back that the device holds", () => {
  const memory = ram(SPLIT_LAYOUT);
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
  assertEquals(queue.unpop(), 4);
  assert(queue.ledger.push(2, 0));
  assertThrows(
    () => queue.unpop(),
    Error,
    "Cannot unpop a chain of queue 3: the device does not hold it",
  );
});

Deno.test("RingCore asks for notifications only of a ring in reach, and only if the device wants them", () => {
  const queue = core(ram(SPLIT_LAYOUT));
  queue.beginPolling();
  assert(queue.polled && !queue.endPolling(), "there is no ring");
  queue.enable(PLAIN, AT);
  queue.beginPolling();
  assert(queue.endPolling() && !queue.polled, "a device wants them at first");
  queue.endNotifications();
  assert(!queue.endPolling());
  assert(queue.beginNotifications(0));
  assert(queue.endPolling());
  queue.endNotifications();
  queue.hold();
  assert(!queue.beginNotifications(0), "there is nothing to look for");
  assert(queue.endPolling(), "but the wish counts");
});

Deno.test("RingCore makes no queue of a size that its format does not have", () => {
  const memory = ram(SPLIT_LAYOUT);
  const sizes = [0, 1, 6, 1.5, 32768, 32769, 65536];
  const made = (layout: RingLayout) =>
    sizes.filter((size) => {
      try {
        new RingCore(memory, layout, 0, size, false);
        return true;
      } catch (error) {
        assert(error instanceof RangeError);
        return false;
      }
    });
  assertEquals(made(SPLIT_LAYOUT), [1, 32768]);
  assertEquals(made(PACKED_LAYOUT), [1, 6, 32768]);
});
