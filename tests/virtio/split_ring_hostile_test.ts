import { assert, assertEquals } from "@std/assert";
import fc from "fast-check";
import { Errno } from "../../src/core/errno.ts";
import {
  BASE,
  DATA,
  fixture,
  LENGTH,
  TABLES,
  turnRing,
} from "./ring_fixture.ts";
import { runHostileCases } from "./hostile_chains.ts";
import { INDIRECT, NEXT, WRITE } from "./naive_ring.ts";

runHostileCases(
  "SplitRing.pop",
  "split",
  ({ indirect, segments, mayLack }) => {
    const { queue, ring, chain } = fixture({
      size: 8,
      indirect,
      segments,
      mayLack,
    });
    return {
      offer: (parts) => {
        parts.forEach((part, i) => {
          const linked = part.next ?? i < parts.length - 1;
          ring.descriptor(i, {
            addr: part.addr,
            len: part.len,
            flags: (linked ? NEXT : 0) | (part.write ? WRITE : 0) |
              (part.indirect ? INDIRECT : 0),
            next: i + 1,
          });
        });
        ring.offer(0);
      },
      tableEntry: (index, entry, last) =>
        ring.descriptorAt(TABLES + index * 16, {
          addr: entry.addr,
          len: entry.len,
          flags: ((entry.next ?? !last) ? NEXT : 0) |
            (entry.write ? WRITE : 0) |
            (entry.indirect ? INDIRECT : 0),
          next: entry.nextIndex ?? index + 1,
        }),
      pop: () => queue.pop(chain),
      lastError: () => queue.lastError,
      inFlight: () => queue.inFlight,
    };
  },
  assertEquals,
);

Deno.test("SplitRing.pop refuses a head beyond the table", () => {
  const { queue, ring, chain } = fixture();
  for (const head of [8, 9, 0xffff]) {
    ring.availIdx = 0;
    ring.offer(head);
    assertEquals(queue.pop(chain), -Errno.EINVAL);
    assert(/queue 3: .*descriptor \d+ of 8 \(2\.7\.6\)/.test(queue.lastError));
  }
});

Deno.test("SplitRing.pop refuses a next beyond the table", () => {
  const { queue, ring, chain } = fixture();
  for (const next of [8, 0xffff]) {
    ring.availIdx = 0;
    ring.descriptor(0, { addr: DATA, len: 1, flags: NEXT, next });
    ring.offer(0);
    assertEquals(queue.pop(chain), -Errno.EINVAL);
    assert(/next is \d+ in a table of 8/.test(queue.lastError));
  }
});

Deno.test("SplitRing.pop ends a loop", () => {
  const { queue, ring, chain } = fixture();
  ring.descriptor(0, { addr: DATA, len: 1, flags: NEXT, next: 1 });
  ring.descriptor(1, { addr: DATA, len: 1, flags: NEXT, next: 0 });
  ring.offer(0);
  assertEquals(queue.pop(chain), -Errno.ELOOP);
  ring.descriptor(0, { addr: DATA, len: 0, flags: NEXT, next: 0 });
  assertEquals(queue.pop(chain), -Errno.ELOOP);
});

Deno.test("SplitRing.pop refuses an available index that moves by more than the size", () => {
  const at = fixture();
  for (const idx of [9, 100, 0x7fff, 0xffff]) {
    at.ring.availIdx = idx;
    assertEquals(at.queue.pop(at.chain), -Errno.EINVAL);
    assert(
      /available index moved by \d+.*2\.7\.13\.3/.test(at.queue.lastError),
    );
  }
  // Decremented by one (2.7.6.1), across the wrap too.
  at.ring.availIdx = 0;
  turnRing(at, 65536);
  at.ring.availIdx = 65535;
  assertEquals(at.queue.pop(at.chain), -Errno.EINVAL);
});

Deno.test("SplitRing.pop refuses a head that the device holds", () => {
  const { queue, ring, chain } = fixture();
  const head = ring.add([{ iova: DATA, length: 1 }]);
  assertEquals(queue.pop(chain), 1);
  ring.offer(head);
  assertEquals(queue.pop(chain), -Errno.EINVAL);
  assert(/again before it was used/.test(queue.lastError));
  queue.push(head, 0);
  assertEquals(queue.pop(chain), -Errno.EINVAL, "the driver has not seen it");
  queue.publish();
  assertEquals(queue.pop(chain), 1);
});

