/**
 * A card that is not plugged in.
 *
 * @module
 */

import { Counters } from "../../core/counters.ts";
import { Errno } from "../../core/errno.ts";
import type { ScatterGather } from "../../memory/scatter_gather.ts";
import { TX_DROPPED } from "./counters.ts";
import type { OpenNet } from "./driver.ts";
import { type NetBackend, type NetPeer, QUEUE_PAIRS_MAX } from "./contract.ts";
import type { DeviceState } from "../../core/state_form.ts";
import type { Saved } from "../../os/resource_bag.ts";
import { netForm } from "./state.ts";

const FORM = netForm("none");

/** Opens nothing. */
export const openNone: OpenNet<object> = (_options, _context, saved) =>
  new NoneBackend(saved);

/** Takes every frame and has none. */
class NoneBackend implements NetBackend {
  readonly description = "none";
  readonly hasVnetHeader = false;
  readonly queuePairs = QUEUE_PAIRS_MAX;
  readonly #counters = new Counters(TX_DROPPED);

  constructor(saved?: Saved<unknown>) {
    if (saved === undefined) return;
    this.#counters.restore(FORM.read(saved.state).value("counters"));
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

  save(): DeviceState {
    return FORM.write({ counters: this.#counters.toRecord() });
  }

  close(): void {}
}
