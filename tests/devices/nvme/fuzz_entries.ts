/**
 * Submission queue entries as a driver from hell would write them.
 *
 * @module
 */

import { RAM_BYTES, RAM_IOVA } from "./rig.ts";

/** A small generator with a seed, so that a failure can be repeated. */
export function generator(seed: number) {
  let state = seed >>> 0 || 1;
  const next = () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return state >>> 0;
  };
  return {
    word: next,
    below: (n: number) => next() % n,
    pick: <T>(list: readonly T[]): T => list[next() % list.length]!,
  };
}

const OPCODES_IO = [0, 1, 2, 5, 8, 9, 3, 0xc, 0xff];
const OPCODES_ADMIN = [0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 0x7c, 0x10, 0xff];

/** An entry that is partly sensible, so that it gets past the first check. */
export function entry(random: ReturnType<typeof generator>, admin: boolean) {
  const bytes = new Uint8Array(64);
  const view = new DataView(bytes.buffer);
  for (let at = 0; at < 64; at += 4) {
    view.setUint32(at, random.below(3) === 0 ? random.word() : 0, true);
  }
  bytes[0] = random.pick(admin ? OPCODES_ADMIN : OPCODES_IO);
  bytes[1] = random.pick([0, 0, 0, 0, 0x40, 0x80, 0xc0, 1]);
  view.setUint16(2, random.below(40), true);
  view.setUint32(4, random.pick([1, 1, 1, 2, 0, 0xffff_ffff, 77]), true);
  const address = () =>
    BigInt(RAM_IOVA) +
    BigInt(random.below(RAM_BYTES) & ~random.pick([0xfff, 0xfff, 3, 0]));
  for (const at of [24, 32]) {
    view.setBigUint64(
      at,
      random.below(12) === 0 ? BigInt(random.word()) << 32n : address(),
      true,
    );
  }
  if ((bytes[1]! & 0xc0) !== 0) {
    view.setUint32(32, random.pick([512, 16, 32, 4096, random.word()]), true);
    bytes[39] = random.pick([0, 0x20, 0x30, 0x10, random.word() & 0xff]);
  }
  if (random.below(2) === 0) view.setUint32(40, random.below(64), true);
  if (random.below(2) === 0) view.setUint32(44, random.below(8), true);
  if (random.below(2) === 0) view.setUint32(48, random.below(300), true);
  return bytes;
}
