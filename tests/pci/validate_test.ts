import { assertEquals, assertThrows } from "@std/assert";
import { ErrnoError } from "../../src/core/errno.ts";
import {
  type BarSpec,
  type CapabilitySpec,
  msixPbaBytes,
  type PciSpec,
  validatePciSpec,
} from "../../src/pci/mod.ts";
import { ModelError } from "../../src/core/model_fault.ts";
import { validatePciDevice } from "../../src/pci/validate.ts";
import { sampleSpec, twoPages } from "./sample.ts";

const PLAIN: BarSpec = { index: 0, sizeBytes: 0x8000, kind: "memory32" };

function refuses(spec: Partial<PciSpec>, message: string): void {
  const error = assertThrows(
    () => validatePciSpec(sampleSpec(spec)),
    ErrnoError,
    message,
  );
  assertEquals(error.code, "EINVAL");
}

function refusesBars(bars: BarSpec[], message: string): void {
  refuses({ bars, capabilities: [] }, message);
}

function refusesCapability(capability: CapabilitySpec, message: string): void {
  refuses({ bars: [PLAIN], capabilities: [capability] }, message);
}

function msix(over: Partial<Extract<CapabilitySpec, { kind: "msix" }>>) {
  return {
    kind: "msix",
    vectors: 4,
    tableBar: 0,
    tableOffset: 0,
    pbaBar: 0,
    pbaOffset: 0x800,
    ...over,
  } as const;
}

Deno.test("validatePciSpec accepts the sample and the largest of everything", () => {
  validatePciSpec(sampleSpec());
  validatePciSpec(sampleSpec({
    bars: [
      { index: 0, sizeBytes: 2 ** 31, kind: "memory32" },
      { index: 1, sizeBytes: 256, kind: "io" },
      { index: 4, sizeBytes: 2 ** 52, kind: "memory64" },
    ],
    capabilities: [
      msix({ vectors: 2048, pbaOffset: 0x8000 }),
      { kind: "vendor", body: new Uint8Array(256 - 64 - 12 - 3) },
    ],
  }));
});

Deno.test("validatePciSpec refuses identities that do not fit", () => {
  refuses({ vendorId: 0x1_0000 }, "Cannot use vendorId: 65536 is not");
  refuses({ vendorId: 0xffff }, "no device is there");
  refuses({ deviceId: -1 }, "Cannot use deviceId");
  refuses({ revision: 256 }, "Cannot use revision");
  refuses({ classCode: 0x100_0000 }, "Cannot use classCode");
  refuses({ subsystemVendorId: 1.5 }, "Cannot use subsystemVendorId");
  refuses({ subsystemId: NaN }, "Cannot use subsystemId");
});

Deno.test("validatePciSpec refuses bad BAR indices and sizes", () => {
  refusesBars([{ ...PLAIN, index: 6 }], "BAR 6: the index must be 0 to 5");
  refusesBars([{ ...PLAIN, index: -1 }], "the index must be 0 to 5");
  refusesBars([{ ...PLAIN, sizeBytes: 3000 }], "3000 is not a power of two");
  refusesBars([{ ...PLAIN, sizeBytes: 0 }], "0 is not a power of two");
  refusesBars(
    [{ ...PLAIN, sizeBytes: 2 ** 50 + 1, kind: "memory64" }],
    "power",
  );
  refusesBars([{ ...PLAIN, sizeBytes: 8 }], "0x8 is outside 0x10 to");
  refusesBars([{ ...PLAIN, sizeBytes: 2 ** 32 }], "for memory32");
  refusesBars([{ index: 0, sizeBytes: 2, kind: "io" }], "for io");
  refusesBars([{ index: 0, sizeBytes: 512, kind: "io" }], "for io");
  refusesBars(
    [{ index: 0, sizeBytes: 16, kind: "io", prefetchable: true }],
    "never prefetchable",
  );
});

Deno.test("validatePciSpec refuses BARs on the same index, upper halves included", () => {
  refusesBars([PLAIN, PLAIN], "index 0 already belongs to BAR 0");
  refusesBars(
    [{ ...PLAIN, kind: "memory64" }, { ...PLAIN, index: 1 }],
    "BAR 1: index 1 already belongs to BAR 0",
  );
  refusesBars([{ ...PLAIN, index: 5, kind: "memory64" }], "5 is the last");
});

Deno.test("validatePciSpec refuses capabilities that are double, malformed or too long", () => {
  refuses({ capabilities: [{ kind: "pm" }, { kind: "pm" }] }, "there twice");
  refusesCapability(
    { kind: "msi", vectors: 3 as 1 },
    "3 vectors are not 1, 2, 4, 8, 16 or 32",
  );
  refusesCapability(
    { kind: "vendor", body: new Uint8Array(253) },
    "253 bytes do not fit",
  );
  refusesCapability(
    { kind: "vendor", body: new Uint8Array(2), writable: new Uint8Array(3) },
    "writable has 3 bytes and body 2",
  );
  refusesCapability(
    { kind: "vendor", body: new Uint8Array(190) },
    "they end at 0x101 and must end at 0x100",
  );
});

