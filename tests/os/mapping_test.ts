import { assert, assertEquals, assertThrows } from "@std/assert";
import { Errno } from "../../src/core/errno.ts";
import {
  copyHva,
  createMemfd,
  Mapping,
  NativeBuffer,
  openFd,
  Prot,
  readv,
  statFd,
  SyscallError,
  writev,
} from "../../src/os/mod.ts";
import { ScatterGather } from "../../src/memory/scatter_gather.ts";
import { MemfdMemory } from "../../src/memory/shared_memory.ts";
import { openFds, sharedMappings } from "../resources.ts";

Deno.test("Mapping shows the same memory as another mapping of the file", () => {
  const fds = openFds();
  const maps = sharedMappings();
  {
    using memfd = createMemfd("outboard-test", 16384);
    using first = new Mapping({ fd: memfd.number, lengthBytes: 16384 });
    using second = new Mapping({
      fd: memfd.number,
      offset: 8192,
      lengthBytes: 4096,
      prot: Prot.READ,
    });
    new Uint8Array(first.buffer)[8192] = 42;
    assertEquals(new Uint8Array(second.buffer)[0], 42);
  }
  assertEquals(openFds(), fds);
  assertEquals(sharedMappings(), maps);
});

Deno.test("Mapping keeps errno and the call when mmap fails", () => {
  using memfd = createMemfd("outboard-test", 4096);
  const error = assertThrows(
    () => new Mapping({ fd: memfd.number, offset: 1, lengthBytes: 4096 }),
    SyscallError,
  );
  assertEquals(error.errno, Errno.EINVAL);
  assertEquals(error.syscall, "mmap");
  assert(error.message.includes("EINVAL"));
});

Deno.test("createMemfd and MemfdMemory keep no descriptor when they fail", () => {
  const fds = openFds();
  assertThrows(() => createMemfd("outboard-test", -4096), SyscallError);
  // Nothing of no length can be mapped.
  assertThrows(() => new MemfdMemory("outboard-test", 0), SyscallError);
  assertEquals(openFds(), fds);
});

Deno.test("Mapping.poison makes stale addresses unreadable but keeps them taken", () => {
  using memfd = createMemfd("outboard-test", 4096);
  const mapping = new Mapping({ fd: memfd.number, lengthBytes: 4096 });
  mapping.poison();
  const at = mapping.hva.toString(16);
  const line = Deno.readTextFileSync("/proc/self/maps").split("\n")
    .find((l) => {
      const [start, end] = l.split(" ")[0]!.split("-");
      return parseInt(start!, 16) <= parseInt(at, 16) &&
        parseInt(at, 16) < parseInt(end!, 16);
    });
  assert(line !== undefined && line.includes(" ---p "), line);
  mapping.close();
});

Deno.test("readv and writev move bytes by address", () => {
  const path = Deno.makeTempFileSync();
  try {
    using buffer = new NativeBuffer(8192);
    const list = new ScatterGather(
      new Uint32Array(buffer.bytes.buffer, 4096, 64),
      buffer.pointer(4096),
    );
    buffer.bytes.set([1, 2, 3, 4, 5, 6]);
    list.push(buffer.hva, 2);
    list.push(buffer.hva + 4, 2);
    {
      using file = openFd(path, 1);
      assertEquals(writev(file.number, list.iovec, list.count), 4);
      assertEquals(statFd(file.number).sizeBytes, 4);
      assertEquals(
        readv(file.number, list.iovec, list.count),
        -Errno.EBADF,
      );
    }
    assertEquals([...Deno.readFileSync(path)], [1, 2, 5, 6]);
    using file = openFd(path, 0);
    list.clear();
    list.push(buffer.hva + 100, 3);
    list.push(buffer.hva + 200, 3);
    assertEquals(readv(file.number, list.iovec, list.count), 4);
    assertEquals([...buffer.bytes.subarray(100, 103)], [1, 2, 5]);
    assertEquals(buffer.bytes[200], 6);
    copyHva(buffer.hva + 300, buffer.hva + 100, 3);
    assertEquals([...buffer.bytes.subarray(300, 303)], [1, 2, 5]);
  } finally {
    Deno.removeSync(path);
  }
});

Deno.test("openFd names the file it cannot open", () => {
  const error = assertThrows(
    () => openFd("/nonexistent/file", 0),
    SyscallError,
  );
  assertEquals(error.errno, Errno.ENOENT);
  assert(error.message.includes("/nonexistent/file"));
});
