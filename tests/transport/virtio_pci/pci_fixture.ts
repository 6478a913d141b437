/** A virtio-pci device with the echo device behind it, and a driver that writes its registers by number. */

import { ArrayMemory } from "../../../src/memory/array_memory.ts";
import {
  type FakeContext,
  fakeContext,
} from "../../../src/testing/fake_context.ts";
import {
  VirtioPci,
  type VirtioPciOptions,
} from "../../../src/transport/virtio_pci/virtio_pci.ts";
import { EchoDevice } from "../../virtio/echo_device.ts";
import { NaiveRing } from "../../virtio/naive_ring.ts";
import { BASE, LENGTH } from "../../virtio/ring_fixture.ts";

// Offsets by the standard (4.1.4.3), not by src/.
export const REG = {
  deviceFeatureSelect: 0,
  deviceFeature: 4,
  driverFeatureSelect: 8,
  driverFeature: 12,
  configVector: 16,
  numQueues: 18,
  status: 20,
  configGeneration: 21,
  queueSelect: 22,
  queueSize: 24,
  queueVector: 26,
  queueEnable: 28,
  queueNotifyOff: 30,
  queueDesc: 32,
  queueDriver: 40,
  queueDevice: 48,
  queueNotifyData: 56,
  queueReset: 58,
  adminIndex: 60,
  adminNum: 62,
} as const;

export const ISR = 0x1000;
export const DEVICE = 0x2000;
export const NOTIFY = 0x3000;

export const STATUS = {
  ACKNOWLEDGE: 1,
  DRIVER: 2,
  DRIVER_OK: 4,
  FEATURES_OK: 8,
  NEEDS_RESET: 64,
  FAILED: 128,
} as const;

export const EVENT_IDX = 29;
export const RING_RESET = 40;
const VERSION_1 = 32;

export class PciDriver {
  readonly context: FakeContext;
  readonly buffer: ArrayBuffer;
  readonly pci: VirtioPci;
  readonly device: EchoDevice;
  readonly #made: [
    options: VirtioPciOptions,
    queueSizes: readonly number[] | undefined,
    configLengthBytes: number | undefined,
  ];

  constructor(
    options: VirtioPciOptions = {},
    queueSizes?: readonly number[],
    configLengthBytes?: number,
    from?: PciDriver,
  ) {
    const memory = from?.context.memory ?? new ArrayMemory([]);
    this.buffer = from?.buffer ??
      memory.map({ iova: BASE, lengthBytes: LENGTH });
    this.#made = [options, queueSizes, configLengthBytes];
    this.context = fakeContext({ memory });
    let device: EchoDevice | undefined;
    this.pci = new VirtioPci(this.context, (transport) => {
      device = new EchoDevice(
        this.context,
        transport,
        queueSizes,
        configLengthBytes,
      );
      device.makeMovable();
      return device;
    }, options);
    this.device = device!;
  }

  /** A device of the same shape on the same memory, as it was made. */
  sibling(options: VirtioPciOptions = {}): PciDriver {
    const [made, queueSizes, configLengthBytes] = this.#made;
    return new PciDriver(
      { ...made, ...options },
      queueSizes,
      configLengthBytes,
      this,
    );
  }

  r8(offset: number): number {
    return this.pci.readBar(4, offset, 1);
  }

  r16(offset: number): number {
    return this.pci.readBar(4, offset, 2);
  }

  r32(offset: number): number {
    return this.pci.readBar(4, offset, 4);
  }

  w8(offset: number, value: number): void {
    this.pci.writeBar(4, offset, 1, value);
  }

  w16(offset: number, value: number): void {
    this.pci.writeBar(4, offset, 2, value);
  }

  w32(offset: number, value: number): void {
    this.pci.writeBar(4, offset, 4, value);
  }

  get status(): number {
    return this.r8(REG.status);
  }

  /** Steps 1 to 6 of 3.1.1; returns whether FEATURES_OK stuck. */
  negotiate(bits: readonly number[]): boolean {
    this.w8(REG.status, 0);
    this.w8(REG.status, STATUS.ACKNOWLEDGE);
    this.w8(REG.status, STATUS.ACKNOWLEDGE | STATUS.DRIVER);
    for (const select of [0, 1, 2, 3]) {
      let word = 0;
      for (const bit of bits) {
        if (bit >> 5 === select) word += 2 ** (bit & 31);
      }
      this.w32(REG.driverFeatureSelect, select);
      this.w32(REG.driverFeature, word);
    }
    this.w8(REG.status, 11);
    return (this.status & STATUS.FEATURES_OK) !== 0;
  }

  /** Sets up a queue in a part of guest memory of its own. */
  setupQueue(
    index: number,
    options: { size?: number; eventIdx?: boolean; vector?: number } = {},
  ): NaiveRing {
    this.w16(REG.queueSelect, index);
    if (options.size !== undefined) this.w16(REG.queueSize, options.size);
    const size = this.r16(REG.queueSize);
    const at = BASE + index * 0x1_0000;
    const places = { desc: at, avail: at + 0x4000, used: at + 0x8000 };
    new Uint8Array(this.buffer, at - BASE, 0x1_0000).fill(0);
    this.w32(REG.queueDesc, places.desc);
    this.w32(REG.queueDesc + 4, 0);
    this.w32(REG.queueDriver, places.avail);
    this.w32(REG.queueDriver + 4, 0);
    this.w32(REG.queueDevice, places.used);
    this.w32(REG.queueDevice + 4, 0);
    this.w16(REG.queueVector, options.vector ?? index + 1);
    this.w16(REG.queueEnable, 1);
    return new NaiveRing(
      this.buffer,
      BASE,
      size,
      places,
      options.eventIdx ?? false,
    );
  }

  driverOk(): void {
    this.w8(REG.status, 15);
  }

  kick(index: number): void {
    this.w16(NOTIFY + 4 * index, index);
  }

  /** A running device with both queues. */
  start(bits: readonly number[] = [VERSION_1, RING_RESET]): NaiveRing[] {
    if (!this.negotiate(bits)) throw new Error("FEATURES_OK was refused");
    this.w16(REG.configVector, 0);
    const rings = [
      this.setupQueue(0, { eventIdx: bits.includes(EVENT_IDX) }),
      this.setupQueue(1, { eventIdx: bits.includes(EVENT_IDX) }),
    ];
    this.driverOk();
    this.context.loop.settle();
    this.context.interrupts.take();
    return rings;
  }
}