Deno.test("validatePciSpec refuses MSI-X structures outside their BARs", () => {
  refusesCapability(msix({ vectors: 0 }), "0 vectors are not 1 to 2048");
  refusesCapability(msix({ vectors: 2049 }), "2049 vectors");
  refusesCapability(msix({ tableBar: 3 }), "MSI-X table: there is no BAR 3");
  refusesCapability(msix({ tableOffset: 4 }), "0x4 is not a multiple of 8");
  refusesCapability(
    msix({ tableOffset: 0x7fc8 }),
    "MSI-X table: 64 bytes at 32712 are outside BAR 0 of 0x8000 bytes",
  );
  refusesCapability(msix({ pbaOffset: 0x8000 }), "MSI-X PBA: 8 bytes at 32768");
  refusesCapability(msix({ pbaOffset: 0x38 }), "PBA: it overlaps MSI-X table");
  refuses({
    bars: [{ index: 0, sizeBytes: 256, kind: "io" }],
    capabilities: [msix({})],
  }, "BAR 0 is not memory");
});

Deno.test("validatePciSpec refuses mmap areas that are no whole pages, outside or overlapping", () => {
  const memory = twoPages();
  const at = (offset: number, bytes = memory.bytes) => [{
    ...PLAIN,
    mmap: [{ offset, memory: { bytes } }],
  }];
  validatePciSpec(sampleSpec({ bars: at(0x6000), capabilities: [] }));
  refusesBars(at(0x800), "mmap area 0x800: its offset is not a multiple of");
  refusesBars(at(0, new Uint8Array(100)), "100 bytes are not whole pages");
  refusesBars(at(0, new Uint8Array(0)), "0 bytes are not whole pages");
  refusesBars(at(0x7000), "8192 bytes at 28672 are outside BAR 0");
  refusesBars(
    [{
      ...PLAIN,
      mmap: [{ offset: 0, memory }, { offset: 0x1000, memory }],
    }],
    "mmap area 0x1000: it overlaps mmap area 0x0 in BAR 0",
  );
  refusesBars(
    [{ index: 0, sizeBytes: 256, kind: "io", mmap: [{ offset: 0, memory }] }],
    "BAR 0 is not memory",
  );
  refuses(
    { bars: at(0x0), capabilities: [msix({ pbaOffset: 0x3000 })] },
    "overlaps",
  );
});

Deno.test("validatePciSpec refuses doorbells outside, unaligned or in MSI-X structures", () => {
  const at = (offset: number, sizeBytes: 0 | 2 | 4) => [{
    ...PLAIN,
    doorbells: [{ offset, sizeBytes }],
  }];
  refusesBars(at(0x8000, 0), "doorbell 0x8000 of BAR 0: 1 bytes at 32768");
  refusesBars(at(0x7ffe, 4), "are outside BAR 0");
  refusesBars(at(6, 4), "not aligned to its 4 bytes");
  refusesBars(at(0, 3 as 2), "its size 3 is not 0, 1, 2, 4 or 8");
  refuses(
    { bars: at(0x10, 4), capabilities: [msix({})] },
    "it lies in the MSI-X table",
  );
});

Deno.test("msixPbaBytes is whole 64-bit words", () => {
  assertEquals([1, 64, 65, 2048].map(msixPbaBytes), [8, 8, 16, 256]);
});

Deno.test("validatePciDevice names what a model has forgotten", () => {
  const device = {
    spec: sampleSpec(),
    readBar: () => 0,
    writeBar() {},
    reset() {},
    close() {},
  };
  validatePciDevice(device, "model x");
  const bars = [{ index: 0, sizeBytes: 4096, kind: "memory33" }];
  const cases: [unknown, string][] = [
    [undefined, "`create` must return a device, not undefined"],
    [Promise.resolve(device), "`create` must not be async"],
    [{ ...device, readBar: undefined }, "the device has no `readBar`"],
    [{ ...device, reset: 1 }, "the device has no `reset`"],
    [{ ...device, stop: 1 }, "the device's `stop` must be a function"],
    [{ ...device, spec: undefined }, "the device has no `spec`"],
    [
      { ...device, spec: { ...device.spec, bars: undefined } },
      "the device has no `spec.bars`",
    ],
    [
      { ...device, spec: { ...device.spec, bars } },
      '`spec.bars[0].kind` is "memory33" and must be one of memory32,',
    ],
    [
      { ...device, spec: { ...device.spec, capabilities: [{ kind: "pci" }] } },
      '`spec.capabilities[0].kind` is "pci" and must be one of pm,',
    ],
    [
      { ...device, spec: { ...device.spec, deviceId: undefined } },
      "Cannot use deviceId: undefined is not an unsigned 16-bit number",
    ],
  ];
  for (const [wrong, message] of cases) {
    assertThrows(
      () => validatePciDevice(wrong, "model x"),
      ModelError,
      `model x: ${message}`,
    );
  }
});
