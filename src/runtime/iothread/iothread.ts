/**
 * The main thread's handle of an IOThread.
 *
 * @module
 */

import { ModelError } from "../../core/model_fault.ts";
import { closeFd, signalEventFd } from "../../os/mod.ts";
import type { Notice, ReplyOf, Request } from "./messages.ts";
import type { Mailbox } from "./thread_calls.ts";

/** Told of what an IOThread logs and of its end by an error. */
export interface IOThreadListener {
  onLog(notice: Extract<Notice, { kind: "log" }>): void;
  /** The thread died; its devices are gone. */
  onCrash(message: string): void;
  /** It has begun or ceased to be silent; see {@linkcode IOThread.ask}. */
  onSilence(silent: boolean): void;
}

/** Message of an IOThread that runs. */
type Ready = Extract<Notice, { kind: "ready" }>;

/** Time a thread may take to answer a question. */
const ANSWER_TIMEOUT_MS = 2000;

/** Waits for a promise to settle; tells whether it has in time. */
export async function settles(
  promise: Promise<unknown>,
  timeoutMs: number = ANSWER_TIMEOUT_MS,
): Promise<boolean> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<boolean>((resolve) => {
    timer = setTimeout(() => resolve(false), timeoutMs);
  });
  try {
    return await Promise.race([promise.then(() => true, () => true), late]);
  } finally {
    clearTimeout(timer);
  }
}

interface Pending {
  resolve(value: unknown): void;
  reject(error: Error): void;
}

/** A running IOThread. Several requests may be under way. */
export class IOThread {
  /** Its number in the process, from 0. */
  readonly index: number;
  readonly #worker: Worker;
  readonly #listener: IOThreadListener;
  readonly #pending = new Map<number, Pending>();
  readonly #ready = Promise.withResolvers<Ready>();
  /** Reason why no request is taken any more. */
  #ended: Error | null = null;
  #nextId = 1;
  #silent = false;
  /** Address of the thread for others, as long as there is something to close there. */
  #mailbox: Mailbox | null = null;

  /** @param index Its number in the process, from 0; its thread is named after it */
  constructor(index: number, listener: IOThreadListener) {
    this.index = index;
    this.#listener = listener;
    this.#worker = new Worker(
      new URL("./worker.ts", import.meta.url).href,
      { type: "module", name: `iothread${index}` },
    );
    this.#worker.onmessage = (event: MessageEvent<Notice>) =>
      this.#onNotice(event.data);
    this.#worker.onerror = (event) => {
      event.preventDefault();
      this.#fail(event.message);
    };
  }

  /** The thread's id in the kernel, as soon as it runs. */
  async threadId(): Promise<number> {
    return (await this.#ready.promise).threadId;
  }

  /** Address of the thread for others. */
  async mailbox(): Promise<Mailbox> {
    return (await this.#ready.promise).mailbox;
  }

  /**
   * Sends a request to the thread and waits for its answer. Requests are handled in the order they are made.
   *
   * @throws {ModelError} When an author's file is at fault
   * @throws {Error} With the message of whatever else failed on the thread
   */
  async request<R extends Request>(request: R): Promise<ReplyOf[R["kind"]]> {
    const { wakeFd } = await this.#ready.promise;
    if (this.#ended !== null) throw this.#ended;
    if (request.kind === "stop") this.#ended = this.#stopped();
    const id = this.#nextId++;
    const { promise, resolve, reject } = Promise.withResolvers<unknown>();
    this.#pending.set(id, { resolve, reject });
    this.#worker.postMessage({ id, request });
    signalEventFd(wakeFd);
    return await promise as ReplyOf[R["kind"]];
  }

  /** True if it has not answered a question in time, and has not yet since. */
  get silent(): boolean {
    return this.#silent;
  }

  /**
   * Asks the thread something that it answers at once unless a device keeps it.
   *
   * @returns null when it does not answer within 2 s, and at once from then on until it has answered
   * @throws {Error} As {@linkcode IOThread.request}
   */
  async ask<K extends "describe" | "metrics">(
    kind: K,
  ): Promise<ReplyOf[K] | null> {
    if (this.#silent) return null;
    const answer = this.request({ kind } as Request & { kind: K });
    if (await settles(answer)) return await answer;
    // Of several questions at a time one tells.
    if (this.#silent) return null;
    this.#silent = true;
    this.#listener.onSilence(true);
    answer.then(() => {
      this.#silent = false;
      this.#listener.onSilence(false);
    }, () => {});
    return null;
  }

  /** Ends the thread without asking it. */
  terminate(): void {
    this.#worker.terminate();
    this.#end(this.#stopped());
  }

  /** Closes where others reached it: when all of them have ended too. Further calls do nothing. */
  closeMailbox(): void {
    if (this.#mailbox !== null) closeFd(this.#mailbox.eventFd);
    this.#mailbox = null;
  }

  #stopped(): Error {
    return new Error(`Cannot go on: IOThread ${this.index} has stopped`);
  }

  #onNotice(notice: Notice): void {
    switch (notice.kind) {
      case "ready":
        this.#mailbox = notice.mailbox;
        return this.#ready.resolve(notice);
      case "log":
        return this.#listener.onLog(notice);
      case "reply":
      case "failure": {
        const pending = this.#pending.get(notice.id);
        this.#pending.delete(notice.id);
        if (notice.kind === "reply") pending?.resolve(notice.value);
        else {
          const ErrorClass = notice.isModelError ? ModelError : Error;
          pending?.reject(new ErrorClass(notice.message));
        }
        return;
      }
      default:
        return notice satisfies never;
    }
  }

  #fail(message: string): void {
    const error = new Error(
      `Cannot go on: IOThread ${this.index} died: ${message}`,
    );
    this.#end(error);
    this.#listener.onCrash(message);
  }

  #end(error: Error): void {
    this.#ended = error;
    this.#ready.reject(error);
    this.#ready.promise.catch(() => {});
    for (const pending of this.#pending.values()) pending.reject(error);
    this.#pending.clear();
  }
}
