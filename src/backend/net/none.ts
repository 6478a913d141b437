/**
 * A card that is not plugged in.
 *
 * @module
 */

import { type CounterRecord, Counters } from "../../core/counters.ts";
import { Errno } from "../../core/errno.ts";
import type { ScatterGather } from "../../memory/scatter_gather.ts";
import { TX_DROPPED } from "./counters.ts";
import type { OpenNet } from "./driver.ts";
import { type NetBackend, type NetPeer, QUEUE_PAIRS_MAX } from "./contract.ts";
import { type NetBackendState, takeState } from "./state.ts";

const KIND = "none";

interface NoneState extends NetBackendState {
  readonly counters: CounterRecord<typeof TX_DROPPED>;
}

/** Opens nothing. */
export const openNone: OpenNet<object> = (_options, _context, saved) =>
  new NoneBackend(saved && takeState<NoneState>(saved.state, KIND).counters);

/** Takes every frame and has none. */
class NoneBackend implements NetBackend {
  readonly description = "none";
  readonly hasVnetHeader = false;
  readonly queuePairs = QUEUE_PAIRS_MAX;
  readonly #counters = new Counters(TX_DROPPED);

  /** @param counted What a predecessor has counted, if there was one */
  constructor(counted?: unknown) {
    if (counted !== undefined) this.#counters.restore(counted);
  }

  start(_peer: NetPeer): void {}

  stop(): void {}

  send(_frame: ScatterGather): number {
    this.#counters.add(0, 1);
    return 0;
  }

  receive(_into: ScatterGather): number {
    return -Errno.EAGAIN;
  }

  setReceiving(_on: boolean): void {}

  counters(): Readonly<Record<string, number>> {
    return this.#counters.toRecord();
  }

  save(): NoneState {
    const counters = this.#counters.toRecord();
    return { version: 1, kind: KIND, counters };
  }

  close(): void {}
}
