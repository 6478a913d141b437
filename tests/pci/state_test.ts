import { assertEquals, assertThrows } from "@std/assert";
import { silentLog } from "../../src/core/log.ts";
import { ArrayMemory } from "../../src/memory/array_memory.ts";
import {
  ConfigSpace,
  MsixTable,
  PciFunction,
  PciInterrupts,
  type PciSpec,
} from "../../src/pci/mod.ts";
import {
  allowMastering,
  CAP,
  RecordingDevice,
  RecordingSink,
  sampleSpec,
  words,
} from "./sample.ts";

const CONFIG = 7;
const TABLE = 0x800;

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
    allowMastering(this.function);
  }

  /** A function made of what this one saved, as it would travel. */
  successor(): Bench {
    const next = new Bench();
    next.function.load(structuredClone(this.function.save()));
    next.interrupts.connect(next.sink);
    return next;
  }

  write(region: number, offset: number, value: number, count = 4): void {
    assertEquals(
      this.function.writeRegion(region, offset, words(value), 0, count),
      0,
    );
  }

  read(region: number, offset: number): number {
    const view = words(0);
    assertEquals(this.function.readRegion(region, offset, view, 0, 4), 0);
    return view.getUint32(0, true);
  }

  /** Everything that a client can read. */
  image(): number[] {
    const image: number[] = [];
    for (let at = 0; at < 4096; at += 4) image.push(this.read(CONFIG, at));
    for (let at = 0x800; at < 0xf10; at += 4) image.push(this.read(1, at));
    return image;
  }
}

Deno.test("PciFunction.load brings back every register that PciFunction.save saw", () => {
  const bench = new Bench();
  bench.write(CONFIG, 0x04, 0x0406, 2);
  bench.write(CONFIG, 0x10, 0xfeb0_0000);
  bench.write(CONFIG, 0x20, 0xffff_ffff);
  bench.write(CONFIG, 0x24, 0xffff_ffff);
  bench.write(CONFIG, 0x3c, 0x0b, 1);
  bench.write(CONFIG, CAP.PM + 4, 3, 2);
  bench.write(CONFIG, CAP.VENDOR + 3, 0x5566, 2);
  bench.write(CONFIG, CAP.MSI + 2, 0x0020, 2);
  bench.write(1, TABLE + 16, 0xfee0_1000);
  bench.write(1, TABLE + 24, 0x4021);
  bench.write(1, TABLE + 28, 0);
  const next = bench.successor();
  assertEquals(next.device.seen, [], "the model is not told");
  assertEquals(next.image(), bench.image());
  assertEquals(next.function.config.powerState, "D3hot");
  // Sizing goes on from there: only the address bits change.
  next.write(CONFIG, 0x10, 0xffff_ffff);
  assertEquals(next.read(CONFIG, 0x10), 0xffff_f000);
});

Deno.test("PciFunction.load delivers nothing, and what was pending goes out when it may", () => {
  const bench = new Bench();
  bench.write(CONFIG, CAP.MSIX + 2, 0x8000, 2);
  bench.write(1, TABLE + 3 * 16 + 12, 1);
  bench.interrupts.connect(bench.sink);
  bench.interrupts.raise(3);
  bench.sink.willing = false;
  bench.interrupts.raise(69);
  const next = bench.successor();
  assertEquals(next.interrupts.mode, "msix");
  assertEquals(next.sink.take(), []);
  assertEquals(next.read(1, 0xf00), 1 << 3);
  assertEquals(next.read(1, 0xf08), 1 << 5);
  next.interrupts.retry(2, 0, 70);
  assertEquals(next.sink.take(), [[2, 69]], "3 is masked in the table");
  next.write(1, TABLE + 3 * 16 + 12, 0);
  assertEquals(next.sink.take(), [[2, 3]]);
  next.interrupts.raise(5);
  assertEquals(next.sink.take(), [[2, 5]]);
});

Deno.test("PciFunction.load keeps the level of INTx and delivers it on a retry, once", () => {
  const bench = new Bench();
  bench.interrupts.setLevel(true);
  const next = bench.successor();
  assertEquals(next.sink.take(), []);
  assertEquals((next.read(CONFIG, 4) >>> 16) & 8, 8, "status: interrupt");
  next.interrupts.setLevel(true);
  assertEquals(next.sink.take(), [], "it was up already");
  next.interrupts.retry(0, 0, 1);
  assertEquals(next.sink.take(), [[0, 0]]);
  next.interrupts.setLevel(false);
  assertEquals((next.read(CONFIG, 4) >>> 16) & 8, 0);
});

