import { assert, assertEquals } from "@std/assert";
import fc from "fast-check";
import { Errno } from "../../../../src/core/errno.ts";
import {
  type Fd,
  MessageHeader,
  NativeBuffer,
  setNonblocking,
  socketPair,
} from "../../../../src/os/mod.ts";
import { libc } from "../../../../src/os/symbols.ts";
import { Access } from "../../../../src/memory/guest_memory.ts";
import type { ScatterGather } from "../../../../src/memory/scatter_gather.ts";
import {
  FrameStream,
  STREAM_FRAME_MAX,
} from "../../../../src/backend/net/socket/frame_stream.ts";
import { heapGrowthPerOperation, openFds } from "../../../resources.ts";
import { Host } from "../card.ts";
import { be32, bytes } from "../frames.ts";

const RX = 1 << 18;

/** A stream, the socket at its other end, and lists of guest memory. */
class Rig implements Disposable {
  readonly host = new Host();
  readonly stream: FrameStream;
  readonly other: Fd;
  readonly list: ScatterGather;
  readonly #chunk = new NativeBuffer(1 << 20);

  constructor() {
    const [ours, theirs] = socketPair();
    this.stream = new FrameStream(ours);
    this.other = theirs;
    setNonblocking(theirs.number);
    this.list = this.host.memory.createScatterGather(1024);
  }

  /** Sends a frame in segments of at most `size` bytes that do not touch. */
  send(frame: Uint8Array, size = frame.length, more = false): number {
    this.list.clear();
    for (let done = 0, iova = 0; done < frame.length; done += size) {
      const part = frame.subarray(done, done + size);
      this.host.memory.write(iova, part);
      this.host.memory.translate(iova, part.length, Access.READ, this.list);
      iova += part.length + 1;
    }
    return this.stream.send(this.list, more);
  }

  /** Receives a frame into two segments; null when there is none. */
  receive(room = 1 << 17): Uint8Array | null {
    this.list.clear();
    const first = Math.min(5, room);
    const { memory } = this.host;
    memory.translate(RX, first, Access.WRITE, this.list);
    memory.translate(RX + 9, room - first, Access.WRITE, this.list);
    const length = this.stream.receive(this.list);
    if (length === -Errno.EAGAIN) return null;
    assert(length > 0, `receive() = ${length}`);
    const got = new Uint8Array(Math.min(length, room));
    memory.read(RX, got.subarray(0, Math.min(first, got.length)));
    if (got.length > first) memory.read(RX + 9, got.subarray(first));
    return got;
  }

