import { assertEquals } from "@std/assert";
import { BlockOp, BlockRequest } from "../../../src/backend/block/contract.ts";
import {
  AGAIN,
  FileSlot,
  type FileTraits,
  SLOT_LIST_BYTES,
  Step,
} from "../../../src/backend/block/file/steps.ts";
import {
  NowaitPredictor,
  StallGuard,
} from "../../../src/backend/block/file/at_once.ts";
import { RequestQueue } from "../../../src/backend/block/request_queue.ts";
import { Errno } from "../../../src/core/errno.ts";
import { FallocateMode, NativeBuffer } from "../../../src/os/mod.ts";
import { ArrayMemory } from "../../../src/memory/array_memory.ts";
import { Access } from "../../../src/memory/guest_memory.ts";

const { KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE } = FallocateMode;

class Fixture implements Disposable {
  readonly lists = new NativeBuffer(SLOT_LIST_BYTES);
  readonly traits: FileTraits = {
    isDevice: false,
    memoryAlign: 1,
    lengthAlign: 1,
    discard: true,
    punchHole: true,
    zeroRange: true,
    discardCommand: true,
    zeroes: 0x1000,
  };
  readonly memory = new ArrayMemory();

  slot(traits: Partial<FileTraits> = {}): FileSlot {
    Object.assign(this.traits, traits);
    return new FileSlot(0, this.traits, {
      lists: this.lists,
      listOffset: 0,
      bounceHva: 0,
    });
  }

  request(op: BlockOp, lengthBytes: number): BlockRequest {
    const request = new BlockRequest(this.memory, 8, 0);
    request.op = op;
    request.offset = 2 ** 33 + 512;
    request.lengthBytes = lengthBytes;
    if (op <= BlockOp.WRITE) {
      // Two pieces that do not touch.
      const half = lengthBytes / 2;
      for (const iova of [0, 0x8000]) {
        this.memory.translate(iova, half, Access.READ, request.buffers);
      }
    }
    return request;
  }

  [Symbol.dispose](): void {
    this.lists.close();
  }
}

function range(slot: FileSlot): [number, number] {
  return [Number(slot.place.at[0]), Number(slot.place.at[1])];
}

Deno.test("FileSlot goes on after a short transfer and leaves the request's list alone", () => {
  using fixture = new Fixture();
  const slot = fixture.slot();
  const request = fixture.request(BlockOp.WRITE, 4096);
  const before = request.buffers.words.slice(0, 8);
  slot.begin(request, 0, false);
  assertEquals(slot.step, Step.TRANSFER);
  assertEquals(slot.writes, true);
  assertEquals(slot.list.count, 2);
  assertEquals(range(slot), [2 ** 33 + 512, 4096]);
  assertEquals(slot.advance(1000), AGAIN);
  assertEquals(range(slot), [2 ** 33 + 1512, 3096]);
  assertEquals(slot.list.lengthBytes, 3096);
  assertEquals(slot.list.base(0), request.buffers.base(0) + 1000);
  assertEquals(slot.advance(1048 + 48), AGAIN);
  assertEquals(slot.list.count, 1);
  assertEquals(slot.list.base(0), request.buffers.base(1) + 48);
  assertEquals(slot.advance(2000), 0);
  assertEquals(request.buffers.words.slice(0, 8), before);
  assertEquals(request.buffers.lengthBytes, 4096);
});

Deno.test("FileSlot begins behind what was done before", () => {
  using fixture = new Fixture();
  const slot = fixture.slot();
  slot.begin(fixture.request(BlockOp.READ, 4096), 3000, false);
  assertEquals(range(slot), [2 ** 33 + 3512, 1096]);
  assertEquals(slot.list.lengthBytes, 1096);
  assertEquals(slot.advance(1096), 0);
});

Deno.test("FileSlot tells errors, and tries again what was interrupted", () => {
  using fixture = new Fixture();
  const slot = fixture.slot();
  slot.begin(fixture.request(BlockOp.READ, 4096), 0, false);
  assertEquals(slot.advance(-Errno.EINTR), AGAIN);
  assertEquals(slot.advance(-Errno.EAGAIN), AGAIN);
  assertEquals(range(slot), [2 ** 33 + 512, 4096]);
  assertEquals(slot.advance(-Errno.ENOSPC), -Errno.ENOSPC);
  assertEquals(slot.advance(0), -Errno.EIO);
  slot.begin(fixture.request(BlockOp.FLUSH, 0), 0, false);
  assertEquals(slot.step, Step.SYNC);
  assertEquals(slot.advance(-Errno.EIO), -Errno.EIO);
  let tries = 0;
  while (slot.advance(-Errno.EAGAIN) === AGAIN) tries++;
  assertEquals(tries < 10_000, true, "a kernel that always says EAGAIN");
});

