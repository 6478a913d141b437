import { assertEquals, assertStrictEquals, assertThrows } from "@std/assert";
import { Errno, ErrnoError } from "../../src/core/errno.ts";
import { type Log, silentLog } from "../../src/core/log.ts";
import { ArrayMemory } from "../../src/memory/array_memory.ts";
import { PciFunction, PciInterrupts } from "../../src/pci/mod.ts";
import {
  CAP,
  patternByte,
  RecordingDevice,
  RecordingSink,
  sampleBars,
  sampleSpec,
  words,
} from "./sample.ts";

function setUp(device = new RecordingDevice()) {
  const interrupts = new PciInterrupts();
  const pci = new PciFunction(
    device,
    new ArrayMemory(),
    interrupts,
    silentLog,
  );
  return { device, interrupts, pci };
}

function bytes(...values: number[]): DataView {
  return new DataView(Uint8Array.from(values).buffer);
}

Deno.test("PciFunction.regionSizeBytes is the BAR sizes, and 4096 for configuration space", () => {
  const { pci } = setUp();
  const sizes = Array.from({ length: 10 }, (_, i) => pci.regionSizeBytes(i));
  assertEquals(sizes, [0x1000, 0x1000, 0x20, 0, 2 ** 34, 0, 0, 4096, 0, 0]);
  assertEquals(pci.regionSizeBytes(-1), 0);
});

Deno.test("PciFunction.bar finds BARs by region", () => {
  const { pci, device } = setUp();
  assertStrictEquals(pci.bar(4), device.spec.bars[3]);
  assertEquals(pci.bar(5), undefined);
  assertEquals(pci.bar(7), undefined);
});

Deno.test("PciFunction refuses a specification that is not sound", () => {
  const device = new RecordingDevice(sampleSpec({ vendorId: 0xffff }));
  assertThrows(() => setUp(device), ErrnoError, "Cannot use vendorId");
});

Deno.test("PciFunction.readRegion splits into aligned accesses of at most 4 bytes", () => {
  const { pci, device } = setUp();
  const view = new DataView(new ArrayBuffer(16));
  assertEquals(pci.readRegion(0, 0x101, view, 2, 12), 0);
  assertEquals(device.seen.map(({ offset, width }) => [offset, width]), [
    ...[[0x101, 1], [0x102, 2], [0x104, 4], [0x108, 4], [0x10c, 1]],
  ]);
  const got = Array.from({ length: 16 }, (_, i) => view.getUint8(i));
  const expected = Array.from({ length: 12 }, (_, i) => patternByte(0x101 + i));
  assertEquals(got, [0, 0, ...expected, 0, 0]);
});

Deno.test("PciFunction.writeRegion passes widths and values, 64 bits as two halves", () => {
  const { pci, device } = setUp();
  const view = words(0x8765_4321, 0xdead_beef);
  for (const count of [1, 2, 4, 8]) pci.writeRegion(0, 0x40, view, 0, count);
  pci.writeRegion(4, 0x3_0000_0006, view, 4, 4);
  assertEquals(device.seen.map((it) => [it.offset, it.width, it.value]), [
    [0x40, 1, 0x21],
    [0x40, 2, 0x4321],
    [0x40, 4, 0x8765_4321],
    [0x40, 4, 0x8765_4321],
    [0x44, 4, 0xdead_beef],
    [0x3_0000_0006, 2, 0xbeef],
    [0x3_0000_0008, 2, 0xdead],
  ]);
  assertEquals(device.seen.map(({ bar }) => bar), [0, 0, 0, 0, 0, 4, 4]);
});

Deno.test("PciFunction refuses what is not inside a region, and touches nothing", () => {
  const { pci, device } = setUp();
  const view = words(1, 2);
  const bad: [region: number, offset: number, at: number, count: number][] = [
    [0, 0x1000, 0, 1],
    [0, 0xffd, 0, 4],
    [0, -1, 0, 1],
    [0, NaN, 0, 1],
    [0, Infinity, 0, 1],
    [0, 2 ** 64, 0, 1],
    [0, 0, 0, -1],
    [0, 0, 6, 4],
    [0, 0, -1, 1],
    [2, 0x20, 0, 1],
    [3, 0, 0, 1],
    [4, 2 ** 34 - 2, 0, 4],
    [5, 0, 0, 4],
    [5, 0, 0, 0],
    [6, 0, 0, 4],
    [7, 4096, 0, 1],
    [7, 4093, 0, 4],
    [8, 0, 0, 4],
    [-1, 0, 0, 4],
    [0.5, 0, 0, 4],
  ];
  for (const [region, offset, at, count] of bad) {
    const what = `${region} ${offset} ${at} ${count}`;
    const { EINVAL } = Errno;
    assertEquals(
      pci.readRegion(region, offset, view, at, count),
      -EINVAL,
      what,
    );
    assertEquals(
      pci.writeRegion(region, offset, view, at, count),
      -EINVAL,
      what,
    );
  }
  assertEquals(device.seen, []);
});

