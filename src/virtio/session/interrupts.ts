/**
 * Notifications from the device to the driver (virtio 1.3, section 2.3): those that are sent, and those that are owed.
 *
 * @module
 */

import type { SessionState } from "./state.ts";
import type { SessionCounters } from "./counters.ts";
import type { SessionSignals } from "./types.ts";

/** What is owed, as it is saved. */
type Owed = Pick<SessionState, "owedInterrupts" | "owesConfigInterrupt">;

/** Sends and counts notifications, and remembers those that must wait until the session goes on. */
export class SessionInterrupts {
  readonly #signals: Pick<SessionSignals, "notifyUsed" | "notifyConfig">;
  readonly #counters: SessionCounters;
  readonly #owed: Uint8Array;
  #owesConfig = false;

  constructor(
    signals: Pick<SessionSignals, "notifyUsed" | "notifyConfig">,
    counters: SessionCounters,
    queues: number,
  ) {
    this.#signals = signals;
    this.#counters = counters;
    this.#owed = new Uint8Array(queues);
  }

  /** Tells the driver of used buffers of a queue. */
  send(queue: number): void {
    this.#counters.interrupts++;
    this.#signals.notifyUsed(queue);
  }

  /** Remembers to tell the driver of used buffers of a queue. */
  owe(queue: number): void {
    this.#owed[queue] = 1;
  }

  /** Tells the driver that the configuration changed. */
  sendConfig(): void {
    this.#owesConfig = false;
    this.#counters.configInterrupts++;
    this.#signals.notifyConfig();
  }

  /** Remembers to tell the driver that the configuration changed. */
  oweConfig(): void {
    this.#owesConfig = true;
  }

  /**
   * Pays what is owed.
   *
   * @param running Whether the driver still wants to hear of its buffers
   */
  pay(running: boolean): void {
    const owed = this.#owed;
    for (let queue = 0; queue < owed.length; queue++) {
      if (owed[queue] === 0) continue;
      owed[queue] = 0;
      if (running) this.send(queue);
    }
    if (this.#owesConfig) this.sendConfig();
  }

  /** Nothing is owed for a queue any more. */
  forget(queue: number): void {
    this.#owed[queue] = 0;
  }

  /** Nothing is owed any more. */
  forgetAll(): void {
    this.#owed.fill(0);
    this.#owesConfig = false;
  }

  /** What is owed. */
  save(): Owed {
    const owed: number[] = [];
    this.#owed.forEach((owes, queue) => {
      if (owes !== 0) owed.push(queue);
    });
    return { owedInterrupts: owed, owesConfigInterrupt: this.#owesConfig };
  }

  /** Owes what {@linkcode save} told, beside what is owed already. */
  load({ owedInterrupts, owesConfigInterrupt }: Owed): void {
    for (const queue of owedInterrupts) this.owe(queue);
    this.#owesConfig = owesConfigInterrupt;
  }
}
