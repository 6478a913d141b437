import { SocketWrites } from "../../src/pci/socket_writes.ts";
import { assertEquals, assertThrows } from "@std/assert";
import { EventLoop } from "../../src/loop/event_loop.ts";
import { createEventFd, createMemfd } from "../../src/os/mod.ts";
import { silentLog } from "../../src/core/log.ts";
import { DmaMemory } from "../../src/memory/dma_memory.ts";
import { type PciDevice, PciInterrupts } from "../../src/pci/mod.ts";
import type { Spreading } from "../../src/pci/spreading.ts";
import { Board } from "../../src/runtime/crew_board.ts";
import { CrewTwin } from "../../src/runtime/crew_twin.ts";
import {
  type CrewMessage,
  SpreadDevice,
} from "../../src/runtime/spread_device.ts";
import {
  createCallLine,
  createSeat,
  ThreadCalls,
} from "../../src/runtime/iothread/thread_calls.ts";
import { sampleSpec } from "../pci/sample.ts";
import { openFds, sharedMappings } from "../resources.ts";

const PAGE = 4096;

/** A device with a queue for each of three threads, of which it says nothing. */
function deviceOf(log: string[]): PciDevice {
  const spreading: Spreading = {
    queueCount: 3,
    groupOf: (queue) => queue,
    targetOfWrite: () => -1,
    targetOfDoorbell: (_bar, doorbell) => doorbell,
    begin: () => {},
    kick: () => {},
    share: () => null,
    saveShared: () => null,
    loadShared: () => {},
    fail: () => {},
    raiseLine: () => {},
  };
  return {
    spec: sampleSpec({
      bars: sampleBars(),
    }),
    readBar: () => 0,
    writeBar: () => {},
    reset: () => log.push("home reset"),
    commands: {
      act: {
        help: "",
        run: () => {
          log.push("act");
          return "";
        },
      },
    },
    spreading,
    close: () => log.push("closed"),
  };
}

function sampleBars() {
  return sampleSpec().bars.filter(({ mmap }) => mmap === undefined);
}

/** A spread device whose two other threads are played by this one, and break at a word. */
class Crew implements Disposable {
  readonly loop = new EventLoop();
  readonly memory = new DmaMemory();
  readonly device: SpreadDevice;
  /** What the twins were told and did. */
  readonly told: string[] = [];
  /** Which of them fails, and at what. */
  broken: { twin: number; op: CrewMessage["op"] } | null = null;
  /** Ends the answering of each. */
  readonly ends: (() => void)[];
  readonly #fd = createEventFd();
  readonly #calls = new ThreadCalls(this.loop, createSeat(this.#fd.number));

  constructor() {
    const { seat } = this.#calls;
    const lines = [createCallLine(), createCallLine()];
    this.ends = lines.map((line, twin) =>
      this.#calls.answer(line, seat, (message) => {
        const { op } = message as CrewMessage;
        if (this.broken?.twin === twin && this.broken.op === op) {
          throw new Error(`broken at ${op}`);
        }
        this.told.push(`${twin} ${op}`);
        return op === "counters" ? { it: 1 } : null;
      })
    );
    this.device = new SpreadDevice({
      device: deviceOf(this.told),
      memory: this.memory,
      interrupts: new PciInterrupts(),
      loop: this.loop,
      writes: new SocketWrites(),
      calls: this.#calls,
      plan: {
        turns: [0, 1, 2],
        threads: lines.map((line, i) => ({ iothread: i + 1, seat, line })),
      },
    });
    this.told.length = 0;
  }

  map(): void {
    using memfd = createMemfd("guest", PAGE);
    const range = { iova: 0, lengthBytes: PAGE, access: 3 as const };
    this.memory.map({ ...range, fd: memfd.number });
    this.told.length = 0;
  }

  [Symbol.dispose](): void {
    this.device.close();
    this.memory.close();
    this.#calls.close();
    this.loop.close();
    this.#fd.close();
  }
}

