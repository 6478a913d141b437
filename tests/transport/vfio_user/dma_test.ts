import { assert, assertEquals, assertMatch } from "@std/assert";
import {
  createEventFd,
  createMemfd,
  Fd,
  freeBytes,
  openFd,
  sealLength,
  truncateFd,
} from "../../../src/os/mod.ts";
import { libc } from "../../../src/os/symbols.ts";
import { message, type RawClient, type Reply, words } from "./raw_client.ts";
import { memfdMappings, openFds, Rig } from "./rig.ts";

const O_RDWR = 2;
const ENOENT = 2;
const EACCES = 13;
const EEXIST = 17;
const ENODEV = 19;
const EINVAL = 22;
const ENOSPC = 28;
const EOPNOTSUPP = 95;

const READ = 1;
const WRITE = 2;
const RW = READ | WRITE;

interface MapArguments {
  argsz?: number;
  flags?: number;
  offset?: bigint;
  iova?: bigint;
  size?: bigint;
}

function mapPayload(args: MapArguments): Uint8Array {
  return words(
    args.argsz ?? 32,
    args.flags ?? RW,
    args.offset ?? 0n,
    args.iova ?? 0n,
    args.size ?? 0x1000n,
  );
}

function map(
  rig: Rig,
  client: RawClient,
  args: MapArguments,
  ...fds: Fd[]
): Reply {
  return client.request(
    rig.loop,
    message(2, mapPayload(args)),
    fds.map(({ number }) => number),
  );
}

function unmap(
  rig: Rig,
  client: RawClient,
  iova: bigint,
  size: bigint,
  flags = 0,
  argsz = 24,
): Reply {
  const payload = words(argsz, flags, iova, size);
  return client.request(rig.loop, message(3, payload));
}

Deno.test("DMA_MAP maps shared memory, which the device then reads and writes", () => {
  using rig = new Rig();
  using client = rig.client();
  using ram = createMemfd("test-ram", 0x3000);
  const fds = openFds();
  const args = { iova: 0x10_0000n, offset: 0x1000n, size: 0x2000n };
  const reply = map(rig, client, args, ram);
  assertEquals([reply.errno, reply.payload.byteLength], [0, 0]);
  assertEquals(
    rig.memory.ranges().map(({ iova, lengthBytes, access }) => [
      iova,
      lengthBytes,
      access,
    ]),
    [[0x10_0000, 0x2000, RW]],
  );
  assertEquals(rig.memory.write(0x10_0ffe, new Uint8Array([1, 2, 3, 4])), 0);
  const back = new Uint8Array(4);
  assertEquals(rig.memory.read(0x10_0ffe, back), 0);
  assertEquals([...back], [1, 2, 3, 4]);
  assertEquals(openFds(), fds + 1, "one of the file");
  assertEquals(rig.unshared, 0);
});

