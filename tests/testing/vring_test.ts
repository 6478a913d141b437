import { assert, assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import {
  DriverMemory,
  Vring,
  VRING_DESC_F_INDIRECT,
  VRING_DESC_F_NEXT,
  VRING_DESC_F_WRITE,
  type VringOptions,
} from "../../src/testing/mod.ts";
import { heapGrowthPerOperation } from "../resources.ts";

const SEED = 0x7169;

/** A buffer as a device sees it: address, length, whether it writes it. */
type Buffer = [iova: number, lengthBytes: number, writable: boolean];

/** The device's side, as naive as can be: plain loads and stores by the standard's text. */
class NaiveDevice {
  readonly #memory: DriverMemory;
  readonly #ring: Vring;
  lastAvail = 0;

  constructor(memory: DriverMemory, ring: Vring) {
    this.#memory = memory;
    this.#ring = ring;
  }

  #u16(iova: number): number {
    return this.#memory.view.getUint16(this.#memory.offset(iova), true);
  }

  #setU16(iova: number, value: number): void {
    this.#memory.view.setUint16(this.#memory.offset(iova), value, true);
  }

  get availIdx(): number {
    return this.#u16(this.#ring.availIova + 2);
  }

  get availFlags(): number {
    return this.#u16(this.#ring.availIova);
  }

  get usedEvent(): number {
    return this.#u16(this.#ring.availIova + 4 + 2 * this.#ring.size);
  }

  set availEvent(value: number) {
    this.#setU16(this.#ring.usedIova + 4 + 8 * this.#ring.size, value);
  }

  set usedFlags(value: number) {
    this.#setU16(this.#ring.usedIova, value);
  }

  pop(): { head: number; buffers: Buffer[] } | null {
    if (this.lastAvail === this.availIdx) return null;
    const slot = this.lastAvail % this.#ring.size;
    const head = this.#u16(this.#ring.availIova + 4 + 2 * slot);
    this.lastAvail = (this.lastAvail + 1) % 65_536;
    return { head, buffers: this.#walk(this.#ring.descIova, head) };
  }

  #walk(table: number, index: number): Buffer[] {
    const view = this.#memory.view;
    const at = this.#memory.offset(table) + 16 * index;
    const iova = Number(view.getBigUint64(at, true));
    const length = view.getUint32(at + 8, true);
    const flags = view.getUint16(at + 12, true);
    if ((flags & VRING_DESC_F_INDIRECT) !== 0) {
      assertEquals(flags, VRING_DESC_F_INDIRECT);
      return this.#walk(iova, 0);
    }
    const own: Buffer = [iova, length, (flags & VRING_DESC_F_WRITE) !== 0];
    if ((flags & VRING_DESC_F_NEXT) === 0) return [own];
    return [own, ...this.#walk(table, view.getUint16(at + 14, true))];
  }

  push(head: number, lengthBytes: number): void {
    const used = this.#ring.usedIova;
    const idx = this.#u16(used + 2);
    const at = this.#memory.offset(used) + 4 + 8 * (idx % this.#ring.size);
    this.#memory.view.setUint32(at, head, true);
    this.#memory.view.setUint32(at + 4, lengthBytes, true);
    this.#setU16(used + 2, (idx + 1) % 65_536);
  }
}

function setUp(options: VringOptions) {
  const memory = new DriverMemory(new ArrayBuffer(1 << 16), 0x8000_0000);
  const ring = new Vring(memory, options);
  return { memory, ring, device: new NaiveDevice(memory, ring) };
}

/** Posts a chain of readable and writable buffers that tell themselves apart by address. */
function post(ring: Vring, readable: number, writable: number): number {
  if (!ring.begin(readable + writable)) return -1;
  for (let i = 0; i < readable; i++) ring.readable(0x1000 + i, 10 + i);
  for (let i = 0; i < writable; i++) ring.writable(0x2000 + i, 20 + i);
  return ring.end();
}

Deno.test("Vring places its parts as the standard aligns them", () => {
  const { ring } = setUp({ size: 8 });
  assertEquals(ring.descIova % 16, 0);
  assertEquals(ring.availIova % 2, 0);
  assertEquals(ring.usedIova % 4, 0);
});

