import { assertEquals } from "@std/assert";
import { ArrayMemory } from "../../src/memory/array_memory.ts";
import {
  IrqIndex,
  PciFunction,
  PciInterrupts,
  type PciSpec,
} from "../../src/pci/mod.ts";
import { silentLog } from "../../src/core/log.ts";
import {
  allowMastering,
  CAP,
  RecordingDevice,
  RecordingSink,
  sampleSpec,
  words,
} from "./sample.ts";

const { INTX, MSI, MSIX, ERR } = IrqIndex;
const TABLE = 0x800;
const PBA = 0xf00;

/** A function, its interrupts and a client that writes registers. */
class Bench {
  readonly interrupts = new PciInterrupts();
  readonly sink = new RecordingSink();
  readonly device: RecordingDevice;
  readonly function: PciFunction;

  constructor(spec: PciSpec = sampleSpec()) {
    this.device = new RecordingDevice(spec);
    this.function = new PciFunction(
      this.device,
      new ArrayMemory(),
      this.interrupts,
      silentLog,
    );
    this.interrupts.connect(this.sink);
    allowMastering(this.function);
  }

  config16(offset: number, value: number): void {
    assertEquals(this.function.writeRegion(7, offset, words(value), 0, 2), 0);
  }

  read(region: number, offset: number): number {
    const view = words(0);
    assertEquals(this.function.readRegion(region, offset, view, 0, 4), 0);
    return view.getUint32(0, true);
  }

  table(vector: number, control: number): void {
    const offset = TABLE + 16 * vector + 12;
    assertEquals(this.function.writeRegion(1, offset, words(control), 0, 4), 0);
  }

  enableMsix(flags = 0x8000): void {
    this.config16(CAP.MSIX + 2, flags);
  }
}

Deno.test("PciInterrupts.mode follows configuration space, MSI-X before MSI before INTx", () => {
  const bench = new Bench();
  assertEquals(bench.interrupts.mode, "intx");
  bench.config16(CAP.MSI + 2, 1);
  assertEquals(bench.interrupts.mode, "msi");
  bench.enableMsix();
  assertEquals(bench.interrupts.mode, "msix");
  bench.config16(CAP.MSI + 2, 0);
  assertEquals(bench.interrupts.mode, "msix");
  bench.enableMsix(0);
  assertEquals(bench.interrupts.mode, "intx");
});

Deno.test("PciInterrupts.vectorCount tells what the specification has", () => {
  const { interrupts } = new Bench();
  const counts = [INTX, MSI, MSIX, ERR, 4, 99].map((index) =>
    interrupts.vectorCount(index)
  );
  assertEquals(counts, [1, 8, 70, 1, 0, 0]);
  const none = new Bench(sampleSpec({ intx: false, capabilities: [] }));
  assertEquals(
    [INTX, MSI, MSIX].map((index) => none.interrupts.vectorCount(index)),
    [0, 0, 0],
  );
});

Deno.test("PciInterrupts delivers MSI-X though the table was never written", () => {
  const bench = new Bench();
  bench.enableMsix();
  assertEquals(bench.read(1, TABLE + 12), 1, "still says masked");
  bench.interrupts.raise(0);
  bench.interrupts.raise(69);
  assertEquals(bench.sink.take(), [[MSIX, 0], [MSIX, 69]]);
  assertEquals(bench.read(1, PBA), 0);
});

Deno.test("PciInterrupts.raise ignores vectors that are not there and modes without messages", () => {
  const bench = new Bench();
  bench.interrupts.raise(0);
  bench.enableMsix();
  bench.interrupts.raise(70);
  bench.interrupts.raise(-1);
  bench.enableMsix(0);
  bench.config16(CAP.MSI + 2, 1);
  bench.interrupts.raise(8);
  bench.interrupts.raise(-1);
  assertEquals(bench.sink.take(), []);
});

Deno.test("PciInterrupts keeps a vector that a client masked pending until it is unmasked", () => {
  const bench = new Bench();
  bench.enableMsix();
  bench.table(2, 1);
  bench.interrupts.raise(2);
  bench.interrupts.raise(2);
  bench.interrupts.raise(3);
  assertEquals(bench.sink.take(), [[MSIX, 3]]);
  assertEquals(bench.read(1, PBA), 1 << 2);
  bench.table(2, 0);
  assertEquals(bench.sink.take(), [[MSIX, 2]], "once");
  assertEquals(bench.read(1, PBA), 0);
  bench.table(2, 0);
  assertEquals(bench.sink.take(), []);
});

