import { assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import { Errno, ErrnoError } from "../../src/core/errno.ts";
import { ArrayMemory } from "../../src/memory/array_memory.ts";
import { Access } from "../../src/memory/guest_memory.ts";
import { readWords } from "./read_words.ts";

const RW = Access.READ | Access.WRITE;

function words(iova: number): Uint32Array {
  return Uint32Array.of(iova % 2 ** 32, Math.floor(iova / 2 ** 32));
}

Deno.test("ArrayMemory maps 1 MiB at 0 unless told", () => {
  const memory = new ArrayMemory();
  assertEquals(memory.ranges().map((it) => [it.iova, it.lengthBytes]), [
    [0, 0x10_0000],
  ]);
  assertEquals(memory.write(0xf_fffc, Uint8Array.of(1, 2, 3, 4)), 0);
  assertEquals(
    memory.write(0xf_fffd, Uint8Array.of(1, 2, 3, 4)),
    -Errno.EFAULT,
  );
});

Deno.test("ArrayMemory.translate gives pretended addresses that bytes understands", () => {
  const memory = new ArrayMemory([{ iova: 0x4000, lengthBytes: 0x1000 }]);
  memory.write(0x4100, Uint8Array.of(5, 6, 7));
  const list = memory.createScatterGather(4);
  assertEquals(memory.translate(0x4100, 3, RW, list), 0);
  assertEquals(memory.bytes(list.base(0), 3), Uint8Array.of(5, 6, 7));
  memory.bytes(list.base(0), 3)[1] = 99;
  const out = new Uint8Array(3);
  assertEquals(memory.read(0x4100, out), 0);
  assertEquals(out, Uint8Array.of(5, 99, 7));
  assertThrows(() => memory.bytes(0x1234, 1), ErrnoError, "EFAULT");
});

Deno.test("ArrayMemory spans mappings that are adjacent for the guest, in segments of their own", () => {
  const memory = new ArrayMemory([
    { iova: 0x1000, lengthBytes: 0x1000 },
    { iova: 0x2000, lengthBytes: 0x1000 },
  ]);
  const list = memory.createScatterGather(4);
  assertEquals(memory.translate(0x1ff0, 32, RW, list), 0);
  assertEquals([list.count, list.lengthBytes], [2, 32]);
  const bytes = Uint8Array.from({ length: 32 }, (_, i) => i);
  assertEquals(memory.scatter(list, bytes, 32), 32);
  const out = new Uint8Array(32);
  memory.read(0x1ff0, out);
  assertEquals(out, bytes);
  assertEquals(memory.gather(list, out.fill(0), 20), 20);
  assertEquals(out.subarray(0, 21), Uint8Array.of(...bytes.subarray(0, 20), 0));
  const found = new Uint32Array(3);
  assertEquals(readWords(memory, words(0x1ffa), found, 1, 2), 0);
  assertEquals(found, Uint32Array.of(0, 0x0d0c0b0a, 0x11100f0e));
  const window = memory.window(0x1ff0, 32, RW)!;
  assertEquals(window.getU32(12), 0x0f0e0d0c);
  assertEquals(window.getU32(16), 0x13121110);
});

Deno.test("ArrayMemory refuses what is not mapped or not allowed, and leaves lists as they were", () => {
  const memory = new ArrayMemory([
    { iova: 0x1000, lengthBytes: 0x1000, access: Access.READ },
    { iova: 0x2000, lengthBytes: 0x1000, access: Access.WRITE },
    { iova: 0x4000, lengthBytes: 0x1000 },
  ]);
  const list = memory.createScatterGather(2);
  assertEquals(memory.translate(0x4000, 8, RW, list), 0);
  const cases: [number, number, number][] = [
    [0x1000, 1, Access.WRITE],
    [0x2000, 1, Access.READ],
    [0x1fff, 2, Access.READ],
    [0x1fff, 2, Access.WRITE],
    [0x2fff, 2, Access.WRITE],
    [0x0fff, 2, Access.READ],
    [0x5000, 1, RW],
    [2 ** 53, 1, RW],
    [2 ** 64 - 1, 2, RW],
    [0x4000, 0xffff_ffff, RW],
  ];
  for (const [iova, length, access] of cases) {
    assertEquals(memory.translate(iova, length, access, list), -Errno.EFAULT);
    assertEquals(
      memory.translateWords(words(iova), 0, length, access, list),
      -Errno.EFAULT,
    );
    assertEquals(memory.window(iova, length, access), null);
    assertEquals([list.count, list.lengthBytes], [1, 8]);
  }
  assertEquals(readWords(memory, words(0x2000), new Uint32Array(1), 0, 1), -14);
  assertEquals(readWords(memory, words(0x1ffe), new Uint32Array(1), 0, 1), -14);
  assertEquals(memory.read(0x2000, new Uint8Array(1)), -Errno.EFAULT);
  assertEquals(memory.write(0x1000, new Uint8Array(1)), -Errno.EFAULT);
  assertEquals(memory.translate(0x1000, 4, Access.READ, list), 0);
  assertEquals(memory.translate(0x4100, 4, RW, list), -Errno.E2BIG);
  assertEquals([list.count, list.lengthBytes], [2, 12]);
});

Deno.test("ArrayMemory.window reads and writes little-endian in every width", () => {
  const memory = new ArrayMemory();
  const window = memory.window(0x100, 32, RW)!;
  assertEquals(window.lengthBytes, 32);
  assertEquals(window.refresh(0, 32), 0);
  window.setU32(0, 0x4455_6677);
  assertEquals(window.getU32(0), 0x4455_6677);
  assertEquals(window.getU16(2), 0x4455);
  window.setU32(8, 0xffff_fffe);
  window.setU16(12, 0x1_2345);
  assertEquals([window.getU32(8), window.getU16(12)], [0xffff_fffe, 0x2345]);
  window.storeU16(14, 0xbeef);
  assertEquals(window.loadU16(14), 0xbeef);
  assertEquals(memory.window(0x101, 3, RW)!.lengthBytes, 3);
});

Deno.test("ArrayMemory tells its listeners before a range goes and after every change", () => {
  const memory = new ArrayMemory([]);
  const events: string[] = [];
  const end = memory.subscribe({
    onUnmap: (iova, length) => {
      const mapped = memory.read(iova, new Uint8Array(1)) === 0;
      events.push(`unmap ${iova} ${length} ${mapped}`);
    },
    onChange: () => events.push(`change ${memory.ranges().length}`),
  });
  const before = memory.generation;
  memory.map({ iova: 0x1000, lengthBytes: 0x1000 });
  memory.map({ iova: 0x3000, lengthBytes: 0x1000 });
  memory.unmap(0x1000, 0x1000);
  assertEquals(memory.generation, before, "no window has become invalid");
  memory.unmapAll();
  memory.unmapAll();
  end();
  memory.map({ iova: 0, lengthBytes: 1 });
  assertEquals(events, [
    "change 1",
    "change 2",
    "unmap 4096 4096 true",
    "change 1",
    "unmap 12288 4096 true",
    "change 0",
  ]);
});

Deno.test("ArrayMemory.map and unmap refuse overlaps and inexact ranges", () => {
  const memory = new ArrayMemory([{ iova: 0x1000, lengthBytes: 0x1000 }]);
  for (const [iova, lengthBytes] of [[0, 0x1001], [0x1fff, 1], [0x1400, 16]]) {
    const error = assertThrows(
      () => memory.map({ iova: iova!, lengthBytes: lengthBytes! }),
      ErrnoError,
    );
    assertEquals(error.errno, Errno.EEXIST);
  }
  for (
    const [iova, length] of [[0x1000, 0xfff], [0x1001, 0xfff], [0x800, 0x1000]]
  ) {
    const error = assertThrows(() => memory.unmap(iova!, length!), ErrnoError);
    assertEquals(error.errno, Errno.ENOENT);
  }
  memory.map({ iova: 0, lengthBytes: 0x1000 });
  memory.map({ iova: 0x2000, lengthBytes: 1 });
});

Deno.test("ArrayMemory forgets a range at once, although it was the last one used", () => {
  const memory = new ArrayMemory([]);
  const buffer = memory.map({ iova: 0x1000, lengthBytes: 0x1000 });
  const list = memory.createScatterGather(2);
  memory.translate(0x1000, 4, RW, list);
  memory.gather(list, new Uint8Array(4), 4);
  memory.unmap(0x1000, 0x1000);
  assertEquals(memory.gather(list, new Uint8Array(4), 4), 0);
  assertEquals(memory.translate(0x1000, 4, RW, list), -Errno.EFAULT);
  assertEquals(readWords(memory, words(0x1000), new Uint32Array(1), 0, 1), -14);
  new Uint8Array(buffer)[3] = 8;
  memory.map({ iova: 0x1000, lengthBytes: 0x1000, buffer });
  const found = new Uint32Array(1);
  assertEquals(readWords(memory, words(0x1000), found, 0, 1), 0);
  assertEquals(found[0], 0x0800_0000);
});

Deno.test("ArrayMemory agrees with a map from address to byte", () => {
  // Pages of 16 bytes, each mapped with some access or not at all.
  const pages = fc.array(fc.constantFrom(0, 1, 2, 3, 3, 3), {
    minLength: 8,
    maxLength: 8,
  });
  const access = fc.tuple(
    fc.integer({ min: -4, max: 132 }),
    fc.integer({ min: 1, max: 48 }),
    fc.constantFrom(1, 2, 3),
  );
  const base = 0xffff_ffc0;
  fc.assert(
    fc.property(pages, fc.array(access, { maxLength: 20 }), (map, accesses) => {
      const memory = new ArrayMemory([]);
      map.forEach((allowed, page) => {
        if (allowed === 0) return;
        const buffer = memory.map({
          iova: base + page * 16,
          lengthBytes: 16,
          access: allowed,
        });
        new Uint8Array(buffer).forEach((_, i, all) => {
          all[i] = page * 16 + i;
        });
      });
      const list = memory.createScatterGather(16);
      for (const [start, length, wanted] of accesses) {
        let good = true;
        for (let at = start; at < start + length; at++) {
          const allowed = map[Math.floor(at / 16)] ?? 0;
          if ((allowed & wanted) !== wanted) good = false;
        }
        list.clear();
        const result = memory.translate(base + start, length, wanted, list);
        assertEquals(result, good ? 0 : -Errno.EFAULT);
        assertEquals(list.lengthBytes, good ? length : 0);
        if (good) {
          const bytes = new Uint8Array(length);
          assertEquals(memory.gather(list, bytes, length), length);
          assertEquals([...bytes], [...bytes.keys()].map((i) => start + i));
        }
        if (wanted === 1) {
          const count = Math.ceil(length / 4);
          const found = new Uint32Array(count);
          const readable = Array.from(
            { length: count * 4 },
            (_, i) => (map[Math.floor((start + i) / 16)] ?? 0) & 1,
          ).every((bit) => bit === 1);
          assertEquals(
            readWords(memory, words(base + start), found, 0, count),
            readable ? 0 : -Errno.EFAULT,
          );
          if (readable) {
            assertEquals(
              [...new Uint8Array(found.buffer)],
              Array.from({ length: count * 4 }, (_, i) => start + i),
            );
          }
        }
      }
    }),
    { numRuns: 500 },
  );
});
