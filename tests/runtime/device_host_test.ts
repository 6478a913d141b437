import { assert, assertEquals } from "@std/assert";
import {
  closeFd,
  createEventFd,
  createMemfd,
  drainEventFd,
  type Fd,
  Mapping,
  signalEventFd,
} from "../../src/os/mod.ts";
import { openFds, sharedMappings } from "../resources.ts";
import { LESSON_ID, PAGE, REG } from "../transport/vfio_user/lesson_device.ts";
import {
  concat,
  message,
  RawClient,
  type Reply,
  versionMessage,
  words,
} from "../transport/vfio_user/raw_client.ts";
import {
  EVENTFD_TRIGGER,
  EVENTFD_UNMASK,
  NONE_UNMASK,
  readMessage,
  Stage,
  writeMessage,
} from "./stage.ts";

const CONFIG = 7;
const INTX = 0;
const MSIX = 2;
/** Offset of the lesson device's MSI-X capability: behind 8 bytes of power management. */
const MSIX_FLAGS = 0x4a;

Deno.test("DeviceHost.handOver moves a device that nobody uses, and clients come as ever", () => {
  const [fds, mappings] = [openFds(), sharedMappings()];
  {
    using stage = new Stage();
    const held = [openFds(), sharedMappings()];
    stage.device.hidden[100] = 42;
    const { backend } = stage.device;
    for (let i = 0; i < 3; i++) stage.move();
    assertEquals([openFds(), sharedMappings()], held);
    assertEquals(stage.device.hidden[100], 42);
    assertEquals(stage.device.backend, backend);
    using client = stage.client();
    assertEquals(stage.read(client, REG.ID), LESSON_ID);
    assertEquals(stage.logged, [`info: client connected (pid ${Deno.pid})`]);
  }
  assertEquals([openFds(), sharedMappings()], [fds, mappings]);
});

Deno.test("DeviceHost.handOver keeps a client that has not agreed on a version yet", () => {
  using stage = new Stage();
  using client = RawClient.connect(stage.path);
  stage.settle();
  stage.move();
  const version = versionMessage();
  client.send(version.slice(0, 7));
  stage.settle();
  stage.move();
  client.send(version.slice(7));
  assertEquals(client.await(stage.loop).errno, 0);
  assertEquals(stage.read(client, REG.ID), LESSON_ID);
  assertEquals(stage.host.describe().clientPid, Deno.pid);
});

Deno.test("DeviceHost.handOver keeps registers, client, agreement and counters, and logs nothing", () => {
  using stage = new Stage();
  using client = stage.client();
  stage.write(client, REG.SCRATCH, 0xabcd_ef01);
  stage.write(client, 0x10, 0xfeb0_0000, CONFIG);
  const before = stage.host.describe();
  const logged = [...stage.logged];
  stage.move();
  assertEquals(stage.host.describe(), before);
  assertEquals(stage.read(client, REG.SCRATCH), 0xabcd_ef01);
  assertEquals(stage.read(client, 0x10, CONFIG), 0xfeb0_0000);
  assertEquals(
    client.request(stage.loop, versionMessage()).errno,
    22,
    "a version is agreed",
  );
  const { connection } = stage.host.describe();
  assertEquals(connection.messages, before.connection.messages! + 3);
  assertEquals(connection.clients, 1);
  assertEquals(stage.logged.slice(0, logged.length), logged);
  assertEquals(
    stage.logged.slice(logged.length),
    ["warn: refused VERSION: Cannot agree on a version: one is agreed already (EINVAL)"],
  );
  stage.move();
  client.request(stage.loop, versionMessage());
  assertEquals(stage.logged.at(-1)!.slice(0, 6), "debug:", "warned once");
});

