import { ResourceBag } from "../../src/os/mod.ts";
import { assert, assertEquals, assertThrows } from "@std/assert";
import { Errno, ErrnoError } from "../../src/core/errno.ts";
import {
  createMemfd,
  type Fd,
  Mapping,
  statFd,
  truncateFd,
} from "../../src/os/mod.ts";
import { DmaMemory } from "../../src/memory/dma_memory.ts";
import { Access } from "../../src/memory/guest_memory.ts";
import { openFds, sharedMappings } from "../resources.ts";
import { readWords } from "./read_words.ts";

const RW = Access.READ | Access.WRITE;
const MIB = 0x10_0000;

/** A memfd and the guest's own mapping of it. */
class Ram implements Disposable {
  readonly fd: Fd;
  readonly mapping: Mapping;
  readonly bytes: Uint8Array;

  constructor(lengthBytes: number) {
    this.fd = createMemfd("dma-memory-test", lengthBytes);
    this.mapping = new Mapping({ fd: this.fd.number, lengthBytes });
    this.bytes = new Uint8Array(this.mapping.buffer);
  }

  [Symbol.dispose](): void {
    this.mapping.close();
    this.fd.close();
  }
}

Deno.test("DmaMemory shares bytes with whoever else maps the descriptor", () => {
  using ram = new Ram(MIB);
  using memory = new DmaMemory({ poison: true });
  memory.map({
    iova: 0x1_0000_0000,
    lengthBytes: 0x8000,
    access: RW,
    fd: ram.fd.number,
    offset: 0x4000,
  });
  ram.bytes.set([1, 2, 3, 4], 0x4010);
  const out = new Uint8Array(4);
  assertEquals(memory.read(0x1_0000_0010, out), 0);
  assertEquals(out, Uint8Array.of(1, 2, 3, 4));
  memory.write(0x1_0000_7fff, Uint8Array.of(9));
  assertEquals(ram.bytes[0xbfff], 9);
  const window = memory.window(0x1_0000_0010, 4, RW)!;
  assertEquals(window.getU32(0), 0x0403_0201);
  window.storeU16(2, 0x7788);
  assertEquals(ram.bytes[0x4013], 0x77);
  assertEquals(memory.count, 1);
});

Deno.test("DmaMemory.translate gives addresses of this process, of the mapping and nothing else", () => {
  using ram = new Ram(MIB);
  using memory = new DmaMemory({ poison: true });
  const fd = ram.fd.number;
  memory.map({ iova: 0, lengthBytes: 0x1000, access: RW, fd });
  memory.map({
    iova: 0x1000,
    lengthBytes: 0x1000,
    access: Access.READ,
    fd,
    offset: 0x8000,
  });
  const list = memory.createScatterGather(8);
  assert(list.iovec !== null);
  assertEquals(memory.translate(0xff0, 0x20, Access.READ, list), 0);
  assertEquals(list.lengthBytes, 0x20);
  ram.bytes.fill(7, 0xff0, 0x1000);
  ram.bytes.fill(8, 0x8000, 0x8010);
  const bytes = new Uint8Array(0x20);
  assertEquals(memory.gather(list, bytes, 0x20), 0x20);
  assertEquals(
    bytes,
    Uint8Array.from({ length: 32 }, (_, i) => i < 16 ? 7 : 8),
  );
  assertEquals(memory.translate(0xff0, 0x20, RW, list), -Errno.EFAULT);
  assertEquals(list.lengthBytes, 0x20);
  assertEquals(
    memory.translate(0x1ff0, 0x20, Access.READ, list),
    -Errno.EFAULT,
  );
});

Deno.test("DmaMemory.gatherWords reads above 4 GiB of one mapping", () => {
  // A file of holes: no memory is used but for the page that is touched.
  const length = 17 * 2 ** 30;
  using fd = createMemfd("dma-memory-test", length);
  using memory = new DmaMemory({ poison: true });
  memory.map({ iova: 0x1000, lengthBytes: length, access: RW, fd: fd.number });
  const iova = 0x1000 + length - 16;
  memory.write(iova, Uint8Array.of(1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4));
  const address = Uint32Array.of(iova % 2 ** 32, iova / 2 ** 32);
  const into = new Uint32Array(4);
  assertEquals(readWords(memory, address, into, 0, 4), 0);
  assertEquals(into, Uint32Array.of(1, 2, 3, 4));
  assertEquals(readWords(memory, address, new Uint32Array(5), 0, 5), -14);
  const list = memory.createScatterGather(1);
  assertEquals(memory.translateWords(address, 0, 16, RW, list), 0);
  const bytes = new Uint8Array(5);
  assertEquals(memory.gather(list, bytes, 5), 5);
  assertEquals(bytes, Uint8Array.of(1, 0, 0, 0, 2));
});

