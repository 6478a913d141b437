import { assertEquals } from "@std/assert";
import { createEventFd, drainEventFd } from "../../src/os/mod.ts";
import { DIRECT_MODES } from "../../src/pci/interrupts.ts";
import { Board, RemoteBoard } from "../../src/runtime/crew_board.ts";
import { createSeat } from "../../src/runtime/iothread/thread_calls.ts";

Deno.test("RemoteBoard has home do what it wants, and wakes it once for each", () => {
  using fd = createEventFd();
  using board = new Board({ vectors: 3, queues: 2, words: 4 });
  const remote = new RemoteBoard(board.place, createSeat(fd.number));
  const done: string[] = [];
  const look = () => {
    const woken = drainEventFd(fd.number);
    board.look({
      raise: (vector) => done.push(`vector ${vector}`),
      raiseLine: () => done.push("line"),
      kick: (queue) => done.push(`queue ${queue}`),
      fail: () => done.push("failure"),
    });
    return [woken, ...done.splice(0)];
  };
  assertEquals(look(), [0]);
  remote.raise(2);
  remote.raise(2);
  remote.raise(3);
  assertEquals(look(), [1, "vector 2"]);
  remote.setLevel(true);
  remote.setLevel(false);
  remote.kick(1);
  remote.kick(1);
  remote.kick(2);
  remote.fail();
  assertEquals(look(), [3, "line", "queue 1", "failure"]);
  assertEquals(look(), [0]);
});

Deno.test("RemoteBoard signals what delivers a vector at once, and knows what the driver has enabled", () => {
  using fd = createEventFd();
  using vector = createEventFd();
  using board = new Board({ vectors: 3, queues: 2, words: 0 });
  const remote = new RemoteBoard(board.place, createSeat(fd.number));
  assertEquals(remote.mode, "intx");
  for (const mode of ["msi", "msix", "intx"] as const) {
    Atomics.store(board.view.direct, 0, DIRECT_MODES.indexOf(mode));
    assertEquals(remote.mode, mode);
  }
  Atomics.store(board.view.direct, 2, vector.number);
  remote.raise(1);
  remote.raise(1);
  assertEquals(drainEventFd(vector.number), 2);
  assertEquals(drainEventFd(fd.number), 0);
});

Deno.test("the words of a Board are the device's, and nobody else's", () => {
  using fd = createEventFd();
  using board = new Board({ vectors: 3, queues: 2, words: 4 });
  const remote = new RemoteBoard(board.place, createSeat(fd.number));
  assertEquals([...remote.words], [0, 0, 0, 0]);
  for (let i = 0; i < 4; i++) Atomics.store(remote.words, i, -1 - i);
  assertEquals([...board.view.words], [-1, -2, -3, -4]);
  const { direct, wanted, kicked, failed } = board.view;
  assertEquals([...direct], [0, -1, -1, -1]);
  assertEquals([...wanted, ...kicked, ...failed], new Array(7).fill(0));
  for (const words of [direct, wanted, kicked, failed]) words.fill(7);
  assertEquals([...remote.words], [-1, -2, -3, -4]);
});