Deno.test("PciInterrupts honours the MSI-X function mask", () => {
  const bench = new Bench();
  bench.enableMsix(0xc000);
  bench.table(5, 1);
  bench.interrupts.raise(1);
  bench.interrupts.raise(5);
  bench.interrupts.raise(65);
  assertEquals(bench.sink.take(), []);
  assertEquals(bench.read(1, PBA), (1 << 1) | (1 << 5));
  assertEquals(bench.read(1, PBA + 8), 2);
  bench.table(1, 0);
  assertEquals(bench.sink.take(), [], "the function is still masked");
  bench.enableMsix(0x8000);
  assertEquals(bench.sink.take(), [[MSIX, 1], [MSIX, 65]]);
  assertEquals(bench.read(1, PBA), 1 << 5, "masked on its own");
});

Deno.test("PciInterrupts.retry delivers what had no eventfd, in the range only", () => {
  const bench = new Bench();
  bench.enableMsix();
  bench.sink.willing = false;
  for (const vector of [1, 2, 3, 69]) bench.interrupts.raise(vector);
  bench.interrupts.retry(MSIX, 0, 70);
  assertEquals(bench.read(1, PBA), 0b1110, "nothing is lost by trying");
  bench.sink.willing = true;
  bench.interrupts.retry(MSI, 0, 70);
  bench.interrupts.retry(INTX, 0, 1);
  assertEquals(bench.sink.take(), []);
  bench.interrupts.retry(MSIX, 2, 2);
  assertEquals(bench.sink.take(), [[MSIX, 2], [MSIX, 3]]);
  bench.interrupts.retry(MSIX, 0, 0xffff_ffff);
  assertEquals(bench.sink.take(), [[MSIX, 1], [MSIX, 69]]);
});

Deno.test("PciInterrupts without a sink keeps messages pending", () => {
  const bench = new Bench();
  bench.enableMsix();
  bench.interrupts.connect(null);
  bench.interrupts.raise(4);
  assertEquals(bench.read(1, PBA), 1 << 4);
  bench.interrupts.connect(bench.sink);
  assertEquals(bench.sink.take(), []);
  bench.interrupts.retry(MSIX, 4, 1);
  assertEquals(bench.sink.take(), [[MSIX, 4]]);
});

Deno.test("PciInterrupts delivers a message raised before MSI-X was disabled once it is enabled again", () => {
  const bench = new Bench();
  bench.enableMsix(0xc000);
  bench.interrupts.raise(7);
  bench.enableMsix(0);
  bench.interrupts.retry(MSIX, 7, 1);
  assertEquals(bench.sink.take(), []);
  bench.enableMsix();
  assertEquals(bench.sink.take(), [[MSIX, 7]]);
});

Deno.test("PciInterrupts MSI masks by register and shows what is pending", () => {
  const bench = new Bench();
  bench.config16(CAP.MSI + 2, 0x31);
  bench.config16(CAP.MSI + 16, 0b101);
  for (const vector of [0, 1, 2, 7]) bench.interrupts.raise(vector);
  assertEquals(bench.sink.take(), [[MSI, 1], [MSI, 7]]);
  assertEquals(bench.read(7, CAP.MSI + 20), 0b101);
  bench.config16(CAP.MSI + 16, 0b100);
  assertEquals(bench.sink.take(), [[MSI, 0]]);
  assertEquals(bench.read(7, CAP.MSI + 20), 0b100);
});

Deno.test("PciInterrupts MSI folds vectors into those that software allocated", () => {
  const bench = new Bench();
  bench.config16(CAP.MSI + 2, 0x11);
  for (const vector of [0, 1, 2, 7]) bench.interrupts.raise(vector);
  assertEquals(bench.sink.take(), [[MSI, 0], [MSI, 1], [MSI, 0], [MSI, 1]]);
});

Deno.test("PciInterrupts MSI waits for an eventfd, vector 31 too", () => {
  const bench = new Bench(
    sampleSpec({ capabilities: [{ kind: "msi", vectors: 32 }] }),
  );
  bench.config16(0x42, 0x51);
  bench.sink.willing = false;
  bench.interrupts.raise(31);
  assertEquals(bench.read(7, 0x54), 0x8000_0000);
  bench.sink.willing = true;
  bench.interrupts.retry(MSI, 31, 1);
  assertEquals(bench.sink.take(), [[MSI, 31]]);
  assertEquals(bench.read(7, 0x54), 0);
});

