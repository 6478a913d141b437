import { createPciDevice } from "../devices/pci_device.ts";
import { SocketWrites } from "../../src/pci/socket_writes.ts";
import { assert, assertEquals } from "@std/assert";
import { loadModel } from "../../devices/registry.ts";
import { EventLoop } from "../../src/loop/event_loop.ts";
import { createEventFd } from "../../src/os/mod.ts";
import { silentLog } from "../../src/core/log.ts";
import { DmaMemory } from "../../src/memory/dma_memory.ts";
import {
  type PciDevice,
  PciFunction,
  PciInterrupts,
} from "../../src/pci/mod.ts";
import type { DeviceModel } from "../../devices/model.ts";
import { DeviceThreads } from "../../src/runtime/device_threads.ts";
import { QueueSite } from "../../src/runtime/queue_site.ts";
import {
  createCallLine,
  createMailbox,
  ThreadCalls,
} from "../../src/runtime/iothread/thread_calls.ts";
import { fakeContext } from "../../src/testing/fake_context.ts";
import { type DriverQueue, VirtioDriver } from "../../src/testing/mod.ts";
import { GuestRam } from "../../src/transport/vfio_user/client/mod.ts";
import { LocalPci } from "../devices/local_pci.ts";

const VIRTIO_BLK_F_MQ = 12;
const VIRTIO_F_RING_RESET = 40;
// Offsets by the standard (4.1.4.3).
const QUEUE_SELECT = 0x16;
const QUEUE_RESET = 0x3a;
const NEEDS_RESET = 0x40;
const VECTORS = 3;

/** A disk with a queue here and one on another thread, in one thread: each has a loop that a test turns by hand. */
class Rig implements Disposable {
  readonly control = new EventLoop();
  readonly other = new EventLoop();
  readonly pci: LocalPci;
  readonly function: PciFunction;
  readonly driver: VirtioDriver;
  queues: readonly DriverQueue[] = [];
  readonly #memory = new DmaMemory();
  readonly #ram = new GuestRam(1 << 20);
  readonly #fd = createEventFd();
  readonly #calls = new ThreadCalls(
    this.control,
    createMailbox(this.#fd.number),
  );
  readonly #device: PciDevice;
  readonly #threads: DeviceThreads;
  readonly #site: QueueSite;

  constructor(model: DeviceModel, vectors: number) {
    const line = createCallLine();
    const { mailbox } = this.#calls;
    const parts = {
      model,
      options: model.options!.parse({ memory: "1M", queues: "2" }),
    };
    this.#site = new QueueSite({
      ...parts,
      loop: this.other,
      log: silentLog,
      calls: this.#calls,
      line,
      control: mailbox,
    });
    const interrupts = new PciInterrupts();
    const context = {
      ...fakeContext(),
      memory: this.#memory,
      interrupts,
      loop: this.control,
    };
    this.#device = createPciDevice(model, context, parts.options);
    this.#threads = new DeviceThreads({
      memory: this.#memory,
      interrupts,
      sharedMemory: [],
      writes: new SocketWrites(),
      calls: this.#calls,
      plan: { turns: [0, 1], threads: [{ iothread: 1, mailbox, line }] },
    });
    this.#device.place!(this.#threads);
    this.function = new PciFunction(
      this.#device,
      this.#memory,
      interrupts,
      silentLog,
    );
    this.pci = new LocalPci(this.function, interrupts);
    const { iova, lengthBytes } = this.#ram.memory;
    const { fd } = this.#ram;
    this.#memory.map({ iova, lengthBytes, access: 3, fd });
    this.driver = new VirtioDriver(this.pci, this.#ram.memory, { vectors });
    this.start();
  }

  start(): void {
    const { driver } = this;
    driver.negotiate([VIRTIO_BLK_F_MQ, VIRTIO_F_RING_RESET]);
    this.queues = [0, 1].map((i) =>
      driver.setupQueue(i, driver.lines === null ? {} : { vector: i + 1 })
    );
    driver.driverOk();
    this.settle(this.control, this.other);
    this.pci.raised.length = 0;
    driver.readIsr();
  }

  /** Makes a request, of which the disk says that it is unsupported, and has it carried out where its queue is. */
  request(queue: DriverQueue): void {
    const { memory } = this.driver;
    const header = memory.alloc(32, 16);
    memory.view.setUint32(memory.offset(header), 0x7777, true);
    assert(queue.ring.begin(2));
    queue.ring.readable(header, 16);
    queue.ring.writable(header + 16, 1);
    queue.ring.end();
    queue.flush();
    this.settle(this.other);
    assert(queue.ring.hasUsed);
  }

  /** Breaks the rules: more chains are available than the queue has entries. */
  breakRules(queue: DriverQueue): void {
    const { view } = this.driver.memory;
    const index = this.driver.memory.offset(queue.ring.availIova) + 2;
    view.setUint16(index, queue.ring.size + 44, true);
    queue.kick();
    this.settle(this.other);
  }

  settle(...loops: EventLoop[]): void {
    while (loops.map((loop) => loop.turn(0)).includes(true));
  }

  [Symbol.dispose](): void {
    this.#device.close();
    this.#threads[Symbol.dispose]();
    this.#site[Symbol.dispose]();
    this.#memory.close();
    this.#calls.close();
    this.control.close();
    this.other.close();
    this.#fd.close();
    this.#ram.close();
  }
}

const model = await loadModel("virtio-blk");

Deno.test("a device hears of a failure on a queue thread", () => {
  using rig = new Rig(model, VECTORS);
  rig.breakRules(rig.queues[1]!);
  rig.settle(rig.control);
  assertEquals(rig.driver.status & NEEDS_RESET, NEEDS_RESET);
  rig.start();
  rig.request(rig.queues[1]!);
  rig.settle(rig.control);
  assertEquals(rig.pci.raised[2], 1);
});

for (const how of ["status 0", "a reset of the function"] as const) {
  const reset = ({ driver, function: pci }: Rig) =>
    how === "status 0" ? driver.status = 0 : pci.reset("device_reset");

  Deno.test(`a device is reset by ${how} though a queue thread failed just before`, () => {
    using rig = new Rig(model, VECTORS);
    rig.breakRules(rig.queues[1]!);
    // The device has not heard of it when the driver resets the device.
    reset(rig);
    assertEquals(rig.driver.status, 0);
    rig.settle(rig.control, rig.other);
    assertEquals(rig.driver.status, 0);
  });

  Deno.test(`a device raises nothing after ${how} for buffers that a queue thread used before`, () => {
    for (const vectors of [0, VECTORS]) {
      using rig = new Rig(model, vectors);
      rig.request(rig.queues[1]!);
      reset(rig);
      rig.pci.raised.length = 0;
      rig.settle(rig.control, rig.other);
      assertEquals(rig.pci.raised, []);
      assertEquals(rig.driver.readIsr(), 0);
    }
  });
}

Deno.test("a device raises the interrupt of a queue thread before the queue is reset", () => {
  using rig = new Rig(model, VECTORS);
  rig.request(rig.queues[1]!);
  rig.driver.writeCommon(QUEUE_SELECT, 2, 1);
  rig.driver.writeCommon(QUEUE_RESET, 2, 1);
  assertEquals(rig.pci.raised[2], 1);
  rig.settle(rig.control, rig.other);
  assertEquals(rig.pci.raised[2], 1);
});
