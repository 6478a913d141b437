import { assert, assertEquals } from "@std/assert";
import { Errno } from "../../src/core/errno.ts";
import {
  createMemfd,
  IoUring,
  IoUringOp,
  NativeBuffer,
  Poll,
  pollFd,
  Sqe,
  SQE_FIXED_FILE,
} from "../../src/os/mod.ts";
import { openFds, sharedMappings } from "../resources.ts";

/** READ or WRITE of a native buffer. */
function transfer(
  ring: IoUring,
  opcode: number,
  fd: number,
  hva: number,
  lengthBytes: number,
  userData: number,
): void {
  const at = ring.sqe();
  const { sqes } = ring;
  sqes[at + Sqe.OPCODE] = opcode;
  sqes[at + Sqe.FD] = fd;
  sqes[at + Sqe.ADDR_LOW] = hva >>> 0;
  sqes[at + Sqe.ADDR_HIGH] = Math.floor(hva / 2 ** 32);
  sqes[at + Sqe.LEN] = lengthBytes;
  sqes[at + Sqe.USER_DATA] = userData;
}

Deno.test("IoUring gives back fds and mappings", () => {
  const fds = openFds();
  const mappings = sharedMappings();
  for (let i = 0; i < 3; i++) {
    using ring = new IoUring(8);
    assertEquals(ring.entries, 8);
    ring.close();
  }
  assertEquals(openFds(), fds);
  assertEquals(sharedMappings(), mappings);
});

Deno.test("IoUring supports tells what the kernel knows", () => {
  using ring = new IoUring(8);
  assert(ring.supports([IoUringOp.READ, IoUringOp.FALLOCATE]));
  assertEquals(ring.supports([IoUringOp.READ, 255]), false);
});

Deno.test("IoUring writes and reads a file, by descriptor and registered", () => {
  using ring = new IoUring(8);
  using file = createMemfd("io-uring-test", 4096);
  using buffer = new NativeBuffer(4096);
  buffer.bytes.set([1, 2, 3, 4]);
  transfer(ring, IoUringOp.WRITE, file.number, buffer.hva, 4, 77);
  assertEquals(ring.unsubmitted, 1);
  assertEquals(ring.enter(1), 0);
  assertEquals(ring.unsubmitted, 0);
  assertEquals(ring.ready, true);
  assert(ring.next());
  assertEquals([ring.userData, ring.result], [77, 4]);
  assertEquals(ring.next(), false);
  assertEquals(ring.ready, false);
  assert(ring.registerFiles([file.number]));
  const read = IoUringOp.READ | SQE_FIXED_FILE;
  transfer(ring, read, 0, buffer.hva + 100, 4, 0xffff_ffff);
  assertEquals(ring.enter(1), 0);
  assert(ring.next());
  assertEquals([ring.userData, ring.result], [0xffff_ffff, 4]);
  assertEquals([...buffer.bytes.subarray(100, 104)], [1, 2, 3, 4]);
});

Deno.test("IoUring wraps its rings, and its descriptor is readable while completions wait", () => {
  using ring = new IoUring(4);
  for (let round = 0; round < 100; round++) {
    assertEquals(pollFd(ring.fd, Poll.IN, 0), 0);
    for (let i = 0; i < 3; i++) {
      const at = ring.sqe();
      ring.sqes[at + Sqe.USER_DATA] = round * 3 + i;
    }
    assertEquals(ring.enter(), 0);
    assertEquals(pollFd(ring.fd, Poll.IN, -1), Poll.IN);
    for (let i = 0; i < 3; i++) {
      assert(ring.next());
      assertEquals([ring.userData, ring.result], [round * 3 + i, 0]);
    }
    assertEquals(ring.next(), false);
  }
});

Deno.test("IoUring tells errors per request, and goes on behind a bad one", () => {
  using ring = new IoUring(8);
  using buffer = new NativeBuffer(4096);
  using file = createMemfd("io-uring-test", 4096);
  transfer(ring, IoUringOp.READ, 9999, buffer.hva, 4, 1);
  transfer(ring, 255, file.number, buffer.hva, 4, 2);
  transfer(ring, IoUringOp.READ, file.number, 0x10, 4, 3);
  transfer(ring, IoUringOp.READ, file.number, buffer.hva, 4, 4);
  assertEquals(ring.enter(4), 0);
  const results = new Map<number, number>();
  while (ring.next()) results.set(ring.userData, ring.result);
  assertEquals(results.get(1), -Errno.EBADF);
  assertEquals(results.get(2), -Errno.EINVAL);
  assertEquals(results.get(3), -Errno.EFAULT);
  assertEquals(results.get(4), 4);
});