Deno.test("FileSlot zeroes by hole, by range, then by writing", () => {
  using fixture = new Fixture();
  const slot = fixture.slot();
  const request = fixture.request(BlockOp.WRITE_ZEROES, 3 << 20);
  request.mayUnmap = true;
  slot.begin(request, 0, false);
  assertEquals(slot.step, Step.FALLOCATE);
  assertEquals(slot.mode, PUNCH_HOLE | KEEP_SIZE);
  assertEquals(slot.advance(-Errno.EOPNOTSUPP), AGAIN);
  assertEquals(slot.mode, ZERO_RANGE | KEEP_SIZE);
  assertEquals(slot.advance(-Errno.EOPNOTSUPP), AGAIN);
  assertEquals(slot.step, Step.WRITE_ZEROES);
  assertEquals(slot.list.lengthBytes, 1 << 20);
  assertEquals(slot.advance((1 << 20) - 512), AGAIN);
  assertEquals(range(slot)[1], (2 << 20) + 512);
  assertEquals(slot.list.lengthBytes, 1 << 20);
  assertEquals(slot.advance(1 << 20), AGAIN);
  assertEquals(slot.advance(1 << 20), AGAIN);
  assertEquals(slot.list.lengthBytes, 512);
  assertEquals(slot.advance(512), 0);
  // What was learnt stays.
  slot.begin(request, 0, false);
  assertEquals(slot.step, Step.WRITE_ZEROES);
});

Deno.test("FileSlot makes zeroed ranges durable by fdatasync", () => {
  using fixture = new Fixture();
  const slot = fixture.slot();
  const request = fixture.request(BlockOp.WRITE_ZEROES, 4096);
  slot.begin(request, 0, true);
  assertEquals(slot.mode, ZERO_RANGE | KEEP_SIZE);
  assertEquals(slot.advance(0), AGAIN);
  assertEquals(slot.step, Step.SYNC);
  assertEquals(slot.advance(0), 0);
  slot.begin(request, 0, false);
  assertEquals(slot.advance(0), 0);
  slot.begin(request, 0, false);
  assertEquals(slot.advance(-Errno.EIO), -Errno.EIO);
  // One range that does not suit says nothing about the others.
  slot.begin(request, 0, false);
  assertEquals(slot.advance(-Errno.EINVAL), AGAIN);
  assertEquals(slot.step, Step.WRITE_ZEROES);
  slot.begin(request, 0, false);
  assertEquals(slot.step, Step.FALLOCATE);
});

Deno.test("FileSlot discards what can be discarded, and is content where nothing can", () => {
  using fixture = new Fixture();
  const request = fixture.request(BlockOp.DISCARD, 4096);
  const slot = fixture.slot();
  slot.begin(request, 0, true);
  assertEquals(slot.step, Step.FALLOCATE);
  assertEquals(slot.advance(-Errno.EOPNOTSUPP), 0);
  const device = fixture.slot({ isDevice: true });
  device.begin(request, 0, false);
  assertEquals(device.step, Step.DISCARD_COMMAND);
  assertEquals(device.advance(-Errno.EOPNOTSUPP), AGAIN);
  assertEquals(device.step, Step.DISCARD_IOCTL);
  assertEquals(device.advance(-Errno.EOPNOTSUPP), 0);
  device.begin(request, 0, false);
  assertEquals(device.step, Step.DISCARD_IOCTL);
  assertEquals(device.advance(-Errno.EIO), -Errno.EIO);
});

Deno.test("NowaitPredictor leaves out tries after misses, and forgives with a hit", () => {
  const predictor = new NowaitPredictor();
  let tries = 0;
  for (let i = 0; i < 100_000; i++) {
    if (!predictor.shouldTry()) continue;
    tries++;
    predictor.miss();
  }
  assertEquals(tries > 50 && tries < 150, true, `${tries}`);
  while (!predictor.shouldTry());
  predictor.hit();
  for (let i = 0; i < 8; i++) {
    assertEquals(predictor.shouldTry(), true);
    predictor.miss();
  }
  assertEquals(predictor.shouldTry(), false);
  predictor.giveUp();
  for (let i = 0; i < 5000; i++) assertEquals(predictor.shouldTry(), false);
});

Deno.test("StallGuard leaves out more writes the more of them were held up", () => {
  const guard = new StallGuard();
  const skipped = () => {
    let n = 0;
    while (!guard.shouldTry()) n++;
    return n;
  };
  assertEquals(skipped(), 0);
  assertEquals(guard.took(10), false);
  assertEquals(skipped(), 0);
  assertEquals(guard.took(50_000), true);
  assertEquals(skipped(), 256);
  assertEquals(guard.took(50_000), true);
  assertEquals(skipped(), 1024);
  for (let i = 0; i < 10; i++) guard.took(50_000);
  assertEquals(skipped(), 65_536);
  // Thousands of quick ones in a row earn trust again.
  for (let i = 0; i < 20_000; i++) assertEquals(guard.took(10), false);
  guard.took(50_000);
  assertEquals(skipped(), 256);
});

Deno.test("RequestQueue is first in, first out while it grows and wraps", () => {
  const queue = new RequestQueue<{ n: number }>();
  let pushed = 0;
  let shifted = 0;
  assertEquals(queue.shift(), null);
  for (let round = 0; round < 200; round++) {
    for (let i = 0; i < round % 13; i++) queue.push({ n: pushed++ });
    for (let i = 0; i < round % 11 && queue.length > 0; i++) {
      assertEquals(queue.shift()!.n, shifted++);
    }
    assertEquals(queue.length, pushed - shifted);
  }
  while (shifted < pushed) assertEquals(queue.shift()!.n, shifted++);
  assertEquals(queue.shift(), null);
});
