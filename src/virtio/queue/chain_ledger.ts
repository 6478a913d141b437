/**
 * Chains of a queue that are with the device, and the order in which they go back to the driver.
 *
 * @module
 */

import type { Chain } from "./queue.ts";

/** States of a chain, by head. */
const FREE = 0;
const HELD = 1;
const DONE = 2;

/**
 * Bytes that a driver takes for written when it is told of a later chain only: such a chain is used "completely" (2.7.9,
 * 2.8.8).
 *
 * @returns −1 for a chain with buffers of both kinds: drivers do not agree on what that means (Linux adds up both), so
 * they are not to guess
 */
export function assumedBytes(chain: Chain): number {
  const writable = chain.writable.lengthBytes;
  return writable > 0 && chain.readable.lengthBytes > 0 ? -1 : writable;
}

/**
 * The chains of one queue between pop and publish.
 *
 * ```text
 *   free --pop--> held --push--> done --next--> free
 *     ↑____unpop____|
 * ```
 * Without IN_ORDER chains go back in the order of {@linkcode ChainLedger.push}; with it, in the order of
 * {@linkcode ChainLedger.pop}, and a chain that is done waits for those before it. At first there are no
 * chains, and nothing but {@linkcode ChainLedger.reset} allocates.
 */
export class ChainLedger {
  #size = 0;
  #inOrder = false;
  #state = new Uint8Array(0);
  #chains: Chain[] = [];
  #written = new Uint32Array(0);
  #assumed = new Uint32Array(0);
  /** Heads in the order they were popped; circular, so is the next. */
  #popped = new Uint16Array(0);
  /** Heads in the order they go back: those pushed, or the same array. */
  #returning = new Uint16Array(0);
  /** Places of the next popped and the next pushed head, and of the one that goes back next. */
  #popAt = 0;
  #pushAt = 0;
  #nextAt = 0;
  #outstanding = 0;
  #done = 0;

  /**
   * Forgets all chains.
   *
   * @param size Heads are below it, 0–32768
   * @param inOrder Whether chains go back in the order of {@linkcode ChainLedger.pop}
   */
  reset(size: number, inOrder: boolean): void {
    this.#size = size;
    this.#inOrder = inOrder;
    this.#state = new Uint8Array(size);
    this.#chains = new Array(size);
    this.#written = new Uint32Array(size);
    this.#assumed = new Uint32Array(size);
    this.#popped = new Uint16Array(size);
    this.#returning = inOrder ? this.#popped : new Uint16Array(size);
    this.#popAt = this.#pushAt = this.#nextAt = 0;
    this.#outstanding = this.#done = 0;
  }

  /** Number of chains that are with the device. */
  get held(): number {
    return this.#outstanding - this.#done;
  }

  /** Number of chains that the driver has not got back. */
  get outstanding(): number {
    return this.#outstanding;
  }

  /** True when the device has this chain. */
  holds(head: number): boolean {
    return this.#state[head] === HELD;
  }

  /** Chain that has this head. */
  chain(head: number): Chain {
    return this.#chains[head]!;
  }

  /** True when the driver has not got this chain back. */
  has(head: number): boolean {
    return this.#state[head] !== FREE;
  }

  /**
   * The device takes a chain.
   *
   * @param head Not with the device yet
   */
  pop(head: number, chain: Chain): void {
    const at = this.#popAt;
    this.#state[head] = HELD;
    // −1 becomes 2^32−1, more than a chain of both kinds can hold.
    if (this.#inOrder) this.#assumed[head] = assumedBytes(chain);
    this.#chains[head] = chain;
    this.#popped[at] = head;
    this.#popAt = at + 1 === this.#size ? 0 : at + 1;
    this.#outstanding++;
  }

  /**
   * The device gives the chain that it popped last back unused.
   *
   * @returns Its head, or −1 when the device does not hold it any more
   */
  unpop(): number {
    if (this.#outstanding === this.#done) return -1;
    const at = (this.#popAt === 0 ? this.#size : this.#popAt) - 1;
    const head = this.#popped[at]!;
    if (this.#state[head] !== HELD) return -1;
    this.#state[head] = FREE;
    this.#popAt = at;
    this.#outstanding--;
    return head;
  }

  /**
   * The device is done with a chain.
   *
   * @returns Whether it held it
   */
  push(head: number, writtenBytes: number): boolean {
    if (this.#state[head] !== HELD) return false;
    this.#state[head] = DONE;
    this.#written[head] = writtenBytes;
    this.#done++;
    if (this.#inOrder) return true;
    const at = this.#pushAt;
    this.#returning[at] = head;
    this.#pushAt = at + 1 === this.#size ? 0 : at + 1;
    return true;
  }

  /** The chain that goes back to the driver next, which then has it back; −1 when there is none yet. */
  next(): number {
    if (this.#done === 0) return -1;
    const at = this.#nextAt;
    const head = this.#returning[at]!;
    if (this.#state[head] !== DONE) return -1;
    this.#state[head] = FREE;
    this.#nextAt = at + 1 === this.#size ? 0 : at + 1;
    this.#done--;
    this.#outstanding--;
    return head;
  }

  /** Bytes that were written to a chain that {@linkcode ChainLedger.next} has returned. */
  written(head: number): number {
    return this.#written[head]!;
  }

  /** True when a driver with IN_ORDER knows all about this chain when it is told of a later one. */
  canBeSkipped(head: number): boolean {
    return this.#inOrder && this.#written[head] === this.#assumed[head];
  }
}
