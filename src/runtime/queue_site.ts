/**
 * The queue service of a device on a queue thread, and what it is handed.
 *
 * @module
 */

import type { DeviceModel } from "../../devices/model.ts";
import { Errno, ErrnoError } from "../core/errno.ts";
import { ResourceBag, viewMemory } from "../os/mod.ts";
import type { Log } from "../core/log.ts";
import type { Loop } from "../loop/event_loop.ts";
import { DmaMemory } from "../memory/dma_memory.ts";
import type { SharedMemory } from "../memory/shared_memory.ts";
import type { QueueService } from "../pci/queue_threads.ts";
import { SocketWrites } from "../pci/socket_writes.ts";
import type { MemoryPlace, QueueThreadMessage } from "./device_threads.ts";
import type {
  CallLine,
  Mailbox,
  ThreadCalls,
} from "./iothread/thread_calls.ts";
import { QueueInterrupts } from "./queue_words.ts";

type OpenMessage = Extract<QueueThreadMessage, { op: "open" }>;

/** Parts of a {@linkcode QueueSite}. */
export interface QueueSiteParts {
  readonly model: DeviceModel<unknown>;
  /** The model's options, checked. */
  readonly options: unknown;
  readonly loop: Loop;
  readonly log: Log;
  readonly calls: ThreadCalls;
  /** The line on which the control thread calls, and where that is reached. */
  readonly line: CallLine;
  readonly control: Mailbox;
}

/** Carries out what the control thread says. */
export class QueueSite implements Disposable {
  readonly #parts: QueueSiteParts;
  readonly #endings: readonly (() => void)[];
  #memory = new DmaMemory();
  #service: QueueService | null = null;

  /** Waits for the control thread to open the service. */
  constructor(parts: QueueSiteParts) {
    this.#parts = parts;
    const { calls, line, control } = parts;
    this.#endings = [
      calls.onNudge(() => this.#service?.wake?.()),
      calls.answer(
        line,
        control,
        (message) => this.#handle(message as QueueThreadMessage),
      ),
    ];
  }

  /** Ends the service, though the control thread has not said so; further calls do nothing. */
  [Symbol.dispose](): void {
    // In this order: once the line is ended, the control thread may free what the service uses.
    this.#close();
    for (const end of this.#endings) end();
  }

  #handle(message: QueueThreadMessage): unknown {
    switch (message.op) {
      case "open":
        return this.#open(message);
      case "call":
        return this.#service?.handle(message.message);
      case "map":
        for (const range of message.ranges) this.#memory.mapShared(range);
        this.#memory.accessible = true;
        return;
      case "unmap":
        return this.#unmap(message.iova, message.lengthBytes);
      case "unmapAll":
        this.#memory.accessible = false;
        this.#memory.unmapAll();
        return;
      case "counters":
        return this.#service?.counters?.() ?? {};
      case "fence":
        return;
      case "close":
        return this.#close();
      default:
        return message satisfies never;
    }
  }

  #open({ grant, fds, place, sharedMemory }: OpenMessage): void {
    const { model, options, loop, log, control } = this.#parts;
    const interrupts = new QueueInterrupts(place, control);
    this.#memory.accessible = false;
    using bag = ResourceBag.of(fds);
    this.#service = model.serve!(
      {
        memory: this.#memory,
        interrupts,
        loop,
        posted: new SocketWrites(interrupts.words.posted),
        log,
        random: (lengthBytes) =>
          crypto.getRandomValues(new Uint8Array(lengthBytes)),
        words: interrupts.words.own,
        sharedMemory: sharedMemory.map(viewShared),
        report: () => interrupts.report(),
      },
      options,
      { state: grant, bag },
    );
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

  #close(): void {
    this.#service?.close();
    this.#service = null;
    this.#memory.close();
    this.#memory = new DmaMemory();
  }
}

/** The control thread keeps it as long as it has services. */
function viewShared({ hva, lengthBytes }: MemoryPlace): SharedMemory {
  return { bytes: new Uint8Array(viewMemory(hva, lengthBytes)) };
}
