import { assert, assertEquals } from "@std/assert";
import fc from "fast-check";
import { DataPointer } from "../../../devices/nvme/command/data_pointer.ts";
import { ArrayMemory } from "../../../src/memory/array_memory.ts";
import { Access } from "../../../src/memory/guest_memory.ts";
import { SC } from "./rig.ts";

const PAGES = 64;
const PAGE = 4096;
const BASE = 0x1_0000_0000;

/** Guest memory of 64 pages with a hole behind it, each page filled with its number. */
function makeMemory() {
  const memory = new ArrayMemory([]);
  // Two mappings side by side, so that ranges cross from one to the other.
  const half = PAGES / 2 * PAGE;
  const low = new Uint8Array(memory.map({ iova: BASE, lengthBytes: half }));
  const high = new Uint8Array(
    memory.map({ iova: BASE + half, lengthBytes: half }),
  );
  const write = (iova: number, bytes: Uint8Array) =>
    assertEquals(memory.write(iova, bytes), 0);
  for (let i = 0; i < half; i++) {
    low[i] = (i * 31 + (i >> 12)) & 0xff;
    high[i] = (i * 17 + (i >> 12) + 99) & 0xff;
  }
  return { memory, write };
}

/** The bytes of a list, in order. */
function bytesOf(
  memory: ArrayMemory,
  list: ReturnType<ArrayMemory["createScatterGather"]>,
): Uint8Array {
  const out = new Uint8Array(list.lengthBytes);
  assertEquals(memory.gather(list, out, out.length), out.length);
  return out;
}

function readGuest(memory: ArrayMemory, iova: number, length: number) {
  const bytes = new Uint8Array(length);
  return memory.read(iova, bytes) === 0 ? bytes : null;
}

function words64(list: readonly bigint[]): Uint8Array {
  return new Uint8Array(new BigUint64Array(list).buffer);
}

function sqeOf(flags: number, pointer: Uint8Array): Uint32Array {
  const bytes = new Uint8Array(64);
  bytes[1] = flags;
  bytes.set(pointer, 24);
  return new Uint32Array(bytes.buffer);
}

interface Outcome {
  readonly status: number;
  readonly bytes: Uint8Array | null;
}

/** Data pointer of PRPs, read off figure 107 with no eye on speed. */
function naivePrp(
  memory: ArrayMemory,
  prp1: bigint,
  prp2: bigint,
  length: number,
  pageBytes: number,
): Outcome {
  const page = BigInt(pageBytes);
  const failed = (status: number): Outcome => ({ status, bytes: null });
  if (prp1 % 4n !== 0n) return failed(SC.PRP_OFFSET);
  const parts: [bigint, number][] = [];
  let left = length;
  const first = Math.min(left, Number(page - prp1 % page));
  parts.push([prp1, first]);
  left -= first;
  const check = () => {
    const out: number[] = [];
    for (const [at, size] of parts) {
      const bytes = at < 2n ** 53n ? readGuest(memory, Number(at), size) : null;
      if (bytes === null) return null;
      out.push(...bytes);
    }
    return Uint8Array.from(out);
  };
  if (check() === null) return failed(SC.DATA);
  // Beyond the first entry address 0 is no page: it is what a driver leaves that gave none.
  if (left > 0 && prp2 === 0n) return failed(SC.FIELD);
  if (left > 0 && left <= pageBytes) {
    if (prp2 % page !== 0n) return failed(SC.PRP_OFFSET);
    parts.push([prp2, left]);
  } else if (left > 0) {
    if (prp2 % 8n !== 0n) return failed(SC.PRP_OFFSET);
    let at = prp2;
    while (left > 0) {
      const raw = at < 2n ** 53n ? readGuest(memory, Number(at), 8) : null;
      if (raw === null) return failed(SC.DATA);
      const entry = new DataView(raw.buffer).getBigUint64(0, true);
      const isLast = (at + 8n) % page === 0n;
      if (entry % page !== 0n) return failed(SC.PRP_OFFSET);
      if (entry === 0n) return failed(SC.FIELD);
      if (isLast && left > pageBytes) {
        at = entry;
        continue;
      }
      const size = Math.min(left, pageBytes);
      parts.push([entry, size]);
      if (check() === null) return failed(SC.DATA);
      left -= size;
      at += 8n;
    }
  }
  const bytes = check();
  return bytes === null ? failed(SC.DATA) : { status: 0, bytes };
}

