/**
 * A bound on what is logged: whoever can make a line come can make it come as often as it likes.
 *
 * @module
 */

import type { Loop, Timer } from "../../loop/event_loop.ts";
import type { LogNotice } from "../iothread/messages.ts";

const PERIOD_MS = 1000;
/** Lines of one cause that are said in a period. */
const LINES_MAX = 5;
/** As {@linkcode LINES_MAX}, for whoever debugs and asked for everything. */
const DEBUG_LINES_MAX = 100;
/** Causes that are told apart; what comes beyond them counts as one cause for each device and level. */
const CAUSES_MAX = 32;
/** Length of the part of a message that tells its cause, in UTF-16 units. */
const CAUSE_LENGTH = 160;

interface Cause {
  said: number;
  held: number;
  last: LogNotice;
}

/**
 * Says a few lines per cause and second. Of those that are held back the last is said when the second is over, with the
 * count of the others: the newest state of a thing is always told. While a cause goes on it gets that one line a second.
 *
 * A cause is a device, a level and a message without its numbers. There are so many causes at the most, so neither the
 * lines nor the memory for them grow with what a client or a driver does.
 */
export class LogLimit {
  readonly #say: (line: LogNotice) => void;
  readonly #timer: Timer;
  /** By key; those that hold something in the order of their last lines. */
  readonly #causes = new Map<string, Cause>();

  /**
   * @param loop Whose clock counts
   * @param say Told what is to be logged
   */
  constructor(loop: Pick<Loop, "timer">, say: (line: LogNotice) => void) {
    this.#say = say;
    this.#timer = loop.timer(() => this.flush());
  }

  /** Says a line, now or when the second is over, or counts it. */
  add(line: LogNotice): void {
    const key = this.#keyOf(line);
    let cause = this.#causes.get(key);
    if (cause === undefined) {
      if (this.#causes.size === 0) this.#timer.arm(PERIOD_MS);
      this.#causes.set(key, cause = { said: 0, held: 0, last: line });
    }
    const most = line.level === "debug" ? DEBUG_LINES_MAX : LINES_MAX;
    if (cause.said < most) {
      cause.said++;
      this.#say(line);
      return;
    }
    cause.held++;
    cause.last = line;
    this.#causes.delete(key);
    this.#causes.set(key, cause);
  }

  /** Ends a period: says what was held back. */
  flush(): void {
    for (const [key, cause] of this.#causes) {
      if (cause.held === 0) this.#causes.delete(key);
      else this.#sayHeld(cause);
    }
    if (this.#causes.size > 0) this.#timer.arm(PERIOD_MS);
  }

  #sayHeld(cause: Cause): void {
    const { last, held } = cause;
    cause.held = 0;
    if (held === 1) return this.#say(last);
    const leftOut = held - 1;
    this.#say({
      ...last,
      message: `${last.message} (left out ${leftOut} more like it)`,
      properties: { ...last.properties, leftOut },
    });
  }

  #keyOf({ device, level, message }: LogNotice): string {
    const source = `${device} ${level}`;
    const pattern = message.slice(0, CAUSE_LENGTH)
      .replace(/0x[\da-f]+|\d+/gi, "#");
    const key = `${source} ${pattern}`;
    return this.#causes.has(key) || this.#causes.size < CAUSES_MAX
      ? key
      : source;
  }
}