Deno.test("SpreadDevice tells every thread, though one of them fails", () => {
  const held = [openFds(), sharedMappings()];
  {
    using crew = new Crew();
    crew.broken = { twin: 0, op: "reset" };
    assertThrows(() => crew.device.reset("flr"), Error, "broken at reset");
    assertEquals(crew.told, ["1 reset", "home reset"]);
  }
  assertEquals([openFds(), sharedMappings()], held);
});

Deno.test("SpreadDevice keeps memory mapped that a thread has not let go of", () => {
  using crew = new Crew();
  crew.map();
  for (const twin of [0, 1]) {
    crew.broken = { twin, op: "unmap" };
    assertThrows(() => crew.memory.unmap(0, PAGE), Error, "broken at unmap");
    // As when its client is dropped for that.
    assertThrows(() => crew.memory.unmapAll(), Error, "broken at unmap");
    assertEquals(crew.memory.count, 1);
  }
  crew.broken = null;
  crew.memory.unmap(0, PAGE);
  assertEquals(crew.memory.count, 0);
});

Deno.test("SpreadDevice starts every thread again after a command that not all of them obeyed", () => {
  using crew = new Crew();
  const { act } = crew.device.commands!;
  crew.broken = { twin: 1, op: "stop" };
  assertThrows(() => act!.run([]), Error, "broken at stop");
  const starts = ["0 start", "1 start"];
  assertEquals(crew.told, ["0 stop", "0 state", "1 state", ...starts]);
  crew.told.length = 0;
  crew.broken = { twin: 0, op: "state" };
  assertThrows(() => act!.run([]), Error, "broken at state");
  assertEquals(crew.told, ["0 stop", "1 stop", "act", "1 state", ...starts]);
});

Deno.test("SpreadDevice goes on to its end without a thread that has ended", () => {
  const held = [openFds(), sharedMappings()];
  {
    using crew = new Crew();
    crew.map();
    crew.ends[0]!();
    crew.device.reset("client_gone");
    crew.memory.unmapAll();
    assertEquals(crew.told, ["1 reset", "home reset", "1 unmap"]);
    assertEquals(crew.device.counters(), { it: 1 });
  }
  assertEquals([openFds(), sharedMappings()], held);
});

Deno.test("SpreadDevice leaves what it shares to a thread that does not close its twin", () => {
  using crew = new Crew();
  crew.map();
  const before = openFds();
  crew.broken = { twin: 1, op: "close" };
  crew.device.close();
  assertEquals(crew.told, ["0 close", "closed"]);
  assertEquals(openFds(), before, "what wakes it stays open");
  // Its memory, too, goes away only with its consent.
  crew.broken = { twin: 1, op: "unmap" };
  assertThrows(() => crew.memory.unmapAll(), Error, "broken at unmap");
  assertEquals(crew.memory.count, 1);
  crew.broken = null;
  crew.device.close();
  assertEquals(openFds(), before - 2);
  crew.memory.unmapAll();
  assertEquals(crew.memory.count, 0);
});

Deno.test("CrewTwin lets go of a range once, however often it is told", () => {
  using fd = createEventFd();
  using loop = new EventLoop();
  using calls = new ThreadCalls(loop, createSeat(fd.number));
  using lender = new DmaMemory();
  using board = new Board({ vectors: 0, queues: 3, words: 0 });
  using memfd = createMemfd("guest", PAGE);
  const line = createCallLine();
  using _twin = new CrewTwin({
    model: {
      name: "spread",
      help: "",
      create: () => deviceOf([]),
    },
    options: null,
    loop,
    log: silentLog,
    calls,
    line,
    home: calls.seat,
  });
  using caller = calls.caller(line, calls.seat);
  const tell = (message: CrewMessage) => caller.call(message);
  const place = { shared: null, groups: [1], board: board.place, kicks: [] };
  tell({ op: "open", ...place });
  const range = { iova: 0, lengthBytes: PAGE };
  lender.map({ ...range, access: 3, fd: memfd.number });
  for (let round = 0; round < 2; round++) {
    tell({ op: "map", ranges: lender.lendable() });
    tell({ op: "unmap", ...range });
    tell({ op: "unmap", ...range });
  }
  tell({ op: "close" });
});
