/**
 * A back end that goes on elsewhere: its saved state, its frames meanwhile, and who ends what it has made.
 *
 * @module
 */

import { StateForm } from "../../core/state_form.ts";
import type { BottomHalf, Loop } from "../../loop/event_loop.ts";
import { Epoll } from "../../os/mod.ts";

/** Form of the states of back ends of one kind. */
export function netForm<Body extends object>(kind: string): StateForm<Body> {
  return new StateForm(kind, `a network of kind ${kind}`);
}

/**
 * Events that a socket is watched for while its frames are kept: errors and hang-ups cannot be masked, but with this they
 * are told once and not in every turn.
 */
export const KEEPING_EVENTS: number = Epoll.ONESHOT;

/**
 * Ownership of what outlasts the descriptors of a back end: a socket's file, a process, the settings of an interface. A
 * back end owns what it has made. What a predecessor had becomes its own when it is started, or its loop turns: one that
 * is closed before was opened in vain, and leaves all to another attempt.
 */
export class Ownership {
  #owns: boolean;
  readonly #taking: BottomHalf;

  /** @param isNew True when the back end has made it */
  constructor(loop: Loop, isNew: boolean) {
    this.#owns = isNew;
    this.#taking = loop.bottomHalf(() => this.take());
    if (!isNew) this.#taking.schedule();
  }

  /** Takes over what a predecessor had. */
  take(): void {
    this.#owns = true;
    this.#taking.cancel();
  }

  /** Ends it. @returns True when what outlasts the descriptors is to end too */
  end(): boolean {
    const owned = this.#owns;
    this.giveAway();
    return owned;
  }

  /** Leaves it to another back end, which goes on with it. */
  giveAway(): void {
    this.#owns = false;
    this.#taking.cancel();
  }
}
