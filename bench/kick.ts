/**
 * From a kick to its completion: a driver writes a 512-byte read into virtio-blk's ring and tells the device in one of
 * the ways there are. The disk is memory, so that what is measured is the way there and back.
 *
 * - message: REGION_WRITE, waited for; posted: REGION_WRITE without a reply
 * - ioeventfd: an eventfd of GET_REGION_IO_FDS
 * - mapped page: a store to a page that the server polls (`doorbells=mmap`)
 * - nothing: the server polls the ring and says that it need not be told
 *
 * The driver either spins on the used ring or sleeps in poll(2) on the interrupt's eventfd. Kinds take turns.
 *
 * @module
 */

import {
  type DriverQueue,
  F,
  NO_VECTOR,
  VirtioDriver,
} from "../src/testing/mod.ts";
import {
  type BellKind,
  PciClient,
} from "../src/transport/vfio_user/client/mod.ts";
import { type Figure, median, percentile } from "./report.ts";
import { type Served, withDevice, withRam } from "./serving.ts";
import { type BenchSettings, count } from "./settings.ts";

const RAM_BYTES = 1024 * 1024;
const TURNS = 7;
const WARM_UP = 1000;
const SAMPLES = 1500;
const TIMEOUT_MS = 5000;
const VECTOR = 0;

// struct virtio_blk_req { le32 type (0: read); le32 reserved; le64 sector; u8 data[]; u8 status; }
const HEADER_BYTES = 16;
const DATA_BYTES = 512;

/** A way to tell the device. */
interface Way {
  readonly name: string;
  readonly bells: BellKind;
  /** Rings whether the device wants it or not; else only what the device asks for. */
  readonly always: boolean;
}

const MESSAGE: Way = { name: "message", bells: "message", always: true };
const POSTED: Way = { name: "posted message", bells: "posted", always: true };
const EVENTFD: Way = { name: "ioeventfd", bells: "ioeventfd", always: true };
const MAPPED: Way = { name: "mapped page", bells: "mmap", always: true };
const NOTHING: Way = { name: "nothing", bells: "message", always: false };

/** A server and the ways that make sense with it. */
interface Mode {
  readonly name: string;
  readonly device: string;
  readonly poll: string;
  readonly ways: readonly Way[];
}

const MODES: readonly Mode[] = [
  {
    name: "server asleep",
    device: "virtio-blk,memory=1M",
    poll: "off",
    ways: [MESSAGE, POSTED, EVENTFD],
  },
  {
    name: "server polls",
    device: "virtio-blk,memory=1M",
    poll: "always",
    ways: [NOTHING, MESSAGE, EVENTFD],
  },
  {
    name: "server polls",
    device: "virtio-blk,memory=1M,doorbells=mmap",
    poll: "always",
    ways: [MAPPED],
  },
];

/** One request over and over. */
class Prober {
  readonly #queue: DriverQueue;
  readonly #always: boolean;
  readonly #request: number;

  constructor(virtio: VirtioDriver, way: Way) {
    virtio.negotiate([F.RING_INDIRECT_DESC, F.RING_EVENT_IDX]);
    this.#queue = virtio.setupQueue(0, { indirect: 3, vector: VECTOR });
    this.#always = way.always;
    this.#request = virtio.memory.alloc(HEADER_BYTES + DATA_BYTES + 1, 16);
    virtio.driverOk();
    if (this.#queue.vector === NO_VECTOR) {
      throw new Error("Cannot measure: the queue has no interrupt");
    }
  }

  /**
   * Issues a read and waits for it.
   *
   * @param asleep Wait for the interrupt, else look at the ring
   * @returns How long that took, in microseconds
   */
  probe(asleep: boolean): number {
    const { ring } = this.#queue;
    ring.begin(3);
    ring.readable(this.#request, HEADER_BYTES);
    ring.writable(this.#request + HEADER_BYTES, DATA_BYTES);
    ring.writable(this.#request + HEADER_BYTES + DATA_BYTES, 1);
    ring.end();
    if (asleep) ring.enableInterrupts();
    else ring.disableInterrupts();
    const start = performance.now();
    const wanted = ring.publish();
    if (wanted || this.#always) this.#queue.kick();
    if (asleep) {
      // An interrupt may come without need, also late from before.
      while (!ring.hasUsed) {
        if (this.#queue.waitInterrupt(TIMEOUT_MS) === 0) throw lost();
      }
    } else {
      const deadline = start + TIMEOUT_MS;
      while (!ring.hasUsed) if (performance.now() > deadline) throw lost();
    }
    const us = (performance.now() - start) * 1000;
    ring.take();
    return us;
  }
}

function lost(): Error {
  return new Error("Cannot measure: a request was not completed");
}

/** Percentiles of a way, one value a turn. */
interface Series {
  readonly p50: number[];
  readonly p99: number[];
}

function takeTurn(
  prober: Prober,
  asleep: boolean,
  series: Series,
  settings: BenchSettings,
): void {
  const samples = new Float64Array(count(settings, SAMPLES, 100));
  for (let i = 0; i < WARM_UP; i++) prober.probe(asleep);
  for (let i = 0; i < samples.length; i++) samples[i] = prober.probe(asleep);
  samples.sort();
  series.p50.push(percentile(samples, 0.5));
  series.p99.push(percentile(samples, 0.99));
}

async function measureMode(
  { client }: Served,
  mode: Mode,
  settings: BenchSettings,
): Promise<Figure[]> {
  const results = new Map<string, Series>();
  for (let turn = 0; turn < count(settings, TURNS, 2); turn++) {
    for (let i = 0; i < mode.ways.length; i++) {
      const way = mode.ways[(i + turn) % mode.ways.length]!;
      await withRam(client, RAM_BYTES, (ram) => {
        using pci = new PciClient(client, { bells: way.bells });
        const virtio = new VirtioDriver(pci, ram.memory, { vectors: 2 });
        try {
          const prober = new Prober(virtio, way);
          for (const asleep of [false, true]) {
            const name = `${way.name}, ${mode.name}, driver ${
              asleep ? "sleeps" : "spins"
            }`;
            const series = results.get(name) ?? { p50: [], p99: [] };
            results.set(name, series);
            takeTurn(prober, asleep, series, settings);
          }
        } finally {
          virtio.reset();
          pci.disableMsix();
        }
      });
    }
  }
  return [...results].flatMap(([name, { p50, p99 }]) => [
    { name: `${name}, p50`, value: median(p50), unit: "µs" },
    { name: `${name}, p99`, value: median(p99), unit: "µs" },
  ]);
}

/** The time from a kick to its completion, by each kind of doorbell. */
export async function benchKick(settings: BenchSettings): Promise<Figure[]> {
  const figures: Figure[] = [];
  for (const mode of MODES) {
    figures.push(
      ...await withDevice(
        mode.device,
        (served) => measureMode(served, mode, settings),
        ["--poll", mode.poll],
      ),
    );
  }
  return figures;
}