Deno.test("DMA_MAP refuses what is not sound, changes nothing and keeps no descriptor", () => {
  using rig = new Rig();
  using client = rig.client();
  using ram = createMemfd("test-ram", 0x4000);
  using eventFd = createEventFd();
  const fds = openFds();
  const mappings = memfdMappings();
  const cases: [string, MapArguments, Fd[], number][] = [
    ["argsz too small", { argsz: 31 }, [ram], EINVAL],
    ["unknown flag", { flags: 0x13 }, [ram], EINVAL],
    ["neither readable nor writable", { flags: 0 }, [ram], EINVAL],
    ["mmap without a descriptor", { flags: RW | 4 }, [], EINVAL],
    ["file I/O without a descriptor", { flags: RW | 8 }, [], EINVAL],
    ["file I/O", { flags: RW | 8 }, [ram], EOPNOTSUPP],
    ["no size", { size: 0n }, [ram], EINVAL],
    ["address inside a page", { iova: 0x800n }, [ram], EINVAL],
    ["size not of pages", { size: 0x1800n }, [ram], EINVAL],
    ["offset inside a page", { offset: 0x10n }, [ram], EINVAL],
    ["behind the end of the file", { offset: 0x4000n }, [ram], EINVAL],
    ["across the end of the file", { size: 0x5000n }, [ram], EINVAL],
    ["wraps at 2^64", { iova: 0xffff_ffff_ffff_f000n }, [ram], EINVAL],
    ["ends above 2^53", { iova: 0x1f_ffff_ffff_f000n }, [ram], EINVAL],
    ["wraps in the file", { offset: 0xffff_ffff_ffff_f000n }, [ram], EINVAL],
    ["size of 2^64 - 4096", { size: 0xffff_ffff_ffff_f000n }, [], EINVAL],
    ["not a file", {}, [eventFd], ENODEV],
    ["not a file, and another", {}, [eventFd, ram], ENODEV],
  ];
  for (const [what, args, files, errno] of cases) {
    assertEquals(map(rig, client, args, ...files).errno, errno, what);
    assertEquals(rig.memory.count, 0, what);
    assertEquals(openFds(), fds, what);
  }
  assertEquals(memfdMappings(), mappings);
  for (let length = 0; length < 32; length += 4) {
    const short = message(2, mapPayload({}).slice(0, length));
    assertEquals(client.request(rig.loop, short, [ram.number]).errno, EINVAL);
  }
  assertEquals(openFds(), fds);
});

Deno.test("DMA_MAP refuses to write a file that is open for reading only", () => {
  using rig = new Rig();
  using client = rig.client();
  const path = Deno.makeTempFileSync({ prefix: "outboard-test-" });
  Deno.truncateSync(path, 4096);
  const file = Deno.openSync(path);
  try {
    const fd = Number(
      Array.from(Deno.readDirSync("/proc/self/fd")).find(({ name }) => {
        try {
          return Deno.readLinkSync(`/proc/self/fd/${name}`) === path;
        } catch {
          return false;
        }
      })!.name,
    );
    const write = message(2, mapPayload({ flags: RW }));
    assertEquals(client.request(rig.loop, write, [fd]).errno, EACCES);
    const read = message(2, mapPayload({ flags: READ }));
    assertEquals(client.request(rig.loop, read, [fd]).errno, 0);
    assertEquals(rig.memory.write(0, new Uint8Array(1)), -14);
  } finally {
    file.close();
    Deno.removeSync(path);
  }
});

const HUGE_PAGE_BYTES = 1 << 21;

/** A file of one huge page, which need not exist until it is mapped; null where there is no hugetlbfs. */
function hugeFile(): Fd | null {
  const MFD_CLOEXEC = 1;
  const MFD_HUGETLB = 4;
  const MFD_HUGE_2MB = 21 << 26;
  const name = new TextEncoder().encode("test-huge\0");
  const number = libc.memfd_create(
    name,
    MFD_CLOEXEC | MFD_HUGETLB | MFD_HUGE_2MB,
  );
  if (number < 0) return null;
  const fd = new Fd(number);
  truncateFd(fd.number, HUGE_PAGE_BYTES);
  return fd;
}

Deno.test("DMA_MAP tells once of a file for which there is no room, and of one that can be cut", () => {
  using rig = new Rig();
  using client = rig.client();
  const path = Deno.makeTempFileSync();
  using sparse = openFd(path, O_RDWR);
  Deno.removeSync(path);
  const size = 2 * freeBytes(sparse.number);
  assert(size < Infinity, "files are on a file system with an end");
  truncateFd(sparse.number, size - size % 4096);
  using again = createMemfd("test-ram", 4096);
  using sealed = createMemfd("test-ram", 4096);
  sealLength(sealed.number);
  const told = (pattern: RegExp) =>
    rig.logged.filter((line) => pattern.test(line)).length;
  const cut = /^info: guest memory is in a file that can be cut short/;
  const full = /^warn: .* bytes, \d+ of which have no storage.*--prealloc/;
  assertEquals(map(rig, client, {}, sealed).errno, 0);
  assertEquals([told(cut), told(full)], [0, 0]);
  assertEquals(map(rig, client, { iova: 0x1000n }, sparse).errno, 0);
  assertEquals([told(cut), told(full)], [1, 1]);
  assertEquals(map(rig, client, { iova: 0x2000n }, again).errno, 0);
  assertEquals(
    map(rig, client, { iova: 0x3000n, offset: 0x1000n }, sparse).errno,
    0,
  );
  assertEquals([told(cut), told(full)], [1, 1]);
});

