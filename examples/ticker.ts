/**
 * A complete PCI device in one file: a timer that counts ticks and interrupts.
 *
 * Run it with `deno run -A mod.ts --device ./examples/ticker.ts --socket /tmp/ticker.sock`.
 *
 * BAR 0 (4 KiB of registers, 32 bits each):
 *
 * | offset | name     | access | meaning                                            |
 * | ------ | -------- | ------ | -------------------------------------------------- |
 * | 0x00   | ID       | read   | 0x4b434954, "TICK"                                 |
 * | 0x04   | INTERVAL | r/w    | milliseconds between ticks, 0 stops                |
 * | 0x08   | COUNT    | read   | ticks since reset                                  |
 * | 0x0c   | STATUS   | w1c    | bit 0: a tick happened; holds INTA# until cleared  |
 *
 * BAR 2 (4 KiB) is memory that the VMM may map: the guest reads and writes it without asking us.
 *
 * @module
 */

import {
  type AccessWidth,
  type DeviceContext,
  type DeviceModel,
  type Infer,
  integer,
  options,
  type PciDevice,
  type PciSpec,
  type SharedMemory,
  type Timer,
} from "../mod.ts";

const Register = { ID: 0x00, INTERVAL: 0x04, COUNT: 0x08, STATUS: 0x0c };
const ID = 0x4b43_4954;
const STATUS_TICKED = 1;

const OPTIONS = options({
  leastMs: integer("least", {
    syntax: "milliseconds",
    help: "the shortest interval, whatever the driver asks for",
    min: 1,
    max: 1000,
    default: "1",
  }),
});

type TickerOptions = Infer<typeof OPTIONS>;

class Ticker implements PciDevice {
  readonly spec: PciSpec;
  readonly #context: DeviceContext;
  readonly #timer: Timer;
  readonly #scratch: SharedMemory;
  readonly #leastMs: number;
  #intervalMs = 0;
  #count = 0;
  #status = 0;

  constructor(context: DeviceContext, { leastMs }: TickerOptions) {
    this.#context = context;
    this.#leastMs = leastMs;
    this.#timer = context.loop.timer(() => this.#tick());
    this.#scratch = context.createSharedMemory("ticker-scratch", 4096);
    this.spec = {
      vendorId: 0x1234, // not assigned; common in teaching devices
      deviceId: 0x7469,
      revision: 1,
      classCode: 0x088000, // base system peripheral, other
      subsystemVendorId: 0x1234,
      subsystemId: 1,
      intx: true,
      bars: [
        { index: 0, sizeBytes: 4096, kind: "memory32" },
        {
          index: 2,
          sizeBytes: 4096,
          kind: "memory32",
          mmap: [{ offset: 0, memory: this.#scratch }],
        },
      ],
      capabilities: [{ kind: "pm" }, { kind: "msi", vectors: 1 }],
    };
  }

  readBar(_bar: number, offset: number, _width: AccessWidth): number {
    switch (offset) {
      case Register.ID:
        return ID;
      case Register.INTERVAL:
        return this.#intervalMs;
      case Register.COUNT:
        return this.#count;
      case Register.STATUS:
        return this.#status;
      default:
        return 0;
    }
  }

  writeBar(
    _bar: number,
    offset: number,
    width: AccessWidth,
    value: number,
  ): void {
    if (width !== 4) return;
    switch (offset) {
      case Register.INTERVAL:
        this.#intervalMs = value;
        if (value === 0) this.#timer.cancel();
        else this.#arm();
        return;
      case Register.STATUS:
        this.#status &= ~value;
        if (this.#status === 0) this.#context.interrupts.setLevel(false);
        return;
    }
  }

  #tick(): void {
    this.#count = (this.#count + 1) >>> 0;
    this.#status |= STATUS_TICKED;
    const { interrupts } = this.#context;
    if (interrupts.mode === "msi") interrupts.raise(0);
    else interrupts.setLevel(true);
    this.#arm();
  }

  #arm(): void {
    this.#timer.arm(Math.max(this.#intervalMs, this.#leastMs));
  }

  reset(): void {
    this.#timer.cancel();
    this.#intervalMs = 0;
    this.#count = 0;
    this.#status = 0;
    this.#scratch.bytes.fill(0);
  }

  close(): void {
    this.#timer.close();
  }
}

/** The model: `--device ./examples/ticker.ts`. */
export const model: DeviceModel<TickerOptions> = {
  name: "ticker",
  help: "a timer that counts and interrupts",
  options: OPTIONS,
  create: (context, options) => new Ticker(context, options),
};