Deno.test("DmaMemory tells of a range without a descriptor when it is used, once", () => {
  using memory = new DmaMemory();
  const dimm = { iova: 0x10_0000, lengthBytes: 0x2000, access: RW };
  memory.map(dimm);
  const list = memory.createScatterGather(1);
  const address = Uint32Array.of(0x10_1000, 0);
  const bytes = new Uint8Array(16);
  const uses: (() => unknown)[] = [
    () => memory.translate(0x10_1000, 16, RW, list),
    () => memory.translateWords(address, 0, 16, RW, list),
    () => readWords(memory, address, new Uint32Array(4), 0, 4),
    () => memory.window(0x0f_fff0, 0x20, RW),
    () => memory.read(0x10_1ff0, bytes),
    () => memory.write(0x10_0000, bytes),
  ];
  for (const use of uses) {
    const told: number[] = [];
    memory.onUnreachable = ({ iova, lengthBytes }) =>
      told.push(iova, lengthBytes);
    // Where nothing is that is the driver's doing.
    memory.read(0x20_0000, bytes);
    assertEquals(told, []);
    use();
    use();
    assertEquals(told, [dimm.iova, dimm.lengthBytes]);
    memory.unmapAll();
    memory.map(dimm);
  }
});

Deno.test("DmaMemory knows a range without a descriptor but cannot reach it", () => {
  using memory = new DmaMemory();
  memory.map({ iova: 0x1000, lengthBytes: 0x1000, access: RW });
  const list = memory.createScatterGather(1);
  assertEquals(memory.translate(0x1000, 1, RW, list), -Errno.EFAULT);
  assertEquals(memory.translate(0x1000, 1, 0, list), -Errno.EFAULT);
  assertEquals(memory.window(0x1000, 1, 0), null);
  assertEquals(memory.read(0x1000, new Uint8Array(1)), -Errno.EFAULT);
  assertEquals(
    readWords(memory, Uint32Array.of(0x1000, 0), new Uint32Array(1), 0, 1),
    -Errno.EFAULT,
  );
  assertEquals(memory.ranges(), memory.ranges());
  assertEquals([memory.count, memory.ranges()[0]!.lengthBytes], [1, 0x1000]);
  memory.unmap(0x1000, 0x1000);
  assertEquals(memory.count, 0);
});

Deno.test("DmaMemory.map refuses an overlap, and a file that cannot be mapped so, and leaves nothing behind", () => {
  using ram = new Ram(MIB);
  using memory = new DmaMemory();
  const fd = ram.fd.number;
  memory.map({ iova: 0x1000, lengthBytes: 0x1000, access: RW, fd });
  const before = sharedMappings();
  for (const iova of [0x1000, 0x0001, 0x1fff]) {
    const error = assertThrows(
      () => memory.map({ iova, lengthBytes: 0x1000, access: RW, fd }),
      ErrnoError,
    );
    assertEquals(error.errno, Errno.EEXIST);
  }
  assertThrows(
    () =>
      memory.map({
        iova: 0x8000,
        lengthBytes: 0x1000,
        access: RW,
        fd,
        offset: 7,
      }),
    ErrnoError,
    "EINVAL",
  );
  assertThrows(
    () =>
      memory.map({ iova: 0x8000, lengthBytes: 0x1000, access: RW, fd: 9999 }),
    ErrnoError,
    "EBADF",
  );
  assertEquals(memory.count, 1);
  assertEquals(sharedMappings(), before);
});

