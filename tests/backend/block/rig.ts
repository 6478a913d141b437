/**
 * A controller for the tests: guest memory in a memfd, requests in several segments, a real event loop turned by hand.
 *
 * @module
 */

import type { Saved } from "../../../src/os/mod.ts";
import { EventLoop } from "../../../src/loop/event_loop.ts";
import { createMemfd } from "../../../src/os/mod.ts";
import type { Log } from "../../../src/core/log.ts";
import { DmaMemory } from "../../../src/memory/dma_memory.ts";
import { Access } from "../../../src/memory/guest_memory.ts";
import {
  type BlockBackend,
  type BlockClient,
  type BlockContext,
  BlockOp,
  BlockRequest,
  PENDING,
} from "../../../src/backend/block/contract.ts";
import { openBlockBackend } from "../../../src/backend/block/open.ts";
import type { BlockOptions } from "../../../src/backend/block/options.ts";
import { PATIENCE_MS } from "../../until.ts";

const MEMORY_BYTES = 16 << 20;
const TURN_MS = 20;

/** Options that most tests want of a file. */
export const FILE: Omit<Extract<BlockOptions, { kind: "file" }>, "path"> = {
  kind: "file",
  readonly: false,
  logicalBlockBytes: 512,
  physicalBlockBytes: null,
  createBytes: null,
  direct: false,
  discard: true,
};

/** Options that most tests want of memory. */
export const MEMORY: Extract<BlockOptions, { kind: "memory" }> = {
  kind: "memory",
  readonly: false,
  logicalBlockBytes: 512,
  physicalBlockBytes: null,
  discard: true,
  sizeBytes: 1 << 20,
};

/** Host of a back end, which keeps what it said. */
export class Host implements Disposable {
  readonly loop = new EventLoop();
  /** Number of times faster than it says a timer runs that is armed from now on. */
  speed = 1;
  readonly memory = new DmaMemory();
  readonly infos: string[] = [];
  readonly warnings: string[] = [];
  readonly context: BlockContext;
  readonly #starting: ((started: boolean) => void)[] = [];

  constructor() {
    using fd = createMemfd("block-test", MEMORY_BYTES);
    this.memory.map({
      iova: 0,
      lengthBytes: MEMORY_BYTES,
      access: Access.READ | Access.WRITE,
      fd: fd.number,
    });
    const log: Log = {
      debug: () => {},
      info: (message) => this.infos.push(message),
      warn: (message) => this.warnings.push(message),
      error: (message) => this.warnings.push(message),
      debugEnabled: false,
    };
    const { loop, memory } = this;
    const makeTimer = loop.timer.bind(loop);
    loop.timer = (callback) => {
      const timer = makeTimer(callback);
      const arm = timer.arm.bind(timer);
      timer.arm = (delayMs) => arm(delayMs / this.speed);
      return timer;
    };
    const onStart = (tell: (started: boolean) => void) => {
      this.#starting.push(tell);
    };
    this.context = { loop, log, memory, onStart };
  }

  /** Says what has become of the start of what was opened. */
  tellStart(started: boolean): void {
    for (const tell of this.#starting.splice(0)) tell(started);
  }

  [Symbol.dispose](): void {
    this.loop.close();
    this.memory.close();
  }
}

/** Job on a range of the storage. */
export interface Job {
  readonly op: BlockOp;
  readonly offset?: number;
  readonly lengthBytes?: number;
  readonly durable?: boolean;
  readonly mayUnmap?: boolean;
  /** Pieces of guest memory with the data; one piece at 0 unless told. */
  readonly at?: readonly (readonly [iova: number, lengthBytes: number])[];
}

/** A controller on a back end, which it closes at the end. */
export class Controller implements BlockClient, Disposable {
  readonly host: Host;
  readonly backend: BlockBackend;
  /** Results by tag, of requests that were pending. */
  readonly results = new Map<number, number>();
  onCompletion: (request: BlockRequest, result: number) => void = () => {};
  resizes = 0;
  #tag = 0;

  constructor(host: Host, options: BlockOptions, saved?: Saved<unknown>) {
    this.host = host;
    let started = false;
    try {
      this.backend = openBlockBackend(options, host.context, saved);
      started = true;
    } finally {
      host.tellStart(started);
    }
    this.backend.start(this);
  }

