import { assert, assertEquals, assertThrows } from "@std/assert";
import { BlockOp } from "../../../src/backend/block/contract.ts";
import { resizeStorage } from "../../../src/backend/block/resize.ts";
import { setImageLength } from "../../../src/backend/block/file/image.ts";
import { Errno, ErrnoError } from "../../../src/core/errno.ts";
import { isInMemory, openFd } from "../../../src/os/mod.ts";
import { openFds, sharedMappings } from "../../resources.ts";
import { Controller, FILE, Folder, Host, pattern } from "./rig.ts";
import type { FileBlockOptions } from "../../../src/backend/block/file/driver.ts";

const ENGINES = ["auto", "ring", "sync"] as const;
const SHM = "/dev/shm";

/** Runs on a fresh image of a size, with every engine. */
function onImage(
  name: string,
  sizeBytes: number,
  options: Partial<FileBlockOptions>,
  body: (controller: Controller, path: string) => void,
  parent?: string,
): void {
  for (const engine of ENGINES) {
    Deno.test(`FileBackend, engine ${engine}: ${name}`, () => {
      using folder = new Folder(parent);
      const path = folder.image("disk.img", sizeBytes);
      using host = new Host();
      using controller = new Controller(host, {
        ...FILE,
        engine,
        ...options,
        path,
      });
      body(controller, path);
    });
  }
}

onImage("writes reach the file", 65536, {}, (controller, path) => {
  const bytes = pattern(5 * 512, 3);
  assertEquals(controller.write(1024, bytes), 0);
  assertEquals(Deno.readFileSync(path).slice(1024, 1024 + 5 * 512), bytes);
  assertEquals(controller.read(1024, 5 * 512), bytes);
  assertEquals(controller.count("reads"), 1);
  assertEquals(controller.count("writes"), 1);
  assertEquals(controller.count("readBytes"), 5 * 512);
  assertEquals(controller.count("writtenBytes"), 5 * 512);
  assertEquals(controller.count("failed"), 0);
});

onImage("requests of 8 MiB arrive whole", 8 << 20, {}, (controller) => {
  const bytes = pattern(8 << 20, 5);
  assertEquals(controller.write(0, bytes), 0);
  assertEquals(controller.read(0, 8 << 20), bytes);
});

onImage(
  "offsets beyond 4 GiB are exact",
  5 * 2 ** 30,
  {},
  (controller, path) => {
    const bytes = pattern(4096, 7);
    const offset = 2 ** 32 + 512;
    assertEquals(controller.write(offset, bytes), 0);
    assertEquals(controller.read(offset, 4096), bytes);
    assertEquals(controller.read(512, 4096), new Uint8Array(4096));
    const zeroes = { op: BlockOp.WRITE_ZEROES, offset, lengthBytes: 4096 };
    assertEquals(controller.run({ ...zeroes, mayUnmap: true }), 0);
    assertEquals(controller.read(offset, 4096), new Uint8Array(4096));
    assertEquals(Deno.statSync(path).size, 5 * 2 ** 30);
  },
);

onImage("durable writes and flushes succeed", 65536, {}, (controller) => {
  assertEquals(controller.write(0, pattern(512, 1), true), 0);
  assertEquals(controller.run({ op: BlockOp.FLUSH }), 0);
  assertEquals(controller.backend.setWriteCache(false), 0);
  assertEquals(controller.write(512, pattern(512, 2)), 0);
  const zeroes = { op: BlockOp.WRITE_ZEROES, lengthBytes: 512 };
  assertEquals(controller.run(zeroes), 0);
  assertEquals(controller.read(0, 512), new Uint8Array(512));
  assertEquals(controller.read(512, 512), pattern(512, 2));
});

onImage("a read beyond a file that was cut fails with EIO", 65536, {}, (
  controller,
  path,
) => {
  controller.write(0, pattern(65536, 1));
  Deno.truncateSync(path, 20000);
  const whole = { op: BlockOp.READ, lengthBytes: 65536 };
  assertEquals(controller.run(whole), -Errno.EIO);
  assertEquals(
    controller.run({ ...whole, offset: 32768, lengthBytes: 512 }),
    -Errno.EIO,
  );
  assertEquals(controller.read(0, 512), pattern(65536, 1).slice(0, 512));
  assertEquals(controller.count("failed"), 2);
});