Deno.test("DmaMemory.unmap removes exactly one range, and announces it first", () => {
  using ram = new Ram(MIB);
  using memory = new DmaMemory({ poison: true });
  const fd = ram.fd.number;
  for (const iova of [0x3000, 0x1000, 0x2000]) {
    memory.map({ iova, lengthBytes: 0x1000, access: RW, fd, offset: iova });
  }
  assertEquals(memory.ranges().map((it) => it.iova), [0x1000, 0x2000, 0x3000]);
  const seen: unknown[] = [];
  memory.subscribe({
    onUnmap: (iova, length) =>
      seen.push([iova, length, memory.read(iova, new Uint8Array(1))]),
  });
  for (const [iova, length] of [[0x1000, 0x2000], [0x1800, 0x800], [0, 1]]) {
    const error = assertThrows(() => memory.unmap(iova!, length!), ErrnoError);
    assertEquals(error.errno, Errno.ENOENT);
  }
  memory.unmap(0x2000, 0x1000);
  assertEquals(seen, [[0x2000, 0x1000, 0]]);
  assertEquals(memory.read(0x2000, new Uint8Array(1)), -Errno.EFAULT);
  assertEquals(memory.read(0x1fff, new Uint8Array(2)), -Errno.EFAULT);
  assertEquals(memory.read(0x3000, new Uint8Array(1)), 0);
});

Deno.test("DmaMemory gives every mapping and descriptor back", () => {
  // What the runtime opens for itself the first time is open then.
  openFds();
  const fds = openFds();
  const mappings = sharedMappings();
  {
    using ram = new Ram(MIB);
    using memory = new DmaMemory();
    const fd = ram.fd.number;
    for (let i = 0; i < 16; i++) {
      memory.map({ iova: i * 0x1000, lengthBytes: 0x1000, access: RW, fd });
      memory.createScatterGather(64);
      memory.window(i * 0x1000, 16, RW)!.getU32(0);
    }
    assertEquals(sharedMappings(), mappings + 2, "ours and the guest's");
    assertEquals(openFds(), fds + 2, "ours and the guest's");
    for (let i = 0; i < 15; i++) memory.unmap(i * 0x1000, 0x1000);
    assertEquals(sharedMappings(), mappings + 2);
    memory.unmap(0xf000, 0x1000);
    assertEquals(sharedMappings(), mappings + 1, "gone with its last range");
    memory.map({ iova: 0, lengthBytes: 0x1000, access: RW, fd });
    memory.close();
    memory.close();
    assertEquals(sharedMappings(), mappings + 1);
  }
  assertEquals(sharedMappings(), mappings);
  assertEquals(openFds(), fds);
});

/** The same memory as another process, or thread, would map it. */
function mappedAgain(memory: DmaMemory, poison = false): DmaMemory {
  using bag = ResourceBag.of();
  const state = structuredClone(memory.save(bag));
  memory.close();
  return new DmaMemory({ poison, saved: { state, bag } });
}

Deno.test("DmaMemory.save tells what is mapped, and the next one maps the same", () => {
  for (const poison of [false, true]) {
    using ram = new Ram(MIB);
    const fd = ram.fd.number;
    const mapped = sharedMappings();
    const first = new DmaMemory({ poison });
    first.map({ iova: 0x1000, lengthBytes: 0x4000, access: RW, fd });
    first.map({
      iova: 0x1_0000_0000,
      lengthBytes: 0x8000,
      access: Access.READ,
      fd,
      offset: 0x8000,
    });
    first.map({ iova: 0x10_0000, lengthBytes: 0x1000, access: RW });
    const fds = openFds();
    using second = mappedAgain(first, poison);
    assertEquals(sharedMappings(), mapped + 2);
    assertEquals(openFds(), fds);
    assertEquals(
      second.ranges().map(({ iova, lengthBytes }) => [iova, lengthBytes]),
      [[0x1000, 0x4000], [0x10_0000, 0x1000], [0x1_0000_0000, 0x8000]],
    );
    ram.bytes[0x8005] = 77;
    const byte = new Uint8Array(1);
    assertEquals(second.read(0x1_0000_0005, byte), 0);
    assertEquals(byte[0], 77);
    assertEquals(second.write(0x1_0000_0005, byte), -Errno.EFAULT);
    assertEquals(second.read(0x10_0000, byte), -Errno.EFAULT);
    second.window(0x1000, 16, RW)!.storeU32(4, 0xaabb_ccdd);
    assertEquals(ram.bytes[4], 0xdd);
    const list = second.createScatterGather(4);
    second.translate(0x1000, 16, RW, list);
    const hva = list.base(0);
    second.unmap(0x1000, 0x4000);
    assertEquals(sharedMappings(), mapped + 1);
    assertEquals(isTaken(hva), poison, "poisoned pages keep their addresses");
    second.unmapAll();
    assertEquals(sharedMappings(), mapped);
  }
});