Deno.test("DMA_MAP takes a part of a huge page while there are free ones, and says what is missing otherwise", () => {
  using rig = new Rig();
  using client = rig.client();
  using file = hugeFile();
  if (file === null) return;
  const part = map(rig, client, { size: 0x1000n }, file);
  const ENOMEM = 12;
  assert(part.errno === 0 || part.errno === ENOMEM, "without a free page");
  if (part.errno === 0) return;
  assertMatch(rig.logged.join(), /on huge pages of 2097152.*vm.nr_hugepages/);
});

Deno.test("DMA_MAP refuses overlaps and a repetition", () => {
  using rig = new Rig();
  using client = rig.client();
  using ram = createMemfd("test-ram", 0x10000);
  const at = (iova: bigint, size: bigint) =>
    map(rig, client, { iova, size }, ram).errno;
  assertEquals(at(0x4000n, 0x4000n), 0);
  assertEquals(at(0x4000n, 0x4000n), EEXIST, "the same");
  assertEquals(at(0x3000n, 0x2000n), EEXIST, "across the start");
  assertEquals(at(0x7000n, 0x2000n), EEXIST, "across the end");
  assertEquals(at(0x5000n, 0x1000n), EEXIST, "inside");
  assertEquals(at(0x0n, 0x10000n), EEXIST, "around");
  assertEquals(at(0x3000n, 0x1000n), 0, "before");
  assertEquals(at(0x8000n, 0x1000n), 0, "behind");
  assertEquals(rig.memory.count, 3);
});

Deno.test("DMA_MAP takes as many ranges as were agreed upon", () => {
  using rig = new Rig({ limits: { maxDmaMaps: 3 } });
  using client = rig.client('{"capabilities":{"max_dma_maps":100}}');
  const at = (iova: bigint) => map(rig, client, { iova }).errno;
  assertEquals([at(0x1000n), at(0x2000n), at(0x3000n)], [0, 0, 0]);
  assertEquals(at(0x4000n), ENOSPC);
  assertEquals(unmap(rig, client, 0x2000n, 0x1000n).errno, 0);
  assertEquals(at(0x4000n), 0);
});

Deno.test("DMA_MAP without a descriptor is known and not reached", () => {
  using rig = new Rig();
  using client = rig.client();
  // The offset has no meaning then.
  assertEquals(map(rig, client, { offset: 5n }).errno, 0);
  assertEquals(rig.memory.count, 1);
  assertEquals(rig.memory.read(0, new Uint8Array(4)), -14);
});

Deno.test("DMA_MAP tells once when main memory is not shared", () => {
  using rig = new Rig();
  using client = rig.client();
  assertEquals(
    map(rig, client, { flags: READ, iova: 0xc_0000n }).errno,
    0,
  );
  assertEquals(rig.unshared, 0, "a ROM");
  assertEquals(map(rig, client, { iova: 0n, size: 0xa_0000n }).errno, 0);
  assertEquals(rig.unshared, 1);
  assertEquals(map(rig, client, { iova: 0x10_0000n }).errno, 0);
  assertEquals(rig.unshared, 1);
});