onImage("readonly refuses everything but reads and flushes", 65536, {
  readonly: true,
}, (controller) => {
  assertEquals(controller.backend.info.readonly, true);
  assertEquals(controller.backend.info.volatileCache, false);
  assertEquals(controller.backend.info.discardGranularityBytes, 0);
  for (const op of [BlockOp.WRITE, BlockOp.DISCARD, BlockOp.WRITE_ZEROES]) {
    assertEquals(controller.run({ op, lengthBytes: 512 }), -Errno.EROFS);
  }
  assertEquals(controller.run({ op: BlockOp.FLUSH }), 0);
  assertEquals(controller.read(0, 512), new Uint8Array(512));
  assertThrows(
    () => resizeStorage(controller.backend, ["4096"]),
    Error,
    "readonly=on",
  );
});

function allocatedBytes(path: string): number {
  return Deno.statSync(path).blocks! * 512;
}

onImage("DISCARD gives space back", 1 << 20, {}, (controller, path) => {
  controller.write(0, pattern(1 << 20, 1));
  controller.run({ op: BlockOp.FLUSH });
  const before = allocatedBytes(path);
  assert(controller.backend.info.discardGranularityBytes > 0);
  const range = { offset: 4096, lengthBytes: (1 << 20) - 8192 };
  assertEquals(controller.run({ op: BlockOp.DISCARD, ...range }), 0);
  assert(allocatedBytes(path) < before);
  assertEquals(controller.read(0, 4096), pattern(1 << 20, 1).slice(0, 4096));
  assertEquals(Deno.statSync(path).size, 1 << 20);
});

onImage(
  "discard=ignore keeps space, and zeroes without giving it back",
  1 << 20,
  { discard: false },
  (controller, path) => {
    controller.write(0, pattern(1 << 20, 1));
    controller.run({ op: BlockOp.FLUSH });
    const before = allocatedBytes(path);
    assertEquals(controller.backend.info.discardGranularityBytes, 0);
    const all = { lengthBytes: 1 << 20, mayUnmap: true };
    assertEquals(controller.run({ op: BlockOp.DISCARD, ...all }), 0);
    assertEquals(controller.read(0, 4096), pattern(1 << 20, 1).slice(0, 4096));
    assertEquals(controller.run({ op: BlockOp.WRITE_ZEROES, ...all }), 0);
    assertEquals(controller.read(0, 1 << 20), new Uint8Array(1 << 20));
    assert(allocatedBytes(path) >= before);
  },
);

// tmpfs has no FALLOC_FL_ZERO_RANGE, so zeroes are written, 1 MiB a step.
onImage(
  "zeroes are written where the file system cannot make them",
  (3 << 20) + 4096,
  {},
  (controller, path) => {
    const size = (3 << 20) + 4096;
    const bytes = pattern(size, 1);
    controller.write(0, bytes);
    const range = { offset: 512, lengthBytes: size - 1024 };
    const zeroes = { op: BlockOp.WRITE_ZEROES, ...range };
    assertEquals(controller.run(zeroes), 0);
    bytes.fill(0, 512, size - 512);
    assertEquals(Deno.readFileSync(path), bytes);
    assertEquals(allocatedBytes(path), size);
    // Known by now; and drain ends what is under way.
    controller.write(0, pattern(size, 2));
    const request = controller.submit(zeroes);
    controller.backend.drain();
    assertEquals(controller.results.get(request.tag), 0);
    assertEquals(controller.read(512, 4096), new Uint8Array(4096));
  },
  SHM,
);

onImage("rounds a size down to whole blocks", 65536 + 700, {}, (controller) => {
  assertEquals(controller.backend.info.sizeBytes, 65536 + 512);
  assertEquals(controller.read(65536, 512), new Uint8Array(512));
});

onImage("resize and rescan change the size", 65536, {}, (controller, path) => {
  const { backend } = controller;
  backend.resize!(1 << 20);
  assertEquals(controller.resizes, 1);
  assertEquals(backend.info.sizeBytes, 1 << 20);
  assertEquals(Deno.statSync(path).size, 1 << 20);
  assertEquals(controller.write((1 << 20) - 512, pattern(512, 1)), 0);
  backend.resize!(4096);
  assertEquals(backend.info.sizeBytes, 4096);
  assertEquals(Deno.statSync(path).size, 4096);
  assertEquals(backend.rescan!(), false);
  assertEquals(controller.resizes, 2);
  Deno.truncateSync(path, 12288 + 100);
  assertEquals(backend.rescan!(), true);
  assertEquals(backend.info.sizeBytes, 12288);
  assertEquals(controller.resizes, 3);
  for (const size of [0, 511, 513, NaN, 2 ** 60]) {
    assertThrows(
      () => resizeStorage(backend, [`${size}`]),
      Error,
      "Cannot resize",
    );
  }
});