Deno.test("PciFunction accepts the last bytes of each region and empty transfers", () => {
  const { pci } = setUp();
  const view = words(0);
  assertEquals(pci.readRegion(0, 0xffc, view, 0, 4), 0);
  assertEquals(pci.readRegion(2, 0x1f, view, 0, 1), 0);
  assertEquals(pci.readRegion(4, 2 ** 34 - 4, view, 0, 4), 0);
  assertEquals(pci.readRegion(7, 4092, view, 0, 4), 0);
  assertEquals(pci.writeRegion(7, 4092, view, 0, 4), 0);
  assertEquals(pci.readRegion(0, 0x1000, view, 4, 0), 0);
});

Deno.test("PciFunction serves the MSI-X table and PBA, and leaves their neighbours to the model", () => {
  const { pci, device } = setUp();
  const view = words(0xfee0_0000, 0, 0x4021, 0);
  // Entry 1, 8 bytes at a time.
  pci.writeRegion(1, 0x810, view, 0, 8);
  pci.writeRegion(1, 0x818, view, 8, 8);
  const got = words(9, 9, 9, 9);
  pci.readRegion(1, 0x810, got, 0, 16);
  assertEquals(
    [0, 4, 8, 12].map((at) => got.getUint32(at, true)),
    [0xfee0_0000, 0, 0x4021, 0],
  );
  assertEquals(device.seen, []);
  pci.readRegion(1, 0x7fc, got, 0, 8);
  assertEquals(got.getUint32(4, true), 0, "entry 0");
  // 70 vectors end at 0xc60, their pending bits at 0xf10.
  pci.readRegion(1, 0xc5c, got, 0, 8);
  assertEquals(got.getUint32(0, true), 1, "control of entry 69");
  pci.readRegion(1, 0xefc, got, 0, 4);
  pci.readRegion(1, 0xf10, got, 0, 4);
  assertEquals(
    device.seen.map(({ offset }) => offset),
    [0x7fc, 0xc60, 0xefc, 0xf10],
  );
});

Deno.test("PciFunction ignores writes to the PBA and reads it in any width", () => {
  const { pci, interrupts, device } = setUp();
  pci.writeRegion(7, CAP.MSIX + 2, words(0xc000), 0, 2);
  interrupts.raise(9);
  pci.writeRegion(1, 0xf00, words(0, 0xffff_ffff), 0, 8);
  const view = words(0, 9);
  pci.readRegion(1, 0xf00, view, 0, 8);
  assertEquals(view.getUint32(0, true), 1 << 9);
  assertEquals(view.getUint32(4, true), 0);
  pci.readRegion(1, 0xf01, view, 0, 1);
  assertEquals(view.getUint8(0), 2);
  assertEquals(device.seen, []);
});

Deno.test("PciFunction serves mmap areas from their bytes, in the middle of a larger buffer too", () => {
  const whole = new Uint8Array(4 * 4096);
  const memory = { bytes: whole.subarray(4096, 3 * 4096) };
  const bars = sampleBars().map((bar) =>
    bar.index === 4 ? { ...bar, mmap: [{ offset: 0x4000, memory }] } : bar
  );
  const { pci, device } = setUp(new RecordingDevice(sampleSpec({ bars })));
  pci.writeRegion(4, 0x4ffe, words(0x4433_2211, 0x8877_6655), 0, 8);
  assertEquals(
    [...whole.subarray(4096 + 0xffe, 4096 + 0x1006)],
    [0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88],
  );
  memory.bytes[0x1fff] = 0x5a;
  const view = words(0, 0);
  pci.readRegion(4, 0x5fff, view, 0, 2);
  assertEquals(view.getUint8(0), 0x5a);
  assertEquals(device.seen, [
    { op: "read", bar: 4, offset: 0x6000, width: 1 },
  ]);
});

Deno.test("PciFunction serves BARs while the command register has decoding off", () => {
  const { pci, device } = setUp();
  const view = words(0);
  pci.readRegion(7, 4, view, 0, 4);
  assertEquals(view.getUint16(0, true), 0);
  assertEquals(pci.readRegion(0, 0, view, 0, 4), 0);
  assertEquals(device.seen.length, 1);
});

