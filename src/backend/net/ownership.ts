/**
 * Who ends what outlasts descriptors: a socket's file, a process, the settings of an interface.
 *
 * @module
 */

import type { BottomHalf, Loop } from "../../loop/event_loop.ts";

/**
 * The ownership of one back end. It owns what it has made. What another had becomes its own when it is started, or
 * its loop turns: one that is closed before was opened in vain, and leaves all to another attempt.
 */
export class Ownership {
  #owns: boolean;
  readonly #taking: BottomHalf;

  /** @param isNew Whether the back end has made it */
  constructor(loop: Loop, isNew: boolean) {
    this.#owns = isNew;
    this.#taking = loop.bottomHalf(() => this.take());
    if (!isNew) this.#taking.schedule();
  }

  /** It is in use. */
  take(): void {
    this.#owns = true;
    this.#taking.cancel();
  }

  /** Ends it. @returns Whether what outlasts the descriptors is to end too */
  end(): boolean {
    const owned = this.#owns;
    this.giveAway();
    return owned;
  }

  /** Another back end goes on with it. */
  giveAway(): void {
    this.#owns = false;
    this.#taking.cancel();
  }
}