Deno.test("SplitRing.pop never lets the device hold more chains than the queue has entries", () => {
  const at = fixture();
  for (let i = 0; i < 8; i++) {
    at.ring.add([{ iova: DATA, length: 1 }]);
    assertEquals(at.queue.pop(at.chain), 1);
  }
  at.ring.offer(0);
  assertEquals(at.queue.pop(at.chain), -Errno.EINVAL);
  assert(/more than 8 chains/.test(at.queue.lastError));
});

Deno.test("SplitRing.pop refuses a chain of 2^32 bytes", () => {
  const at = fixture();
  // 16 GiB of addresses on one small buffer would do, but a mapping is as long as its bytes: overlap instead.
  const memory = at.memory;
  const size = 0x2000_0000;
  memory.map({ iova: 0x1_0000_0000, lengthBytes: size });
  const offer = (count: number, last: number) => {
    for (let i = 0; i < count; i++) {
      at.ring.descriptor(i, {
        addr: 0x1_0000_0000,
        len: i === count - 1 ? last : size,
        flags: (i < count - 1 ? NEXT : 0) | (i >= 4 ? WRITE : 0),
        next: i + 1,
      });
    }
    at.ring.availIdx = 0;
    at.ring.offer(0);
  };
  offer(8, size);
  assertEquals(at.queue.pop(at.chain), -Errno.EINVAL);
  assert(/2\^32 bytes/.test(at.queue.lastError));
  offer(8, size - 1);
  assertEquals(at.queue.pop(at.chain), 1);
  assertEquals(
    at.chain.readable.lengthBytes + at.chain.writable.lengthBytes,
    0xffff_ffff,
  );
});

Deno.test("SplitRing.pop checks the access a mapping allows", () => {
  const at = fixture();
  at.memory.map({ iova: 0x1000, lengthBytes: 0x1000, access: 1 });
  at.memory.map({ iova: 0x2000, lengthBytes: 0x1000, access: 2 });
  const cases = [
    { iova: 0x1000, write: true },
    { iova: 0x2000, write: false },
    { iova: 0x1fff, write: false },
    { iova: 0x1fff, write: true },
  ];
  for (const { iova, write } of cases) {
    at.ring.descriptor(0, { addr: iova, len: 2, flags: write ? WRITE : 0 });
    at.ring.availIdx = 0;
    at.ring.offer(0);
    assertEquals(at.queue.pop(at.chain), -Errno.EFAULT);
  }
  at.ring.add([{ iova: 0x1000, length: 2 }, {
    iova: 0x2000,
    length: 2,
    write: true,
  }]);
  at.ring.availIdx = 0;
  at.ring.offer(0);
  assertEquals(at.queue.pop(at.chain), 1);
});

Deno.test("SplitRing.pop survives any bytes in the rings and tables", () => {
  let popped = 0;
  fc.assert(
    fc.property(
      fc.array(
        fc.record({
          at: fc.constantFrom(0, 1, 2, 3, 4, 5, 6, 7),
          table: fc.boolean(),
          addr: fc.oneof(
            fc.nat(LENGTH + 64).map((n) => BigInt(BASE - 32 + n)),
            fc.constant(BigInt(TABLES)),
            fc.bigInt({ min: 0n, max: 0xffff_ffff_ffff_ffffn }),
          ),
          len: fc.oneof(fc.nat(64), fc.nat(0xffff_ffff)),
          flags: fc.oneof(fc.nat(7), fc.nat(0xffff)),
          next: fc.oneof(fc.nat(8), fc.nat(0xffff)),
        }),
        { maxLength: 24 },
      ),
      fc.array(fc.oneof(fc.nat(8), fc.nat(0xffff)), { maxLength: 9 }),
      fc.boolean(),
      (descriptors, heads, eventIdx) => {
        const { queue, ring, chain } = fixture({ size: 8, eventIdx });
        for (const raw of descriptors) {
          if (raw.table) ring.descriptorAt(TABLES + raw.at * 16, raw);
          else ring.descriptor(raw.at, raw);
        }
        for (const head of heads) ring.offer(head);
        for (let i = 0; i < 10; i++) {
          const result = queue.pop(chain);
          if (result < 0) {
            assert(queue.lastError.length > 10);
            return;
          }
          if (result === 0) return;
          popped++;
          assert(chain.head < 8);
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
          if (i % 2 === 0) queue.push(chain.head, 1);
          queue.publish();
        }
      },
    ),
    { numRuns: 2000 },
  );
  assert(popped > 50, "the generator makes good chains too");
});
