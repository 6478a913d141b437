/**
 * A network for tests: what comes and what becomes of what is sent is scripted.
 *
 * @module
 */

import type { DeviceState } from "../../../src/core/state_form.ts";
import { assert, assertEquals } from "@std/assert";
import { Errno } from "../../../src/core/errno.ts";
import type { MappableMemory } from "../../../src/memory/array_memory.ts";
import type { ScatterGather } from "../../../src/memory/scatter_gather.ts";
import type {
  NetBackend,
  NetOffloads,
  NetPeer,
} from "../../../src/backend/net/contract.ts";

/** A frame with the header that its sender put before it. */
export interface HeadedFrame {
  readonly header: readonly number[];
  readonly frame: Uint8Array;
}

/** State of a {@linkcode ScriptedBackend}. */
export interface GivenScript {
  readonly incomingOn: (Uint8Array | HeadedFrame | number)[][];
  readonly sent: Uint8Array[];
  readonly sentOn: number[];
  readonly sendResults: number[];
  readonly givenOffloads: number;
  readonly activePairs: number;
}

/** A network that gives the frames it was given and keeps those it gets, moving bytes through guest memory. */
export class ScriptedBackend implements NetBackend {
  readonly description = "scripted";
  readonly hasVnetHeader: boolean;
  readonly offloads: NetOffloads;
  readonly queuePairs: number;
  readonly #memory: MappableMemory;
  /** Frames that wait for the card; a number is what receive() returns in place of one. */
  readonly incoming: (Uint8Array | HeadedFrame | number)[];
  /** The same for the other queue pairs. */
  readonly incomingOn: (Uint8Array | HeadedFrame | number)[][];
  /** On which pair each frame of `sent` came. */
  readonly sentOn: number[];
  /** Offloads that the card chose. */
  givenOffloads: number;
  activePairs: number;
  linkUp = true;
  /** Result of setOffloads() and setQueuePairs(). */
  result = 0;
  /** Frames that the card sent, with the header if there is one. */
  readonly sent: Uint8Array[];
  /** Results of the next send()s, in place of taking the frame. */
  readonly sendResults: number[];
  /** Called inside send() and receive(), before anything else. */
  onSend: (() => void) | null = null;
  onReceive: (() => void) | null = null;
  /** Called inside flush(), while the frames are still kept. */
  onFlush: (() => void) | null = null;
  /** Of one that keeps frames until it is flushed. */
  readonly flush?: () => number;
  /** Result of the next flush(). */
  lost = 0;
  /** Frames that it keeps: addresses and lengths of each frame's segments, and the pair. */
  readonly kept: { segments: number[][]; pair: number }[] = [];
  peer: NetPeer | null = null;
  readonly receivingOn: boolean[];
  closed = false;
  gone = false;
  starts = 0;

  constructor(
    memory: MappableMemory,
    hasVnetHeader: boolean,
    offloads: NetOffloads,
    queuePairs: number,
    given?: GivenScript,
    keeps = false,
  ) {
    if (keeps) {
      this.flush = () => {
        this.#flush();
        const { lost } = this;
        this.lost = 0;
        return lost;
      };
    }
    this.#memory = memory;
    this.sent = given?.sent ?? [];
    this.sentOn = given?.sentOn ?? [];
    this.sendResults = given?.sendResults ?? [];
    this.givenOffloads = given?.givenOffloads ?? -1;
    this.activePairs = given?.activePairs ?? -1;
    this.hasVnetHeader = hasVnetHeader;
    this.offloads = offloads;
    this.queuePairs = queuePairs;
    this.receivingOn = new Array(queuePairs).fill(true);
    this.incomingOn = given?.incomingOn ??
      Array.from({ length: queuePairs }, () => []);
    this.incoming = this.incomingOn[0]!;
  }

  get receiving(): boolean {
    return this.receivingOn[0]!;
  }

  setOffloads(give: number): number {
    if (this.result === 0) this.givenOffloads = give;
    return this.result;
  }

  setQueuePairs(count: number): number {
    assert(!this.gone);
    if (this.result !== 0) return this.result;
    this.activePairs = count;
    // As the kernel does it to queues that are taken away.
    for (const frames of this.incomingOn.slice(count)) frames.length = 0;
    return 0;
  }

  start(peer: NetPeer): void {
    assertEquals(this.peer, null, "started twice");
    assert(!this.gone);
    this.peer = peer;
    this.starts++;
  }

  stop(): void {
    assert(!this.gone);
    this.peer = null;
    for (const frames of this.incomingOn) frames.length = 0;
  }

  send(frame: ScatterGather, pair?: number, more?: boolean): number {
    this.onSend?.();
    const result = this.sendResults.shift();
    if (result !== undefined) return result;
    const { lengthBytes } = frame;
    const segments = Array.from(
      { length: frame.count },
      (_, i) => [frame.base(i), frame.length(i)],
    );
    this.kept.push({ segments, pair: pair! });
    if (more !== true || this.flush === undefined) this.#flush();
    // The contract allows it.
    frame.consume(lengthBytes);
    assertEquals(segments.reduce((sum, it) => sum + it[1]!, 0), lengthBytes);
    return lengthBytes;
  }

  #flush(): void {
    this.onFlush?.();
    for (const { segments, pair } of this.kept.splice(0)) {
      this.sent.push(Uint8Array.from(
        segments.flatMap((it) => [...this.#memory.bytes(it[0]!, it[1]!)]),
      ));
      this.sentOn.push(pair);
    }
  }

  receive(into: ScatterGather, pair?: number): number {
    this.onReceive?.();
    const next = this.incomingOn[pair!]!.shift();
    if (next === undefined) return -Errno.EAGAIN;
    if (typeof next === "number") return next;
    // What the kernel puts before a frame on a TAP, with a flag that was not negotiated.
    const headed = "frame" in next
      ? next
      : { header: [2, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0xad, 0xde], frame: next };
    const bytes = this.hasVnetHeader
      ? Uint8Array.from([...headed.header, ...headed.frame])
      : headed.frame;
    let at = 0;
    for (let i = 0; i < into.count && at < bytes.length; i++) {
      const part = bytes.subarray(at, at + into.length(i));
      this.#memory.bytes(into.base(i), part.length).set(part);
      at += part.length;
    }
    // As readv(2) does it: what did not fit is lost in silence.
    return at;
  }

  setReceiving(on: boolean, pair?: number): void {
    this.receivingOn[pair!] = on;
  }

  counters(): Record<string, number> {
    return { sent: this.sent.length };
  }

  save(): DeviceState<GivenScript> {
    const { incomingOn, sent, sentOn, sendResults } = this;
    const { givenOffloads, activePairs } = this;
    const body = {
      incomingOn,
      sent,
      sentOn,
      sendResults,
      givenOffloads,
      activePairs,
    };
    return { kind: "script", version: 1, body };
  }

  handOver(): void {
    this.peer = null;
    this.gone = true;
  }

  close(): void {
    assert(!this.closed, "closed twice");
    this.closed = true;
  }

  /** Level-triggered: calls the card while frames wait and it wants them; how often it did. */
  pump(): number {
    let calls = 0;
    for (let pair = 0; pair < this.activePairs; pair++) {
      while (
        this.peer !== null && this.receivingOn[pair] &&
        this.incomingOn[pair]!.length > 0
      ) {
        assert(++calls < 1000, "the card takes no frames");
        // One that knows of no pairs says none.
        if (pair === 0) this.peer.onReadable();
        else this.peer.onReadable(pair);
      }
    }
    return calls;
  }
}