Deno.test("DeviceHost.handOver keeps guest memory: mapped as it is, unmapped by the last one", () => {
  const mappings = sharedMappings();
  using stage = new Stage();
  using client = stage.client();
  using memfd = createMemfd("guest", 0x10_0000);
  using ram = new Mapping({ fd: memfd.number, lengthBytes: 0x10_0000 });
  const bytes = new Uint8Array(ram.buffer);
  stage.map(client, 0x10_0000, 0x10_0000, memfd);
  const mapped = sharedMappings();
  bytes.fill(0x0f, 0x800, 0x810);
  stage.write(client, REG.DMA_LOW, 0x10_0800);
  stage.write(client, REG.DMA_LENGTH, 16);
  // Asked for on one thread, answered and looked at on the other.
  for (let i = 0; i < 5; i++) {
    client.send(writeMessage(REG.GO, 1));
    stage.loop.turn(0);
    stage.move();
    stage.settle();
    assertEquals(client.await(stage.loop).errno, 0);
    assertEquals(bytes[0x800], i % 2 === 0 ? 0xf0 : 0x0f);
    assertEquals(bytes[0x80f], bytes[0x800]);
    assertEquals(bytes[0x810], 0);
  }
  assertEquals(sharedMappings(), mapped);
  // While it is held, a request waits and is done by the next one.
  stage.host.hold();
  stage.write(client, REG.GO, 1);
  assertEquals(bytes[0x800], 0xf0);
  stage.move();
  stage.settle();
  assertEquals(bytes[0x800], 0x0f);
  assertEquals(stage.read(client, REG.RESULT), 0);
  stage.unmap(client, 0x10_0000, 0x10_0000);
  assertEquals(sharedMappings(), mapped - 1);
  stage.write(client, REG.GO, 1);
  stage.settle();
  assertEquals(stage.read(client, REG.RESULT) | 0, -14);
  client.close();
  stage.settle();
  stage.host.close();
  ram.close();
  assertEquals(sharedMappings(), mappings);
});

Deno.test("DeviceHost.handOver keeps mappable memory the client's: both sides see each other afterwards", () => {
  using stage = new Stage();
  using client = stage.client();
  const info = stage.request(client, message(5, words(4096, 0, 2, 0, 0n, 0n)));
  assertEquals(info.fds.length, 1);
  using page = new Mapping({
    fd: info.fds[0]!,
    offset: PAGE,
    lengthBytes: 4096,
  });
  const bytes = new Uint8Array(page.buffer);
  bytes[0] = 1;
  for (let i = 1; i < 6; i++) {
    const byte = i + 1;
    stage.move();
    assertEquals(stage.read(client, REG.SHARED), i, "nothing is cleared");
    bytes[0] = byte;
    assertEquals(stage.read(client, REG.SHARED), byte);
    stage.write(client, PAGE + 4, 0x55 + i, 2);
    assertEquals(bytes[4], 0x55 + i);
  }
  const again = stage.request(client, message(5, words(4096, 0, 2, 0, 0n, 0n)));
  using same = new Mapping({
    fd: again.fds[0]!,
    offset: PAGE,
    lengthBytes: 4096,
  });
  assertEquals(new Uint8Array(same.buffer)[0], 6);
  [...info.fds, ...again.fds].forEach(closeFd);
  // The next client gets fresh memory.
  client.close();
  stage.settle();
  bytes[0] = 99;
  using next = stage.client();
  assertEquals(stage.read(next, REG.SHARED), 6);
});

Deno.test("DeviceHost.handOver keeps eventfds, masks and what is pending", () => {
  using stage = new Stage();
  using client = stage.client();
  using first = createEventFd();
  using second = createEventFd();
  stage.write(client, MSIX_FLAGS & ~3, 0x8000_0000, CONFIG);
  stage.setIrqs(client, EVENTFD_TRIGGER, MSIX, 3, first, second);
  stage.write(client, REG.RAISE, 3);
  assertEquals(drainEventFd(first.number), 1);
  // Without an eventfd, masked by the client, masked in the table: all three wait.
  stage.write(client, REG.RAISE, 7);
  stage.setIrqs(client, 1 | 8, MSIX, 4);
  stage.write(client, REG.RAISE, 4);
  stage.write(client, 3 * 16 + 12, 1, 4);
  stage.write(client, REG.RAISE, 3);
  stage.move();
  assertEquals(drainEventFd(first.number), 0, "nothing is delivered twice");
  stage.write(client, REG.RAISE, 4);
  assertEquals(drainEventFd(second.number), 0, "the client masked it");
  assertEquals(stage.read(client, 0x800, 4), 1 << 7 | 1 << 4 | 1 << 3);
  stage.write(client, 3 * 16 + 12, 0, 4);
  assertEquals(drainEventFd(first.number), 1);
  stage.move();
  stage.setIrqs(client, NONE_UNMASK, MSIX, 4);
  assertEquals(drainEventFd(second.number), 1);
  stage.move();
  stage.setIrqs(client, EVENTFD_TRIGGER, MSIX, 7, first);
  assertEquals(drainEventFd(first.number), 1);
  assertEquals(stage.read(client, 0x800, 4), 0);
  stage.write(client, REG.RAISE, 4);
  assertEquals(drainEventFd(second.number), 1);
  assertEquals(stage.host.describe().connection.interrupts, 5);
});

