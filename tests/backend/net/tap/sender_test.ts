import { assert, assertEquals } from "@std/assert";
import { Errno, ErrnoError } from "../../../../src/core/errno.ts";
import { check, Fd, IoUring, ResourceBag } from "../../../../src/os/mod.ts";
import { libc } from "../../../../src/os/symbols.ts";
import { Access } from "../../../../src/memory/guest_memory.ts";
import type { ScatterGather } from "../../../../src/memory/scatter_gather.ts";
import { openNetBackend } from "../../../../src/backend/net/open.ts";
import { NET_OPTIONS } from "../../../../src/backend/net/options.ts";
import type { TapBackend } from "../../../../src/backend/net/tap/tap.ts";
import type {
  NetBackend,
  NetPeer,
} from "../../../../src/backend/net/contract.ts";
import { openTapQueues } from "../../../../src/backend/net/tap/interface.ts";
import { TapQueue } from "../../../../src/backend/net/tap/queue.ts";
import {
  TapSender,
  type TapSenderOptions,
} from "../../../../src/backend/net/tap/sender.ts";
import { RecordingLog } from "../../../../src/testing/fake_context.ts";
import { heapGrowthPerOperation, openFds } from "../../../resources.ts";
import { Host } from "../card.ts";
import type { NamespaceTest } from "../../../namespaces.ts";
import { NetworkNamespace, tapTests } from "../netns.ts";
import { ETH_P_EXPERIMENTAL, PacketSocket } from "../packet_socket.ts";
import { give } from "../traveller.ts";
import { TapEngine } from "../../../../src/backend/net/tap/driver.ts";

const IFNAME = "obtap0";
const HEADER_BYTES = 12;
/** Frames that one system call sends, and that there is room for. */
const FRAMES_MAX = 64;
const SEGMENTS_MAX = 1024;
const namespaceTest = tapTests(import.meta.url);
const ENGINES = Object.values(TapEngine);

const nobody: NetPeer = { onReadable: () => {}, onWritable: () => {} };

/** A test after which all descriptors are closed. */
function senderTest(
  name: string,
  run: () => void,
  register: NamespaceTest = namespaceTest,
): void {
  register(`TapSender ${name}`, () => {
    const before = openFds();
    run();
    assertEquals(openFds(), before);
  });
}

/** Frames in guest memory, one after the other. */
class Frames {
  readonly #host: Host;
  #at = 0;
  #serial = 0;

  constructor(host: Host) {
    this.#host = host;
  }

