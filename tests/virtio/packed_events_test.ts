import { assertEquals } from "@std/assert";
import { ArrayMemory } from "../../src/memory/array_memory.ts";
import { Features, VIRTIO_F } from "../../src/virtio/features.ts";
import { offWrap, PackedEvents } from "../../src/virtio/queue/packed_events.ts";
import { createQueue } from "../../src/virtio/queue/mod.ts";
import type { Ring } from "../../src/virtio/queue/ring.ts";

// struct pvirtq_event_suppress { le16 off_wrap; le16 flags } (2.8.14), and the flags of 2.8.10.
const ENABLE = 0;
const DISABLE = 1;
const DESC = 2;
const DRIVER = 0x2000;
const DEVICE = 0x3000;
const SIZE = 7;

class Rig {
  readonly ring: Ring;
  readonly events: PackedEvents;
  readonly #words: DataView;

  constructor(eventIdx: boolean) {
    const memory = new ArrayMemory([]);
    const buffer = memory.map({ iova: 0, lengthBytes: 0x4000 });
    this.#words = new DataView(buffer);
    this.ring = createQueue(memory, 0, 8);
    this.events = new PackedEvents(this.ring);
    this.ring.enable(
      Features.of(
        VIRTIO_F.RING_PACKED,
        ...eventIdx ? [VIRTIO_F.RING_EVENT_IDX] : [],
      ),
      { size: SIZE, descIova: 0x1000, availIova: DRIVER, usedIova: DEVICE },
    );
    this.ring.ready();
  }

  /** Words that the driver reads: off_wrap and flags. */
  get told(): number[] {
    return [
      this.#words.getUint16(DEVICE, true),
      this.#words.getUint16(DEVICE + 2, true),
    ];
  }

  driverSays(place: number, flags: number): void {
    this.#words.setUint16(DRIVER, place, true);
    this.#words.setUint16(DRIVER + 2, flags, true);
  }
}

Deno.test("offWrap puts the wrap counter above the offset", () => {
  assertEquals(offWrap(5, false), 5);
  assertEquals(offWrap(0, true), 0x8000);
  assertEquals(offWrap(0x7fff, true), 0xffff);
});

Deno.test("PackedEvents asks by flags alone without EVENT_IDX", () => {
  const at = new Rig(false);
  at.events.spare();
  assertEquals([at.told, at.events.flags], [[0, DISABLE], DISABLE]);
  at.events.ask(3, true);
  assertEquals([at.told, at.events.flags], [[0, ENABLE], ENABLE]);
});

Deno.test("PackedEvents names a descriptor with EVENT_IDX, beyond the end one of the next lap", () => {
  const at = new Rig(true);
  at.events.ask(3, true);
  assertEquals([at.told, at.events.flags], [[0x8003, DESC], DESC]);
  at.events.ask(SIZE, true);
  assertEquals(at.told, [0, DESC]);
  at.events.ask(SIZE + 2, false);
  assertEquals(at.told, [0x8002, DESC]);
  at.events.spare();
  assertEquals(at.told, [0x8002, DESC], "what lies behind says it all");
});

Deno.test("PackedEvents does not write what the driver knows, nor to a ring out of reach", () => {
  const at = new Rig(false);
  at.events.reset(DISABLE);
  at.events.spare();
  assertEquals(at.told, [0, 0], "it was told before");
  at.events.reset();
  at.ring.suspend();
  at.events.spare();
  assertEquals([at.told, at.events.flags], [[0, 0], ENABLE]);
});

Deno.test("PackedEvents.wantsInterrupt heeds the driver's flags", () => {
  for (const eventIdx of [false, true]) {
    const at = new Rig(eventIdx);
    const wanted = [ENABLE, DISABLE, DESC, 3].map((flags) => {
      at.driverSays(offWrap(6, true), flags);
      return at.events.wantsInterrupt(0, true, 1);
    });
    // DESC without EVENT_IDX and 3 must not be there, and cost an interrupt too many.
    assertEquals(wanted, [true, false, !eventIdx, true]);
  }
});

Deno.test("PackedEvents.wantsInterrupt finds the descriptor in a batch, across the end too", () => {
  const at = new Rig(true);
  // Every place of two laps, seen from a batch of 4 that begins at 5 of 7: 5, 6, and 0 and 1 of the next lap.
  const hits: number[] = [];
  for (const wrap of [true, false]) {
    for (let place = 0; place < SIZE; place++) {
      at.driverSays(offWrap(place, wrap), DESC);
      if (at.events.wantsInterrupt(5, true, 4)) hits.push(offWrap(place, wrap));
    }
  }
  assertEquals(hits, [0x8005, 0x8006, 0, 1]);
});
