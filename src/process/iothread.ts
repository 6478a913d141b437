/**
 * The main thread's handle of an IOThread.
 *
 * @module
 */

import { signalEventFd } from "../libc/mod.ts";
import type { Notice, ReplyOf, Request } from "./messages.ts";

/** Told of what an IOThread logs and of its end by an error. */
export interface IOThreadListener {
  onLog(notice: Extract<Notice, { kind: "log" }>): void;
  /** The thread died; its devices are gone. */
  onCrash(message: string): void;
}

interface Pending {
  resolve(value: unknown): void;
  reject(error: Error): void;
}

/** A running IOThread. Several requests may be under way. */
export class IOThread {
  readonly #worker: Worker;
  readonly #listener: IOThreadListener;
  readonly #pending = new Map<number, Pending>();
  readonly #ready = Promise.withResolvers<number>();
  #nextId = 1;

  /** @param name Name of the Worker, for debuggers */
  constructor(name: string, listener: IOThreadListener) {
    this.#listener = listener;
    this.#worker = new Worker(
      new URL("./iothread_worker.ts", import.meta.url).href,
      { type: "module", name },
    );
    this.#worker.onmessage = (event: MessageEvent<Notice>) =>
      this.#onNotice(event.data);
    this.#worker.onerror = (event) => {
      event.preventDefault();
      this.#fail(event.message);
    };
  }

  /**
   * Sends a request to the thread and waits for its answer.
   *
   * @throws {Error} With the message of whatever failed on the thread
   */
  async request<R extends Request>(request: R): Promise<ReplyOf[R["kind"]]> {
    const wakeFd = await this.#ready.promise;
    const id = this.#nextId++;
    const { promise, resolve, reject } = Promise.withResolvers<unknown>();
    this.#pending.set(id, { resolve, reject });
    this.#worker.postMessage({ id, request });
    signalEventFd(wakeFd);
    return await promise as ReplyOf[R["kind"]];
  }

  /** Ends the thread without asking it. */
  terminate(): void {
    this.#worker.terminate();
  }

  #onNotice(notice: Notice): void {
    switch (notice.kind) {
      case "ready":
        return this.#ready.resolve(notice.wakeFd);
      case "log":
        return this.#listener.onLog(notice);
      case "reply":
      case "failure": {
        const pending = this.#pending.get(notice.id);
        this.#pending.delete(notice.id);
        if (notice.kind === "reply") pending?.resolve(notice.value);
        else pending?.reject(new Error(notice.message));
        return;
      }
      default:
        return notice satisfies never;
    }
  }

  #fail(message: string): void {
    const error = new Error(`Cannot go on: the IOThread died: ${message}`);
    this.#ready.reject(error);
    this.#ready.promise.catch(() => {});
    for (const pending of this.#pending.values()) pending.reject(error);
    this.#pending.clear();
    this.#listener.onCrash(message);
  }
}