Deno.test("DeviceHost.handOver keeps INTx asserted and automasked, and its unmask eventfd", () => {
  using stage = new Stage();
  using client = stage.client();
  using line = createEventFd();
  using unmask = createEventFd();
  stage.setIrqs(client, EVENTFD_TRIGGER, INTX, 0, line);
  stage.setIrqs(client, EVENTFD_UNMASK, INTX, 0, unmask);
  stage.write(client, REG.LEVEL, 1);
  assertEquals(drainEventFd(line.number), 1);
  stage.move();
  stage.settle();
  stage.write(client, REG.LEVEL, 0);
  stage.write(client, REG.LEVEL, 1);
  assertEquals(drainEventFd(line.number), 0, "it masked itself");
  // Signalled and not seen before the move.
  signalEventFd(unmask.number);
  stage.move();
  assertEquals(drainEventFd(line.number), 0);
  stage.settle();
  assertEquals(drainEventFd(line.number), 1, "still asserted");
  stage.move();
  stage.write(client, REG.LEVEL, 0);
  signalEventFd(unmask.number);
  stage.settle();
  assertEquals(drainEventFd(line.number), 0);
  stage.write(client, REG.LEVEL, 1);
  assertEquals(drainEventFd(line.number), 1);
});

Deno.test("DeviceHost.handOver keeps the doorbells a client has, one that was rung and not heard too", () => {
  using stage = new Stage();
  using client = stage.client();
  const { fds } = stage.request(client, message(6, words(4096, 0, 0, 0)));
  assertEquals(fds.length, 1);
  signalEventFd(fds[0]!);
  stage.move();
  stage.settle();
  assertEquals(stage.read(client, REG.RINGS), 1);
  stage.move();
  signalEventFd(fds[0]!);
  stage.settle();
  assertEquals(stage.read(client, REG.RINGS), 2);
  assertEquals(stage.host.describe().connection.doorbells, 2);
  // Asked again, it is the same eventfd.
  const again = stage.request(client, message(6, words(4096, 0, 0, 0)));
  signalEventFd(again.fds[0]!);
  assertEquals(drainEventFd(fds[0]!), 1);
  [...fds, ...again.fds].forEach(closeFd);
});

Deno.test("DeviceHost.handOver keeps descriptors that came with half a message", () => {
  const before = openFds();
  {
    using stage = new Stage();
    using client = stage.client();
    using line = createEventFd();
    const request = message(8, words(20, EVENTFD_TRIGGER, INTX, 0, 1));
    client.send(request.slice(0, 30), [line.number]);
    stage.settle();
    const held = openFds();
    stage.move();
    assertEquals(openFds(), held);
    client.send(request.slice(30));
    assertEquals(client.await(stage.loop).errno, 0);
    stage.write(client, REG.LEVEL, 1);
    assertEquals(drainEventFd(line.number), 1);
  }
  assertEquals(openFds(), before);
});

Deno.test("DeviceHost goes on with a client that leaves during or after the move, and takes the next", () => {
  const before = openFds();
  {
    using stage = new Stage();
    using first = stage.client();
    {
      const saved = stage.handOver();
      using _bag = saved.bag;
      first.close();
      stage.at = 1;
      stage.host = stage.make(saved);
    }
    assertEquals(stage.host.describe().clientPid, Deno.pid);
    stage.settle();
    assertEquals(stage.host.describe().clientPid, null);
    using second = stage.client();
    assertEquals(stage.read(second, REG.RESETS), 1);
    stage.move();
    second.close();
    stage.settle();
    assertEquals(stage.host.describe().connection.clients, 2);
    const end = `(pid ${Deno.pid})`;
    assertEquals(
      stage.logged.filter((line) => line.startsWith("info")),
      [
        `info: client connected ${end}`,
        `info: client gone ${end}: it closed the connection; waiting for the next`,
        `info: client connected ${end}`,
        `info: client gone ${end}: it closed the connection; waiting for the next`,
      ],
    );
  }
  assertEquals(openFds(), before);
});

Deno.test("DeviceHost.handOver lets a waiting client wait on, and says so once", () => {
  using stage = new Stage();
  using first = stage.client();
  using second = RawClient.connect(stage.path);
  stage.settle();
  const waiting = () =>
    stage.logged.filter((line) => line.includes("another client is waiting"));
  assertEquals(waiting().length, 1);
  stage.move();
  stage.settle();
  assertEquals(waiting().length, 1);
  first.close();
  stage.settle();
  assertEquals(second.request(stage.loop, versionMessage()).errno, 0);
  stage.move();
  using third = RawClient.connect(stage.path);
  stage.settle();
  assertEquals(waiting().length, 2, "of the next one it is said again");
  second.close();
  stage.settle();
  assertEquals(third.request(stage.loop, versionMessage()).errno, 0);
});

