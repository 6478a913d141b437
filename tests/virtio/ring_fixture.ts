/** A queue of the device and a naive driver of it on the same memory. */

import { Features, VIRTIO_F } from "../../src/virtio/features.ts";
import type { MappableMemory } from "../../src/memory/array_memory.ts";
import { memoryUnderTest } from "../memory_under_test.ts";
import { Chain } from "../../src/virtio/queue/queue.ts";
import { createQueue } from "../../src/virtio/queue/mod.ts";
import type { Ring } from "../../src/virtio/queue/ring.ts";
import { NaivePackedRing, type PackedPlaces } from "./naive_packed_ring.ts";
import { NaiveRing, type RingPlaces } from "./naive_ring.ts";

export interface FixtureOptions {
  readonly size?: number;
  readonly maxSize?: number;
  readonly eventIdx?: boolean;
  readonly indirect?: boolean;
  readonly segments?: number;
  /** See Chain.isWhole. */
  readonly mayLack?: boolean | undefined;
  readonly polled?: boolean;
  readonly inOrder?: boolean;
  /** Map guest memory page by page. */
  readonly byPage?: boolean;
}

export interface Fixture {
  readonly memory: MappableMemory;
  readonly buffer: ArrayBuffer;
  readonly queue: Ring;
  readonly ring: NaiveRing;
  readonly chain: Chain;
  readonly features: Features;
  readonly places: RingPlaces;
}

/** Guest memory begins here, so that an offset taken for an address shows. */
export const BASE = 0x10_0000;
export const LENGTH = 0x20_0000;
/** Buffers go here. */
export const DATA = BASE + 0x10_0000;
/** Indirect tables go here. */
export const TABLES = BASE + 0x18_0000;

export function fixture(options: FixtureOptions = {}): Fixture {
  const size = options.size ?? 8;
  const memory = memoryUnderTest();
  const buffer = mapAll(memory, options);
  // Near the end of a page: rings of more than a few entries go on in the next.
  const near = options.byPage ? 0xfd0 : 0;
  const places = {
    desc: BASE + 0x1000 + near,
    avail: BASE + 0x9_0000 + near + 2,
    used: BASE + 0xb_0000 + near + 4,
  };
  const features = featuresOf(options);
  const queue = createQueue(
    memory,
    3,
    options.maxSize ?? size,
    options.polled ?? false,
  );
  const result = queue.enable(features, {
    size,
    descIova: places.desc,
    availIova: places.avail,
    usedIova: places.used,
  });
  if (result !== 0) throw new Error(queue.lastError);
  const ring = new NaiveRing(
    buffer,
    BASE,
    size,
    places,
    options.eventIdx ?? false,
    options.inOrder ?? false,
  );
  const chain = new Chain(memory, options.segments ?? 1024, options.mayLack);
  return { memory, buffer, queue, ring, chain, features, places };
}

function mapAll(memory: MappableMemory, options: FixtureOptions): ArrayBuffer {
  const range = { iova: BASE, lengthBytes: LENGTH };
  return options.byPage ? memory.mapPages(range) : memory.map(range);
}

function featuresOf(options: FixtureOptions, packed = false): Features {
  const bits: number[] = [VIRTIO_F.VERSION_1];
  if (options.eventIdx) bits.push(VIRTIO_F.RING_EVENT_IDX);
  if (options.indirect ?? true) bits.push(VIRTIO_F.RING_INDIRECT_DESC);
  if (options.inOrder) bits.push(VIRTIO_F.IN_ORDER);
  if (packed) bits.push(VIRTIO_F.RING_PACKED);
  return Features.of(...bits);
}

export interface PackedFixture {
  readonly memory: MappableMemory;
  readonly buffer: ArrayBuffer;
  readonly queue: Ring;
  readonly ring: NaivePackedRing;
  readonly chain: Chain;
  readonly features: Features;
  readonly places: PackedPlaces;
}

/** A packed queue and a naive driver of it. */
export function packedFixture(options: FixtureOptions = {}): PackedFixture {
  const size = options.size ?? 8;
  const memory = memoryUnderTest();
  const buffer = mapAll(memory, options);
  const places = {
    desc: BASE + 0x1000 + (options.byPage ? 0xfd0 : 0),
    driver: BASE + 0x9_0000 + 4,
    device: BASE + 0xb_0000 + 4,
  };
  const features = featuresOf(options, true);
  const queue = createQueue(
    memory,
    3,
    options.maxSize ?? size,
    options.polled ?? false,
  );
  const result = queue.enable(features, {
    size,
    descIova: places.desc,
    availIova: places.driver,
    usedIova: places.device,
  });
  if (result !== 0) throw new Error(queue.lastError);
  const ring = new NaivePackedRing(
    buffer,
    BASE,
    size,
    places,
    options.inOrder ?? false,
  );
  const chain = new Chain(memory, options.segments ?? 1024, options.mayLack);
  return { memory, buffer, queue, ring, chain, features, places };
}

/** Pops and pushes `count` single-buffer chains of a packed queue. */
export function turnPackedRing(at: PackedFixture, count: number): void {
  for (let i = 0; i < count; i++) {
    at.ring.add([{ iova: DATA, length: 1 }]);
    if (at.queue.pop(at.chain) !== 1) throw new Error(at.queue.lastError);
    at.queue.push(at.chain.head, 0);
    at.queue.publish();
    at.ring.collect();
  }
}

/** Pops and pushes `count` single-buffer chains, so that both indices have moved by as much. */
export function turnRing(at: Fixture, count: number): void {
  for (let i = 0; i < count; i++) {
    at.ring.add([{ iova: DATA, length: 1 }]);
    if (at.queue.pop(at.chain) !== 1) throw new Error(at.queue.lastError);
    at.queue.push(at.chain.head, 0);
    at.queue.publish();
    at.ring.collect();
  }
}