Deno.test("DmaMemory.save puts a file that many ranges show into the bag once", () => {
  const fds = openFds();
  const ram = new Ram(MIB);
  const fd = ram.fd.number;
  const mapped = sharedMappings();
  const first = new DmaMemory();
  const at = (iova: number, offset: number, access: number) => (
    { iova, lengthBytes: 0x1000, access, fd, offset }
  );
  assert(first.map(at(0x5000, 0x1000, RW)), "a file is mapped");
  assert(!first.map(at(0x4000, 0x9000, RW)), "it is mapped already");
  assert(first.map(at(0x8000, 0x3000, Access.READ)), "never to be written");
  assertEquals(sharedMappings(), mapped + 2);
  using bag = ResourceBag.of();
  assertEquals(first.save(bag).ranges.map(({ file }) => file), [0, 0, 0]);
  using second = mappedAgain(first);
  assertEquals(sharedMappings(), mapped + 2);
  assert(!second.map(at(0xa000, 0x7000, RW)), "it is known here too");
  ram.bytes.set([1, 2, 3], 0x9ffd);
  ram.bytes.set([4, 5], 0x1000);
  // Whoever lent the file may close it.
  ram.fd.close();
  const bytes = new Uint8Array(5);
  assertEquals(second.read(0x4ffd, bytes), 0);
  assertEquals(bytes, Uint8Array.of(1, 2, 3, 4, 5));
  for (const iova of [0x4000, 0x5000, 0xa000, 0x8000]) {
    second.unmap(iova, 0x1000);
  }
  assertEquals(sharedMappings(), mapped);
  ram[Symbol.dispose]();
  assertEquals(openFds(), fds + 1, "what is in the bag");
});

Deno.test("DmaMemory has all of a file there when it is to be reserved", () => {
  for (const prealloc of [false, true]) {
    using fd = createMemfd("reserved", MIB);
    using memory = new DmaMemory({ prealloc });
    memory.map({ iova: 0, lengthBytes: 0x1000, access: RW, fd: fd.number });
    assertEquals(statFd(fd.number).allocatedBytes, prealloc ? MIB : 0);
  }
});

Deno.test("DmaMemory maps a file again that has grown, and the shorter one while ranges show it", () => {
  using ram = new Ram(2 * MIB);
  using memory = new DmaMemory();
  const fd = ram.fd.number;
  const mapped = sharedMappings();
  const page = { lengthBytes: 0x1000, access: RW, fd };
  memory.map({ ...page, iova: 0 });
  truncateFd(fd, 3 * MIB);
  assert(memory.map({ ...page, iova: 0x1000, offset: 2 * MIB }));
  assert(!memory.map({ ...page, iova: 0x2000, offset: MIB }));
  assertEquals(sharedMappings(), mapped + 2);
  memory.unmap(0, 0x1000);
  assertEquals(sharedMappings(), mapped + 1);
  assertEquals(memory.write(0x1fff, Uint8Array.of(1, 2)), 0);
  assertEquals(ram.bytes[MIB], 2);
});

Deno.test("a window spans mappings of one file wherever they lie in it", () => {
  using ram = new Ram(MIB);
  for (const poison of [false, true]) {
    for (
      const offsets of [[0x3000, 0x4000, 0x5000], [0x7000, 0x1000, 0x4000]]
    ) {
      using memory = new DmaMemory({ poison });
      ram.bytes.fill(0);
      offsets.forEach((offset, i) =>
        memory.map({
          iova: 0xffff_f000 + i * 0x1000,
          lengthBytes: 0x1000,
          access: RW,
          fd: ram.fd.number,
          offset,
        })
      );
      const window = memory.window(0xffff_fff0, 0x1020, RW)!;
      const view = new DataView(ram.bytes.buffer);
      const addressOf = (at: number) =>
        offsets[Math.floor((at + 0xff0) / 0x1000)]! + (at + 0xff0) % 0x1000;
      for (let at = 0; at < 0x1020; at += 8) {
        window.setU16(at, at);
        window.storeU16(at + 2, at ^ 0x5555);
        window.storeU32(at + 4, at * 0x1_0001);
        const where = addressOf(at);
        assertEquals(view.getUint16(where, true), at);
        assertEquals(window.loadU16(at), at);
        assertEquals(window.getU16(at + 2), at ^ 0x5555);
        assertEquals(view.getUint32(where + 4, true), at * 0x1_0001);
        assertEquals(window.loadU32(at + 4), window.getU32(at + 4));
      }
      const { generation } = memory;
      assertEquals(memory.window(0xffff_fff0, 0x2020, RW), null, "too long");
      memory.unmap(0x1_0000_0000, 0x1000);
      assert(memory.generation !== generation);
      assertEquals(memory.window(0xffff_fff0, 0x1020, RW), null);
      assertEquals(
        [
          memory.covers(0x1_0000_1000, 16, RW),
          memory.covers(0xffff_fff0, 17, RW),
        ],
        [true, false],
      );
    }
  }
});