Deno.test("PciFunction takes configuration writes of any alignment and length", () => {
  const { pci } = setUp();
  // Offset 0x3a to 0x3c: two reserved bytes and the interrupt line.
  assertEquals(pci.writeRegion(7, 0x3a, bytes(0xff, 0xff, 0x0b), 0, 3), 0);
  const view = words(0, 0);
  assertEquals(pci.readRegion(7, 0x39, view, 1, 7), 0);
  assertEquals(
    Array.from({ length: 8 }, (_, i) => view.getUint8(i)),
    [0, 0, 0, 0, 0x0b, 1, 0, 0],
  );
  const all = new DataView(new ArrayBuffer(4096));
  assertEquals(pci.readRegion(7, 0, all, 0, 4096), 0);
  assertEquals(all.getUint16(0, true), 0x1af4);
  assertEquals(pci.writeRegion(7, 0, all, 0, 4096), 0);
});

Deno.test("PciFunction resets on a function level reset, after the write, everything before the model", () => {
  const { pci, device, interrupts } = setUp();
  pci.writeRegion(7, 0x10, words(0xfebd_0000), 0, 4);
  pci.writeRegion(7, CAP.MSIX + 2, words(0x8000), 0, 2);
  let seenByModel = "";
  device.onReset = () => {
    const view = words(0, 0);
    pci.readRegion(7, 0x10, view, 0, 4);
    pci.readRegion(7, CAP.EXP + 8, view, 4, 2);
    seenByModel = `${interrupts.mode} ${view.getUint32(0, true)} ${
      view.getUint16(4, true).toString(16)
    }`;
  };
  pci.writeRegion(7, CAP.EXP + 8, words(0x8000), 0, 2);
  assertEquals(device.resets, ["flr"]);
  assertEquals(seenByModel, "intx 0 2810");
});

Deno.test("PciFunction wakes up from D3hot as after power-on", () => {
  const { device, pci, interrupts } = setUp();
  const view = words(0);
  pci.writeRegion(7, 0x10, words(0xfe00_0000), 0, 4);
  pci.writeRegion(7, 4, words(6), 0, 2);
  pci.writeRegion(7, CAP.MSIX + 2, words(0x8000), 0, 2);
  pci.writeRegion(7, CAP.PM + 4, words(3), 0, 2);
  assertEquals(device.resets, [], "it keeps what it has until it wakes up");
  pci.writeRegion(7, CAP.PM + 4, words(0), 0, 2);
  assertEquals(device.resets, ["soft_reset"]);
  pci.readRegion(7, 4, view, 0, 2);
  assertEquals(view.getUint16(0, true), 0);
  pci.readRegion(7, 0x10, view, 0, 4);
  assertEquals(view.getUint32(0, true) & ~0xf, 0);
  pci.readRegion(7, CAP.PM + 4, view, 0, 2);
  assertEquals(view.getUint16(0, true), 0);
  assertEquals(interrupts.mode, "intx");
  // Nothing happens where the state stays what it was.
  pci.writeRegion(7, CAP.PM + 4, words(0), 0, 2);
  assertEquals(device.resets, ["soft_reset"]);
});

Deno.test("PciFunction.reset passes its reason and a level the model drives meanwhile", () => {
  const { pci, device, interrupts } = setUp();
  const sink = new RecordingSink();
  interrupts.connect(sink);
  interrupts.setLevel(true);
  sink.take();
  device.onReset = () => interrupts.setLevel(true);
  pci.reset("client_gone");
  assertEquals(device.resets, ["client_gone"]);
  assertEquals(sink.take(), [[0, 0]], "the old level was forgotten first");
});

Deno.test("PciFunction traces configuration writes by register name", () => {
  const lines: string[] = [];
  const log: Log = {
    ...silentLog,
    debug: (message) => lines.push(message),
    debugEnabled: true,
  };
  const device = new RecordingDevice();
  const pci = new PciFunction(
    device,
    new ArrayMemory(),
    new PciInterrupts(),
    log,
  );
  pci.writeRegion(7, 4, words(6), 0, 2);
  pci.writeRegion(7, CAP.PM + 4, words(3), 0, 2);
  pci.writeRegion(7, CAP.EXP + 8, words(0x8000), 0, 2);
  assertEquals(lines, [
    "write PCI_COMMAND",
    "write PCI_PM_CTRL",
    "power state: D3hot",
    "write PCI_EXP_DEVCTL",
    "reset: flr",
  ]);
});
