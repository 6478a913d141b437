/**
 * A random load on one queue pair that knows what every block must hold. At most one command of a block is in flight, so
 * that there is one answer.
 *
 * @module
 */

import { assertEquals } from "@std/assert";
import type { DriverMemory } from "../../../src/testing/driver_memory.ts";
import type { NaiveDriver, Pair } from "./naive_driver.ts";

/** Two logical blocks a piece. */
export const PIECE = 1024;
const READ = 2;
const WRITE = 1;

interface Sent {
  readonly piece: number;
  readonly writes: boolean;
  readonly seed: number;
  readonly buffer: number;
}

/** Bytes that tell a piece and the write that put them there. */
function stamp(into: Uint8Array, piece: number, seed: number): void {
  for (let i = 0; i < into.length; i++) {
    into[i] = seed === 0 ? 0 : piece * 31 + seed * 7 + i * 3 + (i >> 8);
  }
}

export class Workload {
  readonly #driver: NaiveDriver;
  readonly #memory: DriverMemory;
  #pair: Pair;
  readonly #random: () => number;
  readonly #first: number;
  readonly #pieces: number;
  /** The write that each piece holds; 0 for none. */
  readonly #seeds: Int32Array;
  readonly #sent = new Map<number, Sent>();
  readonly #buffers: number[] = [];
  readonly #expected = new Uint8Array(PIECE);
  /** Pieces whose writes a reset has cut off: nobody knows what they hold until they are written anew. */
  readonly #torn = new Set<number>();
  #seed = 0;
  done = 0;

  /**
   * @param random From 0 to 1
   * @param first The first piece that is this load's own
   * @param pieces Number of pieces
   * @param memory Holds its buffers
   */
  constructor(
    driver: NaiveDriver,
    pair: Pair,
    random: () => number,
    first: number,
    pieces: number,
    memory: DriverMemory = driver.ram,
  ) {
    this.#driver = driver;
    this.#memory = memory;
    this.#pair = pair;
    this.#random = random;
    this.#first = first;
    this.#pieces = pieces;
    this.#seeds = new Int32Array(pieces);
    for (let i = 1; i < pair.size; i++) {
      this.#buffers.push(memory.alloc(4096, 4096));
    }
  }

  get inFlight(): number {
    return this.#sent.size;
  }

  /** Goes on with another queue pair of the same size; what was in flight is forgotten. */
  restart(pair: Pair): void {
    for (const { piece, writes, buffer } of this.#sent.values()) {
      if (writes) this.#torn.add(piece);
      this.#buffers.push(buffer);
    }
    this.#sent.clear();
    this.#pair = pair;
  }

  /** Submits some commands, and tells the controller of them unless told. */
  submit(count: number, ring = true): void {
    for (let i = 0; i < count && this.#buffers.length > 0; i++) {
      const piece = Math.floor(this.#random() * this.#pieces);
      if ([...this.#sent.values()].some((sent) => sent.piece === piece)) {
        continue;
      }
      this.#put(piece, this.#torn.has(piece) || this.#random() < 0.5);
    }
    if (ring) this.ring();
  }

  ring(): void {
    this.#driver.ring(this.#pair);
  }

  /** Takes completions, and checks what came with them. */
  reap(): number {
    const found = this.#driver.reap(this.#pair);
    for (const { cid, status } of found) {
      const sent = this.#sent.get(cid);
      if (sent === undefined) throw new Error(`${cid} completed twice`);
      assertEquals(status, 0, `piece ${sent.piece}`);
      this.#sent.delete(cid);
      if (sent.writes) {
        this.#seeds[sent.piece] = sent.seed;
        this.#torn.delete(sent.piece);
      } else this.#check(sent);
      this.#buffers.push(sent.buffer);
    }
    this.done += found.length;
    return found.length;
  }

  /** Reads every piece, `turn` being called until nothing is in flight. */
  verify(turn: () => void): void {
    for (const piece of [...this.#torn]) {
      while (this.#sent.size > 0) {
        this.ring();
        turn();
        this.reap();
      }
      if (this.#torn.has(piece)) this.#put(piece, true);
    }
    this.ring();
    for (let piece = 0; piece < this.#pieces || this.#sent.size > 0;) {
      while (this.#sent.size > 0) {
        turn();
        this.reap();
      }
      while (this.#buffers.length > 0 && piece < this.#pieces) {
        this.#put(piece++, false);
      }
      this.ring();
    }
  }

  #put(piece: number, writes: boolean): void {
    const buffer = this.#buffers.shift()!;
    const seed = writes ? ++this.#seed : this.#seeds[piece]!;
    const bytes = this.#memory.at(buffer, PIECE);
    if (writes) stamp(bytes, piece, seed);
    else bytes.fill(0xee);
    const cid = this.#driver.put(this.#pair, {
      opcode: writes ? WRITE : READ,
      nsid: 1,
      prp1: buffer,
      cdw10: (this.#first + piece) * (PIECE / 512),
      cdw12: PIECE / 512 - 1,
    });
    this.#sent.set(cid, { piece, writes, seed, buffer });
  }

  #check({ piece, seed, buffer }: Sent): void {
    stamp(this.#expected, piece, seed);
    const got = this.#memory.at(buffer, PIECE);
    for (let i = 0; i < PIECE; i++) {
      if (got[i] !== this.#expected[i]) {
        throw new Error(`byte ${i} of piece ${piece} is not of write ${seed}`);
      }
    }
  }
}

/** Numbers from 0 to 1, the same for the same seed (mulberry32). */
export function seededRandom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b_79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}