for (const indirect of [0, 4]) {
  Deno.test(`chains reach the device in order, ${indirect > 0 ? "indirect" : "direct"}`, () => {
    const { ring, device } = setUp({ size: 8, indirect });
    const head = post(ring, 2, 1);
    assertEquals(device.pop(), null, "not before publish");
    assertEquals(ring.publish(), true);
    assertEquals(device.pop(), {
      head,
      buffers: [[0x1000, 10, false], [0x1001, 11, false], [0x2000, 20, true]],
    });
    assertEquals(ring.free, indirect > 0 ? 7 : 5);
    assertEquals(ring.take(), false);
    device.push(head, 17);
    assertEquals(ring.hasUsed, true);
    assertEquals(ring.take(), true);
    assertEquals([ring.usedHead, ring.usedLength], [head, 17]);
    assertEquals([ring.free, ring.inFlight], [8, 0]);
  });
}

Deno.test("begin says when there is no room", () => {
  const { ring } = setUp({ size: 4 });
  assert(post(ring, 2, 1) >= 0);
  assertEquals(ring.begin(2), false);
  assert(post(ring, 1, 0) >= 0);
  assertEquals(ring.begin(1), false);
});

Deno.test("end wants as many buffers as begin was told", () => {
  const { ring } = setUp({ size: 4 });
  ring.begin(2);
  ring.readable(0, 1);
  assertThrows(() => ring.end(), Error, "it has 1");
});

Deno.test("take refuses a chain that is not in flight", () => {
  const { ring, device } = setUp({ size: 4 });
  const head = post(ring, 1, 0);
  ring.publish();
  device.push(head, 0);
  device.push(head, 0);
  assertEquals(ring.take(), true);
  assertThrows(() => ring.take(), Error, "not in flight");
  const other = setUp({ size: 4 });
  other.device.push(4, 0);
  assertThrows(() => other.ring.take(), Error, "not in flight");
});

Deno.test("publish obeys NO_NOTIFY, once a batch", () => {
  const { ring, device } = setUp({ size: 4 });
  assertEquals(ring.publish(), false, "nothing to publish");
  device.usedFlags = 1;
  post(ring, 1, 0);
  assertEquals(ring.publish(), false);
  device.usedFlags = 0;
  post(ring, 1, 0);
  assertEquals(ring.publish(), true);
});

Deno.test("publish with EVENT_IDX notifies when the batch passes avail_event", () => {
  const { ring, device } = setUp({ size: 8, eventIdx: true });
  device.usedFlags = 1; // means nothing here
  const kicks: boolean[] = [];
  for (const [event, batch] of [[0, 1], [0, 2], [4, 1], [4, 1], [4, 1]]) {
    device.availEvent = event!;
    for (let i = 0; i < batch!; i++) post(ring, 1, 0);
    kicks.push(ring.publish());
  }
  // Indices after the batches: 1, 3, 4, 5, 6.
  assertEquals(kicks, [true, false, false, true, false]);
});

Deno.test("enableInterrupts and disableInterrupts set the flag without EVENT_IDX", () => {
  const { ring, device } = setUp({ size: 4 });
  ring.disableInterrupts();
  assertEquals(device.availFlags, 1);
  assertEquals(ring.enableInterrupts(), false);
  assertEquals(device.availFlags, 0);
  const head = post(ring, 1, 0);
  ring.publish();
  device.push(head, 0);
  assertEquals(ring.enableInterrupts(), true);
});

Deno.test("enableInterrupts and disableInterrupts move used_event with EVENT_IDX", () => {
  const { ring, device } = setUp({ size: 4, eventIdx: true });
  ring.disableInterrupts();
  assertEquals([device.usedEvent, device.availFlags], [0xffff, 0]);
  assertEquals(ring.enableInterrupts(), false);
  assertEquals(device.usedEvent, 0);
  ring.enableInterrupts(3);
  assertEquals(device.usedEvent, 3);
  const head = post(ring, 1, 0);
  ring.publish();
  device.push(head, 0);
  assertEquals(ring.enableInterrupts(3), false, "one of four");
  assertEquals(ring.enableInterrupts(), true);
  ring.take();
  ring.disableInterrupts();
  assertEquals(device.usedEvent, 0);
});

Deno.test("reset forgets chains in flight and clears the rings", () => {
  const { ring, device } = setUp({ size: 4, eventIdx: true });
  post(ring, 2, 2);
  ring.publish();
  ring.enableInterrupts(9);
  ring.reset();
  assertEquals([ring.free, ring.inFlight, ring.availIdx], [4, 0, 0]);
  assertEquals([device.availIdx, device.usedEvent], [0, 0]);
  assert(post(ring, 2, 2) >= 0);
});

Deno.test("close gives all memory back", () => {
  const { memory, ring } = setUp({ size: 16, indirect: 4 });
  assert(memory.usedBytes > 16 * 4 * 16);
  ring.close();
  assertEquals(memory.usedBytes, 0);
});