  /** Writes bytes as the peer does. */
  write(data: Uint8Array): void {
    this.#chunk.bytes.set(data);
    const n = libc.write(this.other.number, this.#chunk.pointer(), data.length);
    assertEquals(n, data.length);
    this.stream.onReadable();
  }

  /** Reads up to `most` bytes as the peer does. */
  read(most: number): Uint8Array {
    const n = libc.read(this.other.number, this.#chunk.pointer(), most);
    return this.#chunk.bytes.slice(0, Math.max(n, 0));
  }

  [Symbol.dispose](): void {
    this.stream.close();
    this.other.close();
    this.#chunk.close();
    this.host[Symbol.dispose]();
  }
}

function pattern(length: number, seed: number): Uint8Array<ArrayBuffer> {
  return Uint8Array.from({ length }, (_, i) => (i * 7 + seed) & 0xff);
}

function framed(...frames: Uint8Array[]): Uint8Array<ArrayBuffer> {
  const all = new Uint8Array(
    frames.reduce((sum, frame) => sum + 4 + frame.length, 0),
  );
  let at = 0;
  for (const frame of frames) {
    all.set(be32(frame.length), at);
    all.set(frame, at + 4);
    at += 4 + frame.length;
  }
  return all;
}

Deno.test("FrameStream.send puts the length in network order before the frame", () => {
  using rig = new Rig();
  const frame = pattern(300, 1);
  assertEquals(rig.send(frame, 7), 0);
  assertEquals(rig.read(4096), framed(frame));
});

Deno.test("FrameStream.send keeps frames with more to come together until flush, or until there are many", () => {
  using rig = new Rig();
  const sent = [pattern(300, 1), pattern(60, 2), pattern(1500, 3)];
  for (const frame of sent) assertEquals(rig.send(frame, 100, true), 0);
  assertEquals(rig.read(1 << 20), new Uint8Array());
  assertEquals(rig.stream.flush(), 0);
  assertEquals(rig.read(1 << 20), framed(...sent));
  const many = Array.from({ length: 5 }, (_, i) => pattern(60_000, i));
  for (const frame of many.slice(0, 4)) {
    assertEquals(rig.send(frame, 60_000, true), 0);
  }
  // As many as it keeps, and more than a socket takes.
  assertEquals(rig.send(many[4]!, 60_000, true), -Errno.EAGAIN);
  assertEquals(rig.stream.isFull, true);
  const parts = [rig.read(1 << 20)];
  while (rig.send(many[4]!, 60_000, true) !== 0) parts.push(rig.read(1 << 20));
  while (rig.stream.flush() !== 0) parts.push(rig.read(1 << 20));
  parts.push(rig.read(1 << 20));
  assertEquals(bytes(...parts), framed(...many));
});

Deno.test("FrameStream.send takes frames of more segments than one call does", () => {
  using rig = new Rig();
  const frame = pattern(1024, 3);
  assertEquals(rig.send(frame, 1), 0);
  assertEquals(rig.list.count, 1024);
  assertEquals(rig.read(4096), framed(frame));
});

Deno.test("FrameStream.send refuses what is longer than the peer takes", () => {
  using rig = new Rig();
  assertEquals(rig.send(pattern(STREAM_FRAME_MAX, 0)), 0);
  assertEquals(rig.read(1 << 20).length, STREAM_FRAME_MAX + 4);
  assertEquals(rig.send(pattern(STREAM_FRAME_MAX + 1, 0)), -Errno.EMSGSIZE);
  assertEquals(rig.read(1), new Uint8Array());
});

Deno.test("FrameStream.send keeps the end of a frame, whatever becomes of the guest's buffer", () => {
  using rig = new Rig();
  const sent: Uint8Array[] = [];
  let result = 0;
  for (let i = 0; result === 0; i++) {
    const frame = pattern(9_001, i);
    result = rig.send(frame, 999);
    if (result === 0) sent.push(frame);
    // The guest has its buffers back.
    rig.host.memory.write(0, new Uint8Array(16_384).fill(0xee));
  }
  assertEquals(result, -Errno.EAGAIN);
  const parts: Uint8Array[] = [];
  for (let idle = 0; idle < 2;) {
    const part = rig.read(1_000);
    parts.push(part);
    idle = part.length === 0 ? idle + 1 : 0;
    if (rig.stream.isFull) rig.stream.flush();
  }
  assertEquals(rig.stream.isFull, false);
  assertEquals(bytes(...parts), framed(...sent));
});

Deno.test("FrameStream.send says that the peer has gone, without a signal", () => {
  using rig = new Rig();
  rig.other.close();
  assertEquals(rig.send(pattern(60, 0)), -Errno.EPIPE);
});

Deno.test("FrameStream.receive takes frames however the stream is cut", () => {
  using rig = new Rig();
  const length = fc.oneof(
    fc.integer({ min: 14, max: 100 }),
    fc.integer({ min: 14, max: STREAM_FRAME_MAX }),
  );
  const property = fc.property(
    fc.array(length, { maxLength: 8 }),
    fc.array(fc.integer({ min: 1, max: 50_000 }), { minLength: 1 }),
    (lengths, cuts) => {
      const frames = lengths.map((n, i) => pattern(n, i));
      const stream = framed(...frames);
      const received: Uint8Array[] = [];
      for (let at = 0, i = 0; at < stream.length; i++) {
        const cut = cuts[i % cuts.length]!;
        rig.write(stream.subarray(at, at + cut));
        at += cut;
        for (let f; (f = rig.receive()) !== null;) received.push(f);
      }
      assertEquals(received, frames);
      assertEquals(rig.stream.hasFrame, false);
      assertEquals(rig.stream.endReason, null);
    },
  );
  fc.assert(property, { numRuns: 60, verbose: true });
});

Deno.test("FrameStream.receive gives the true length of a frame that was cut, and the next one whole", () => {
  using rig = new Rig();
  rig.write(framed(pattern(500, 1), pattern(60, 2)));
  rig.list.clear();
  rig.host.memory.translate(RX, 100, Access.WRITE, rig.list);
  assertEquals(rig.stream.receive(rig.list), 500);
  assertEquals(rig.stream.hasFrame, true);
  assertEquals(rig.receive(), pattern(60, 2));
});

Deno.test("FrameStream.receive passes over what is too short for a frame, and counts it", () => {
  using rig = new Rig();
  rig.write(framed(pattern(1, 0), pattern(13, 0), pattern(14, 5)));
  assertEquals(rig.receive(), pattern(14, 5));
  assertEquals(rig.stream.runts, 2);
});

Deno.test("FrameStream.receive ends the connection at a length that cannot be", () => {
  for (const length of [0, STREAM_FRAME_MAX + 1, 0x4745_5420, 0xffff_ffff]) {
    using rig = new Rig();
    rig.write(bytes(framed(pattern(60, 9)), be32(length), pattern(60, 0)));
    assertEquals(rig.receive(), pattern(60, 9));
    assertEquals(rig.receive(), null);
    assertEquals(rig.stream.badLengths, 1);
    assert(rig.stream.endReason!.includes(`a frame of ${length} bytes`));
    // Whatever comes now is not looked at.
    assertEquals(rig.receive(), null);
    assertEquals(rig.stream.hasFrame, false);
  }
});

Deno.test("FrameStream.receive gives every whole frame before it says that the peer closed", () => {
  using rig = new Rig();
  rig.write(bytes(framed(pattern(60, 1), pattern(70, 2)), be32(50), 1, 2));
  rig.other.close();
  assertEquals(rig.receive(), pattern(60, 1));
  assertEquals(rig.receive(), pattern(70, 2));
  assertEquals(rig.stream.endReason, null);
  rig.stream.onReadable();
  assertEquals(rig.receive(), null);
  assertEquals(rig.stream.endReason, "the peer closed it");
});

Deno.test("FrameStream.discard throws frames away and keeps to their bounds", () => {
  using rig = new Rig();
  const last = framed(pattern(90, 4));
  rig.write(bytes(framed(pattern(60, 1), pattern(70, 2)), last.subarray(0, 9)));
  rig.stream.discard();
  rig.write(last.subarray(9));
  assertEquals(rig.receive(), pattern(90, 4));
});

Deno.test("FrameStream survives any bytes", () => {
  // A peer in the know: lengths that are often possible.
  const chunk = fc.oneof(
    fc.uint8Array({ maxLength: 300 }),
    fc.integer({ min: 0, max: 40 }).map((n) =>
      bytes(be32(n), new Uint8Array(n))
    ),
    fc.nat(0x1_4000).map((n) => Uint8Array.from(be32(n))),
  );
  const property = fc.property(fc.array(chunk, { maxLength: 30 }), (chunks) => {
    using rig = new Rig();
    let came = 0;
    let taken = 0;
    for (const data of chunks) {
      if (data.length === 0) continue;
      rig.write(data);
      came += data.length;
      for (let f; (f = rig.receive()) !== null;) {
        assert(f.length >= 14 && f.length <= STREAM_FRAME_MAX);
        taken += 4 + f.length;
      }
    }
    assert(taken <= came);
    assert(rig.stream.badLengths === 0 || rig.stream.endReason !== null);
  });
  fc.assert(property, { numRuns: 300, verbose: true });
});

Deno.test("FrameStream moves frames without allocating", () => {
  using rig = new Rig();
  const [a, b] = socketPair();
  using from = new FrameStream(a);
  using to = new FrameStream(b);
  const { memory } = rig.host;
  const list = memory.createScatterGather(4);
  memory.translate(0, 200, Access.READ, list);
  memory.translate(300, 1200, Access.READ, list);
  const into = memory.createScatterGather(4);
  memory.translate(RX, 12, Access.WRITE, into);
  memory.translate(RX + 64, 2000, Access.WRITE, into);
  let wrong = 0;
  const oneByOne = heapGrowthPerOperation(100_000, (operations) => {
    for (let i = 0; i < operations; i++) {
      if (from.send(list) !== 0) wrong++;
      to.onReadable();
      if (to.receive(into) !== 1400) wrong++;
    }
  });
  const inBatches = heapGrowthPerOperation(100_000, (operations) => {
    for (let i = 0; i < operations; i += 32) {
      for (let k = 0; k < 32; k++) if (from.send(list) !== 0) wrong++;
      to.onReadable();
      for (let k = 0; k < 32; k++) if (to.receive(into) !== 1400) wrong++;
    }
  });
  const inParts = heapGrowthPerOperation(5_000, (operations) => {
    for (let i = 0; i < operations; i += 32) {
      while (from.send(list) === 0);
      to.onReadable();
      while (to.receive(into) > 0) to.onReadable();
      if (from.flush() !== 0) wrong++;
      to.onReadable();
      while (to.receive(into) > 0) to.onReadable();
    }
  });
  assertEquals(wrong, 0);
  assert(oneByOne < 1, `one by one: ${oneByOne} bytes a frame`);
  assert(inBatches < 1, `in batches: ${inBatches} bytes a frame`);
  assert(inParts < 1, `with partial sends: ${inParts} bytes a frame`);
});

Deno.test("FrameStream drops descriptors that a peer sends along", () => {
  using rig = new Rig();
  using header = new MessageHeader();
  using data = new NativeBuffer(4096);
  const frame = framed(pattern(60, 1));
  data.bytes.set(frame);
  const before = openFds();
  header.send(rig.other.number, data, 0, frame.length, [rig.other.number]);
  rig.stream.onReadable();
  assertEquals(rig.receive(), pattern(60, 1));
  assertEquals(openFds(), before);
});

Deno.test("FrameStream leaves no descriptor", () => {
  const before = openFds();
  {
    using rig = new Rig();
    rig.write(framed(pattern(60, 1)));
    assertEquals(rig.receive(), pattern(60, 1));
  }
  assertEquals(openFds(), before);
});
