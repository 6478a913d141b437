import { assertEquals } from "@std/assert";
import fc from "fast-check";
import {
  BlockOp,
  type BlockRequest,
} from "../../../src/backend/block/contract.ts";
import type { BlockOptions } from "../../../src/backend/block/options.ts";
import { Controller, FILE, Folder, Host, type Job, MEMORY } from "./rig.ts";

const BLOCK = 512;
const BLOCKS = 96;
const SIZE = BLOCK * BLOCKS;
/** Guest memory per request, so that requests of a batch do not share any. */
const AREA = 64 * 1024;

interface Action {
  readonly op: BlockOp;
  readonly block: number;
  readonly blocks: number;
  readonly seed: number;
  readonly cuts: readonly number[];
  readonly shift: number;
  readonly durable: boolean;
  readonly mayUnmap: boolean;
}

const action: fc.Arbitrary<Action> = fc.record({
  op: fc.constantFrom(
    BlockOp.READ,
    BlockOp.WRITE,
    BlockOp.WRITE,
    BlockOp.FLUSH,
    BlockOp.WRITE_ZEROES,
  ),
  block: fc.nat(BLOCKS - 1),
  blocks: fc.integer({ min: 1, max: 40 }),
  seed: fc.nat(0xffff),
  cuts: fc.array(fc.nat(4096), { maxLength: 5 }),
  shift: fc.constantFrom(0, 0, 1, 512),
  durable: fc.boolean(),
  mayUnmap: fc.boolean(),
});

/** Pieces of guest memory that do not touch, of lengths that the cuts say. */
function pieces(
  base: number,
  lengthBytes: number,
  cuts: readonly number[],
  shift: number,
): [number, number][] {
  const at: [number, number][] = [];
  let iova = base + shift;
  let left = lengthBytes;
  for (const cut of cuts) {
    const length = Math.min(cut, left);
    if (length === 0) continue;
    at.push([iova, length]);
    iova += length + 16;
    left -= length;
  }
  if (left > 0) at.push([iova, left]);
  return at;
}

function fill(lengthBytes: number, seed: number): Uint8Array {
  const bytes = new Uint8Array(lengthBytes);
  for (let i = 0; i < lengthBytes; i++) bytes[i] = (seed + i * 7) ^ (i >> 8);
  return bytes;
}

/** Runs batches whose requests do not overlap, so that their order does not matter. */
function checkAgainstModel(
  options: BlockOptions,
  batches: readonly (readonly Action[])[],
): void {
  using host = new Host();
  using controller = new Controller(host, options);
  const model = new Uint8Array(SIZE);
  for (const batch of batches) {
    const taken = new Uint8Array(BLOCKS);
    const running: [BlockRequest, () => void][] = [];
    batch.forEach((each, i) => {
      const blocks = Math.min(each.blocks, BLOCKS - each.block);
      const range = taken.subarray(each.block, each.block + blocks);
      if (each.op !== BlockOp.FLUSH && range.some((used) => used > 0)) return;
      if (each.op !== BlockOp.FLUSH) range.fill(1);
      running.push(begin(controller, model, each, i, blocks));
    });
    controller.backend.commit();
    controller.wait(running.map(([request]) => request));
    for (const [request, verify] of running) {
      assertEquals(controller.results.get(request.tag), 0);
      verify();
    }
  }
  for (let offset = 0; offset < SIZE; offset += 16384) {
    assertEquals(
      controller.read(offset, 16384),
      model.slice(offset, offset + 16384),
    );
  }
}

function begin(
  controller: Controller,
  model: Uint8Array,
  each: Action,
  index: number,
  blocks: number,
): [BlockRequest, () => void] {
  const { memory } = controller.host;
  const { op, durable, mayUnmap } = each;
  const offset = each.block * BLOCK;
  const lengthBytes = op === BlockOp.FLUSH ? 0 : blocks * BLOCK;
  const at = pieces(index * AREA, lengthBytes, each.cuts, each.shift);
  const job: Job = { op, offset, lengthBytes, durable, mayUnmap, at };
  if (op === BlockOp.WRITE) {
    const bytes = fill(lengthBytes, each.seed);
    let from = 0;
    for (const [iova, length] of at) {
      memory.write(iova, bytes.subarray(from, from + length));
      from += length;
    }
    model.set(bytes, offset);
  }
  if (op === BlockOp.WRITE_ZEROES) model.fill(0, offset, offset + lengthBytes);
  const request = controller.submit(job);
  return [request, () => {
    if (op !== BlockOp.READ) return;
    const bytes = new Uint8Array(lengthBytes);
    let to = 0;
    for (const [iova, length] of at) {
      memory.read(iova, bytes.subarray(to, to + length));
      to += length;
    }
    assertEquals(bytes, model.slice(offset, offset + lengthBytes));
  }];
}

function property(name: string, make: (folder: Folder) => BlockOptions): void {
  Deno.test(`a ${name} holds what a plain array would`, () => {
    fc.assert(
      fc.property(
        fc.array(fc.array(action, { minLength: 1, maxLength: 12 }), {
          minLength: 1,
          maxLength: 8,
        }),
        (batches) => {
          using folder = new Folder(
            name.includes("tmpfs") ? "/dev/shm" : undefined,
          );
          checkAgainstModel(make(folder), batches);
        },
      ),
      { numRuns: 25 },
    );
  });
}

for (const place of ["file", "file on tmpfs"]) {
  for (const engine of ["auto", "ring", "sync"] as const) {
    property(`${place}, engine ${engine},`, (folder) => ({
      ...FILE,
      path: folder.image("disk.img", SIZE),
      engine,
    }));
  }
}

// Fewer slots than a batch has requests.
property("file with two slots", (folder) => ({
  ...FILE,
  path: folder.image("disk.img", SIZE),
  engine: "ring",
  depth: 2,
}));

property("file without space to give back", (folder) => ({
  ...FILE,
  path: folder.image("disk.img", SIZE),
  discard: false,
}));

for (const engine of ["ring", "sync"] as const) {
  property(`file past the page cache, engine ${engine},`, (folder) => ({
    ...FILE,
    path: folder.image("disk.img", SIZE),
    direct: true,
    engine,
  }));
}

property("memory", () => ({ ...MEMORY, sizeBytes: SIZE }));
