import { assertEquals } from "@std/assert";
import { createEventFd, drainEventFd } from "../../src/os/mod.ts";
import { DIRECT_MODES } from "../../src/pci/interrupts.ts";
import { createMailbox } from "../../src/runtime/iothread/thread_calls.ts";
import {
  OwnQueueWords,
  QueueInterrupts,
} from "../../src/runtime/queue_words.ts";

Deno.test("QueueInterrupts has the control thread do what it wants, and wakes it once for each", () => {
  using fd = createEventFd();
  using words = new OwnQueueWords({ vectors: 3, words: 4 });
  const remote = new QueueInterrupts(words.place, createMailbox(fd.number));
  const done: string[] = [];
  const listener = {
    raise: (vector: number) => done.push(`vector ${vector}`),
    onLine: () => done.push("line"),
    onReport: () => done.push("report"),
  };
  const look = () => {
    const woken = drainEventFd(fd.number);
    words.look(listener);
    return [woken, ...done.splice(0)];
  };
  assertEquals(look(), [0]);
  remote.raise(2);
  remote.raise(2);
  remote.raise(3);
  assertEquals(look(), [1, "vector 2"]);
  remote.setLevel(true);
  remote.setLevel(false);
  remote.report();
  remote.report();
  words.deliver(listener);
  assertEquals(done.splice(0), ["line"]);
  assertEquals(look(), [2, "report"]);
  remote.raise(1);
  remote.report();
  words.forget();
  assertEquals(look(), [2]);
});

Deno.test("QueueInterrupts signals what delivers a vector at once, and knows what the driver has enabled", () => {
  using fd = createEventFd();
  using vector = createEventFd();
  using words = new OwnQueueWords({ vectors: 3, words: 0 });
  const remote = new QueueInterrupts(words.place, createMailbox(fd.number));
  assertEquals(remote.mode, "intx");
  for (const mode of ["msi", "msix", "intx"] as const) {
    Atomics.store(words.view.direct, 0, DIRECT_MODES.indexOf(mode));
    assertEquals(remote.mode, mode);
  }
  Atomics.store(words.view.direct, 2, vector.number);
  remote.raise(1);
  remote.raise(1);
  assertEquals(drainEventFd(vector.number), 2);
  assertEquals(drainEventFd(fd.number), 0);
});

Deno.test("the device's words are its own, and nobody else's", () => {
  using fd = createEventFd();
  using words = new OwnQueueWords({ vectors: 3, words: 4 });
  const remote = new QueueInterrupts(words.place, createMailbox(fd.number));
  const { own } = remote.words;
  assertEquals([...own], [0, 0, 0, 0]);
  for (let i = 0; i < 4; i++) Atomics.store(own, i, -1 - i);
  assertEquals([...words.view.own], [-1, -2, -3, -4]);
  const { direct, wanted, reported } = words.view;
  assertEquals([...direct], [0, -1, -1, -1]);
  assertEquals([...wanted, ...reported], new Array(5).fill(0));
  for (const each of [direct, wanted, reported]) each.fill(7);
  assertEquals([...own], [-1, -2, -3, -4]);
});
