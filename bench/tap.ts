/**
 * Frames out of and into a TAP: a system call for each against io_uring with a batch in one. Out goes what the back end
 * does with batches of several sizes, header and frame apart as the card has them; into shows what it leaves undone.
 *
 * In a network namespace of its own, so that nobody else's frames are counted. What goes out is of a type that the
 * kernel knows no taker for; what comes in was put into the TAP's queue by a packet socket while the clock stood still.
 * Both sides take turns, since a machine's speed changes while it is measured.
 *
 * @module
 */

import { Errno, ErrnoError } from "../src/core/errno.ts";
import { setU64 } from "../src/core/bits.ts";
import { EventLoop } from "../src/loop/event_loop.ts";
import {
  type Fd,
  IoUring,
  IoUringOp,
  NativeBuffer,
  openTap,
  readv,
  Sqe,
  SQE_FIXED_FILE,
} from "../src/os/mod.ts";
import { DmaMemory } from "../src/memory/dma_memory.ts";
import type { ScatterGather } from "../src/memory/scatter_gather.ts";
import { TapQueue } from "../src/backend/net/tap/queue.ts";
import { TapSender } from "../src/backend/net/tap/sender.ts";
import { RecordingLog } from "../src/testing/fake_context.ts";
import { NetworkNamespace } from "../tests/backend/net/netns.ts";
import {
  ETH_P_EXPERIMENTAL,
  PacketSocket,
} from "../tests/backend/net/packet_socket.ts";
import { type Figure, leftOut, median } from "./report.ts";
import { type BenchSettings, count } from "./settings.ts";
import { TapEngine } from "../src/backend/net/tap/driver.ts";

const IFNAME = "obbench0";
const VNET_HEADER_BYTES = 12;
const SLOT_BYTES = 2048;
const BATCH = 32;
/** Frames that a card sends in one go: those of a quiet guest, of a busy one, and the most. */
const BATCHES_OUT = [1, 2, 4, 8, 32, 64];
/** Less than the TAP's queue holds (500 frames). */
const BURST = 256;
const ROUNDS = 2000;
const IOVEC_BYTES = 16;

/** A way to move a burst of frames. */
type Mover = () => void;

/** The TAP, and memory for a batch of frames. */
class Wire implements Disposable {
  readonly #open = new DisposableStack();
  readonly #tap: Fd;
  readonly #queue: TapQueue;
  readonly #injector: PacketSocket;
  readonly #slots: NativeBuffer;
  /** One segment for each slot. */
  readonly #iovecs: NativeBuffer;
  readonly #iovecPointers: Deno.PointerObject[] = [];
  readonly #ring: IoUring;
  readonly #memory: DmaMemory;
  /** Two words for the address of each slot. */
  readonly #addresses: Uint32Array;
  readonly #frame: Deno.PointerObject;
  readonly #frameBytes: number;