Deno.test("FileBackend says that no image can have such a size", () => {
  using folder = new Folder();
  const path = folder.image("disk.img", 512);
  // As a file system does that takes no such file.
  using fd = openFd(path, 0);
  assertThrows(
    () => setImageLength(fd.number, 2 ** 40, `resize ${path} to`),
    ErrnoError,
    `Cannot resize ${path} to 1T: its file system takes no file of that size`,
  );
});

Deno.test("FileBackend serves what the page cache has without the ring", () => {
  using folder = new Folder();
  const path = folder.image("disk.img", 1 << 20);
  Deno.writeFileSync(path, pattern(1 << 20, 1));
  using host = new Host();
  using controller = new Controller(host, { ...FILE, path });
  for (let i = 0; i < 64; i++) controller.read(i * 4096, 4096);
  assertEquals(controller.count("servedAtOnce"), 64);
  assertEquals(controller.count("ringEnters"), 0);
});

Deno.test("FileBackend gives the ring what the page cache has not", () => {
  using folder = new Folder();
  // Far apart, so that each place is a read of the disk of its own: the kernel is quick enough to win some of them.
  const places = Array.from({ length: 128 }, (_, i) => i * (512 << 10));
  const path = folder.image("disk.img", 64 << 20);
  using file = openFd(path, 0);
  using host = new Host();
  {
    // Past the page cache, so that nothing of it is there.
    using writer = new Controller(host, { ...FILE, path, direct: true });
    places.forEach((offset, i) => {
      assertEquals(writer.write(offset, pattern(4096, i)), 0);
    });
  }
  using controller = new Controller(host, { ...FILE, path });
  const readAll = () => {
    const before = controller.count("servedByRing");
    places.forEach((offset, i) => {
      assertEquals(controller.read(offset, 4096), pattern(4096, i));
    });
    return controller.count("servedByRing") - before;
  };
  const first = readAll();
  assertEquals(first > 0, !isInMemory(file.number), `${first} by the ring`);
  // After misses in a row a few are not tried.
  for (let i = 0; i < 16; i++) readAll();
  assertEquals(readAll(), 0);
  assertEquals(
    controller.count("servedAtOnce") + controller.count("servedByRing"),
    18 * 128,
  );
});

Deno.test("FileBackend submits a batch with one io_uring_enter", () => {
  using folder = new Folder();
  const path = folder.image("disk.img", 1 << 20);
  using host = new Host();
  using controller = new Controller(host, { ...FILE, path, engine: "ring" });
  const requests = Array.from(
    { length: 32 },
    (_, i) =>
      controller.submit({
        op: BlockOp.READ,
        offset: i * 4096,
        lengthBytes: 512,
      }),
  );
  assertEquals(controller.results.size, 0);
  controller.backend.commit();
  assertEquals(controller.count("ringEnters"), 1);
  assertEquals(controller.count("ringSubmissionsPerEnter"), 32);
  assertEquals(controller.results.size, 0, "no completion inside commit");
  controller.wait(requests);
  assertEquals(controller.count("servedByRing"), 32);
});

Deno.test("FileBackend drain ends all that is in flight and queued", () => {
  using folder = new Folder();
  const path = folder.image("disk.img", 1 << 20);
  Deno.writeFileSync(path, pattern(1 << 20, 9));
  using host = new Host();
  for (const direct of [false, true]) {
    const options = {
      ...FILE,
      path,
      direct,
      engine: "ring",
      depth: 8,
    } as const;
    using controller = new Controller(host, options);
    const requests = Array.from({ length: 50 }, (_, i) =>
      controller.submit({
        op: i % 5 === 4 ? BlockOp.FLUSH : BlockOp.READ,
        offset: i * 4096,
        at: i % 5 === 4 ? [] : [[i * 8192, 4096]],
      }));
    // Half of them not even committed.
    controller.backend.drain();
    assertEquals(controller.results.size, 50);
    assertEquals(controller.count("queued"), 42);
    const bytes = new Uint8Array(4096);
    for (const request of requests) {
      assertEquals(controller.results.get(request.tag), 0);
      assertEquals(request.slot, -1);
      if (request.op === BlockOp.FLUSH) continue;
      host.memory.read(request.tag * 8192, bytes);
      assertEquals(
        bytes,
        pattern(1 << 20, 9).slice(request.offset, request.offset + 4096),
      );
    }
    controller.backend.drain();
  }
});

