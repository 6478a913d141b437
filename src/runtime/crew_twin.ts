/**
 * The twin of a device on another thread than its home, which serves some of its queues.
 *
 * @module
 */

import { ResourceBag } from "../os/mod.ts";
import type { DeviceModel } from "../../devices/model.ts";
import { Errno, ErrnoError } from "../core/errno.ts";
import type { FdWatch, Loop } from "../loop/event_loop.ts";
import type { Log } from "../core/log.ts";
import { DmaMemory } from "../memory/dma_memory.ts";
import type { DeviceContext, PciDevice } from "../pci/mod.ts";
import { VirtioPort } from "../virtio/device.ts";
import { SocketWrites } from "../pci/socket_writes.ts";
import { RemoteBoard } from "./crew_board.ts";
import type { CrewMessage } from "./spread_device.ts";
import type { CallLine, Seat, ThreadCalls } from "./iothread/thread_calls.ts";

/** What a twin is made with. */
export interface CrewTwinParts {
  readonly model: DeviceModel<unknown>;
  /** What the model's `parse` returned. */
  readonly options: unknown;
  readonly loop: Loop;
  readonly log: Log;
  readonly calls: ThreadCalls;
  /** The line on which the home thread calls, and its seat. */
  readonly line: CallLine;
  readonly home: Seat;
}

type OpenMessage = Extract<CrewMessage, { op: "open" }>;

/** Carries out what the home thread says. */
export class CrewTwin implements Disposable {
  readonly #parts: CrewTwinParts;
  readonly #hangUp: () => void;
  readonly #memory = new DmaMemory();
  readonly #watches: FdWatch[] = [];
  #device: PciDevice | null = null;

  /** Waits for the home thread to open the device. */
  constructor(parts: CrewTwinParts) {
    this.#parts = parts;
    this.#hangUp = parts.calls.answer(
      parts.line,
      parts.home,
      (message) => this.#handle(message as CrewMessage),
    );
  }

  /** Ends it, though the home thread has not said so; further calls do nothing. */
  close(): void {
    // In this order: once the line is ended, home may free what the device uses.
    this.#closeDevice();
    this.#hangUp();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #handle(message: CrewMessage): unknown {
    if (message.op === "open") return this.#open(message);
    if (message.op === "close") return this.#closeDevice();
    const device = this.#device;
    if (device === null) {
      throw new Error("Cannot go on: the twin of the device is closed");
    }
    switch (message.op) {
      case "write": {
        const { bar, offset, width, value } = message;
        return device.writeBar(bar, offset, width, value);
      }
      case "reset":
        return device.reset(message.reason);
      case "stop":
        return device.stop?.();
      case "start":
        return device.start?.();
      case "map":
        for (const range of message.ranges) this.#memory.borrow(range);
        this.#memory.accessible = true;
        return;
      case "unmapAll":
        this.#memory.accessible = false;
        this.#memory.unmapAll();
        return;
      case "unmap":
        return this.#unmap(message.iova, message.lengthBytes);
      case "state":
        return device.spreading!.loadShared(message.state);
      case "call":
        return device.spreading!.answer!(message.message);
      case "fail":
        return device.spreading!.fail(message.reason);
      case "counters":
        return device.counters?.() ?? {};
      case "fence":
        return;
      default:
        return message satisfies never;
    }
  }

  /** Told again, because another thread has not let go of the range, this one has nothing left to do. */
  #unmap(iova: number, lengthBytes: number): void {
    try {
      this.#memory.unmap(iova, lengthBytes);
    } catch (error) {
      const isGone = error instanceof ErrnoError &&
        error.errno === Errno.ENOENT;
      if (!isGone) throw error;
    }
  }

  #open({ shared, groups, board: place, kicks }: OpenMessage): void {
    const { model, options, loop, log, home } = this.#parts;
    const board = new RemoteBoard(place, home);
    const context: DeviceContext = {
      memory: this.#memory,
      interrupts: board,
      loop,
      posted: new SocketWrites(board.posted),
      log,
      random: (lengthBytes) =>
        crypto.getRandomValues(new Uint8Array(lengthBytes)),
      // What is made, home makes.
      onStart: () => {},
      createSharedMemory: () => {
        throw new Error("Cannot share device memory between IOThreads");
      },
    };
    const { fds } = shared as { fds: Record<string, number> };
    using bag = ResourceBag.of(fds);
    const device = model.create(
      { ...context, virtio: new VirtioPort() },
      options,
      { state: null, bag, resources: shared },
    ) as PciDevice;
    try {
      const spreading = device.spreading!;
      spreading.begin((group) => groups.includes(group), {
        // Shared state changes at home only.
        onSharedState: () => {},
        onFailure: () => board.fail(),
        // Home forgets what this twin has put on the board, once every twin is reset.
        onReset: () => {},
        onForeignKick: (queue) => board.kick(queue),
        // Only the client has a way to configuration space, and it talks to home.
        onIndirectWrite: () => {},
        words: board.words,
        call: notHome,
        callAll: notHome,
      });
      kicks.forEach((fd, queue) => {
        if (fd < 0) return;
        this.#watches.push(
          loop.watchEventFd(fd, () => spreading.kick(queue)),
        );
      });
    } catch (error) {
      for (const watch of this.#watches.splice(0)) watch.close();
      device.close();
      throw error;
    }
    this.#device = device;
  }

  #closeDevice(): void {
    for (const watch of this.#watches.splice(0)) watch.close();
    this.#device?.close();
    this.#device = null;
    this.#memory.close();
  }
}

function notHome(): never {
  throw new Error("Cannot call other twins: only the one at home may");
}
