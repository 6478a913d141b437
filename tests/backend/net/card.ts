/**
 * A card for the tests: guest memory in a memfd, frames in several segments, a real event loop turned by hand.
 *
 * @module
 */

import { Errno } from "../../../src/core/errno.ts";
import { EventLoop } from "../../../src/loop/event_loop.ts";
import { createMemfd } from "../../../src/os/mod.ts";
import type { Log } from "../../../src/core/log.ts";
import { DmaMemory } from "../../../src/memory/dma_memory.ts";
import { Access } from "../../../src/memory/guest_memory.ts";
import type { ScatterGather } from "../../../src/memory/scatter_gather.ts";
import type {
  NetBackend,
  NetContext,
  NetPeer,
} from "../../../src/backend/net/contract.ts";
import { PATIENCE_MS } from "../../until.ts";
import { GUEST_MAC } from "./frames.ts";

const MEMORY_BYTES = 1 << 20;
const TX = 0;
const RX = MEMORY_BYTES / 2;
const TURN_MS = 20;

/** Host of a card: the context of a back end, and what it said. */
export class Host implements Disposable {
  readonly loop = new EventLoop();
  readonly memory = new DmaMemory();
  readonly warnings: string[] = [];
  readonly news: string[] = [];
  readonly context: NetContext;

  constructor(mtu = 1500, queuePairs = 1) {
    using fd = createMemfd("net-test", MEMORY_BYTES);
    this.memory.map({
      iova: 0,
      lengthBytes: MEMORY_BYTES,
      access: Access.READ | Access.WRITE,
      fd: fd.number,
    });
    const log: Log = {
      debug: () => {},
      info: (message) => this.news.push(message),
      warn: (message) => this.warnings.push(message),
      error: (message) => this.warnings.push(message),
      debugEnabled: false,
    };
    const { loop, memory } = this;
    this.context = { loop, log, memory, mtu, mac: GUEST_MAC, queuePairs };
  }

  [Symbol.dispose](): void {
    this.loop.close();
    this.memory.close();
  }
}

/** A card plugged into a back end, which it closes at the end. */
export class Card implements NetPeer, Disposable {
  readonly host: Host;
  readonly backend: NetBackend;
  /** Frames without the virtio-net header, oldest first. */
  readonly received: Uint8Array[] = [];
  /** Results of receive() other than a length or −EAGAIN. */
  readonly errors: number[] = [];
  /** Sees each frame before it is put into `received`; true keeps it out. */
  onFrame: (frame: Uint8Array) => boolean = () => false;
  /** State of the link after each of its changes. */
  readonly links: (boolean | undefined)[] = [];
  readableCalls = 0;
  writableCalls = 0;
  /** True if onReadable fetches frames. */
  fetching = true;
  readonly #tx: ScatterGather;
  readonly #rx: ScatterGather;

  constructor(host: Host, backend: NetBackend) {
    this.host = host;
    this.backend = backend;
    this.#tx = host.memory.createScatterGather(64);
    this.#rx = host.memory.createScatterGather(64);
    backend.start(this);
  }

  /** Sends in `parts` segments that do not touch; returns what the back end did. */
  send(frame: Uint8Array, parts = 1): number {
    const header = this.backend.hasVnetHeader ? 12 : 0;
    const all = new Uint8Array(header + frame.length);
    all.set(frame, header);
    this.#tx.clear();
    const size = Math.ceil(all.length / parts);
    for (let done = 0, iova = TX; done < all.length; done += size) {
      const part = all.subarray(done, done + size);
      this.host.memory.write(iova, part);
      this.host.memory.translate(iova, part.length, Access.READ, this.#tx);
      iova += part.length + 64;
    }
    return this.backend.send(this.#tx);
  }

  onReadable(): void {
    this.readableCalls++;
    if (this.fetching) this.fetch();
  }

  onWritable(): void {
    this.writableCalls++;
  }

  onLinkChange(): void {
    this.links.push(this.backend.linkUp);
  }

  /** Fetches all frames that wait, each into three segments. */
  fetch(): void {
    while (this.fetchOne());
  }

  /** @returns Whether there was one */
  fetchOne(room = 2048): boolean {
    const header = this.backend.hasVnetHeader ? 12 : 0;
    const { memory } = this.host;
    // Longer than one byte each, at odd places.
    const sizes = [header + 7, 33, header + room - 40];
    const places = [RX + 1, RX + 4096, RX + 8193];
    this.#rx.clear();
    sizes.forEach((size, i) =>
      memory.translate(places[i]!, size, Access.WRITE, this.#rx)
    );
    const length = this.backend.receive(this.#rx);
    if (length === -Errno.EAGAIN) return false;
    if (length < 0) {
      this.errors.push(length);
      return true;
    }
    const frame = new Uint8Array(sizes.reduce((sum, size) => sum + size, 0));
    let at = 0;
    sizes.forEach((size, i) => {
      memory.read(places[i]!, frame.subarray(at, at + size));
      at += size;
    });
    const bare = frame.slice(header, length);
    if (!this.onFrame(bare)) this.received.push(bare);
    return true;
  }

  /** Turns the loop until something is so. */
  turnUntil(what: string, done: () => boolean): void {
    const deadline = performance.now() + PATIENCE_MS;
    while (!done()) {
      if (performance.now() > deadline) {
        throw new Error(`${what}: not within ${PATIENCE_MS} ms`);
      }
      this.host.loop.turn(TURN_MS);
    }
  }

  /** Turns the loop until a frame is found, which is taken out of `received`. */
  take<T>(what: string, find: (frame: Uint8Array) => T | null): T {
    let found: T | null = null;
    this.turnUntil(what, () => {
      const at = this.received.findIndex((frame) => find(frame) !== null);
      if (at < 0) return false;
      found = find(this.received[at]!);
      this.received.splice(at, 1);
      return true;
    });
    return found!;
  }

  [Symbol.dispose](): void {
    this.backend.close();
  }
}