Deno.test("FileBackend may be closed, drained and submitted to inside a completion", () => {
  using folder = new Folder();
  const path = folder.image("disk.img", 1 << 20);
  using host = new Host();
  using controller = new Controller(host, {
    ...FILE,
    path,
    engine: "ring",
    depth: 4,
  });
  let more = 20;
  controller.onCompletion = () => {
    if (more-- > 0) {
      controller.submit({ op: BlockOp.READ, lengthBytes: 4096 });
      controller.backend.commit();
    } else if (more === -1) controller.backend.drain();
    else if (more === -2) controller.backend.close();
  };
  for (let i = 0; i < 10; i++) {
    controller.submit({ op: BlockOp.READ, lengthBytes: 4096 });
  }
  controller.backend.commit();
  controller.turnUntil(() => controller.results.size === 30);
  assert([...controller.results.values()].every((result) => result === 0));
});

Deno.test("FileBackend bounces what is not aligned for O_DIRECT", () => {
  using folder = new Folder();
  const path = folder.image("disk.img", 1 << 20);
  using host = new Host();
  for (const engine of ["ring", "sync"] as const) {
    using controller = new Controller(host, {
      ...FILE,
      path,
      direct: true,
      engine,
    });
    const bytes = pattern(200 * 1024, 4);
    // Longer than a bounce buffer, in pieces of odd lengths at odd places.
    const at = [[7, 12345], [50001, 512], [60000, 200 * 1024 - 12857]] as const;
    let from = 0;
    for (const [iova, length] of at) {
      host.memory.write(iova, bytes.subarray(from, from + length));
      from += length;
    }
    assertEquals(controller.run({ op: BlockOp.WRITE, offset: 8192, at }), 0);
    assertEquals(
      Deno.readFileSync(path).slice(8192, 8192 + 200 * 1024),
      bytes,
    );
    for (const [iova, length] of at) {
      host.memory.write(iova, new Uint8Array(length + 1));
    }
    assertEquals(controller.run({ op: BlockOp.READ, offset: 8192, at }), 0);
    from = 0;
    for (const [iova, length] of at) {
      const piece = new Uint8Array(length + 1);
      host.memory.read(iova, piece);
      assertEquals(piece.slice(0, length), bytes.slice(from, from + length));
      assertEquals(piece[length], 0, "wrote past the piece");
      from += length;
    }
    assertEquals(controller.count("bounced"), 2);
    controller.read(0, 4096);
    assertEquals(controller.count("bounced"), 2);
  }
});

Deno.test("FileBackend leaves no descriptor and no mapping behind", () => {
  using folder = new Folder();
  const path = folder.image("disk.img", 65536);
  using host = new Host();
  const fds = openFds();
  const mappings = sharedMappings();
  for (const engine of ENGINES) {
    using controller = new Controller(host, { ...FILE, path, engine });
    controller.write(0, pattern(4096, 1));
    controller.submit({ op: BlockOp.FLUSH });
  }
  for (const bad of [`${folder.path}/none`, folder.path, "/dev/null"]) {
    assertThrows(() => new Controller(host, { ...FILE, path: bad }));
  }
  assertEquals(openFds(), fds);
  assertEquals(sharedMappings(), mappings);
});

Deno.test("FileBackend without io_uring works and says so once", async () => {
  using folder = new Folder();
  const path = folder.image("disk.img", 65536);
  const { stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: [
      "run",
      "-A",
      `${import.meta.dirname}/fixtures/without_io_uring.ts`,
      path,
    ],
  }).output();
  const text = new TextDecoder();
  assert(stdout.length > 0, text.decode(stderr));
  const { warnings, ...rest } = JSON.parse(text.decode(stdout));
  assertEquals(rest, { wrote: 0, zeroed: 0, flushed: 0, same: true, ring: 0 });
  assertEquals(warnings.length, 1);
  assert(/without io_uring.*EPERM.*io_uring_disabled=0/.test(warnings[0]));
});