Deno.test("DMA_MAP does not take video memory for main memory", () => {
  using rig = new Rig();
  using client = rig.client();
  using ram = createMemfd("test-ram", 0x10000);
  assertEquals(map(rig, client, { size: 0x10000n }, ram).errno, 0);
  assertEquals(map(rig, client, { iova: 0xfd00_0000n }).errno, 0);
  assertEquals(rig.unshared, 0);
});

Deno.test("DMA_UNMAP removes exactly one range and repeats the request", () => {
  using rig = new Rig();
  using client = rig.client();
  using ram = createMemfd("test-ram", 0x10000);
  const mappings = memfdMappings();
  map(rig, client, { iova: 0x1000n, size: 0x2000n }, ram);
  map(rig, client, { iova: 0x4000n, size: 0x1000n }, ram);
  const reply = unmap(rig, client, 0x1000n, 0x2000n);
  assertEquals(reply.errno, 0);
  assertEquals(
    new Uint8Array(reply.payload.buffer),
    words(24, 0, 0x1000n, 0x2000n),
  );
  assertEquals(rig.memory.count, 1);
  assertEquals(memfdMappings(), mappings + 1);
});

Deno.test("DMA_UNMAP refuses what is not exactly a range", () => {
  using rig = new Rig();
  using client = rig.client();
  map(rig, client, { iova: 0x1000n, size: 0x2000n });
  const cases: [bigint, bigint][] = [
    [0x1000n, 0x1000n],
    [0x2000n, 0x1000n],
    [0x0n, 0x4000n],
    [0x1000n, 0x3000n],
    [0x9000n, 0x1000n],
    [0x1000n, 0n],
    [0xffff_ffff_ffff_f000n, 0x1000n],
  ];
  for (const [iova, size] of cases) {
    assertEquals(unmap(rig, client, iova, size).errno, ENOENT);
  }
  assertEquals(rig.memory.count, 1);
});

Deno.test("DMA_UNMAP refuses bad sizes and flags", () => {
  using rig = new Rig();
  using client = rig.client();
  map(rig, client, { iova: 0x1000n });
  assertEquals(unmap(rig, client, 0x1000n, 0x1000n, 0, 23).errno, EINVAL);
  assertEquals(unmap(rig, client, 0x1000n, 0x1000n, 4).errno, EINVAL);
  assertEquals(unmap(rig, client, 0n, 0n, 3).errno, EINVAL);
  assertEquals(unmap(rig, client, 0x1000n, 0n, 2).errno, EINVAL);
  assertEquals(unmap(rig, client, 0n, 0x1000n, 2).errno, EINVAL);
  assertEquals(unmap(rig, client, 0x1000n, 0x1000n, 1).errno, EOPNOTSUPP);
  for (let length = 0; length < 24; length += 4) {
    const short = words(24, 0, 0x1000n, 0x1000n).slice(0, length);
    assertEquals(client.request(rig.loop, message(3, short)).errno, EINVAL);
  }
  assertEquals(rig.memory.count, 1);
  assertEquals(unmap(rig, client, 0x1000n, 0x1000n).errno, 0);
});

Deno.test("DMA_UNMAP of everything removes everything, also nothing", () => {
  using rig = new Rig();
  using client = rig.client();
  for (let i = 1n; i <= 5n; i++) map(rig, client, { iova: i * 0x1000n });
  assertEquals(unmap(rig, client, 0n, 0n, 2).errno, 0);
  assertEquals(rig.memory.count, 0);
  assertEquals(unmap(rig, client, 0n, 0n, 2).errno, 0);
});

Deno.test("DMA_UNMAP tolerates a descriptor, as SPDK sends one", () => {
  using rig = new Rig();
  using client = rig.client(null);
  using ram = createMemfd("test-ram", 0x1000);
  map(rig, client, { iova: 0x1000n }, ram);
  const fds = openFds();
  const reply = client.request(
    rig.loop,
    message(3, words(24, 0, 0x1000n, 0x1000n)),
    [ram.number],
  );
  assertEquals(reply.errno, 0);
  assertEquals(openFds(), fds - 1);
});