const pageAddress = fc.oneof(
  {
    weight: 20,
    arbitrary: fc.integer({ min: 0, max: PAGES - 1 }).map((n) =>
      BigInt(BASE + n * PAGE)
    ),
  },
  {
    weight: 1,
    arbitrary: fc.constantFrom(
      0n,
      BigInt(BASE + PAGES * PAGE),
      2n ** 53n,
      2n ** 64n - 4096n,
    ),
  },
);
const skew = fc.oneof(
  { weight: 12, arbitrary: fc.constant(0n) },
  {
    weight: 3,
    arbitrary: fc.integer({ min: 0, max: 1023 }).map((n) => BigInt(n * 4)),
  },
  { weight: 1, arbitrary: fc.bigInt({ min: 0n, max: 4095n }) },
);

function checkProperty<T>(
  arbitrary: fc.Arbitrary<T>,
  check: (value: T) => void,
) {
  const seed = Date.now() ^ Math.floor(Math.random() * 2 ** 30);
  // fast-check prints the seed and the smallest counterexample when it fails.
  fc.assert(fc.property(arbitrary, check), { seed, numRuns: 400 });
}

Deno.test("PRPs mean what a naive reading of them means", () => {
  const arbitrary = fc.record({
    prp1: fc.tuple(pageAddress, skew).map(([a, b]) => a + b),
    prp2: fc.tuple(pageAddress, skew).map(([a, b]) => a + b),
    listPage: fc.integer({ min: 0, max: PAGES - 1 }),
    listOffset: fc.oneof(
      fc.constant(0),
      fc.constant(4096 - 8),
      fc.integer({ min: 0, max: 511 }).map((n) => n * 8),
    ),
    useList: fc.boolean(),
    entries: fc.array(
      fc.tuple(
        pageAddress,
        fc.oneof({ weight: 30, arbitrary: fc.constant(0n) }, {
          weight: 1,
          arbitrary: skew,
        }),
      ).map(([a, b]) => a + b),
      { minLength: 4, maxLength: 520 },
    ),
    length: fc.integer({ min: 1, max: 40 * PAGE / 4 }).map((n) => n * 4),
    shift: fc.constantFrom(12, 12, 12, 13),
  });
  let whole = 0;
  checkProperty(arbitrary, (given) => {
    const { memory, write } = makeMemory();
    const room = PAGES * PAGE - given.listPage * PAGE - given.listOffset;
    const listAt = BASE + given.listPage * PAGE + given.listOffset;
    write(
      listAt,
      words64(given.entries.map((e) => BigInt.asUintN(64, e)))
        .subarray(0, Math.min(room, given.entries.length * 8)),
    );
    const prp1 = BigInt.asUintN(64, given.prp1);
    const prp2 = BigInt.asUintN(
      64,
      given.useList ? BigInt(listAt) : given.prp2,
    );
    const data = new DataPointer(memory);
    data.setPageShift(given.shift);
    const list = memory.createScatterGather(600);
    const status = data.map(
      sqeOf(0, words64([prp1, prp2])),
      given.length,
      Access.READ,
      list,
    );
    const wanted = naivePrp(memory, prp1, prp2, given.length, 2 ** given.shift);
    assertEquals(status, wanted.status);
    if (wanted.bytes === null) return;
    whole++;
    assertEquals(bytesOf(memory, list), wanted.bytes);
  });
  assert(whole > 20, `${whole} lists were sound`);
});

Deno.test("PRP lists go from page to page", () => {
  const { memory, write } = makeMemory();
  const data = new DataPointer(memory);
  const pages = Array.from(
    { length: 6 },
    (_, i) => BigInt(BASE + (20 + i) * PAGE),
  );
  // The first list has room for two entries: one for data, one for the next list.
  write(BASE + 4096 - 16, words64([pages[1]!, BigInt(BASE + 3 * PAGE)]));
  write(BASE + 3 * PAGE, words64(pages.slice(2)));
  const list = memory.createScatterGather(16);
  const length = 5 * PAGE + 100;
  const sqe = sqeOf(0, words64([pages[0]!, BigInt(BASE + 4096 - 16)]));
  assertEquals(data.map(sqe, length, Access.WRITE, list), 0);
  assertEquals(
    bytesOf(memory, list),
    readGuest(memory, BASE + 20 * PAGE, length),
  );
  // All pages are neighbours: one segment.
  assertEquals(list.count, 1);
  // More entries than are copied at once, in both lists.
  for (const inFirst of [63, 64, 65, 128, 129]) {
    const many = Array.from(
      { length: inFirst + 200 },
      (_, i) => BigInt(BASE + (i * 7 % PAGES) * PAGE),
    );
    // Pages 0, 1 and 2 hold the lists and are not compared.
    const listAt = BASE + 2 * PAGE - (inFirst + 1) * 8;
    write(listAt, words64(many.slice(0, inFirst)));
    write(BASE + 2 * PAGE - 8, words64([BigInt(BASE + 2 * PAGE)]));
    write(BASE + 2 * PAGE, words64(many.slice(inFirst)));
    const whole = memory.createScatterGather(600);
    const bytes = (many.length + 1) * PAGE;
    const walk = sqeOf(0, words64([many[0]!, BigInt(listAt)]));
    assertEquals(data.map(walk, bytes, Access.READ, whole), 0, `${inFirst}`);
    const wanted = [many[0]!, ...many].map((page) =>
      readGuest(memory, Number(page), PAGE)!
    );
    const found = bytesOf(memory, whole);
    wanted.forEach((page, i) =>
      assertEquals(found.subarray(i * PAGE, (i + 1) * PAGE), page, `${i}`)
    );
  }
});