Deno.test("PciInterrupts.setLevel delivers INTx as it rises and shows it in status", () => {
  const bench = new Bench();
  bench.interrupts.setLevel(true);
  bench.interrupts.setLevel(true);
  assertEquals(bench.sink.take(), [[INTX, 0]]);
  assertEquals(bench.read(7, 4) >>> 16, 0x18);
  bench.interrupts.setLevel(false);
  assertEquals(bench.read(7, 4) >>> 16, 0x10);
  bench.interrupts.setLevel(true);
  assertEquals(bench.sink.take(), [[INTX, 0]]);
});

Deno.test("PciInterrupts.retry delivers INTx again while it is asserted", () => {
  const bench = new Bench();
  bench.interrupts.retry(INTX, 0, 1);
  assertEquals(bench.sink.take(), []);
  bench.sink.willing = false;
  bench.interrupts.setLevel(true);
  bench.sink.willing = true;
  bench.interrupts.retry(INTX, 0, 1);
  bench.interrupts.retry(INTX, 0, 1);
  bench.interrupts.retry(INTX, 0, 0);
  bench.interrupts.retry(INTX, 1, 1);
  assertEquals(bench.sink.take(), [[INTX, 0], [INTX, 0]]);
  bench.interrupts.setLevel(false);
  bench.interrupts.retry(INTX, 0, 1);
  assertEquals(bench.sink.take(), []);
});

Deno.test("PciInterrupts holds INTx back while the command register forbids it", () => {
  const bench = new Bench();
  bench.config16(4, 0x400);
  bench.interrupts.setLevel(true);
  bench.interrupts.retry(INTX, 0, 1);
  assertEquals(bench.sink.take(), []);
  assertEquals(bench.read(7, 4) >>> 16, 0x18, "status follows the level");
  bench.config16(4, 0);
  assertEquals(bench.sink.take(), [[INTX, 0]]);
});

Deno.test("PciInterrupts sends no INTx while messages are enabled, and does so afterwards", () => {
  const bench = new Bench();
  bench.config16(CAP.MSI + 2, 1);
  bench.interrupts.setLevel(true);
  assertEquals(bench.sink.take(), []);
  bench.config16(CAP.MSI + 2, 0);
  assertEquals(bench.sink.take(), [[INTX, 0]]);
});

Deno.test("PciInterrupts without an INTx line ignores the level", () => {
  const bench = new Bench(sampleSpec({ intx: false }));
  bench.interrupts.setLevel(true);
  bench.interrupts.retry(INTX, 0, 1);
  assertEquals(bench.sink.take(), []);
  assertEquals(bench.read(7, 4) >>> 16, 0x10);
});

Deno.test("PciInterrupts before attach takes a level and delivers it later", () => {
  const interrupts = new PciInterrupts();
  assertEquals(interrupts.mode, "intx");
  assertEquals(interrupts.vectorCount(MSIX), 0);
  interrupts.raise(0);
  interrupts.setLevel(true);
  const device = new RecordingDevice();
  const pci = new PciFunction(
    device,
    new ArrayMemory(),
    interrupts,
    silentLog,
  );
  const view = words(0);
  pci.readRegion(7, 4, view, 0, 4);
  assertEquals(view.getUint16(2, true), 0x18);
  const sink = new RecordingSink();
  interrupts.connect(sink);
  interrupts.retry(INTX, 0, 1);
  assertEquals(sink.take(), [[INTX, 0]]);
});

Deno.test("PciInterrupts forgets level, pending vectors and masks on reset, and keeps its sink", () => {
  const bench = new Bench();
  bench.interrupts.setLevel(true);
  bench.config16(CAP.MSI + 2, 1);
  bench.config16(CAP.MSI + 16, 1);
  bench.interrupts.raise(0);
  bench.enableMsix();
  bench.table(1, 1);
  bench.interrupts.raise(1);
  bench.sink.take();
  bench.function.reset("device_reset");
  assertEquals(bench.interrupts.mode, "intx");
  assertEquals(bench.read(7, 4) >>> 16, 0x10);
  assertEquals(bench.read(7, CAP.MSI + 20), 0);
  assertEquals(bench.read(1, PBA), 0);
  assertEquals(bench.read(1, TABLE + 16 + 12), 1);
  bench.interrupts.retry(INTX, 0, 1);
  bench.enableMsix();
  allowMastering(bench.function);
  assertEquals(bench.sink.take(), []);
  bench.interrupts.raise(1);
  assertEquals(bench.sink.take(), [[MSIX, 1]], "the written mask is gone");
});
