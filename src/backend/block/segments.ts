/**
 * Copies between the segments of a request and memory of our own.
 *
 * @module
 */

import { copyWords } from "../../os/mod.ts";
import { Words } from "../../os/symbols.ts";
import type { ScatterGather } from "../../memory/scatter_gather.ts";

/** Moves the bytes of a list by one call into C for each segment. Nothing here allocates after construction. */
export class SegmentCopy {
  /** Address of our own memory, in its only element: a number that is passed on may have to be allocated. */
  readonly hva: Float64Array<ArrayBuffer> = new Float64Array(1);
  readonly #words = new Words(3);

  /**
   * Copies all of a list.
   *
   * @param toOwn Whether from the segments to our own memory; else from there to the segments
   */
  copy(list: ScatterGather, toOwn: boolean): void {
    // SAFETY: our own memory is as long as the segments together, as the caller has checked; the controller translated
    // those, and they stay mapped until this returns.
    const { words, count } = list;
    const { halves } = this.#words;
    // Words of the destination, and of the source behind them.
    const own = toOwn ? 0 : 2;
    const guest = 2 - own;
    let at = this.hva[0]!;
    halves[5] = 0;
    for (let i = 0; i < count * 4; i += 4) {
      const length = words[i + 2]!;
      halves[own] = at >>> 0;
      halves[own + 1] = Math.floor(at / 0x1_0000_0000);
      halves[guest] = words[i]!;
      halves[guest + 1] = words[i + 1]!;
      halves[4] = length;
      copyWords(this.#words);
      at += length;
    }
  }
}
