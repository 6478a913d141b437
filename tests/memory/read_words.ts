import { Access, type GuestMemory } from "../../src/memory/guest_memory.ts";

/** Reads words as whoever follows a table does. @returns 0 or −errno */
export function readWords(
  memory: GuestMemory,
  address: Uint32Array,
  into: Uint32Array,
  at: number,
  count: number,
): number {
  const list = memory.createScatterGather(16);
  const bytes = count * 4;
  const result = memory.translateWords(address, 0, bytes, Access.READ, list);
  if (result < 0) return result;
  const read = memory.gatherWords(list, 0, into, at, count);
  memory.release(list, 0);
  return read;
}
