/**
 * A card that is not plugged in.
 *
 * @module
 */

import { Errno } from "../../core/errno.ts";
import type { ScatterGather } from "../../memory/scatter_gather.ts";
import type { OpenNet } from "./driver.ts";
import { type NetBackend, type NetPeer, QUEUE_PAIRS_MAX } from "./contract.ts";
import { type Given, takeGiven } from "./given.ts";

const KIND = "none";

interface GivenNone extends Given {
  readonly sent: number;
}

/** Opens nothing. */
export const openNone: OpenNet<object> = (_options, _context, inherited) =>
  new NoneBackend(inherited);

/** Takes every frame and has none. */
class NoneBackend implements NetBackend {
  readonly description = "none";
  readonly hasVnetHeader = false;
  readonly queuePairs = QUEUE_PAIRS_MAX;
  #sent = 0;

  /** @param inherited What a predecessor gave, if there was one */
  constructor(inherited?: unknown) {
    if (inherited === undefined) return;
    this.#sent = takeGiven<GivenNone>(inherited, KIND).sent;
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

  handOver(): unknown {
    return { version: 1, kind: KIND, sent: this.#sent } satisfies GivenNone;
  }

  close(): void {}
}
