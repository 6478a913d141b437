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
import { StrictMemory } from "../src/testing/strict_memory.ts";

let strict = false;

/** Empty memory. */
export function memoryUnderTest(): MappableMemory {
  return strict ? new StrictMemory() : new ArrayMemory([]);
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
): Promise<void> {
  strict = true;
  for (const suite of suites) await import(`${folder}/${suite}_test.ts`);
}