  onComplete(request: BlockRequest, result: number): void {
    if (this.results.has(request.tag)) {
      throw new Error(`request ${request.tag} completed twice`);
    }
    this.results.set(request.tag, result);
    this.onCompletion(request, result);
  }

  onResize(): void {
    this.resizes++;
  }

  /** A request, not submitted. */
  request(job: Job): BlockRequest {
    const request = new BlockRequest(this.host.memory, 64, this.#tag++);
    request.op = job.op;
    request.offset = job.offset ?? 0;
    request.durable = job.durable ?? false;
    request.mayUnmap = job.mayUnmap ?? false;
    request.lengthBytes = job.lengthBytes ??
      (job.at ?? []).reduce((sum, [, length]) => sum + length, 0);
    if (job.op <= BlockOp.WRITE) {
      const access = job.op === BlockOp.READ ? Access.WRITE : Access.READ;
      const pieces = job.at ?? [[0, request.lengthBytes] as const];
      for (const [iova, length] of pieces) {
        const { memory } = this.host;
        const result = memory.translate(iova, length, access, request.buffers);
        if (result !== 0) throw new Error(`translate: ${result}`);
      }
    }
    return request;
  }

  /** Submits without commit. */
  submit(job: Job): BlockRequest {
    const request = this.request(job);
    const result = this.backend.submit(request);
    if (result !== PENDING) this.results.set(request.tag, result);
    return request;
  }

  /** Does it and waits; returns the result. */
  run(job: Job): number {
    const request = this.submit(job);
    this.backend.commit();
    this.wait([request]);
    return this.results.get(request.tag)!;
  }

  /** Turns the loop until these are done. */
  wait(requests: readonly BlockRequest[]): void {
    this.turnUntil(() => requests.every(({ tag }) => this.results.has(tag)));
  }

  turnUntil(done: () => boolean): void {
    turnUntil(this.host.loop, done);
  }

  /** Writes bytes at an offset. */
  write(offset: number, bytes: Uint8Array, durable = false): number {
    this.host.memory.write(0, bytes);
    const lengthBytes = bytes.length;
    return this.run({ op: BlockOp.WRITE, offset, lengthBytes, durable });
  }

  /** Reads bytes at an offset; throws on an error. */
  read(offset: number, lengthBytes: number): Uint8Array {
    const result = this.run({ op: BlockOp.READ, offset, lengthBytes });
    if (result !== 0) throw new Error(`read: ${result}`);
    const bytes = new Uint8Array(lengthBytes);
    this.host.memory.read(0, bytes);
    return bytes;
  }

  count(name: string): number {
    return this.backend.counters!()[name]!;
  }

  [Symbol.dispose](): void {
    this.backend.close();
  }
}

/** Turns a loop until something is so. */
export function turnUntil(loop: EventLoop, done: () => boolean): void {
  const deadline = performance.now() + PATIENCE_MS;
  while (!done()) {
    if (performance.now() > deadline) {
      throw new Error(`not done within ${PATIENCE_MS} ms`);
    }
    loop.turn(TURN_MS);
  }
}

/** A folder that goes away with all that is in it. */
export class Folder implements Disposable {
  readonly path: string;

  /** @param parent /dev/shm for memory; the place for temporary files unless told */
  constructor(parent?: string) {
    this.path = Deno.makeTempDirSync(
      parent === undefined ? {} : { dir: parent },
    );
  }

  /** A file of this length that reads as zeroes. */
  image(name: string, sizeBytes: number): string {
    const path = `${this.path}/${name}`;
    using file = Deno.openSync(path, { create: true, write: true });
    file.truncateSync(sizeBytes);
    return path;
  }

  [Symbol.dispose](): void {
    Deno.removeSync(this.path, { recursive: true });
  }
}

/** Bytes that differ from place to place and from seed to seed. */
export function pattern(lengthBytes: number, seed: number): Uint8Array {
  const bytes = new Uint8Array(lengthBytes);
  let state = (seed * 2654435761 + 1) >>> 0;
  for (let i = 0; i < lengthBytes; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    bytes[i] = state >>> 24;
  }
  return bytes;
}
