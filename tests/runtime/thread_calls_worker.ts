/** One of two threads that call each other at the same time. */

import { EventLoop } from "../../src/loop/event_loop.ts";
import {
  type CallLine,
  type Mailbox,
  ThreadCalls,
} from "../../src/runtime/iothread/thread_calls.ts";

/** Orders for a thread. */
export interface Orders {
  readonly mailbox: Mailbox;
  readonly peer: Mailbox;
  /** The line on which this thread calls, and the one it answers. */
  readonly out: CallLine;
  readonly in: CallLine;
  readonly calls: number;
}

const scope = globalThis as unknown as {
  postMessage(message: unknown): void;
  onmessage: ((event: MessageEvent<Orders>) => void) | null;
  close(): void;
};

function run(orders: Orders): { sum: number; errors: number; heard: number } {
  using loop = new EventLoop();
  using calls = new ThreadCalls(loop, orders.mailbox);
  using caller = calls.caller(orders.out, orders.peer);
  let heard = 0;
  let over = false;
  calls.answer(orders.in, orders.peer, (message) => {
    const { n, text } = message as { n: number; text: string };
    if (n < 0) {
      over = true;
      return null;
    }
    heard++;
    if (n % 7 === 0) throw new Error(`no ${n}`);
    return { n: n + 1, text: text + text };
  });
  let sum = 0;
  let errors = 0;
  for (let n = 1; n <= orders.calls; n++) {
    const text = "x".repeat(n % 97 === 0 ? 9000 : n % 5);
    try {
      const reply = caller.call({ n, text }) as { n: number; text: string };
      if (reply.text.length !== text.length * 2) throw new Error("garbled");
      sum += reply.n;
    } catch (error) {
      if ((error as Error).message !== `no ${n}`) throw error;
      errors++;
    }
  }
  caller.call({ n: -1, text: "" });
  while (!over) loop.turn(1000);
  return { sum, errors, heard };
}

scope.onmessage = (event) => {
  try {
    scope.postMessage(run(event.data));
  } catch (error) {
    scope.postMessage(String((error as Error).stack));
  }
  scope.close();
};
