/**
 * A card that is not plugged in.
 *
 * @module
 */

import { Errno } from "../../core/errno.ts";
import type { ScatterGather } from "../../memory/scatter_gather.ts";
import type { OpenNet } from "./driver.ts";
import { type NetBackend, type NetPeer, QUEUE_PAIRS_MAX } from "./contract.ts";
import { type NetBackendState, takeState } from "./state.ts";

const KIND = "none";

interface NoneState extends NetBackendState {
  readonly sent: number;
}

/** Opens nothing. */
export const openNone: OpenNet<object> = (_options, _context, saved) =>
  new NoneBackend(saved && takeState<NoneState>(saved.state, KIND).sent);

/** Takes every frame and has none. */
class NoneBackend implements NetBackend {
  readonly description = "none";
  readonly hasVnetHeader = false;
  readonly queuePairs = QUEUE_PAIRS_MAX;
  #sent: number;

  /** @param sent How many frames were taken before */
  constructor(sent = 0) {
    this.#sent = sent;
  }

  start(_peer: NetPeer): void {}

  stop(): void {}

  send(_frame: ScatterGather): number {
    this.#sent++;
    return 0;
  }

  receive(_into: ScatterGather): number {
    return -Errno.EAGAIN;
  }

  setReceiving(_on: boolean): void {}

  counters(): Readonly<Record<string, number>> {
    return { txDropped: this.#sent };
  }

  save(): NoneState {
    return { version: 1, kind: KIND, sent: this.#sent };
  }

  close(): void {}
}
