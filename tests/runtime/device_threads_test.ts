import { assertEquals, assertThrows } from "@std/assert";
import { silentLog } from "../../src/core/log.ts";
import { EventLoop } from "../../src/loop/event_loop.ts";
import { DmaMemory } from "../../src/memory/dma_memory.ts";
import { createEventFd, createMemfd } from "../../src/os/mod.ts";
import { PciInterrupts } from "../../src/pci/mod.ts";
import {
  DeviceThreads,
  type QueueThreadMessage,
} from "../../src/runtime/device_threads.ts";
import {
  createCallLine,
  createMailbox,
  ThreadCalls,
} from "../../src/runtime/iothread/thread_calls.ts";
import { QueueSite } from "../../src/runtime/queue_site.ts";
import { OwnQueueWords } from "../../src/runtime/queue_words.ts";
import { SocketWrites } from "../../src/pci/socket_writes.ts";
import { openFds, sharedMappings } from "../resources.ts";

const PAGE = 4096;

/** A device with two queue threads that are played by this one, and break at a word. */
class Rig implements Disposable {
  readonly loop = new EventLoop();
  readonly memory = new DmaMemory();
  readonly threads: DeviceThreads;
  /** Messages to the queue threads, and what they did. */
  readonly told: string[] = [];
  /** Thread that fails, and the message at which it does. */
  broken: { thread: number; op: QueueThreadMessage["op"] } | null = null;
  /** Ends the answering of each. */
  readonly ends: (() => void)[];
  readonly #fd = createEventFd();
  readonly #calls = new ThreadCalls(this.loop, createMailbox(this.#fd.number));

  constructor() {
    const { mailbox } = this.#calls;
    const lines = [createCallLine(), createCallLine()];
    this.ends = lines.map((line, i) =>
      this.#calls.answer(line, mailbox, (message) => {
        const { op } = message as QueueThreadMessage;
        if (this.broken?.thread === i + 1 && this.broken.op === op) {
          throw new Error(`broken at ${op}`);
        }
        this.told.push(`${i + 1} ${op}`);
        return op === "counters" ? { it: 1 } : op;
      })
    );
    this.threads = new DeviceThreads({
      memory: this.memory,
      interrupts: new PciInterrupts(),
      sharedMemory: [],
      writes: new SocketWrites(),
      calls: this.#calls,
      plan: {
        turns: [0, 1, 2],
        threads: lines.map((line, i) => ({ iothread: i + 1, mailbox, line })),
      },
    });
    this.threads.attach({ vectors: 0, words: 0, onReport() {}, onLine() {} });
    for (const thread of [1, 2]) this.threads.open(thread, () => null);
    this.threads.start();
    this.told.length = 0;
  }

  map(): void {
    using memfd = createMemfd("guest", PAGE);
    const range = { iova: 0, lengthBytes: PAGE, access: 3 as const };
    this.memory.map({ ...range, fd: memfd.number });
    this.told.length = 0;
  }

  [Symbol.dispose](): void {
    this.threads[Symbol.dispose]();
    this.memory.close();
    this.#calls.close();
    this.loop.close();
    this.#fd.close();
  }
}

Deno.test("DeviceThreads deals groups in turns, those of the device itself aside", () => {
  using rig = new Rig();
  const places = [-1, 0, 1, 2, 3, 4].map((group) =>
    rig.threads.threadOf(group)
  );
  assertEquals(places, [0, 0, 1, 2, 0, 1]);
});

Deno.test("DeviceThreads tells every thread, though one of them fails", () => {
  const held = [openFds(), sharedMappings()];
  {
    using rig = new Rig();
    rig.broken = { thread: 1, op: "unmapAll" };
    assertThrows(() => rig.threads.stop(), Error, "broken at unmapAll");
    assertEquals(rig.told, ["2 unmapAll"]);
    rig.broken = null;
  }
  assertEquals([openFds(), sharedMappings()], held);
});

Deno.test("DeviceThreads keeps memory mapped that a thread has not let go of", () => {
  using rig = new Rig();
  rig.map();
  for (const thread of [1, 2]) {
    rig.broken = { thread, op: "unmap" };
    assertThrows(() => rig.memory.unmap(0, PAGE), Error, "broken at unmap");
    // As when its client is dropped for that.
    assertThrows(() => rig.memory.unmapAll(), Error, "broken at unmap");
    assertEquals(rig.memory.count, 1);
  }
  rig.broken = null;
  rig.memory.unmap(0, PAGE);
  assertEquals(rig.memory.count, 0);
});

Deno.test("DeviceThreads goes on to its end without a thread that has ended", () => {
  const held = [openFds(), sharedMappings()];
  {
    using rig = new Rig();
    rig.map();
    rig.ends[0]!();
    assertEquals(rig.threads.call(1, null), undefined);
    assertEquals(rig.threads.call(2, null), "call");
    rig.memory.unmapAll();
    assertEquals(rig.told, ["2 call", "2 unmap"]);
    assertEquals(rig.threads.counters(), { it: 1 });
  }
  assertEquals([openFds(), sharedMappings()], held);
});

Deno.test("DeviceThreads counts what services had counted when they ended", () => {
  using rig = new Rig();
  assertEquals(rig.threads.counters(), { it: 2 });
  rig.threads.close(1);
  assertEquals(rig.threads.counters(), { it: 2 });
  assertEquals(rig.threads.idle(), [1]);
});

Deno.test("DeviceThreads leaves memory to a thread that does not close its service", () => {
  using rig = new Rig();
  rig.map();
  rig.broken = { thread: 2, op: "close" };
  rig.threads[Symbol.dispose]();
  // It goes away only with that thread's consent.
  rig.broken = { thread: 2, op: "unmap" };
  assertThrows(() => rig.memory.unmapAll(), Error, "broken at unmap");
  assertEquals(rig.memory.count, 1);
  rig.broken = null;
  rig.threads[Symbol.dispose]();
  rig.memory.unmapAll();
  assertEquals(rig.memory.count, 0);
});

Deno.test("QueueSite lets go of a range once, however often it is told", () => {
  using fd = createEventFd();
  using loop = new EventLoop();
  using calls = new ThreadCalls(loop, createMailbox(fd.number));
  using lender = new DmaMemory();
  using words = new OwnQueueWords({ vectors: 0, words: 0 });
  using memfd = createMemfd("guest", PAGE);
  const line = createCallLine();
  using _site = new QueueSite({
    model: {
      name: "served",
      help: "",
      create: () => {
        throw new Error("Not here");
      },
      serve: () => ({ handle: () => null, close() {} }),
    },
    options: null,
    loop,
    log: silentLog,
    calls,
    line,
    control: calls.mailbox,
  });
  using caller = calls.caller(line, calls.mailbox);
  const tell = (message: QueueThreadMessage) => caller.call(message);
  const { place } = words;
  tell({ op: "open", grant: null, fds: {}, place, sharedMemory: [] });
  const range = { iova: 0, lengthBytes: PAGE };
  lender.map({ ...range, access: 3, fd: memfd.number });
  for (let round = 0; round < 2; round++) {
    tell({ op: "map", ranges: lender.sharedRanges() });
    tell({ op: "unmap", ...range });
    tell({ op: "unmap", ...range });
  }
  tell({ op: "close" });
});