Deno.test("PciFunction.load keeps pending MSI vectors, the highest bit too", () => {
  const spec = sampleSpec({
    capabilities: [{ kind: "msi", vectors: 32 }],
  });
  const bench = new Bench(spec);
  // 32 vectors, enabled.
  bench.write(CONFIG, 0x42, 0x0051, 2);
  bench.interrupts.raise(31);
  bench.interrupts.raise(0);
  const next = new Bench(spec);
  next.function.load(structuredClone(bench.function.save()));
  next.interrupts.connect(next.sink);
  assertEquals(next.read(CONFIG, 0x54), 0x8000_0001);
  assertEquals(next.interrupts.mode, "msi");
  next.interrupts.retry(1, 0, 32);
  assertEquals(next.sink.take(), [[1, 0], [1, 31]]);
  assertEquals(next.read(CONFIG, 0x54), 0);
});

Deno.test("PciFunction.load refuses what is no state of this function", () => {
  const { function: pci } = new Bench();
  const good = pci.save();
  const spoilt = (fields: object) => ({
    ...good,
    body: { ...good.body, ...fields },
  });
  const bytes = (at: number, value: number) => {
    const changed = good.body.config.bytes.slice();
    changed[at] = value;
    return spoilt({ config: { bytes: changed } });
  };
  const cases: [unknown, string][] = [
    [null, "Cannot load a PCI function: it is no saved state"],
    [{}, "Cannot load a PCI function: its state has no kind"],
    [{ ...good, kind: "pcie" }, "its state is of pcie, not of pci"],
    [{ ...good, version: 2 }, "its state has version 2, 1 can be read"],
    [spoilt({ msix: null }), "its state has no MSI-X, the function has"],
    [
      spoilt({ msix: { ...good.body.msix, table: [1] } }),
      "its table cannot be",
    ],
    [
      spoilt({ msix: new MsixTable(69).save() }),
      "Cannot load the MSI-X table: its table has 1104 bytes, 1120 belong there",
    ],
    [spoilt({ config: {} }), "its state has no bytes"],
    [bytes(0, 0x86), "its state is another function's: byte 0x0"],
    [bytes(CAP.MSIX + 2, 1), "is another function's"],
    [bytes(0x100, 1), "is another function's"],
    [
      spoilt({ interrupts: { level: 1, msiPending: 0 } }),
      "its level cannot be",
    ],
    [
      spoilt({ interrupts: { level: true, msiPending: 2 ** 32 } }),
      "are not 32 bits",
    ],
  ];
  for (const [state, message] of cases) {
    assertThrows(() => pci.load(state), Error, message);
  }
  pci.load(good);
});

Deno.test("PciFunction.load brings back what is in mappable areas, and refuses others", () => {
  const bench = new Bench();
  bench.write(4, 0x4000, 0x1234_5678);
  bench.write(4, 0x5ffc, 0x9abc_def0);
  const next = bench.successor();
  assertEquals(next.read(4, 0x4000), 0x1234_5678);
  assertEquals(next.read(4, 0x5ffc), 0x9abc_def0);
  const saved = bench.function.save();
  for (const areas of [[], [new Uint8Array(4096)]]) {
    const state = { ...saved, body: { ...saved.body, areas } };
    assertThrows(
      () => next.function.load(state),
      Error,
      "its state has other mappable areas",
    );
  }
});

Deno.test("PciFunction.load refuses MSI-X state where the function has none", () => {
  const { function: pci } = new Bench(sampleSpec({ capabilities: [] }));
  const saved = pci.save();
  const body = { ...saved.body, msix: new MsixTable(1).save() };
  const state = { ...saved, body };
  assertThrows(() => pci.load(state), Error, "its state has MSI-X");
});

Deno.test("ConfigSpace.load takes what the function itself changes, and vendor bodies", () => {
  const bodies: DataView[] = [];
  const spec = (byte: number): PciSpec =>
    sampleSpec({
      capabilities: [{
        kind: "vendor",
        body: new Uint8Array(4),
        onRead: (body) => {
          body.setUint8(0, byte);
          bodies.push(body);
        },
      }],
    });
  const first = new ConfigSpace(spec(7));
  const view = words(0);
  first.read(0x43, view, 0, 1);
  assertEquals(view.getUint8(0), 7);
  const second = new ConfigSpace(spec(9));
  second.load(first.save());
  assertEquals(second.save(), first.save());
  second.read(0x43, view, 0, 1);
  assertEquals(view.getUint8(0), 9, "the body is live");
});

Deno.test("a saved state does not change afterwards", () => {
  const bench = new Bench();
  const before = bench.function.save();
  const copy = structuredClone(before);
  bench.write(CONFIG, 0x10, 0xfeb0_0000);
  bench.write(1, TABLE + 12, 0);
  bench.interrupts.setLevel(true);
  assertEquals(before, copy);
});
