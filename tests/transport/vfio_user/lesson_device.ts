/** A device with one of everything that a client can use. */

import type { DeviceState } from "../../../src/core/state_form.ts";
import type { BottomHalf } from "../../../src/loop/event_loop.ts";
import type { DeviceContext } from "../../../src/pci/context.ts";
import type {
  AccessWidth,
  PciDevice,
  PciSpec,
  SharedMemory,
} from "../../../src/pci/device.ts";

/** Registers of BAR 0. */
export const REG = {
  ID: 0x00,
  SCRATCH: 0x04,
  /** A write raises that vector. */
  RAISE: 0x08,
  DMA_LOW: 0x10,
  DMA_HIGH: 0x14,
  DMA_LENGTH: 0x18,
  /** A write inverts the DMA range, then raises vector 0. */
  GO: 0x1c,
  /** Number of times the doorbell rang. */
  RINGS: 0x20,
  /** The first byte of the shared page. */
  SHARED: 0x24,
  /** Result of the last DMA. */
  RESULT: 0x28,
  /** Number of times the device was reset. */
  RESETS: 0x2c,
  /** Not 0 asserts INTA#. */
  LEVEL: 0x30,
  DOORBELL: 0x40,
} as const;

export const LESSON_ID = 0xfeed_c0de;
/** Offset of the shared page in BAR 2. */
export const PAGE = 0x1000;

/** State of a lesson device. */
export interface LessonState {
  readonly registers: readonly number[];
  readonly rings: number;
  readonly resets: number;
  readonly result: number;
  /** True if DMA was asked for and not begun. */
  readonly asked: boolean;
}

export class LessonDevice implements PciDevice {
  readonly spec: PciSpec;
  readonly #context: DeviceContext;
  readonly #page: SharedMemory;
  readonly #go: BottomHalf;
  readonly #registers = new Uint32Array(32);
  #rings = 0;
  #resets = 0;
  #result = 0;
  #asked = false;
  #scheduled = false;
  #held = false;

  constructor(context: DeviceContext) {
    this.#context = context;
    this.#page = context.createSharedMemory("lesson", 4096);
    this.#go = context.loop.bottomHalf(() => this.#invert());
    this.spec = {
      vendorId: 0x1234,
      deviceId: 0x5678,
      revision: 9,
      classCode: 0xff_0000,
      subsystemVendorId: 0x1af4,
      subsystemId: 0x1100,
      intx: true,
      bars: [
        {
          index: 0,
          sizeBytes: 0x1000,
          kind: "memory32",
          doorbells: [{ offset: REG.DOORBELL, sizeBytes: 2 }],
        },
        {
          index: 2,
          sizeBytes: 0x4000,
          kind: "memory64",
          prefetchable: true,
          mmap: [{ offset: PAGE, memory: this.#page }],
        },
        { index: 4, sizeBytes: 0x1000, kind: "memory32" },
        { index: 5, sizeBytes: 0x20, kind: "io" },
      ],
      capabilities: [
        { kind: "pm" },
        {
          kind: "msix",
          vectors: 20,
          tableBar: 4,
          tableOffset: 0,
          pbaBar: 4,
          pbaOffset: 0x800,
        },
      ],
    };
  }

  readBar(bar: number, offset: number, _width: AccessWidth): number {
    if (bar !== 0) return 0;
    switch (offset) {
      case REG.ID:
        return LESSON_ID;
      case REG.RINGS:
        return this.#rings;
      case REG.SHARED:
        return this.#page.bytes[0]!;
      case REG.RESULT:
        return this.#result >>> 0;
      case REG.RESETS:
        return this.#resets;
      default:
        return this.#registers[offset >> 2] ?? 0;
    }
  }

  writeBar(
    bar: number,
    offset: number,
    _width: AccessWidth,
    value: number,
  ): void {
    if (bar !== 0) return;
    if (offset === REG.RAISE) this.#context.interrupts.raise(value);
    else if (offset === REG.LEVEL) {
      this.#context.interrupts.setLevel(value !== 0);
    } else if (offset === REG.GO) this.#ask();
    else if (offset === REG.DOORBELL) this.#rings++;
    else if (offset < 128) this.#registers[offset >> 2] = value;
  }

  ringDoorbell(_bar: number, _doorbell: number): void {
    this.#rings++;
    this.#context.interrupts.raise(1);
  }

  reset(): void {
    this.#go.cancel();
    this.#asked = this.#scheduled = false;
    this.#registers.fill(0);
    this.#rings = 0;
    this.#resets++;
  }

  hold(): number {
    this.#held = true;
    return this.#scheduled ? 1 : 0;
  }

  start(): void {
    this.#held = false;
    if (this.#asked) this.#ask();
  }

  save(): DeviceState<LessonState> {
    const body = {
      registers: [...this.#registers],
      rings: this.#rings,
      resets: this.#resets,
      result: this.#result,
      asked: this.#asked,
    };
    return { kind: "lesson", version: 1, body };
  }

  load(state: unknown): void {
    const { body: saved } = state as DeviceState<LessonState>;
    this.#held = true;
    this.#registers.set(saved.registers);
    this.#rings = saved.rings;
    this.#resets = saved.resets;
    this.#result = saved.result;
    this.#asked = saved.asked;
  }

  close(): void {
    this.#go.cancel();
  }

  #ask(): void {
    this.#asked = true;
    if (this.#held) return;
    this.#scheduled = true;
    this.#go.schedule();
  }

  #invert(): void {
    this.#asked = this.#scheduled = false;
    const low = this.#registers[REG.DMA_LOW >> 2]!;
    const high = this.#registers[REG.DMA_HIGH >> 2]!;
    const iova = high * 2 ** 32 + low;
    const data = new Uint8Array(this.#registers[REG.DMA_LENGTH >> 2]!);
    this.#result = this.#context.memory.read(iova, data);
    if (this.#result === 0) {
      this.#result = this.#context.memory.write(
        iova,
        data.map((byte) => byte ^ 0xff),
      );
    }
    this.#context.interrupts.raise(0);
  }
}