  constructor(frameBytes: number) {
    const open = this.#open;
    this.#frameBytes = frameBytes;
    const namespace = open.use(new NetworkNamespace());
    this.#tap = openTap(IFNAME, VNET_HEADER_BYTES).fd;
    const loop = open.use(new EventLoop());
    this.#queue = new TapQueue(0, this.#tap, loop, () => {});
    open.defer(() => this.#queue.close());
    namespace.setUp(IFNAME, true);
    this.#injector = open.use(new PacketSocket(IFNAME, false));
    this.#memory = open.use(new DmaMemory());
    this.#slots = open.use(new NativeBuffer(BATCH * SLOT_BYTES));
    this.#iovecs = open.use(new NativeBuffer(BATCH * IOVEC_BYTES));
    this.#ring = open.use(new IoUring(BATCH));
    this.#ring.registerFiles([this.#tap.number]);
    const { bytes, hva } = this.#slots;
    for (let i = 0; i < BATCH; i++) {
      const at = i * SLOT_BYTES + VNET_HEADER_BYTES;
      bytes.fill(0xff, at, at + 6);
      bytes.set([2, 0, 0, 0, 0, 9, ...ETH_P_EXPERIMENTAL], at + 6);
      setU64(this.#iovecs.view, i * IOVEC_BYTES, hva + i * SLOT_BYTES);
      this.#iovecPointers.push(this.#iovecs.pointer(i * IOVEC_BYTES));
    }
    this.#addresses = new Uint32Array(this.#iovecs.bytes.buffer);
    this.#frame = this.#slots.pointer(VNET_HEADER_BYTES);
    this.#setLengths(VNET_HEADER_BYTES + frameBytes);
  }

  /** Puts a burst into the TAP's queue. */
  fill(): void {
    this.#setLengths(SLOT_BYTES);
    for (let i = 0; i < BURST; i++) {
      this.#injector.sendFrom(this.#frame, this.#frameBytes);
    }
  }

  /** Drops what is left in the queue, such as the kernel's own greetings. */
  drain(): void {
    while (readv(this.#tap.number, this.#iovecPointers[0]!, 1) >= 0);
    this.#setLengths(VNET_HEADER_BYTES + this.#frameBytes);
  }

  /** Has a card's frames sent, in batches of that many. */
  sendBy(engine: TapEngine, batch: number): Mover {
    const queue = this.#queue;
    const sender = this.#open.adopt(
      new TapSender({
        queues: [queue],
        engine,
        description: IFNAME,
        log: new RecordingLog(),
      }),
      (it) => it.close(),
    );
    const lists = Array.from({ length: BATCH }, (_, i) => this.#listOf(i));
    return () => {
      for (let done = 0; done < BURST; done += batch) {
        for (let i = 0; i < batch; i++) {
          expect(sender.send(lists[i % BATCH]!, queue, true));
        }
        sender.flush();
      }
      expect(-sender.dropped);
    };
  }

  /** The header and the frame of a slot. */
  #listOf(slot: number): ScatterGather {
    const list = this.#memory.createScatterGather(2);
    const header = this.#memory.createScratch(VNET_HEADER_BYTES);
    header.append(VNET_HEADER_BYTES, list);
    const at = slot * SLOT_BYTES + VNET_HEADER_BYTES;
    list.push(this.#slots.hva + at, this.#frameBytes);
    return list;
  }

  readonly readEach: Mover = () => {
    const fd = this.#tap.number;
    for (let i = 0; i < BURST; i++) {
      expect(readv(fd, this.#iovecPointers[i % BATCH]!, 1));
    }
  };

  /** The cheapest that io_uring has for it: one segment, a registered file. */
  readonly readBatches: Mover = () => {
    const ring = this.#ring;
    const { sqes } = ring;
    const words = this.#addresses;
    for (let done = 0; done < BURST; done += BATCH) {
      for (let i = 0; i < BATCH; i++) {
        const at = ring.sqe();
        sqes[at + Sqe.OPCODE] = IoUringOp.READ | SQE_FIXED_FILE;
        sqes[at + Sqe.ADDR_LOW] = words[i * 4]!;
        sqes[at + Sqe.ADDR_HIGH] = words[i * 4 + 1]!;
        sqes[at + Sqe.LEN] = words[i * 4 + 2]!;
      }
      expect(ring.enter(BATCH));
      for (let i = 0; i < BATCH; i++) {
        if (!ring.next()) throw new Error("a completion is missing");
        expect(ring.result);
      }
    }
  };

  #setLengths(lengthBytes: number): void {
    for (let i = 0; i < BATCH; i++) {
      setU64(this.#iovecs.view, i * IOVEC_BYTES + 8, lengthBytes);
    }
  }

  [Symbol.dispose](): void {
    this.#open.dispose();
  }
}

function expect(result: number): void {
  if (result < 0) throw new ErrnoError(-result, "Cannot move a frame");
}

/** Frames per second of each mover, which take turns; the middle of what the rounds say. */
function rates(
  movers: readonly Mover[],
  rounds: number,
  before: () => void,
  after: () => void,
): number[] {
  const samples = movers.map(() => [] as number[]);
  for (let round = 0; round < rounds; round++) {
    movers.forEach((mover, i) => {
      before();
      const start = performance.now();
      mover();
      samples[i]!.push(BURST * 1000 / (performance.now() - start));
      after();
    });
  }
  // The first tenth is the compiler's.
  return samples.map((all) => median(all.slice(rounds / 10)));
}

function measure(frameBytes: number, rounds: number): Figure[] {
  using wire = new Wire(frameBytes);
  const nothing = () => {};
  const out = BATCHES_OUT.flatMap((batch) => {
    const engines = [TapEngine.SYNC, TapEngine.AUTO]
      .map((engine) => wire.sendBy(engine, batch));
    const [each, batches] = rates(engines, rounds, nothing, nothing);
    return compare(
      `out, ${frameBytes} B by ${batch}`,
      "writev",
      each!,
      batches!,
    );
  });
  const [each, batches] = rates(
    [wire.readEach, wire.readBatches],
    rounds,
    () => wire.fill(),
    () => wire.drain(),
  );
  const into = `into, ${frameBytes} B by ${BATCH}`;
  return [...out, ...compare(into, "readv", each!, batches!)];
}

function compare(
  what: string,
  call: string,
  each: number,
  batches: number,
): Figure[] {
  const name = `${call} each`;
  return [
    { name: `TAP ${what}, ${name}`, value: each, unit: "frames/s" },
    {
      name: `TAP ${what}, ${call === "writev" ? "as the card" : "io_uring"}`,
      value: batches,
      unit: "frames/s",
      baseline: { name, value: each },
    },
  ];
}

/** Frames per second through a TAP, one by one and in batches. */
export function benchTap(settings: BenchSettings): Promise<Figure[]> {
  const rounds = count(settings, ROUNDS, 20);
  try {
    return Promise.resolve([64, 1514].flatMap((n) => measure(n, rounds)));
  } catch (error) {
    const why = error instanceof ErrnoError &&
        [Errno.EPERM, Errno.EACCES, Errno.ENOENT, Errno.ENOSYS].includes(
          error.errno as never,
        )
      ? error.message
      : null;
    if (why === null) throw error;
    return Promise.resolve([leftOut("TAP", why)]);
  }
}
