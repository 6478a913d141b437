import { assertEquals } from "@std/assert";
import fc from "fast-check";
import { silentLog } from "../../src/core/log.ts";
import { ArrayMemory } from "../../src/memory/array_memory.ts";
import { PciFunction, PciInterrupts } from "../../src/pci/mod.ts";
import { CAP, RecordingDevice, RecordingSink } from "./sample.ts";

/** Every bit of the sample that software may change, by 32-bit word, written down from the specifications. */
const WRITABLE: ReadonlyMap<number, number> = new Map([
  [0x04, 0x0000_0547], // command; the status errors are never set here
  [0x0c, 0x0000_00ff], // cache line size
  [0x10, 0xffff_f000],
  [0x14, 0xffff_f000],
  [0x18, 0xffff_ffe0],
  [0x20, 0x0000_0000],
  [0x24, 0xffff_fffc],
  [0x3c, 0x0000_00ff], // interrupt line
  [CAP.PM + 4, 0x0000_0003],
  [CAP.EXP + 0x08, 0x0000_781f],
  [CAP.EXP + 0x10, 0x0000_00c0],
  [CAP.EXP + 0x28, 0x0000_0010],
  [CAP.MSI + 0, 0x0071_0000],
  [CAP.MSI + 4, 0xffff_fffc],
  [CAP.MSI + 8, 0xffff_ffff],
  [CAP.MSI + 12, 0x0000_ffff],
  [CAP.MSI + 16, 0x0000_00ff],
  [CAP.MSIX + 0, 0xc000_0000],
  [CAP.VENDOR + 4, 0x0000_0fff],
]);

function setUp() {
  const device = new RecordingDevice();
  const interrupts = new PciInterrupts();
  interrupts.connect(new RecordingSink());
  return new PciFunction(device, new ArrayMemory(), interrupts, silentLog);
}

function dump(pci: PciFunction): DataView {
  const view = new DataView(new ArrayBuffer(4096));
  assertEquals(pci.readRegion(7, 0, view, 0, 4096), 0);
  return view;
}

const anyWrite = fc.record({
  // Mostly where the registers are.
  offset: fc.oneof(
    { weight: 9, arbitrary: fc.nat(0xb4) },
    { weight: 1, arbitrary: fc.nat(4095) },
  ),
  bytes: fc.uint8Array({ minLength: 1, maxLength: 16 }),
});

Deno.test("configuration writes never throw and never change a read-only bit", () => {
  fc.assert(
    fc.property(fc.array(anyWrite, { maxLength: 40 }), (writes) => {
      const pci = setUp();
      const initial = dump(pci);
      for (const { offset, bytes } of writes) {
        const count = Math.min(bytes.length, 4096 - offset);
        const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
        assertEquals(pci.writeRegion(7, offset, view, 0, count), 0);
        const after = dump(pci);
        for (let at = 0; at < 4096; at += 4) {
          const readOnly = ~(WRITABLE.get(at) ?? 0);
          const was = initial.getUint32(at, true) & readOnly;
          const is = after.getUint32(at, true) & readOnly;
          if (was !== is) assertEquals(is, was, `word ${at.toString(16)}`);
        }
      }
    }),
    { numRuns: 60 },
  );
});

Deno.test("configuration words keep exactly their writable bits", () => {
  const registers = [...WRITABLE].filter(([at]) =>
    // Device control may start a reset and the power state refuses D1 and D2: tested apart.
    at !== CAP.EXP + 8 && at !== CAP.PM + 4
  );
  fc.assert(
    fc.property(
      fc.constantFrom(...registers),
      fc.nat(0xffff_ffff),
      ([at, mask], value) => {
        const pci = setUp();
        const before = dump(pci).getUint32(at, true);
        const view = new DataView(new ArrayBuffer(4));
        view.setUint32(0, value, true);
        pci.writeRegion(7, at, view, 0, 4);
        const after = dump(pci).getUint32(at, true);
        assertEquals(after, ((before & ~mask) | (value & mask)) >>> 0);
      },
    ),
  );
});

Deno.test("configuration reads give the same bytes however they are cut", () => {
  const whole = dump(setUp());
  fc.assert(
    fc.property(fc.nat(4095), fc.integer({ min: 1, max: 64 }), (offset, n) => {
      const count = Math.min(n, 4096 - offset);
      const part = new DataView(new ArrayBuffer(count));
      assertEquals(setUp().readRegion(7, offset, part, 0, count), 0);
      for (let i = 0; i < count; i++) {
        assertEquals(part.getUint8(i), whole.getUint8(offset + i));
      }
    }),
  );
});
