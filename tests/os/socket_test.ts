import { assert, assertEquals, assertThrows } from "@std/assert";
import { Errno } from "../../src/core/errno.ts";
import {
  acceptUnix,
  closeFd,
  connectUnix,
  createEventFd,
  createMemfd,
  drainEventFd,
  isListeningSocket,
  isOpen,
  listenUnix,
  MessageHeader,
  NativeBuffer,
  peerPid,
  signalEventFd,
  socketPair,
  socketPath,
  statFd,
  SyscallError,
} from "../../src/os/mod.ts";
import { openFds } from "../resources.ts";

Deno.test("MessageHeader passes bytes and descriptors both ways", () => {
  const before = openFds();
  {
    const [a, b] = socketPair();
    using left = a;
    using right = b;
    using buffer = new NativeBuffer(4096);
    using header = new MessageHeader();
    using event = createEventFd();
    using memfd = createMemfd("outboard-test", 8192);
    buffer.bytes.set([1, 2, 3, 4, 5]);
    assertEquals(
      header.send(left.number, buffer, 0, 5, [event.number, memfd.number]),
      5,
    );
    assertEquals(header.receive(right.number, buffer, 1024, 1024), 5);
    assertEquals([...buffer.bytes.subarray(1024, 1029)], [1, 2, 3, 4, 5]);
    assertEquals(header.fdCount, 2);
    const [gotEvent, gotMemfd] = header.fds;
    signalEventFd(gotEvent!);
    assertEquals(drainEventFd(event.number), 1, "the same eventfd");
    assertEquals(statFd(gotMemfd!).sizeBytes, 8192);
    header.closeFds();
    assert(!isOpen(gotEvent!));

    // Back, without descriptors.
    assertEquals(header.send(right.number, buffer, 0, 3), 3);
    assertEquals(header.receive(left.number, buffer, 0, 4096), 3);
    assertEquals(header.fdCount, 0);
  }
  assertEquals(openFds(), before);
});

Deno.test("MessageHeader.receive says EAGAIN when there is nothing and 0 at the end", () => {
  const [a, b] = socketPair();
  using left = a;
  using right = b;
  using buffer = new NativeBuffer(4096);
  using header = new MessageHeader();
  assertEquals(header.receive(left.number, buffer, 0, 16), -Errno.EAGAIN);
  right.close();
  assertEquals(header.receive(left.number, buffer, 0, 16), 0);
  assertEquals(header.send(left.number, buffer, 0, 16), -Errno.EPIPE);
});

Deno.test("MessageHeader.send says EAGAIN when the peer does not read", () => {
  const [a, b] = socketPair();
  using left = a;
  using _right = b;
  using buffer = new NativeBuffer(65536);
  using header = new MessageHeader();
  let sent = 0;
  for (;;) {
    const n = header.send(left.number, buffer, 0, 65536);
    if (n < 0) {
      assertEquals(n, -Errno.EAGAIN);
      break;
    }
    sent += n;
    assert(sent < 1 << 26, "a socket buffer is finite");
  }
});

Deno.test("MessageHeader.receive takes the most descriptors Linux passes", () => {
  const [a, b] = socketPair();
  using left = a;
  using right = b;
  using buffer = new NativeBuffer(4096);
  using header = new MessageHeader();
  using event = createEventFd();
  const many = new Array(253).fill(event.number);
  assertEquals(header.send(left.number, buffer, 0, 1, many), 1);
  assertEquals(header.receive(right.number, buffer, 0, 16), 1);
  assertEquals(header.fdCount, 253);
  assert(!header.fdsTruncated);
  for (const fd of header.fds) closeFd(fd);
});

Deno.test("listenUnix makes an owner-only socket that connectUnix reaches", () => {
  const folder = Deno.makeTempDirSync();
  try {
    const path = `${folder}/s`;
    using listener = listenUnix(path);
    assertEquals(Deno.lstatSync(path).mode! & 0o777, 0o600);
    assert(isListeningSocket(listener.number));
    assertEquals(socketPath(listener.number), path);
    assertEquals(acceptUnix(listener.number), null);
    using client = connectUnix(path);
    using server = acceptUnix(listener.number)!;
    assertEquals(peerPid(server.number), Deno.pid);
    assert(!isListeningSocket(client.number));
    const error = assertThrows(() => listenUnix(path), SyscallError);
    assertEquals(error.errno, Errno.EADDRINUSE);
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
});

Deno.test("connectUnix tells a missing socket from a dead one", () => {
  const folder = Deno.makeTempDirSync();
  try {
    const path = `${folder}/s`;
    assertEquals(
      assertThrows(() => connectUnix(path), SyscallError).errno,
      Errno.ENOENT,
    );
    listenUnix(path).close();
    assertEquals(
      assertThrows(() => connectUnix(path), SyscallError).errno,
      Errno.ECONNREFUSED,
    );
    assertEquals(
      assertThrows(
        () => listenUnix(`${folder}/${"x".repeat(120)}`),
        SyscallError,
      ).errno,
      Errno.ENAMETOOLONG,
    );
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
});
