import { assert, assertEquals } from "@std/assert";
import fc from "fast-check";
import { Errno } from "../../src/core/errno.ts";
import {
  BASE,
  DATA,
  LENGTH,
  packedFixture,
  TABLES,
  turnPackedRing,
} from "./ring_fixture.ts";
import { runHostileCases } from "./hostile_chains.ts";
import { AVAIL, INDIRECT, NEXT, USED, WRITE } from "./naive_packed_ring.ts";

runHostileCases(
  "PackedRing.pop",
  "packed",
  ({ indirect, segments, mayLack }) => {
    const { queue, ring, chain } = packedFixture({
      size: 8,
      indirect,
      segments,
      mayLack,
    });
    return {
      offer: (parts) =>
        ring.offer(parts.map((part, i) => ({
          addr: part.addr,
          len: part.len,
          id: 5,
          flags: ((part.next ?? i < parts.length - 1) ? NEXT : 0) |
            (part.write ? WRITE : 0) | (part.indirect ? INDIRECT : 0),
        }))),
      tableEntry: (index, entry, last) =>
        ring.descriptorAt(TABLES + index * 16, {
          addr: entry.addr,
          len: entry.len,
          id: entry.nextIndex ?? index + 1,
          flags: ((entry.next ?? !last) ? NEXT : 0) |
            (entry.write ? WRITE : 0) |
            (entry.indirect ? INDIRECT : 0),
        }),
      pop: () => queue.pop(chain),
      lastError: () => queue.lastError,
      inFlight: () => queue.inFlight,
    };
  },
  assertEquals,
);

Deno.test("PackedRing.pop refuses a buffer id beyond the queue", () => {
  for (const id of [8, 9, 0xffff]) {
    const { queue, ring, chain } = packedFixture();
    ring.offer([{ addr: DATA, len: 1, id }]);
    assertEquals(queue.pop(chain), -Errno.EINVAL);
    assert(/queue 3: buffer id \d+ in a queue of 8/.test(queue.lastError));
    assertEquals(queue.inFlight, 0);
  }
});

Deno.test("PackedRing.pop refuses a buffer id that the driver has not got back", () => {
  const { queue, ring, chain } = packedFixture();
  ring.offer([{ addr: DATA, len: 1, id: 3 }]);
  assertEquals(queue.pop(chain), 1);
  ring.offer([{ addr: DATA, len: 1, id: 3 }]);
  assertEquals(queue.pop(chain), -Errno.EINVAL);
  assert(/again before it was used/.test(queue.lastError));
  queue.push(3, 0);
  assertEquals(queue.pop(chain), -Errno.EINVAL, "the driver has not seen it");
  queue.publish();
  assertEquals(queue.pop(chain), 1);
});

Deno.test("PackedRing.pop ends a chain that goes round the ring", () => {
  for (const skipped of [0, 3]) {
    const at = packedFixture({ size: 8 });
    turnPackedRing(at, skipped);
    at.ring.offer(
      Array.from({ length: 8 }, () => ({ addr: DATA, len: 0, flags: NEXT })),
    );
    assertEquals(at.queue.pop(at.chain), -Errno.ELOOP);
    assert(/longer than the queue size/.test(at.queue.lastError));
  }
});

Deno.test("PackedRing.pop refuses a chain that goes on where the driver owns nothing", () => {
  const { queue, ring, chain } = packedFixture();
  ring.offer([{ addr: DATA, len: 1, flags: NEXT }]);
  assertEquals(queue.pop(chain), -Errno.EINVAL);
  assert(/descriptor 1, which is not available/.test(queue.lastError));
  ring.descriptor(1, { addr: DATA, len: 1, flags: AVAIL | USED });
  assertEquals(queue.pop(chain), -Errno.EINVAL);
  ring.descriptor(1, { addr: DATA, len: 1, flags: USED });
  assertEquals(queue.pop(chain), -Errno.EINVAL);
  ring.descriptor(1, { addr: DATA, len: 1, flags: AVAIL });
  assertEquals(queue.pop(chain), 1);
});

Deno.test("PackedRing.pop refuses descriptors that the device has not returned", () => {
  const { queue, ring, chain } = packedFixture({ size: 4 });
  for (let id = 0; id < 4; id++) {
    ring.offer([{ addr: DATA, len: 1, id }]);
    assertEquals(queue.pop(chain), 1);
  }
  assertEquals(queue.pop(chain), 0);
  ring.offer([{ addr: DATA, len: 1, id: 0 }]);
  assertEquals(queue.pop(chain), -Errno.EINVAL);
  assert(/descriptor 0 is made available again/.test(queue.lastError));

  const other = packedFixture({ size: 4 });
  other.ring.offer([
    { addr: DATA, len: 1, flags: NEXT },
    { addr: DATA, len: 1, id: 1 },
  ]);
  assertEquals(other.queue.pop(other.chain), 1);
  other.ring.offer([
    { addr: DATA, len: 1, flags: NEXT },
    { addr: DATA, len: 1, flags: NEXT },
    { addr: DATA, len: 1, id: 2 },
  ]);
  assertEquals(other.queue.pop(other.chain), -Errno.EINVAL);
  assert(/were not returned/.test(other.queue.lastError));
});