Deno.test("DmaMemory leaves windows alone, and nothing behind, when ranges come and go with requests", () => {
  const DEPTH = 32;
  using ram = new Ram(MIB);
  const page = { lengthBytes: 0x1000, access: RW, fd: ram.fd.number };
  using memory = new DmaMemory();
  memory.map({ ...page, iova: 0x1000 });
  memory.window(0x1000, 64, RW);
  const list = memory.createScatterGather(4);
  const { generation } = memory;
  const before = [openFds(), sharedMappings()];
  for (let i = 0; i < 5000; i++) {
    const iova = 0x10_0000 + (i * 7 % 256) * 0x1000;
    memory.map({ ...page, iova, offset: (i % 256) * 0x1000 });
    list.clear();
    assertEquals(memory.translate(iova + 8, 16, RW, list), 0);
    assertEquals(list.overlaps(iova, 9), true);
    assertEquals(list.overlaps(iova + 24, 0x1000), false);
    if (i < DEPTH) continue;
    memory.unmap(0x10_0000 + ((i - DEPTH) * 7 % 256) * 0x1000, 0x1000);
  }
  assertEquals(memory.generation, generation);
  assertEquals([openFds(), sharedMappings()], before);
  assertEquals(memory.count, DEPTH + 1);
  memory.unmap(0x1000, 0x1000);
  assert(memory.generation !== generation);
});

Deno.test("DmaMemory.mapShared shows what another memory has mapped, and unmaps nothing", () => {
  const PAGE = 4096;
  using owner = new DmaMemory();
  using other = new DmaMemory();
  using memfd = createMemfd("lent", 2 * PAGE);
  const mapped = sharedMappings();
  const lent: number[] = [];
  owner.subscribe({
    onMap: (iova) => {
      other.mapShared(owner.sharedRange(iova));
      lent.push(iova);
    },
  });
  owner.map({
    iova: 2 * PAGE,
    lengthBytes: PAGE,
    access: RW,
    fd: memfd.number,
  });
  owner.map({
    iova: 0,
    lengthBytes: PAGE,
    access: Access.READ,
    fd: memfd.number,
    offset: PAGE,
  });
  owner.map({ iova: 8 * PAGE, lengthBytes: PAGE, access: RW });
  assertEquals(lent, [2 * PAGE, 0, 8 * PAGE]);
  assertEquals(owner.sharedRanges().length, 3);
  owner.write(2 * PAGE, Uint8Array.of(5));
  const byte = new Uint8Array(1);
  assertEquals([other.read(2 * PAGE, byte), byte[0]], [0, 5]);
  assertEquals(other.write(0, byte), -Errno.EFAULT);
  assertEquals(other.read(8 * PAGE, byte), -Errno.EFAULT);
  assertThrows(
    () => other.mapShared(owner.sharedRanges()[0]!),
    ErrnoError,
    "overlaps",
  );
  other.unmapAll();
  assertEquals(other.read(2 * PAGE, byte), -Errno.EFAULT);
  assertEquals(sharedMappings(), mapped + 2);
});

/** True if an address belongs to an inaccessible mapping, as is left behind by poisoning. */
function isTaken(hva: number): boolean {
  return Deno.readTextFileSync("/proc/self/maps").split("\n").some((line) => {
    const [range, permissions] = line.split(" ");
    const [start, end] = range!.split("-").map((it) => Number.parseInt(it, 16));
    return hva >= start! && hva < end! && permissions === "---p";
  });
}