Deno.test("PRPs respect what a mapping allows, and the length of the list", () => {
  const memory = new ArrayMemory([{
    iova: 0,
    lengthBytes: 65536,
    access: Access.READ,
  }]);
  const data = new DataPointer(memory);
  const list = memory.createScatterGather(2);
  const sqe = sqeOf(0, words64([0n, 8192n]));
  assertEquals(data.map(sqe, 8192, Access.WRITE, list), SC.DATA);
  assertEquals(list.count, 0);
  assertEquals(data.map(sqe, 8192, Access.READ, list), 0);
  list.clear();
  memory.unmap(0, 65536);
  memory.map({ iova: 0, lengthBytes: 65536 });
  memory.write(16384, words64([24576n, 32768n]));
  assertEquals(
    data.map(sqeOf(0, words64([0n, 16384n])), 12288, Access.READ, list),
    SC.FIELD,
  );
});

interface Descriptor {
  readonly type: number;
  readonly address: bigint;
  readonly length: number;
}

function descriptorBytes(list: readonly Descriptor[]): Uint8Array {
  const bytes = new Uint8Array(list.length * 16);
  const view = new DataView(bytes.buffer);
  list.forEach(({ type, address, length }, i) => {
    view.setBigUint64(i * 16, BigInt.asUintN(64, address), true);
    view.setUint32(i * 16 + 8, length, true);
    bytes[i * 16 + 15] = type;
  });
  return bytes;
}

/** Data pointer of an SGL, by recursion. */
function naiveSgl(
  memory: ArrayMemory,
  first: Descriptor,
  length: number,
): Outcome {
  const out: number[] = [];
  let budget = 2048;
  const follow = (d: Descriptor, mayLead: boolean): number => {
    if (d.type === 0) {
      if (d.length > length - out.length) return SC.SGL_LENGTH;
      if (d.length === 0) return 0;
      const bytes = d.address < 2n ** 53n
        ? readGuest(memory, Number(d.address), d.length)
        : null;
      if (bytes === null) return SC.DATA;
      out.push(...bytes);
      return 0;
    }
    if (d.type !== 0x20 && d.type !== 0x30) return SC.SGL_TYPE;
    if (!mayLead) return SC.SGL_SEGMENT;
    if (d.length === 0 || d.length % 16 !== 0) return SC.SGL_SEGMENT;
    const count = d.length / 16;
    if (count > 2048) return SC.SGL_COUNT;
    for (let i = 0; i < count; i++) {
      // In batches of 32, as far as what is looked at first goes.
      if (i % 32 === 0) {
        const size = Math.min(32, count - i) * 16;
        const at = d.address + BigInt(i * 16);
        if (at >= 2n ** 53n || readGuest(memory, Number(at), size) === null) {
          return SC.DATA;
        }
        budget -= size / 16;
        if (budget < 0) return SC.SGL_COUNT;
      }
      const raw = readGuest(memory, Number(d.address) + i * 16, 16)!;
      const view = new DataView(raw.buffer);
      const next = {
        address: view.getBigUint64(0, true),
        length: view.getUint32(8, true),
        type: raw[15]!,
      };
      const last = i === count - 1;
      const status = follow(next, last && d.type === 0x20);
      if (status !== 0) return status;
      if (last && d.type === 0x20 && next.type === 0) return SC.SGL_SEGMENT;
    }
    return 0;
  };
  const status = follow(first, true);
  if (status !== 0) return { status, bytes: null };
  return out.length === length
    ? { status: 0, bytes: Uint8Array.from(out) }
    : { status: SC.SGL_LENGTH, bytes: null };
}