Deno.test("PackedRing.pop refuses a chain of 2^32 bytes", () => {
  const at = packedFixture();
  const size = 0x2000_0000;
  at.memory.map({ iova: 0x1_0000_0000, lengthBytes: size });
  const parts = (last: number) =>
    Array.from({ length: 8 }, (_, i) => ({
      addr: 0x1_0000_0000,
      len: i === 7 ? last : size,
      id: 2,
      flags: (i < 7 ? NEXT : 0) | (i >= 4 ? WRITE : 0),
    }));
  at.ring.offer(parts(size));
  assertEquals(at.queue.pop(at.chain), -Errno.EINVAL);
  assert(/2\^32 bytes/.test(at.queue.lastError));
  at.ring.next = 0;
  at.ring.offer(parts(size - 1));
  assertEquals(at.queue.pop(at.chain), 1);
  // The most that can be written at all comes back as it was.
  at.queue.push(2, 0xffff_ffff);
  at.queue.publish();
  assertEquals(at.ring.read(0).len, 0xffff_ffff);
});

Deno.test("PackedRing.pop checks the access a mapping allows", () => {
  const at = packedFixture();
  at.memory.map({ iova: 0x1000, lengthBytes: 0x1000, access: 1 });
  at.memory.map({ iova: 0x2000, lengthBytes: 0x1000, access: 2 });
  for (
    const [addr, flags] of [[0x1000, WRITE], [0x2000, 0], [0x1fff, 0]] as const
  ) {
    at.ring.next = 0;
    at.ring.offer([{ addr, len: 2, flags }]);
    assertEquals(at.queue.pop(at.chain), -Errno.EFAULT);
  }
});

Deno.test("PackedRing.pop looks at a descriptor once, but for its flags", () => {
  // A driver that changes everything it may between two reads is played by a window that does so after each.
  const at = packedFixture();
  at.ring.offer([
    { addr: DATA, len: 16, id: 0xdead, flags: NEXT },
    { addr: DATA + 64, len: 16, id: 4, flags: WRITE },
  ]);
  const reads = new Map<number, number>();
  const make = at.memory.window.bind(at.memory);
  at.memory.window = (iova, length, access) => {
    const window = make(iova, length, access);
    if (window === null || iova !== at.places.desc) return window;
    const count = (offset: number, bytes: number) => {
      for (let i = 0; i < bytes; i++) {
        reads.set(offset + i, (reads.get(offset + i) ?? 0) + 1);
      }
    };
    return new Proxy(window, {
      get: (target, name: keyof typeof window) => {
        const value = target[name];
        if (typeof value !== "function") return value;
        const bytes = name.endsWith("U32") ? 4 : 2;
        return (offset: number, ...rest: number[]) => {
          if (/^(get|load)/.test(name)) count(offset, bytes);
          return (value as (...args: number[]) => number)
            .call(target, offset, ...rest);
        };
      },
    });
  };
  at.queue.suspend();
  at.queue.resume();
  assertEquals(at.queue.pop(at.chain), 1, at.queue.lastError);
  const others = [...reads].filter(([offset]) => offset % 16 < 14);
  assertEquals(others.map(([, times]) => times), new Array(28).fill(1));
});

Deno.test("PackedRing survives any bytes in the ring, the tables and the event structure", () => {
  let popped = 0;
  fc.assert(
    fc.property(
      fc.array(
        fc.record({
          // Mostly where a driver would put it, with the marks of its lap.
          at: fc.oneof({ weight: 4, arbitrary: fc.constant(-1) }, fc.nat(6)),
          table: fc.nat(3).map((n) => n === 0),
          addr: fc.oneof(
            fc.nat(0x1000).map((n) => BigInt(DATA + n)),
            fc.nat(LENGTH + 64).map((n) => BigInt(BASE - 32 + n)),
            fc.constant(BigInt(TABLES)),
            fc.bigInt({ min: 0n, max: 0xffff_ffff_ffff_ffffn }),
          ),
          len: fc.oneof(fc.nat(64), fc.nat(0xffff_ffff)),
          id: fc.oneof(fc.nat(8), fc.nat(0xffff)),
          flags: fc.oneof(
            { weight: 4, arbitrary: fc.nat(7) },
            fc.nat(0xffff),
          ),
        }),
        { maxLength: 40 },
      ),
      fc.nat(0xffff),
      fc.nat(0xffff),
      fc.boolean(),
      fc.boolean(),
      (descriptors, event, offWrap, eventIdx, inOrder) => {
        const { queue, ring, chain } = packedFixture({
          size: 7,
          eventIdx,
          inOrder,
        });
        ring.driverEvent(event, offWrap);
        let step = 0;
        for (const raw of descriptors) {
          if (raw.table) {
            ring.descriptorAt(TABLES + Math.max(raw.at, 0) * 16, raw);
          } else if (raw.at < 0) {
            ring.offer([raw]);
          } else {
            ring.descriptor(raw.at, raw);
          }
          if (step++ % 2 !== 0) continue;
          queue.poll();
          queue.enableNotifications();
          const result = queue.pop(chain);
          if (result < 0) {
            assert(queue.lastError.length > 10);
            return;
          }
          if (result === 0) continue;
          popped++;
          assert(chain.head < 7);
          for (const list of [chain.readable, chain.writable]) {
            let sum = 0;
            for (let s = 0; s < list.count; s++) {
              sum += list.length(s);
              assert(list.base(s) >= 0x7f00_0000_0000);
              assert(
                list.base(s) + list.length(s) <= 0x7f00_0000_0000 + LENGTH,
              );
            }
            assertEquals(sum, list.lengthBytes);
          }
          if (step % 3 === 0) queue.unpop(1);
          else if (step % 3 === 1) queue.push(chain.head, 1);
          queue.publish();
          assert(queue.inFlight <= 7);
        }
      },
    ),
    { numRuns: 3000 },
  );
  assert(popped > 50, "the generator makes good chains too");
});
