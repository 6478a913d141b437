/**
 * Cost of a packet on the card: driver and device take turns on one thread of this process, with real guest memory and
 * a real event loop, and only the device's turns are timed. A figure is the least of many short slices, so it holds on
 * a machine that does other things too, where two threads that poll each other tell nothing.
 *
 * @module
 */

import { createPciDevice } from "../tests/devices/pci_device.ts";
import type { DeviceContext } from "../mod.ts";
import { EventLoop } from "../src/loop/event_loop.ts";
import { DmaMemory } from "../src/memory/dma_memory.ts";
import { Access } from "../src/memory/guest_memory.ts";
import { PciFunction, PciInterrupts } from "../src/pci/mod.ts";
import { fakeContext, VirtioDriver } from "../src/testing/mod.ts";
import { GuestRam } from "../src/transport/vfio_user/client/mod.ts";
import { LocalPci } from "../tests/devices/local_pci.ts";
import { NetLoad } from "./net_load.ts";
import type { Figure } from "./report.ts";
import { type BenchSettings, seconds } from "./settings.ts";
import { model } from "./source_net.ts";

const RAM_BYTES = 16 * 1024 * 1024;
const FRAME_BYTES = 64;
const WARM_UP_SECONDS = 1.5;
const SECONDS = 2;
const TURNS = 8;
/** Frames that the card moves in a turn; a slice with less is no measure. */
const TURN_FRAMES = 64;

/** A card and its driver in this process; owns both. */
class Bench implements Disposable {
  readonly #owned = new DisposableStack();
  readonly #loop: EventLoop;
  readonly #net: NetLoad;
  /** Makes a turn of the loop end without waiting. */
  readonly #awake: () => void;

  constructor(transmit: boolean, packed: boolean) {
    const ram = this.#owned.use(new GuestRam(RAM_BYTES));
    const memory = this.#owned.use(new DmaMemory());
    memory.map({
      iova: ram.memory.iova,
      lengthBytes: RAM_BYTES,
      access: Access.READ | Access.WRITE,
      fd: ram.fd,
    });
    const loop = this.#owned.use(new EventLoop({ pollMaxUs: Infinity }));
    const interrupts = new PciInterrupts();
    const context: DeviceContext = {
      ...fakeContext(),
      memory,
      loop,
      interrupts,
    };
    const device = createPciDevice(
      model,
      context,
      model.options!.parse({
        frame: transmit ? "0" : `${FRAME_BYTES}`,
        packed: packed ? "on" : "off",
      }),
    );
    this.#owned.defer(() => device.close());
    const pci = new LocalPci(
      new PciFunction(device, memory, interrupts, context.log),
      interrupts,
    );
    const idle = loop.bottomHalf(() => {});
    this.#awake = () => idle.schedule();
    this.#loop = loop;
    this.#net = new NetLoad(new VirtioDriver(pci, ram.memory), {
      pairs: 1,
      packed,
      transmitBytes: transmit ? FRAME_BYTES : 0,
      receive: !transmit,
    });
  }

  /** The least time the card took for a frame in any slice, in nanoseconds. */
  run(forSeconds: number): number {
    let least = Infinity;
    const end = performance.now() + forSeconds * 1000;
    while (performance.now() < end) {
      let frames = 0;
      let ms = 0;
      for (let i = 0; i < TURNS; i++) {
        frames += this.#net.step();
        const start = performance.now();
        this.#awake();
        this.#loop.turn(-1);
        ms += performance.now() - start;
      }
      if (frames < TURNS * TURN_FRAMES) continue;
      least = Math.min(least, ms * 1e6 / frames);
    }
    return least;
  }

  [Symbol.dispose](): void {
    this.#owned.dispose();
  }
}

/** Device time per packet, each way, split and packed. */
export function benchCost(settings: BenchSettings): Promise<Figure[]> {
  const figures: Figure[] = [];
  for (const packed of [false, true]) {
    for (const transmit of [true, false]) {
      using bench = new Bench(transmit, packed);
      bench.run(WARM_UP_SECONDS);
      figures.push({
        name: `virtio-net ${
          transmit ? "transmit" : "receive"
        } ${FRAME_BYTES} B, ${packed ? "packed" : "split"}`,
        value: bench.run(seconds(settings, SECONDS)),
        unit: "ns/packet",
      });
    }
  }
  return Promise.resolve(figures);
}