  /** A new frame and a list of it behind its header; not more than 1 MiB of them at once. */
  make(lengthBytes: number, segments: number): [Uint8Array, ScatterGather] {
    const { memory } = this.#host;
    const frame = new Uint8Array(lengthBytes).fill(++this.#serial);
    frame.set([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 9]);
    frame.set(ETH_P_EXPERIMENTAL, 12);
    new DataView(frame.buffer).setUint32(14, this.#serial);
    const all = new Uint8Array(HEADER_BYTES + lengthBytes);
    all.set(frame, HEADER_BYTES);
    const list = memory.createScatterGather(segments);
    const size = all.length / segments;
    for (let i = 0; i < segments; i++) {
      const part = all.slice(Math.floor(i * size), Math.floor((i + 1) * size));
      memory.write(this.#at, part);
      memory.translate(this.#at, part.length, Access.READ, list);
      // Segments that touch would be joined.
      this.#at += part.length + 1;
    }
    assertEquals([list.count, list.lengthBytes], [segments, all.length]);
    return [frame, list];
  }

  /** The memory is to be used anew. */
  clear(): void {
    this.#at = 0;
  }
}

/** A sender for an interface of its own, and somebody at the other end. */
class Scene implements Disposable {
  readonly #open = new DisposableStack();
  readonly namespace = this.#open.use(new NetworkNamespace());
  readonly host = this.#open.use(new Host());
  readonly frames = new Frames(this.host);
  readonly log = new RecordingLog();
  readonly queue: TapQueue;
  readonly sender: TapSender;
  readonly far: PacketSocket;

  constructor(options: Partial<TapSenderOptions> = {}) {
    const [tap] = openTapQueues(IFNAME, 1);
    const { host, log } = this;
    this.queue = new TapQueue(0, tap!.fd, host.loop, () => {});
    this.#open.defer(() => this.queue.close());
    this.namespace.setUp(IFNAME, true);
    this.far = this.#open.use(new PacketSocket(IFNAME));
    const description = "tap";
    const queues = [this.queue];
    const engine = TapEngine.AUTO;
    this.sender = new TapSender({
      ...{ queues, engine, description, log },
      ...options,
    });
    this.#open.defer(() => this.sender.close());
  }

  /** Sends frames of those numbers of segments in one batch; they arrive as they are. */
  batch(...segments: readonly number[]): void {
    this.frames.clear();
    const sent = segments.map((count, i) => {
      const lengthBytes = Math.max(60 + (i * 37) % 1455, count);
      const [frame, list] = this.frames.make(lengthBytes, count);
      const result = this.sender.send(list, this.queue, true);
      assertEquals(result, HEADER_BYTES + frame.length);
      return frame;
    });
    this.sender.flush();
    assertEquals(this.far.take(), sent);
  }

  [Symbol.dispose](): void {
    this.#open.dispose();
  }
}

for (const engine of ENGINES) {
  senderTest(`sends batches of any size in order (${engine})`, () => {
    using scene = new Scene({ engine });
    const { sender } = scene;
    sender.flush();
    const batches = [1, 2, 3, 4, 5, 32, 63, 64, 65, 1, 150].map((count) => {
      const before = sender.batches;
      scene.batch(...Array.from({ length: count }, (_, i) => 1 + i % 6));
      return sender.batches - before;
    });
    assertEquals(
      batches,
      {
        auto: [0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 3],
        io_uring: [1, 1, 1, 1, 1, 1, 1, 1, 2, 1, 3],
        sync: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
      }[engine],
    );
    assertEquals(sender.dropped, 0);
    assertEquals(scene.log.records, []);
  });

  senderTest(`counts frames that an interface refuses (${engine})`, () => {
    using scene = new Scene({ engine });
    const { sender, queue } = scene;
    scene.batch(2, 2, 2, 2, 2);
    scene.namespace.setUp(IFNAME, false);
    const [, list] = scene.frames.make(100, 2);
    let lost = 0;
    for (let i = 1; i <= 70; i++) {
      const result = sender.send(list, queue, true);
      assertEquals(
        result,
        engine === TapEngine.SYNC ? -Errno.EIO : list.lengthBytes,
      );
      if (i === 1 || i === 70) lost += sender.flush();
    }
    assertEquals(sender.dropped, 70);
    // The others were told of by what send() returned.
    assertEquals(lost, engine === TapEngine.SYNC ? 0 : 70);
    scene.namespace.setUp(IFNAME, true);
    // The socket is told that the interface was down.
    scene.far.take();
    scene.batch(2, 2, 2, 2, 2);
    assertEquals(sender.dropped, 70);
    assertEquals(scene.log.records, []);
  });

  senderTest(`drops nonsense between good frames (${engine})`, () => {
    using scene = new Scene({ engine });
    const { sender, queue, frames } = scene;
    const good = Array.from({ length: 9 }, (_, i) => frames.make(60 + i, 2));
    const short = scene.host.memory.createScatterGather(1);
    scene.host.memory.translate(0, 5, Access.READ, short);
    for (const [, list] of good) {
      sender.send(list, queue, true);
      sender.send(short, queue, true);
    }
    sender.flush();
    assertEquals(scene.far.take(), good.map(([frame]) => frame));
    assertEquals(sender.dropped, good.length);
  });
}

senderTest(
  "sends frames of many segments, and more than it has room for",
  () => {
    using scene = new Scene();
    // More than the batch has room for, as much as it has, and both between small ones.
    scene.batch(2, 2, 2, 2, 400, 2, 500, 200, 2, 2, 2, 2, 2);
    scene.batch(SEGMENTS_MAX, 1, SEGMENTS_MAX - 2, 2, 1, 1, 1, 1);
    const { sender, queue, frames } = scene;
    frames.clear();
    const all = [2, 2, 2, 2, SEGMENTS_MAX + 1, 2, 2, 2, 2]
      .map((segments) => frames.make(1200, segments));
    const results = all.map(([, list]) => sender.send(list, queue, true));
    // What writev does not take was told of at once.
    assertEquals(sender.flush(), 0);
    assertEquals(results.map((n) => n < 0), all.map((_, i) => i === 4));
    assertEquals(sender.dropped, 1);
    assertEquals(
      scene.far.take(),
      all.filter((_, i) => i !== 4).map(([frame]) => frame),
    );
  },
);

senderTest(
  "sends a frame at once that nobody flushes, behind those before it",
  () => {
    using scene = new Scene();
    const { sender, queue } = scene;
    const all = Array.from({ length: 7 }, () => scene.frames.make(200, 3));
    for (const [i, [, list]] of all.entries()) sender.send(list, queue, i < 6);
    assertEquals(scene.far.take(), all.map(([frame]) => frame));
  },
);

for (const engine of [TapEngine.AUTO, TapEngine.RING]) {
  senderTest(`goes on where io_uring is forbidden (${engine})`, () => {
    let asked = 0;
    const makeRing = () => {
      asked++;
      throw new ErrnoError(Errno.EPERM, "Cannot make a ring");
    };
    using scene = new Scene({ engine, makeRing });
    for (let i = 0; i < 5; i++) scene.batch(...new Array(70).fill(2));
    assertEquals([asked, scene.sender.batches], [1, 0]);
    const level = engine === TapEngine.AUTO ? "debug" : "warn";
    assertEquals(scene.log.records.length, 1);
    assert(scene.log.at(level)[0]!.includes("the kernel says EPERM"));
  });
}

senderTest("sends what a ring that fails did not", () => {
  let ring: IoUring;
  using scene = new Scene({ makeRing: (n) => ring = new IoUring(n) });
  scene.batch(2, 2, 2, 2, 2);
  Object.defineProperty(ring!, "enter", { value: () => -Errno.EBUSY });
  scene.batch(...new Array(40).fill(2));
  scene.batch(...new Array(40).fill(2));
  assertEquals(scene.log.at("debug").length, 1);
  assert(scene.log.at("debug")[0]!.endsWith("sending gave EBUSY"));
});

senderTest("waits for a signal's interruption to be over", () => {
  let ring: IoUring;
  using scene = new Scene({ makeRing: (n) => ring = new IoUring(n) });
  scene.batch(2, 2, 2, 2, 2);
  const enter = ring!.enter.bind(ring!);
  const results = [-Errno.EINTR];
  Object.defineProperty(ring!, "enter", {
    value: (least?: number) => results.pop() ?? enter(least),
  });
  scene.batch(...new Array(40).fill(2));
  assertEquals([scene.sender.batches, results.length], [2, 0]);
});

senderTest("takes descriptors where the kernel holds no files", () => {
  using scene = new Scene({
    makeRing: (entries) => {
      const ring = new IoUring(entries);
      Object.defineProperty(ring, "registerFiles", { value: () => false });
      return ring;
    },
  });
  scene.batch(...new Array(40).fill(2));
  assertEquals(scene.sender.batches, 1);
});

/** A queue whose frames wait in a socket that holds a few, and how many of them it held. */
function withFullQueue(run: (queue: TapQueue, host: Host) => number): void {
  const SOCK_DGRAM_NONBLOCK = 2 | 0o4000 | 0o2000000;
  const pair = new Uint8Array(8);
  check(libc.socketpair(1, SOCK_DGRAM_NONBLOCK, 0, pair), "socketpair");
  const [near, far] = new Int32Array(pair.buffer);
  using host = new Host();
  using end = new Fd(far!);
  const queue = new TapQueue(0, new Fd(near!), host.loop, () => {});
  try {
    const held = run(queue, host);
    const buffer = new Uint8Array(2048);
    const pointer = Deno.UnsafePointer.of(buffer);
    for (let i = 1; i <= held; i++) {
      assert(libc.read(end.number, pointer, buffer.length) > 0);
      assertEquals(new DataView(buffer.buffer).getUint32(26), i);
    }
    assert(libc.read(end.number, pointer, buffer.length) < 0);
  } finally {
    queue.close();
  }
}

for (const count of [2, FRAMES_MAX]) {
  senderTest(
    `leaves frames that must wait to the card, after the first ${count} that did`,
    () => {
      withFullQueue((queue, host) => {
        const log = new RecordingLog();
        const frames = new Frames(host);
        const description = "tap";
        const engine = TapEngine.AUTO;
        const queues = [queue];
        const sender = new TapSender({ queues, engine, description, log });
        let taken = 0;
        for (; sender.dropped === 0 && taken < 1 << 16; taken += count) {
          frames.clear();
          for (let i = 0; i < count; i++) {
            sender.send(frames.make(100, 3)[1], queue, true);
          }
          sender.flush();
        }
        assertEquals(log.records.length, 1);
        assert(log.at("debug")[0]!.endsWith("sending gave EAGAIN"));
        const [, list] = frames.make(100, 3);
        queue.start(nobody);
        assertEquals(sender.send(list, queue, true), -Errno.EAGAIN);
        const held = taken - sender.dropped;
        sender.close();
        return held;
      });
    },
    Deno.test,
  );
}

senderTest("moves batches without allocating", () => {
  using scene = new Scene();
  const { sender, queue } = scene;
  const lists = [1, 2, 3, 4].map((n) => scene.frames.make(64, n)[1]);
  // A batch by the ring and one by writev.
  const growth = heapGrowthPerOperation(35_000, (operations) => {
    for (let done = 0; done < operations; done += 35) {
      for (let i = 0; i < 32; i++) sender.send(lists[i & 3]!, queue, true);
      sender.flush();
      for (let i = 0; i < 3; i++) sender.send(lists[i]!, queue, true);
      sender.flush();
    }
  });
  assert(sender.batches >= 2000);
  assertEquals(sender.dropped, 0);
  assert(growth < 1, `${growth} bytes a frame`);
});

/** Sends a batch of frames on a pair; they arrive. */
function sendBatch(
  host: Host,
  backend: NetBackend,
  far: PacketSocket,
  pair = 0,
): void {
  const frames = new Frames(host);
  const all = Array.from({ length: 20 }, () => frames.make(300, 2));
  for (const [, list] of all) {
    assertEquals(backend.send(list, pair, true), list.lengthBytes);
  }
  backend.flush!();
  assertEquals(far.take(), all.map(([frame]) => frame));
}

const PAIRS = 3;
const OPTIONS = NET_OPTIONS.parse({ net: "tap", ifname: IFNAME });

senderTest(
  "costs a descriptor at the first batch, gone with its back end",
  () => {
    using namespace = new NetworkNamespace();
    using host = new Host();
    const before = openFds();
    const backend = openNetBackend(OPTIONS, host.context);
    assertEquals(openFds(), before + 1);
    {
      using far = new PacketSocket(IFNAME);
      sendBatch(host, backend, far);
      sendBatch(host, backend, far);
    }
    assertEquals(openFds(), before + 2);
    assertEquals(backend.counters!().txBatches, 2);
    backend.close();
    assertEquals(openFds(), before);
    // The ring held the interface, too.
    assertEquals(namespace.exists(IFNAME), false);
  },
);

senderTest("sends batches before and after its back end moves", () => {
  using namespace = new NetworkNamespace();
  using first = new Host(1500, PAIRS);
  using second = new Host(1500, PAIRS);
  const hosts = [first, second] as const;
  let backend = openNetBackend(OPTIONS, first.context);
  using far = new PacketSocket(IFNAME);
  backend.setQueuePairs!(PAIRS);
  const fds = openFds();
  for (let i = 1; i <= 10; i++) {
    for (let pair = 0; pair < PAIRS; pair++) {
      sendBatch(hosts[(i - 1) % 2]!, backend, far, pair);
    }
    assertEquals(openFds(), fds + 1);
    const given = give(backend);
    const next = openNetBackend(OPTIONS, hosts[i % 2]!.context, given);
    given[Symbol.dispose]();
    backend.close();
    assertEquals(openFds(), fds);
    backend = next;
    assertEquals(backend.counters!().txBatches, i * PAIRS);
  }
  // A pair that was given up sends by the first.
  backend.setQueuePairs!(1);
  sendBatch(first, backend, far, 2);
  backend.close();
  assertEquals(namespace.exists(IFNAME), false);
});

senderTest("sends batches of pairs that another thread serves", () => {
  using namespace = new NetworkNamespace();
  using control = new Host(1500, PAIRS);
  using remote = new Host(1500, PAIRS);
  const backend = openNetBackend(OPTIONS, control.context) as TapBackend;
  using far = new PacketSocket(IFNAME);
  backend.setQueuePairs(PAIRS);
  const bag = ResourceBag.of();
  const state = structuredClone(backend.share([2, 1], bag));
  const other = openNetBackend(OPTIONS, remote.context, { state, bag });
  bag[Symbol.dispose]();
  for (let i = 0; i < 2; i++) {
    sendBatch(remote, other, far, 1);
    sendBatch(remote, other, far, 2);
    sendBatch(control, backend, far, 0);
  }
  assertEquals(other.counters!().txBatches, 4);
  // Pairs that are somebody else's are not served here.
  const [, list] = new Frames(remote).make(60, 1);
  assertEquals(other.send(list, 0, true), -Errno.EIO);
  assertEquals(other.counters!().txDropped, 1);
  backend.close();
  assert(namespace.exists(IFNAME), "the other back end has it");
  other.close();
  assertEquals(namespace.exists(IFNAME), false);
});
