import { assert, assertEquals, assertMatch, assertThrows } from "@std/assert";
import { BlockOp, PENDING } from "../../../src/backend/block/contract.ts";
import { resizeStorage } from "../../../src/backend/block/resize.ts";
import { Errno, ErrnoError } from "../../../src/core/errno.ts";
import { openFds, sharedMappings } from "../../resources.ts";
import { Controller, Host, MEMORY, pattern } from "./rig.ts";
import { MemoryBackend } from "../../../src/backend/block/memory/memory.ts";

const SIZE = MEMORY.sizeBytes;

Deno.test("MemoryBackend is done when submit returns", () => {
  using host = new Host();
  using controller = new Controller(host, MEMORY);
  const { backend } = controller;
  const write = controller.request({ op: BlockOp.WRITE, lengthBytes: 4096 });
  assert(backend.submit(write) !== PENDING);
  assertEquals(backend.submit(controller.request({ op: BlockOp.FLUSH })), 0);
  assertEquals(backend.description, "memory of 1M");
  assertEquals(backend.info.sizeBytes, SIZE);
  assertEquals(backend.info.volatileCache, false);
  assertEquals(backend.setWriteCache(false), 0);
  assertEquals(controller.count("writes"), 1);
  assertEquals(controller.count("writtenBytes"), 4096);
});

Deno.test("MemoryBackend moves pieces to and from the last block", () => {
  using host = new Host();
  using controller = new Controller(host, MEMORY);
  const bytes = pattern(4096, 1);
  assertEquals(controller.write(SIZE - 4096, bytes), 0);
  const at = [[1000, 1], [2001, 4000], [9000, 95]] as const;
  const read = { op: BlockOp.READ, offset: SIZE - 4096, at };
  assertEquals(controller.run(read), 0);
  let from = 0;
  for (const [iova, length] of at) {
    const piece = new Uint8Array(length);
    host.memory.read(iova, piece);
    assertEquals(piece, bytes.slice(from, from + length));
    from += length;
  }
});

Deno.test("MemoryBackend zeroes and discards exactly the range", () => {
  using host = new Host();
  using controller = new Controller(host, MEMORY);
  const ops = [
    { op: BlockOp.WRITE_ZEROES, mayUnmap: false },
    { op: BlockOp.WRITE_ZEROES, mayUnmap: true },
    { op: BlockOp.DISCARD },
  ];
  for (const op of ops) {
    for (const lengthBytes of [512, 4096, 65536, 65536 + 512, 200 * 1024]) {
      const bytes = pattern(SIZE, lengthBytes);
      assertEquals(controller.write(0, bytes), 0);
      assertEquals(controller.run({ ...op, offset: 1536, lengthBytes }), 0);
      bytes.fill(0, 1536, 1536 + lengthBytes);
      assertEquals(controller.read(0, SIZE), bytes);
    }
  }
});

Deno.test("MemoryBackend touches nothing for a request that does not fit", () => {
  using host = new Host();
  using controller = new Controller(host, MEMORY);
  for (const op of [BlockOp.READ, BlockOp.WRITE, BlockOp.WRITE_ZEROES]) {
    const beyond = { op, offset: SIZE - 512, lengthBytes: 1024 };
    assertEquals(controller.run(beyond), -Errno.EINVAL);
  }
  const short = controller.request({ op: BlockOp.READ, lengthBytes: 512 });
  short.lengthBytes = 1024;
  assertEquals(controller.backend.submit(short), -Errno.EINVAL);
  assertEquals(controller.count("failed"), 4);
});

Deno.test("MemoryBackend with readonly refuses writes, with discard=ignore keeps data", () => {
  using host = new Host();
  {
    using controller = new Controller(host, { ...MEMORY, readonly: true });
    assertEquals(controller.write(0, pattern(512, 1)), -Errno.EROFS);
    assertEquals(controller.read(0, 512), new Uint8Array(512));
    assertThrows(
      () => resizeStorage(controller.backend, ["4096"]),
      Error,
      "readonly=on",
    );
  }
  using controller = new Controller(host, { ...MEMORY, discard: false });
  controller.write(0, pattern(4096, 1));
  const discard = { op: BlockOp.DISCARD, lengthBytes: 4096 };
  assertEquals(controller.run(discard), 0);
  assertEquals(controller.read(0, 4096), pattern(4096, 1));
});

Deno.test("MemoryBackend keeps what it holds when it is resized", () => {
  using host = new Host();
  const fds = openFds();
  const mappings = sharedMappings();
  {
    using controller = new Controller(host, MEMORY);
    const { backend } = controller;
    controller.write(0, pattern(8192, 1));
    backend.resize!(4 << 20);
    assertEquals(backend.info.sizeBytes, 4 << 20);
    assertMatch(backend.description, /^memory of 4M/);
    assertEquals(controller.write((4 << 20) - 512, pattern(512, 2)), 0);
    backend.resize!(4096 + 512);
    assertEquals(
      controller.read(0, 4608),
      pattern(8192, 1).slice(0, 4608),
    );
    const gone = { op: BlockOp.READ, offset: 4608, lengthBytes: 512 };
    assertEquals(controller.run(gone), -Errno.EINVAL);
    backend.resize!(8192);
    assertEquals(controller.read(4608, 3584), new Uint8Array(3584));
    assertEquals(controller.resizes, 3);
    assertThrows(
      () => resizeStorage(backend, ["100"]),
      Error,
      "whole blocks of 512",
    );
  }
  assertEquals(openFds(), fds);
  assertEquals(sharedMappings(), mappings);
});

Deno.test("MemoryBackend that cannot be that large says so, and is as it was", () => {
  using host = new Host();
  const fds = openFds();
  const tooLarge = 128 * 2 ** 40;
  const right = /^Cannot keep a disk of 128T in memory: .*a smaller size/;
  const { message } = assertThrows(
    () => new MemoryBackend({ ...MEMORY, sizeBytes: tooLarge }),
    ErrnoError,
  );
  assertMatch(message, right);
  {
    using controller = new Controller(host, MEMORY);
    const { backend } = controller;
    controller.write(0, pattern(4096, 1));
    assertMatch(
      assertThrows(() => backend.resize!(tooLarge), ErrnoError).message,
      right,
    );
    assertEquals(backend.info.sizeBytes, SIZE);
    assertEquals(backend.rescan!(), false);
    assertEquals(controller.resizes, 0);
    assertEquals(controller.read(0, 4096), pattern(4096, 1));
  }
  assertEquals(openFds(), fds);
});
