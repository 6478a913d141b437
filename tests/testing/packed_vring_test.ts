import { assert, assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import {
  DriverMemory,
  PackedVring,
  Vring,
  type VringOptions,
} from "../../src/testing/mod.ts";
import { heapGrowthPerOperation } from "../resources.ts";

const SEED = 0x9ac4;
const [NEXT, WRITE, INDIRECT, AVAIL, USED] = [1, 2, 4, 0x80, 0x8000];

/** A buffer as a device sees it: address, length, whether it writes it. */
type Buffer = [iova: number, lengthBytes: number, writable: boolean];

/** The device's side, as naive as can be: plain loads and stores by the standard's text. */
class NaiveDevice {
  readonly #memory: DriverMemory;
  readonly #ring: PackedVring;
  next = 0;
  used = 0;

  constructor(memory: DriverMemory, ring: PackedVring) {
    this.#memory = memory;
    this.#ring = ring;
  }

  #at(n: number): number {
    const index = n % this.#ring.size;
    return this.#memory.offset(this.#ring.descIova) + 16 * index;
  }

  #even(n: number): boolean {
    return Math.floor(n / this.#ring.size) % 2 === 0;
  }

  offWrap(n: number): number {
    return n % this.#ring.size + (this.#even(n) ? 0x8000 : 0);
  }

  get driverEvent(): [number, number] {
    const at = this.#memory.offset(this.#ring.availIova);
    const { view } = this.#memory;
    return [view.getUint16(at + 2, true), view.getUint16(at, true)];
  }

  setEvent(flags: number, offWrap: number): void {
    const at = this.#memory.offset(this.#ring.usedIova);
    this.#memory.view.setUint16(at, offWrap, true);
    this.#memory.view.setUint16(at + 2, flags, true);
  }

  pop(): { head: number; count: number; buffers: Buffer[] } | null {
    const { view } = this.#memory;
    const buffers: Buffer[] = [];
    for (let n = this.next;; n++) {
      const at = this.#at(n);
      const flags = view.getUint16(at + 14, true);
      const available = (flags & (AVAIL! | USED!)) ===
        (this.#even(n) ? AVAIL : USED);
      if (!available) {
        assertEquals(n, this.next, "a chain that is not all there");
        return null;
      }
      if ((flags & INDIRECT!) !== 0) this.#table(at, buffers);
      else buffers.push(this.#buffer(at, flags));
      if ((flags & NEXT!) !== 0) continue;
      const count = n + 1 - this.next;
      this.next = n + 1;
      return { head: view.getUint16(at + 12, true), count, buffers };
    }
  }

  #buffer(at: number, flags: number): Buffer {
    const { view } = this.#memory;
    return [
      Number(view.getBigUint64(at, true)),
      view.getUint32(at + 8, true),
      (flags & WRITE!) !== 0,
    ];
  }

  #table(at: number, buffers: Buffer[]): void {
    const { view } = this.#memory;
    const [iova, length] = this.#buffer(at, 0);
    for (let i = 0; i < length; i += 16) {
      const entry = this.#memory.offset(iova) + i;
      buffers.push(this.#buffer(entry, view.getUint16(entry + 14, true)));
    }
  }

  push(head: number, count: number, lengthBytes: number): void {
    const { view } = this.#memory;
    const at = this.#at(this.used);
    view.setUint32(at + 8, lengthBytes, true);
    view.setUint16(at + 12, head, true);
    const mark = this.#even(this.used) ? AVAIL! | USED! : 0;
    view.setUint16(at + 14, mark | (lengthBytes > 0 ? WRITE! : 0), true);
    this.used += count;
  }
}

function setUp(options: VringOptions) {
  const memory = new DriverMemory(new ArrayBuffer(1 << 16), 0x8000_0000);
  const ring = new PackedVring(memory, options);
  return { memory, ring, device: new NaiveDevice(memory, ring) };
}

/** Posts a chain of readable and writable buffers that tell themselves apart by address. */
function post(
  ring: PackedVring | Vring,
  readable: number,
  writable: number,
): number {
  if (!ring.begin(readable + writable)) return -1;
  for (let i = 0; i < readable; i++) ring.readable(0x1000 + i, 10 + i);
  for (let i = 0; i < writable; i++) ring.writable(0x2000 + i, 20 + i);
  return ring.end();
}

for (const indirect of [0, 4]) {
  Deno.test(`PackedVring chains reach the device in order, ${indirect > 0 ? "indirect" : "direct"}`, () => {
    const { ring, device } = setUp({ size: 5, indirect });
    for (let round = 0; round < 9; round++) {
      const head = post(ring, 2, 1);
      const other = post(ring, 1, 0);
      assertEquals(device.pop(), null, "not before publish");
      assertEquals(ring.publish(), true);
      const got = device.pop()!;
      assertEquals(got.head, head);
      assertEquals(got.buffers, [
        [0x1000, 10, false],
        [0x1001, 11, false],
        [0x2000, 20, true],
      ]);
      assertEquals(device.pop()!.head, other);
      assertEquals(ring.free, indirect > 0 ? 3 : 1);
      assertEquals([ring.inFlight, ring.take()], [2, false]);
      device.push(other, 1, 0);
      device.push(head, got.count, 17);
      assert(ring.take());
      assertEquals([ring.usedHead, ring.usedLength], [other, 0]);
      assert(ring.take());
      assertEquals([ring.usedHead, ring.usedLength], [head, 17]);
      assertEquals([ring.free, ring.inFlight, ring.hasUsed], [5, 0, false]);
    }
  });
}

Deno.test("PackedVring.begin says when there is no room, end wants what begin was told", () => {
  const { ring } = setUp({ size: 4 });
  assert(post(ring, 2, 1) >= 0);
  assertEquals(ring.begin(2), false);
  assert(post(ring, 1, 0) >= 0);
  assertEquals(ring.begin(1), false);
  const other = setUp({ size: 4 }).ring;
  other.begin(2);
  other.readable(0, 1);
  assertThrows(() => other.end(), Error, "it has 1");
});

Deno.test("PackedVring.take refuses a chain that is not in flight", () => {
  const { ring, device } = setUp({ size: 4 });
  const head = post(ring, 1, 0);
  ring.publish();
  device.push(head, 1, 0);
  device.push(head, 1, 0);
  assert(ring.take());
  assertThrows(() => ring.take(), Error, "not in flight");
});

Deno.test("PackedVring.publish obeys the device's event suppression", () => {
  const { ring, device } = setUp({ size: 5, eventIdx: true });
  assertEquals(ring.publish(), false, "nothing to publish");
  const serve = () => {
    const got = device.pop()!;
    device.push(got.head, got.count, 0);
    ring.take();
  };
  for (let n = 0; n < 12; n++) {
    const cases: [number, number, boolean][] = [
      [0, 0x7fff, true],
      [1, 0, false],
      [2, device.offWrap(n), true],
      [2, device.offWrap(n + 1), false],
      [2, device.offWrap(n + 5), false],
    ];
    const [flags, offWrap, wanted] = cases[n % cases.length]!;
    device.setEvent(flags, offWrap);
    post(ring, 1, 0);
    assertEquals(ring.publish(), wanted, `descriptor ${n}`);
    serve();
  }
});

Deno.test("PackedVring.enableInterrupts and disableInterrupts set the driver's event suppression", () => {
  for (const eventIdx of [false, true]) {
    const { ring, device } = setUp({ size: 3, eventIdx });
    for (let n = 0; n < 8; n++) {
      ring.disableInterrupts();
      assertEquals(device.driverEvent[0], 1);
      assertEquals(ring.enableInterrupts(), false);
      assertEquals(
        device.driverEvent,
        eventIdx ? [2, device.offWrap(n)] : [0, 0],
      );
      assertEquals(ring.notifyData, device.offWrap(n));
      const head = post(ring, 1, 0);
      ring.publish();
      device.pop();
      device.push(head, 1, 0);
      assertEquals(ring.enableInterrupts(), true);
      ring.take();
    }
  }
});

Deno.test("PackedVring.reset forgets chains in flight, close gives all memory back", () => {
  const { memory, ring, device } = setUp({ size: 3, indirect: 4 });
  post(ring, 2, 2);
  post(ring, 1, 0);
  ring.publish();
  ring.disableInterrupts();
  ring.reset();
  assertEquals([ring.free, ring.inFlight, ring.notifyData], [3, 0, 0x8000]);
  assertEquals([device.pop(), device.driverEvent], [null, [0, 0]]);
  ring.close();
  assertEquals(memory.usedBytes, 0);
});

Deno.test("PackedVring.writeRaw lets a test break every rule", () => {
  const { ring, memory } = setUp({ size: 4 });
  ring.writeRaw(3, 0xffff_ffff_ffff_f000n, 0xffff_ffff, 9, 0x8007);
  const at = memory.offset(ring.descIova) + 48;
  assertEquals(memory.view.getBigUint64(at, true), 0xffff_ffff_ffff_f000n);
  assertEquals(memory.view.getUint32(at + 8, true), 0xffff_ffff);
  assertEquals(memory.view.getUint16(at + 12, true), 9);
  assertEquals(memory.view.getUint16(at + 14, true), 0x8007);
  assertEquals(ring.availableFlags, AVAIL);
});

Deno.test("PackedVring with IN_ORDER takes a whole batch for one used descriptor", () => {
  const { ring, device } = setUp({ size: 5, inOrder: true });
  for (let round = 0; round < 7; round++) {
    const heads = [post(ring, 0, 2), post(ring, 1, 0), post(ring, 1, 1)];
    ring.publish();
    let count = 0;
    for (let i = 0; i < 3; i++) count += device.pop()!.count;
    device.push(heads[2]!, count, 7);
    for (const [i, length] of [41, 0, 7].entries()) {
      assert(ring.hasUsed);
      assert(ring.take());
      assertEquals([ring.usedHead, ring.usedLength], [heads[i], length]);
    }
    assertEquals([ring.hasUsed, ring.free], [false, 5]);
  }
});

Deno.test("Vring with IN_ORDER takes a whole batch for one used entry, and descriptors in the order of the table", () => {
  const memory = new DriverMemory(new ArrayBuffer(1 << 16), 0x8000_0000);
  const ring = new Vring(memory, { size: 8, inOrder: true });
  const used = memory.offset(ring.usedIova);
  let idx = 0;
  for (let round = 0; round < 7; round++) {
    const first = idx;
    const heads = [post(ring, 0, 2), post(ring, 1, 0), post(ring, 1, 1)];
    const start = round * 5 % 8;
    assertEquals(heads, [start, (start + 2) % 8, (start + 3) % 8]);
    ring.publish();
    memory.view.setUint32(used + 4 + first % 8 * 8, heads[2]!, true);
    memory.view.setUint32(used + 8 + first % 8 * 8, 7, true);
    idx += 3;
    memory.view.setUint16(used + 2, idx, true);
    for (const [i, length] of [41, 0, 7].entries()) {
      assert(ring.take());
      assertEquals([ring.usedHead, ring.usedLength], [heads[i], length]);
    }
    assertEquals([ring.take(), ring.free], [false, 8]);
  }
});

Deno.test("PackedVring: any mix of chains, used in any order, wraps and loses nothing", () => {
  fc.assert(
    fc.property(
      fc.record({
        size: fc.constantFrom(1, 2, 3, 7, 8, 32),
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
        const held: { head: number; count: number }[] = [];
        const expected = new Map<number, number>();
        for (let step = 1; step < 2000; step++) {
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
            device.push(chain!.head, chain!.count, step);
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
        for (const { head, count } of held) device.push(head, count, 0);
        while (ring.take()) expected.delete(ring.usedHead);
        assertEquals([expected.size, ring.free, ring.inFlight], [0, size, 0]);
      },
    ),
    { seed: SEED, numRuns: 30 },
  );
});

Deno.test("PackedVring: posting and taking allocate nothing", () => {
  for (const indirect of [0, 4]) {
    const { ring, memory } = setUp({ size: 64, eventIdx: true, indirect });
    const desc = memory.offset(ring.descIova);
    let n = 0;
    const growth = heapGrowthPerOperation(200_000, (operations) => {
      for (let i = 0; i < operations; i++) {
        ring.begin(2);
        ring.readable(0x1_2345_6789, 1);
        ring.writable(0x1_2345_6789, 1);
        const head = ring.end();
        ring.publish();
        const at = desc + (n & 63) * 16;
        memory.view.setUint16(at + 12, head, true);
        memory.view.setUint16(at + 14, (n & 64) === 0 ? 0x8080 : 0, true);
        n = (n + (indirect === 0 ? 2 : 1)) & 127;
        ring.take();
        ring.enableInterrupts();
      }
    });
    assert(growth < 1, `${growth} bytes a chain`);
  }
});
