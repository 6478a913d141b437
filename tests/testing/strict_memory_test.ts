import { assertEquals, assertThrows } from "@std/assert";
import { Errno } from "../../src/core/errno.ts";
import {
  Access,
  MEMORY_PENDING as PENDING,
} from "../../src/memory/guest_memory.ts";
import { StrictMemory } from "../../src/testing/strict_memory.ts";

const IOVA = 0x10_0000;

function setUp() {
  const memory = new StrictMemory();
  const guest = new Uint8Array(
    memory.map({ iova: IOVA, lengthBytes: 0x4000 }),
  );
  return { memory, guest, list: memory.createScatterGather(4) };
}

Deno.test("StrictMemory shows in a list what the guest had when it was translated", () => {
  const { memory, guest, list } = setUp();
  guest.fill(1);
  memory.translate(IOVA + 5, 8, Access.READ, list);
  guest.fill(2);
  assertEquals(memory.bytes(list.base(0), 8), new Uint8Array(8).fill(1));
  assertEquals([list.iova(0), list.base(0) % 0x1000], [IOVA + 5, 5]);
  assertEquals(memory.release(list, 0), 0);
});

Deno.test("StrictMemory gives the guest what was written, when the list is released, and no more", () => {
  const { memory, guest, list } = setUp();
  memory.translate(IOVA, 4, Access.WRITE, list);
  memory.translate(IOVA + 0x100, 4, Access.WRITE, list);
  for (const i of [0, 1]) memory.bytes(list.base(i), 4).fill(7);
  assertEquals(guest.slice(0, 4), new Uint8Array(4));
  assertEquals(memory.release(list, 6), 0);
  assertEquals(guest.slice(0, 4), new Uint8Array(4).fill(7));
  assertEquals([...guest.slice(0x100, 0x104)], [7, 7, 0, 0]);
});

Deno.test("StrictMemory lets scatter through at once", () => {
  const { memory, guest, list } = setUp();
  memory.translate(IOVA, 4, Access.WRITE, list);
  assertEquals(memory.scatter(list, Uint8Array.of(1, 2), 2), 2);
  assertEquals([...guest.slice(0, 3)], [1, 2, 0]);
  memory.release(list, 2);
  assertEquals([...guest.slice(0, 3)], [1, 2, 0]);
});

Deno.test("StrictMemory counts what is not released, and refuses what is released already", () => {
  const { memory, list } = setUp();
  assertEquals(memory.outstanding, 0);
  memory.translate(IOVA, 4, Access.READ, list);
  memory.translate(IOVA + 8, 4, Access.READ, list);
  assertEquals(memory.outstanding, 2);
  assertThrows(() => memory.release(list, 1), Error, "it was to be read");
  list.clear();
  memory.translate(IOVA, 4, Access.READ, list);
  memory.release(list, 0);
  assertThrows(() => memory.release(list, 0), Error, "it is released");
  assertThrows(
    () => memory.gather(list, new Uint8Array(4), 4),
    Error,
    "it is released",
  );
});

Deno.test("StrictMemory wants a list back as it was filled", () => {
  const { memory, list } = setUp();
  memory.translate(IOVA, 4, Access.WRITE, list);
  list.consume(1);
  assertThrows(() => memory.release(list, 0), Error, "4 were translated");
  list.clear();
  memory.translate(IOVA, 4, Access.WRITE, list);
  list.truncate(3);
  assertThrows(() => memory.release(list, 0), Error, "4 were translated");
  list.clear();
  memory.translate(IOVA, 4, Access.WRITE, list);
  assertThrows(() => memory.release(list, 5), Error, "1 bytes too many");
});

Deno.test("StrictMemory tells when what was written has nowhere to go", () => {
  const { memory, list } = setUp();
  memory.translate(IOVA, 4, Access.WRITE, list);
  memory.unmapAll();
  assertEquals(memory.release(list, 4), -Errno.EFAULT);
  assertEquals(memory.outstanding, 0);
});

Deno.test("StrictMemory shows in a window what was there when it was refreshed", () => {
  const { memory, guest } = setUp();
  const window = memory.window(IOVA, 16, Access.READ | Access.WRITE)!;
  assertEquals(window.getU16(0), 0xa9a9);
  guest.set([1, 2, 3, 4]);
  assertEquals(window.refresh(0, 2), 0);
  assertEquals([window.getU16(0), window.getU16(2)], [0x0201, 0xa9a9]);
  guest[0] = 9;
  assertEquals(window.loadU16(0), 0x0201);
  window.setU16(2, 0x0605);
  assertEquals([window.getU32(0), guest[2], guest[3]], [0x0605_0201, 5, 6]);
  assertThrows(() => window.refresh(8, 9), RangeError);
});

Deno.test("StrictMemory is out of reach where it is told to be, until what is wanted is reached", () => {
  const { memory, guest, list } = setUp();
  let told = 0;
  memory.subscribe({ onReach: () => told++ });
  memory.pends = (access) => access === 1;
  const read = () => memory.translate(IOVA, 4, Access.READ, list);
  assertEquals(read(), 0);
  assertEquals(memory.release(list, 0), 0);
  list.clear();
  assertEquals([read(), read(), list.count], [PENDING, PENDING, 0]);
  assertEquals(memory.translate(IOVA, 4, Access.WRITE, list), 0);
  memory.release(list, 0);
  list.clear();
  guest[0] = 7;
  assertEquals([memory.reach(), told], [true, 1]);
  guest[0] = 8;
  assertEquals([read(), memory.bytes(list.base(0), 1)[0]], [0, 7]);
  // The step gets no further, and is done once more.
  memory.release(list, PENDING);
  list.clear();
  const window = memory.window(IOVA, 16, Access.READ)!;
  memory.pends = () => true;
  assertEquals([window.refresh(0, 4), memory.reach()], [PENDING, true]);
  assertEquals([window.refresh(0, 4), window.getU16(0)], [0, 8]);
  assertEquals([read(), memory.bytes(list.base(0), 1)[0]], [0, 7]);
  memory.release(list, 0);
  list.clear();
  assertEquals([read(), memory.reach(), memory.reach()], [
    PENDING,
    true,
    false,
  ]);
  // Nobody has asked for it again: it is forgotten.
  assertEquals([read(), memory.outstanding], [PENDING, 0]);
});