const block = fc.record({
  type: fc.oneof(
    { weight: 60, arbitrary: fc.constant(0) },
    {
      weight: 1,
      arbitrary: fc.constantFrom(0x10, 0x20, 0x30, 0x01, 0x40, 0xf0, 0x21),
    },
  ),
  address: fc.oneof(
    {
      weight: 60,
      arbitrary: fc.integer({ min: 0, max: PAGES * PAGE - 5000 }).map((n) =>
        BigInt(BASE + n)
      ),
    },
    {
      weight: 1,
      arbitrary: fc.constantFrom(
        0n,
        2n ** 53n - 8n,
        2n ** 64n - 16n,
        BigInt(BASE + PAGES * PAGE - 1),
      ),
    },
  ),
  length: fc.oneof(
    fc.integer({ min: 0, max: 5000 }),
    fc.constant(0),
  ),
});

Deno.test("SGLs mean what a naive reading of them means", () => {
  const arbitrary = fc.record({
    segments: fc.array(fc.array(block, { maxLength: 70 }), {
      minLength: 1,
      maxLength: 4,
    }),
    single: fc.boolean(),
    error: fc.oneof({ weight: 8, arbitrary: fc.constant(0) }, {
      weight: 1,
      arbitrary: fc.constantFrom(-4, 4, 1),
    }),
    lastType: fc.oneof({ weight: 8, arbitrary: fc.constant(0x30) }, {
      weight: 1,
      arbitrary: fc.constantFrom(0x20, 0x31, 0),
    }),
    segmentLength: fc.oneof({ weight: 12, arbitrary: fc.constant(0) }, {
      weight: 1,
      arbitrary: fc.constantFrom(1, -16, 16),
    }),
  });
  let whole = 0;
  checkProperty(arbitrary, (given) => {
    const { memory, write } = makeMemory();
    // Built from the last segment to the first; each lies in pages of its own at the end of the memory.
    let next: Descriptor | null = null;
    let total = 0;
    const { segments } = given;
    for (let i = segments.length - 1; i >= 0; i--) {
      const list: Descriptor[] = [...segments[i]!];
      for (const d of list) if (d.type === 0) total += d.length;
      if (next !== null) list.push(next);
      const at = BASE + (PAGES - 2 - 2 * i) * PAGE;
      write(at, descriptorBytes(list));
      const isLast: boolean = i === segments.length - 1;
      next = {
        type: isLast ? given.lastType : 0x20,
        address: BigInt(at),
        length: list.length * 16 + (isLast ? given.segmentLength : 0),
      };
    }
    let first = next!;
    if (given.single) {
      first = segments[0]![0] ?? first;
      total = first.type === 0 ? first.length : total;
    }
    const length = Math.max(total + given.error, 1);
    const data = new DataPointer(memory);
    const list = memory.createScatterGather(1024);
    const status = data.map(
      sqeOf(0x40, descriptorBytes([{ ...first, length: first.length >>> 0 }])),
      length,
      Access.READ,
      list,
    );
    const wanted = naiveSgl(
      memory,
      { ...first, length: first.length >>> 0 },
      length,
    );
    assertEquals(status, wanted.status);
    if (wanted.bytes === null) return;
    whole++;
    assertEquals(bytesOf(memory, list), wanted.bytes);
  });
  assert(whole > 20, `${whole} lists were sound`);
});

Deno.test("an SGL that leads to itself, or has too many pieces, ends", () => {
  const { memory, write } = makeMemory();
  const data = new DataPointer(memory);
  const loop = { type: 0x20, address: BigInt(BASE), length: 16 };
  write(BASE, descriptorBytes([loop]));
  const list = memory.createScatterGather(4);
  const run = (first: Descriptor, length: number) => {
    list.clear();
    return data.map(
      sqeOf(0x40, descriptorBytes([first])),
      length,
      Access.READ,
      list,
    );
  };
  assertEquals(run(loop, 512), SC.SGL_COUNT);
  assertEquals(run({ ...loop, length: 2049 * 16 }, 512), SC.SGL_COUNT);
  const pieces = Array.from({ length: 5 }, (_, i) => ({
    type: 0,
    address: BigInt(BASE + 8192 + i * 1024),
    length: 4,
  }));
  write(BASE + 4096, descriptorBytes(pieces));
  assertEquals(
    run({ type: 0x30, address: BigInt(BASE + 4096), length: 80 }, 20),
    SC.SGL_COUNT,
  );
});

Deno.test("PSDT 3 is reserved", () => {
  const { memory } = makeMemory();
  const data = new DataPointer(memory);
  const list = memory.createScatterGather(4);
  const pointer = words64([BigInt(BASE), 0n]);
  const run = (flags: number) =>
    data.map(sqeOf(flags, pointer), 512, Access.READ, list);
  assertEquals(run(0xc0), SC.FIELD);
  assertEquals(run(0), 0);
});
