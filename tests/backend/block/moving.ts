/**
 * A storage device that moves as it does between threads: to a loop, a mapping of guest memory and a context that its
 * predecessor knew nothing of, with plain data alone.
 *
 * @module
 */

import { ResourceBag } from "../../../src/os/mod.ts";
import { createPciDevice } from "../../devices/pci_device.ts";
import { assertEquals } from "@std/assert";
import {
  decodePlainData,
  encodePlainData,
} from "../../../src/core/plain_data.ts";
import type { DeviceState } from "../../../src/core/state_form.ts";
import type { DeviceModel } from "../../../devices/model.ts";
import type { BlockOptions } from "../../../src/backend/block/options.ts";
import { EventLoop } from "../../../src/loop/event_loop.ts";
import { createMemfd, Mapping } from "../../../src/os/mod.ts";
import { DmaMemory } from "../../../src/memory/dma_memory.ts";
import { Access } from "../../../src/memory/guest_memory.ts";
import type { DeviceContext, Interrupts } from "../../../src/pci/context.ts";
import type { PciDevice, SharedMemory } from "../../../src/pci/device.ts";
import { DriverMemory } from "../../../src/testing/driver_memory.ts";
import {
  CountedWrites,
  RecordingLog,
} from "../../../src/testing/fake_context.ts";
import { turnUntil } from "./rig.ts";

export const RAM_IOVA = 0x1_0000_0000;
const RAM_BYTES = 16 << 20;

/** Options of storage, with every access of a file through its ring: done in a later turn of the loop. */
export function throughRing(block: BlockOptions): BlockOptions {
  return block.kind === "file" ? { ...block, engine: "ring" } : block;
}

/** A state without what only the clock tells. */
function timeless(state: unknown): unknown {
  return JSON.parse(
    JSON.stringify(state, (key, value) => key === "poweredMs" ? 0 : value),
  );
}

/** Place where a device lives for a while. */
class Place {
  readonly loop = new EventLoop();
  readonly memory = new DmaMemory();
  readonly context: DeviceContext;

  constructor(fd: number, interrupts: Interrupts, shared: SharedMemory[]) {
    this.memory.map({
      iova: RAM_IOVA,
      lengthBytes: RAM_BYTES,
      access: Access.READ | Access.WRITE,
      fd,
    });
    let made = 0;
    this.context = {
      memory: this.memory,
      interrupts,
      loop: this.loop,
      posted: new CountedWrites(),
      log: new RecordingLog(),
      random: (lengthBytes) =>
        crypto.getRandomValues(new Uint8Array(lengthBytes)),
      onStart: (tell) => tell(true),
      // The first place makes what the others find, as clients keep it mapped.
      createSharedMemory: (_name, lengthBytes) =>
        shared[made++] ??= { bytes: new Uint8Array(lengthBytes) },
    };
  }

  close(): void {
    this.loop.close();
    this.memory.close();
  }
}

/** A device on its way. */
export interface Left {
  readonly state: DeviceState;
  /** Descriptors by name. */
  readonly given: Readonly<Record<string, number>>;
}

/** The device, wherever it is. */
export class Moving<Options> implements Disposable {
  readonly ram: DriverMemory;
  /** Device as its driver sees it: the same all the time. */
  readonly device: PciDevice;
  readonly model: DeviceModel<Options>;
  readonly options: Options;
  moves = 0;
  /** Moves before which commands were in flight. */
  busyMoves = 0;
  readonly #fd = createMemfd("moving-ram", RAM_BYTES);
  readonly #view: Mapping;
  readonly #shared: SharedMemory[] = [];
  readonly #interrupts: Interrupts;
  #place: Place;
  #current: PciDevice;

  constructor(
    model: DeviceModel<Options>,
    options: Options,
    interrupts: Interrupts,
  ) {
    this.model = model;
    this.options = options;
    this.#interrupts = interrupts;
    this.#view = new Mapping({ fd: this.#fd.number, lengthBytes: RAM_BYTES });
    this.ram = new DriverMemory(this.#view.buffer, RAM_IOVA);
    this.#place = new Place(this.#fd.number, interrupts, this.#shared);
    this.#current = createPciDevice(
      model,
      this.#place.context,
      this.options,
    );
    this.device = {
      spec: this.#current.spec,
      readBar: (bar, offset, width) =>
        this.#current.readBar(bar, offset, width),
      writeBar: (bar, offset, width, value) =>
        this.#current.writeBar(bar, offset, width, value),
      reset: (reason) => this.#current.reset(reason),
      close: () => {},
    };
  }

  /** The device where it is now. */
  get current(): PciDevice {
    return this.#current;
  }

  /** Guest memory as its function sees it: at each place, the driver always allows access. */
  readonly memory = { accessible: true };

  /** Of the place where the device is now. */
  get context(): DeviceContext {
    return this.#place.context;
  }

  get loop(): EventLoop {
    return this.#place.loop;
  }

  /** Memory that clients may map, in the order in which it was made. */
  get shared(): readonly SharedMemory[] {
    return this.#shared;
  }

  count(name: string): number {
    return this.#current.counters!()[name]!;
  }

  /** Does what there is to do at once. */
  settle(): void {
    while (this.loop.turn(0));
  }

  until(done: () => boolean): void {
    turnUntil(this.loop, done);
  }

  /** Turns until nothing is in flight. */
  hold(): void {
    if (this.#current.hold!() > 0) this.busyMoves++;
    this.until(() => this.#current.hold!() === 0);
  }

  /** State and what was opened, as they arrive; the device is gone from where it was. */
  leave(): Left {
    this.moves++;
    const saved = this.#current.save!();
    assertEquals(timeless(this.#current.save!()), timeless(saved));
    const state = decodePlainData(encodePlainData(saved)) as DeviceState;
    const bag = ResourceBag.of();
    this.#current.handOver!(bag);
    this.#current.close();
    return { state, given: structuredClone(bag.release()) };
  }

  /** A place for it to go to; the old one is given up. */
  changePlace(): void {
    const old = this.#place;
    this.#place = new Place(this.#fd.number, this.#interrupts, this.#shared);
    old.close();
  }

  /** Makes the device anew from what it was; a failure leaves what was given. */
  arrive(
    given: Left["given"],
    state: DeviceState,
    options = this.options,
  ): void {
    const bag = ResourceBag.of(given);
    let next: PciDevice | undefined;
    try {
      next = createPciDevice(
        this.model,
        ...[this.#place.context, options, { state, bag }] as const,
      );
      next.load!(state);
    } catch (error) {
      bag.release();
      if (next !== undefined) {
        using unwanted = ResourceBag.of();
        next.handOver!(unwanted);
        next.close();
      }
      throw error;
    }
    bag[Symbol.dispose]();
    this.#current = next;
    assertEquals(timeless(next.save!()), timeless(state));
    next.start!();
  }

  /** All of it. */
  move(): void {
    this.hold();
    const { state, given } = this.leave();
    this.changePlace();
    this.arrive(given, state);
  }

  [Symbol.dispose](): void {
    this.#current.close();
    this.#place.close();
    this.#view.close();
    this.#fd.close();
  }
}