Deno.test("DeviceHost names memory that is not shared as the cause when a driver uses it", () => {
  using stage = new Stage();
  using client = stage.client();
  using fd = createMemfd("ram", 0x1000);
  const map = (iova: bigint, ...fds: Fd[]) => {
    const request = message(2, words(32, 3, 0n, iova, 0x1000n));
    assertEquals(stage.request(client, request, ...fds).errno, 0);
  };
  map(0n, fd);
  map(0x1_0000n);
  assertEquals(stage.logged.filter((line) => /^warn/.test(line)), []);
  stage.device.context.memory.read(0x1_0000, new Uint8Array(8));
  stage.device.context.memory.read(0x1_0000, new Uint8Array(8));
  assertEquals(stage.logged.filter((line) => /^warn/.test(line)), [
    "warn: the driver uses guest memory that is not shared with this process: 4K at 0x10000; " +
    "if it is a DIMM, give its memory-backend-memfd or -file share=on (what fails next is not the driver's doing)",
  ]);
});

Deno.test("DeviceHost.handOver remembers whether unshared memory was told of", () => {
  using stage = new Stage();
  using client = stage.client();
  const unshared = (iova: bigint) =>
    message(2, words(32, 3, 0n, iova, 0x1000n));
  stage.request(client, unshared(0n));
  stage.move();
  stage.request(client, unshared(0x1_0000n));
  const said = stage.logged.filter((line) => line.includes("not shared"));
  assertEquals(said.length, 1);
  // The range without anything behind it has moved too.
  assertEquals(client.request(stage.loop, unshared(0n)).errno, 17);
  stage.unmap(client, 0, 0x1000);
});

Deno.test("DeviceHost moves to and fro 100 times under a stream of accesses, and answers each once, in order", () => {
  const [fds, mappings] = [openFds(), sharedMappings()];
  {
    using stage = new Stage();
    using client = stage.client();
    const held = [openFds(), sharedMappings()];
    let sent = 0;
    let answered = 0;
    let pending: Uint8Array = new Uint8Array(0);
    // Pairs: write n to the register, read it back. Cut into pieces of odd lengths, so that a move finds any state.
    const next = () => {
      const n = sent >> 1;
      return sent++ % 2 === 0
        ? writeMessage(REG.SCRATCH, n ^ 0x5a5a, 0, n & 0xffff)
        : readMessage(REG.SCRATCH, 0, n & 0xffff);
    };
    const check = ({ id, errno, command, payload }: Reply) => {
      const n = answered >> 1;
      assertEquals([errno, id], [0, n & 0xffff]);
      assertEquals(command, answered % 2 === 0 ? 10 : 9);
      if (answered % 2 === 1) {
        assertEquals(payload.getUint32(16, true), n ^ 0x5a5a);
      }
      answered++;
    };
    for (let move = 0; move < 100; move++) {
      for (let piece = 0; piece < 20; piece++) {
        const length = 1 + (move * 37 + piece * 101) % 997;
        while (pending.length < length) pending = concat(pending, next());
        const n = client.send(pending.slice(0, length));
        if (n > 0) pending = pending.slice(n);
        if (piece % 3 === 0) stage.loop.turn(0);
        if (piece % 5 === 0) {
          for (let reply; (reply = client.receive()) !== null;) check(reply);
        }
      }
      stage.move();
      assertEquals([openFds(), sharedMappings()], held);
    }
    while (pending.length > 0) {
      const n = client.send(pending);
      if (n > 0) pending = pending.slice(n);
      stage.loop.turn(0);
      for (let reply; (reply = client.receive()) !== null;) check(reply);
    }
    while (answered < sent) check(client.await(stage.loop));
    assert(answered > 10_000, `${answered}`);
    const { connection } = stage.host.describe();
    // One write made the function a bus master.
    assertEquals(
      connection.regionReads! + connection.regionWrites!,
      answered + 1,
    );
    assertEquals(connection.errors, 0);
  }
  assertEquals([openFds(), sharedMappings()], [fds, mappings]);
});

Deno.test("DeviceHost says at level info why it has hung up on a client", () => {
  using stage = new Stage();
  using client = RawClient.connect(stage.path);
  // A header whose size is 0.
  client.send(new Uint8Array(16));
  stage.settle();
  assertEquals(
    stage.logged.at(-1),
    `info: client gone (pid ${Deno.pid}): it sent a message shorter than its header; waiting for the next`,
  );
});
