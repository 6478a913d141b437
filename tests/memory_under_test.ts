/**
 * The guest memory that devices are tested on: plain, or strict where a suite is run once more for that.
 *
 * @module
 */

import { assertEquals } from "@std/assert";
import {
  ArrayMemory,
  type MappableMemory,
} from "../src/memory/array_memory.ts";
import type { ManualLoop } from "../src/testing/manual_loop.ts";
import { StrictMemory } from "../src/testing/strict_memory.ts";

let strict = false;
let slow = false;

/** Empty memory. */
export function memoryUnderTest(): MappableMemory {
  if (!strict) return new ArrayMemory([]);
  const memory = new StrictMemory();
  if (slow) memory.pends = () => true;
  return memory;
}

/** From here on memory is strict; slow memory has every access made twice. */
export function beStrict(options: { readonly slow?: boolean } = {}): void {
  strict = true;
  slow = options.slow ?? false;
}

/** Brings what is wanted into reach. @returns Whether there was anything */
export function reach(memory: MappableMemory): boolean {
  return memory instanceof StrictMemory && memory.reach();
}

/** Has whatever comes into reach in every turn until nothing is left to do. */
export function reachWhenSettling(
  loop: ManualLoop,
  memory: MappableMemory,
): void {
  const settle = loop.settle.bind(loop);
  loop.settle = () => {
    do settle(); while (reach(memory));
  };
}

/** Nobody uses the memory any more: every list was released. */
export function checkReleased(memory: MappableMemory): void {
  if (memory instanceof StrictMemory) assertEquals(memory.outstanding, 0);
}

/**
 * Registers the tests of a folder once more, on strict memory.
 *
 * @param suites The files
 */
export async function runOnStrictMemory(
  folder: string,
  suites: readonly string[],
  options: { readonly slow?: boolean } = {},
): Promise<void> {
  beStrict(options);
  for (const suite of suites) await import(`${folder}/${suite}_test.ts`);
}
