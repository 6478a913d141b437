import { assert, assertEquals, assertThrows } from "@std/assert";
import { EventLoop } from "../../src/loop/event_loop.ts";
import { createEventFd, Mapping } from "../../src/os/mod.ts";
import {
  createCallLine,
  createMailbox,
  ThreadCalls,
} from "../../src/runtime/iothread/thread_calls.ts";
import { workersGone } from "../resources.ts";
import type { Orders } from "./thread_calls_worker.ts";

/** A thread that can call itself: it is answered while it waits. */
class Alone implements Disposable {
  readonly #fd = createEventFd();
  readonly #loop = new EventLoop();
  readonly calls = new ThreadCalls(this.#loop, createMailbox(this.#fd.number));

  [Symbol.dispose](): void {
    this.calls.close();
    this.#loop.close();
    this.#fd.close();
  }
}

function isMapped({ hva }: Mapping): boolean {
  return Deno.readTextFileSync("/proc/self/maps").split("\n").some((line) => {
    const [from, to] = line.split(" ")[0]!.split("-");
    return parseInt(from!, 16) <= hva && hva < parseInt(to!, 16);
  });
}

async function run(orders: Orders): Promise<unknown> {
  const worker = new Worker(
    new URL("./thread_calls_worker.ts", import.meta.url),
    { type: "module" },
  );
  const { promise, resolve, reject } = Promise.withResolvers<unknown>();
  worker.onmessage = (event) => resolve(event.data);
  worker.onerror = (event) => {
    event.preventDefault();
    reject(new Error(event.message));
  };
  worker.postMessage(orders);
  return await promise.finally(() => worker.terminate());
}

Deno.test("ThreadCalls lets two threads call each other at the same time", async () => {
  using fdA = createEventFd();
  using fdB = createEventFd();
  const [a, b] = [createMailbox(fdA.number), createMailbox(fdB.number)];
  const [toA, toB] = [createCallLine(), createCallLine()];
  const calls = 2000;
  const results = await Promise.all([
    run({ mailbox: a, peer: b, out: toB, in: toA, calls }),
    run({ mailbox: b, peer: a, out: toA, in: toB, calls }),
  ]);
  await workersGone();
  const all = Array.from({ length: calls }, (_, i) => i + 1);
  const good = all.filter((n) => n % 7 !== 0);
  const expected = {
    sum: good.reduce((sum, n) => sum + n + 1, 0),
    errors: calls - good.length,
    heard: calls,
  };
  assertEquals(results, [expected, expected]);
});

Deno.test("ThreadCalls fails calls to a line that nobody answers any more", () => {
  using fd = createEventFd();
  using loop = new EventLoop();
  using calls = new ThreadCalls(loop, createMailbox(fd.number));
  const line = createCallLine();
  // A thread that calls itself is answered while it waits.
  const end = calls.answer(line, calls.mailbox, (message) => message);
  using caller = calls.caller(line, calls.mailbox);
  assertEquals(caller.call([1, new Uint8Array([2])]), [1, new Uint8Array([2])]);
  end();
  assertThrows(() => caller.call(1), Error, "has stopped");
});

Deno.test("ThreadCalls does not begin a call again while it is being handled", () => {
  using fd = createEventFd();
  using loop = new EventLoop();
  using calls = new ThreadCalls(loop, createMailbox(fd.number));
  const [outer, inner] = [createCallLine(), createCallLine()];
  using toInner = calls.caller(inner, calls.mailbox);
  let handled = 0;
  calls.answer(outer, calls.mailbox, () => {
    handled++;
    return toInner.call("inner");
  });
  calls.answer(inner, calls.mailbox, (message) => `${message}!`);
  using toOuter = calls.caller(outer, calls.mailbox);
  assertEquals(toOuter.call("outer"), "inner!");
  assertEquals(handled, 1);
});

Deno.test("ThreadCalls frees the memory of a line once, whichever end goes first", () => {
  using thread = new Alone();
  const { calls } = thread;
  for (const callerFirst of [true, false]) {
    const line = createCallLine();
    const end = calls.answer(line, calls.mailbox, (message) => message);
    const caller = calls.caller(line, calls.mailbox);
    assertEquals(caller.call(1), 1);
    if (callerFirst) caller.close();
    else end();
    // The kernel gives freed addresses to whoever asks next.
    const others = Array.from(
      { length: 8 },
      () => new Mapping({ lengthBytes: 4096 }),
    );
    if (callerFirst) end();
    else caller.close();
    for (const other of others) {
      assertEquals(isMapped(other), true);
      other.close();
    }
  }
});

Deno.test("ThreadCalls gives messages and answers that stay as they are", () => {
  using thread = new Alone();
  const { calls } = thread;
  const line = createCallLine();
  const heard: unknown[] = [];
  calls.answer(line, calls.mailbox, (message) => {
    heard.push(message);
    return message;
  });
  using caller = calls.caller(line, calls.mailbox);
  const answers = [1, 2, 3].map((n) => caller.call(Uint8Array.of(n, n)));
  const expected = [1, 2, 3].map((n) => Uint8Array.of(n, n));
  assertEquals(heard, expected);
  assertEquals(answers, expected);
});

Deno.test("ThreadCalls leaves nothing behind on a thread that does not return to its runtime", () => {
  using thread = new Alone();
  const { calls } = thread;
  const line = createCallLine();
  calls.answer(line, calls.mailbox, (message) => message);
  using caller = calls.caller(line, calls.mailbox);
  const message = { op: "write", ranges: [{ iova: 1, lengthBytes: 4096 }] };
  const grownBytes = (times: number) => {
    const before = Deno.memoryUsage().rss;
    for (let i = 0; i < times; i++) caller.call(message);
    return Deno.memoryUsage().rss - before;
  };
  grownBytes(2000);
  // Serialized by node:v8, each message and each answer leaves kilobytes.
  const grown = grownBytes(20_000);
  assert(grown < 16 << 20, `${grown} bytes`);
});

Deno.test("ThreadCalls fails a call whose answer cannot travel, and answers the next", () => {
  using thread = new Alone();
  const { calls } = thread;
  const line = createCallLine();
  calls.answer(line, calls.mailbox, (message) => message === 1 ? () => {} : 2);
  using caller = calls.caller(line, calls.mailbox);
  assertThrows(() => caller.call(1), Error, "it is a function");
  assertEquals(caller.call(2), 2);
});

Deno.test("ThreadCalls never begins a call that was given up, nor makes another on its line", () => {
  using thread = new Alone();
  const { calls } = thread;
  const line = createCallLine();
  using caller = calls.caller(line, calls.mailbox, 1);
  assertThrows(() => caller.call("late"), Error, "has not answered for 1 ms");
  assertEquals(caller.lost, true);
  const heard: unknown[] = [];
  calls.answer(line, calls.mailbox, (message) => heard.push(message));
  assertThrows(() => caller.call("later"), Error, "has stopped");
  const other = createCallLine();
  calls.answer(other, calls.mailbox, (message) => message);
  using toOther = calls.caller(other, calls.mailbox);
  assertEquals(toOther.call("in time"), "in time");
  assertEquals(heard, []);
  assertEquals(toOther.lost, false);
});