Deno.test("writeRaw, makeAvailable and publishRaw let a test break every rule", () => {
  const { ring, memory, device } = setUp({ size: 4 });
  ring.writeRaw(3, 0xffff_ffff_ffff_f000n, 0xffff_ffff, 7, 9);
  const at = memory.offset(ring.descIova) + 48;
  assertEquals(memory.view.getBigUint64(at, true), 0xffff_ffff_ffff_f000n);
  assertEquals(memory.view.getUint32(at + 8, true), 0xffff_ffff);
  assertEquals(memory.view.getUint16(at + 12, true), 7);
  assertEquals(memory.view.getUint16(at + 14, true), 9);
  ring.writeRaw(0, 0x1234, 5, 0, 0);
  ring.makeAvailable(0);
  ring.publish();
  assertEquals(device.pop(), { head: 0, buffers: [[0x1234, 5, false]] });
  device.push(0, 77);
  assertEquals([ring.usedHeadAt(0), ring.usedLengthAt(0)], [0, 77]);
  ring.publishRaw(0x1_0007);
  assertEquals([device.availIdx, ring.availIdx], [7, 7]);
  const table = memory.alloc(16);
  ring.writeRawAt(table, 0x1_0000_0042, 6, 1, 2);
  assertEquals(memory.view.getUint32(memory.offset(table), true), 0x42);
  assertEquals(memory.view.getUint32(memory.offset(table) + 4, true), 1);
});

Deno.test("any mix of chains, used in any order, wraps the indices and loses nothing", () => {
  fc.assert(
    fc.property(
      fc.record({
        size: fc.constantFrom(1, 2, 8, 32),
        indirect: fc.constantFrom(0, 3),
        eventIdx: fc.boolean(),
        seed: fc.integer({ min: 1, max: 1 << 30 }),
      }),
      ({ size, indirect, eventIdx, seed }) => {
        const { ring, device } = setUp({ size, indirect, eventIdx });
        let state = seed;
        const random = (n: number) => {
          state = (Math.imul(state, 1_103_515_245) + 12_345) & 0x7fff_ffff;
          return (state >>> 8) % n;
        };
        const held: { head: number; buffers: Buffer[] }[] = [];
        const expected = new Map<number, number>();
        for (let step = 0; step < 3000; step++) {
          const readable = random(3);
          const head = post(ring, readable, random(3) + (readable ? 0 : 1));
          if (head >= 0) expected.set(head, -1);
          if (random(2) === 0) ring.publish();
          for (let got = device.pop(); got !== null; got = device.pop()) {
            assert(expected.has(got.head));
            held.push(got);
          }
          while (held.length > 0 && random(3) > 0) {
            const [chain] = held.splice(random(held.length), 1);
            expected.set(chain!.head, step);
            device.push(chain!.head, step);
          }
          while (random(2) === 0 && ring.take()) {
            assertEquals(expected.get(ring.usedHead), ring.usedLength);
            expected.delete(ring.usedHead);
          }
        }
        ring.publish();
        for (let got = device.pop(); got !== null; got = device.pop()) {
          held.push(got);
        }
        for (const { head } of held) device.push(head, 0);
        while (ring.take()) expected.delete(ring.usedHead);
        assertEquals([expected.size, ring.free, ring.inFlight], [0, size, 0]);
      },
    ),
    { seed: SEED, numRuns: 30 },
  );
});

Deno.test("indices go from 65535 to 0", () => {
  const { ring, device } = setUp({ size: 4, eventIdx: true });
  for (let i = 0; i < 65_540; i++) {
    device.availEvent = i & 0xffff;
    const head = post(ring, 1, 0);
    assertEquals(ring.publish(), true, `chain ${i}`);
    device.pop();
    device.push(head, i);
    assert(ring.take());
    assertEquals(ring.usedLength, i);
  }
  assertEquals([ring.availIdx, ring.deviceUsedIdx], [4, 4]);
});

Deno.test("posting and taking allocate nothing", () => {
  for (const indirect of [0, 4]) {
    const { ring, memory } = setUp({ size: 64, eventIdx: true, indirect });
    const used = memory.offset(ring.usedIova);
    let idx = 0;
    const growth = heapGrowthPerOperation(200_000, (operations) => {
      for (let i = 0; i < operations; i++) {
        ring.begin(2);
        ring.readable(0x1_2345_6789, 1);
        ring.writable(0x1_2345_6789, 1);
        const head = ring.end();
        ring.publish();
        memory.view.setUint32(used + 4 + (idx & 63) * 8, head, true);
        idx = (idx + 1) & 0xffff;
        memory.view.setUint16(used + 2, idx, true);
        ring.take();
        ring.enableInterrupts();
      }
    });
    assert(growth < 1, `${growth} bytes a chain`);
  }
});
