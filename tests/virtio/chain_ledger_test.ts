import { assert, assertEquals } from "@std/assert";
import { Access } from "../../src/memory/guest_memory.ts";
import { ArrayMemory } from "../../src/memory/array_memory.ts";
import {
  assumedBytes,
  ChainLedger,
} from "../../src/virtio/queue/chain_ledger.ts";
import { Chain } from "../../src/virtio/queue/queue.ts";

/** A chain with so many bytes of each kind. */
function chainOf(readableBytes: number, writableBytes: number): Chain {
  const memory = new ArrayMemory();
  const chain = new Chain(memory, 1);
  if (readableBytes > 0) {
    memory.translate(0, readableBytes, Access.READ, chain.readable);
  }
  if (writableBytes > 0) {
    memory.translate(0x1000, writableBytes, Access.WRITE, chain.writable);
  }
  return chain;
}

const CHAIN = chainOf(0, 64);

/** Chains that go back by now, in order. */
function returned(ledger: ChainLedger): number[] {
  const heads: number[] = [];
  for (let head = ledger.next(); head >= 0; head = ledger.next()) {
    heads.push(head);
  }
  return heads;
}

Deno.test("assumedBytes is all of the writable bytes, where drivers agree on that", () => {
  assertEquals(assumedBytes(chainOf(0, 64)), 64);
  assertEquals(assumedBytes(chainOf(64, 0)), 0);
  assertEquals(assumedBytes(chainOf(64, 1)), -1);
});

Deno.test("ChainLedger has no chains until it is reset to a size", () => {
  const ledger = new ChainLedger();
  assertEquals([ledger.held, ledger.outstanding], [0, 0]);
  assert(!ledger.push(0, 0));
  assertEquals([ledger.next(), ledger.unpop()], [-1, -1]);
});

Deno.test("ChainLedger gives chains back in the order of push, or of pop with IN_ORDER", () => {
  for (const inOrder of [false, true]) {
    const ledger = new ChainLedger();
    ledger.reset(3, inOrder);
    // Twice around, so that it wraps.
    for (let round = 0; round < 4; round++) {
      ledger.pop(2, CHAIN);
      ledger.pop(0, CHAIN);
      assertEquals([ledger.held, ledger.outstanding], [2, 2]);
      assert(ledger.push(0, 10) && ledger.has(0));
      assertEquals([ledger.held, ledger.outstanding], [1, 2]);
      assertEquals(returned(ledger), inOrder ? [] : [0]);
      assert(ledger.push(2, 20));
      assertEquals(returned(ledger), inOrder ? [2, 0] : [2]);
      assertEquals([ledger.written(0), ledger.written(2)], [10, 20]);
      assert(!ledger.has(0) && !ledger.has(2));
    }
  }
});

Deno.test("ChainLedger takes back only what the device holds", () => {
  const ledger = new ChainLedger();
  ledger.reset(4, false);
  ledger.pop(1, CHAIN);
  ledger.pop(3, CHAIN);
  assert(!ledger.push(0, 0) && !ledger.push(4, 0));
  assert(ledger.push(1, 0) && !ledger.push(1, 0));
  assertEquals(ledger.unpop(), 3);
  assertEquals(ledger.unpop(), -1);
  assertEquals(returned(ledger), [1]);
});

Deno.test("ChainLedger lets a chain be skipped when the driver would assume right", () => {
  const ledger = new ChainLedger();
  ledger.reset(4, true);
  ledger.pop(0, chainOf(0, 64));
  ledger.pop(1, chainOf(0, 64));
  ledger.pop(2, chainOf(64, 64));
  [64, 63, 64].forEach((bytes, head) => ledger.push(head, bytes));
  const skipped = returned(ledger).map((head) => ledger.canBeSkipped(head));
  assertEquals(skipped, [true, false, false]);
  ledger.reset(4, false);
  ledger.pop(0, chainOf(0, 64));
  ledger.push(0, 64);
  assert(!ledger.canBeSkipped(ledger.next()));
});

Deno.test("ChainLedger.reset forgets what was with the device", () => {
  const ledger = new ChainLedger();
  ledger.reset(4, false);
  ledger.pop(1, CHAIN);
  ledger.pop(2, CHAIN);
  ledger.push(2, 7);
  ledger.reset(2, true);
  assertEquals([ledger.held, ledger.outstanding], [0, 0]);
  assert(!ledger.has(1) && !ledger.push(1, 0));
  ledger.pop(1, CHAIN);
  ledger.push(1, 5);
  assertEquals([returned(ledger), ledger.written(1)], [[1], 5]);
});
