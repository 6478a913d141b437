import { assertEquals } from "@std/assert";
import {
  type BarSpec,
  ConfigEffect,
  ConfigSpace,
  type PciSpec,
  type VendorCapability,
} from "../../src/pci/mod.ts";
import { CAP, sampleSpec } from "./sample.ts";

class Probe {
  readonly config: ConfigSpace;
  readonly #view = new DataView(new ArrayBuffer(16));

  constructor(spec: PciSpec = sampleSpec()) {
    this.config = new ConfigSpace(spec);
  }

  read(offset: number, width: number): number {
    this.config.read(offset, this.#view, 3, width);
    let value = 0;
    for (let i = width - 1; i >= 0; i--) {
      value = value * 256 + this.#view.getUint8(3 + i);
    }
    return value;
  }

  write(offset: number, width: number, value: number): number {
    for (let i = 0; i < width; i++) {
      this.#view.setUint8(5 + i, Math.floor(value / 256 ** i));
    }
    return this.config.write(offset, this.#view, 5, width);
  }

  /** Writes all-ones and says what stuck. */
  sizing(offset: number): number {
    this.write(offset, 4, 0xffff_ffff);
    return this.read(offset, 4);
  }
}

function withBars(...bars: BarSpec[]): Probe {
  return new Probe(sampleSpec({ bars, capabilities: [] }));
}

Deno.test("ConfigSpace header holds the identity", () => {
  const probe = new Probe();
  assertEquals(probe.read(0x00, 4), 0x1041_1af4);
  assertEquals(probe.read(0x04, 4), 0x0010_0000, "capability list, disabled");
  assertEquals(probe.read(0x08, 4), 0x0200_8001);
  assertEquals(probe.read(0x0c, 4), 0, "type 0, one function, no BIST");
  assertEquals(probe.read(0x2c, 4), 0x5678_1234);
  assertEquals(probe.read(0x30, 4), 0, "no ROM");
  assertEquals(probe.read(0x34, 4), 0x40);
  assertEquals(probe.read(0x3c, 4), 0x0000_0100, "INTA#");
});

Deno.test("ConfigSpace without capabilities and INTx says so", () => {
  const probe = new Probe(sampleSpec({ capabilities: [], intx: false }));
  assertEquals(probe.read(0x06, 2), 0);
  assertEquals(probe.read(0x34, 1), 0);
  assertEquals(probe.read(0x3d, 1), 0);
});

Deno.test("ConfigSpace BARs read back their size and flags after all-ones", () => {
  const probe = new Probe();
  assertEquals(probe.read(0x10, 4), 0);
  assertEquals(probe.read(0x18, 4), 0x1);
  assertEquals(probe.read(0x20, 4), 0xc, "64-bit, prefetchable");
  assertEquals(probe.read(0x24, 4), 0);
  assertEquals(probe.sizing(0x10), 0xffff_f000);
  assertEquals(probe.sizing(0x18), 0xffff_ffe1);
  assertEquals(probe.sizing(0x20), 0x0000_000c, "16 GiB: nothing in 31:4");
  assertEquals(probe.sizing(0x24), 0xffff_fffc);
  assertEquals(probe.sizing(0x1c), 0, "absent");
  assertEquals(probe.sizing(0x30), 0, "no ROM");
});

Deno.test("ConfigSpace BAR sizes from the least to the most", () => {
  const memory = (kind: BarSpec["kind"], sizeBytes: number) =>
    withBars({ index: 0, kind, sizeBytes });
  assertEquals(memory("memory32", 16).sizing(0x10), 0xffff_fff0);
  assertEquals(memory("memory32", 2 ** 31).sizing(0x10), 0x8000_0000);
  assertEquals(memory("io", 4).sizing(0x10), 0xffff_fffd);
  assertEquals(memory("io", 256).sizing(0x10), 0xffff_ff01);
  const small = memory("memory64", 0x4000);
  assertEquals(small.sizing(0x10), 0xffff_c004);
  assertEquals(small.sizing(0x14), 0xffff_ffff);
  const four = memory("memory64", 2 ** 32);
  assertEquals(four.sizing(0x10), 0x0000_0004);
  assertEquals(four.sizing(0x14), 0xffff_ffff);
  const most = memory("memory64", 2 ** 52);
  assertEquals(most.sizing(0x10), 0x0000_0004);
  assertEquals(most.sizing(0x14), 0xfff0_0000);
});

Deno.test("ConfigSpace BARs keep an address, written in any width", () => {
  const probe = new Probe();
  probe.write(0x10, 4, 0xfebd_5000);
  assertEquals(probe.read(0x10, 4), 0xfebd_5000);
  probe.write(0x12, 2, 0xabcd);
  probe.write(0x11, 1, 0x7f);
  assertEquals(probe.read(0x10, 4), 0xabcd_7000);
  probe.write(0x20, 8, 0x18_0000_0000);
  assertEquals(probe.read(0x20, 4), 0xc);
  assertEquals(probe.read(0x24, 4), 0x18);
});

Deno.test("ConfigSpace command takes the bits that mean something", () => {
  const probe = new Probe();
  assertEquals(probe.write(0x04, 2, 0xffff), ConfigEffect.INTERRUPTS);
  assertEquals(probe.read(0x04, 2), 0x0547);
  assertEquals(probe.config.intxDisabled, true);
  assertEquals(probe.write(0x05, 1, 0x00), ConfigEffect.INTERRUPTS);
  assertEquals(probe.read(0x04, 2), 0x0047);
  assertEquals(probe.config.intxDisabled, false);
});

Deno.test("ConfigSpace status error bits are cleared by ones, the others stay", () => {
  const probe = new Probe();
  probe.config.setStatus(0xf918);
  probe.write(0x04, 2, 0xffff);
  assertEquals(probe.read(0x06, 2), 0xf918);
  probe.write(0x06, 2, 0x8100);
  assertEquals(probe.read(0x06, 2), 0x7818);
  probe.write(0x06, 2, 0xffff);
  assertEquals(probe.read(0x06, 2), 0x0018);
});

Deno.test("ConfigSpace interrupt status shows and hides", () => {
  const probe = new Probe();
  probe.config.setInterruptStatus(true);
  assertEquals(probe.read(0x06, 2), 0x18);
  probe.config.setInterruptStatus(false);
  assertEquals(probe.read(0x06, 2), 0x10);
});

Deno.test("ConfigSpace cache line size and interrupt line are scratch, pin and latency are not", () => {
  const probe = new Probe();
  probe.write(0x0c, 4, 0xffff_ffff);
  assertEquals(probe.read(0x0c, 4), 0xff);
  probe.write(0x3c, 4, 0xffff_ff0b);
  assertEquals(probe.read(0x3c, 4), 0x010b);
});

Deno.test("ConfigSpace links capabilities in the order given", () => {
  const probe = new Probe();
  const ids: number[] = [];
  for (let at = probe.read(0x34, 1); at !== 0; at = probe.read(at + 1, 1)) {
    ids.push(at, probe.read(at, 1));
  }
  assertEquals(ids, [
    ...[CAP.PM, 0x01],
    ...[CAP.EXP, 0x10],
    ...[CAP.MSI, 0x05],
    ...[CAP.MSIX, 0x11],
    ...[CAP.VENDOR, 0x09],
  ]);
});

Deno.test("ConfigSpace aligns what follows an odd vendor capability", () => {
  const probe = new Probe(sampleSpec({
    capabilities: [
      { kind: "vendor", body: new Uint8Array(3) },
      { kind: "pm" },
    ],
  }));
  assertEquals(probe.read(0x42, 1), 6, "its length counts id, next, length");
  assertEquals(probe.read(0x41, 1), 0x48);
  assertEquals(probe.read(0x48, 1), 0x01);
});

Deno.test("ConfigSpace PM knows D0 and D3hot, and keeps nothing in between", () => {
  const probe = new Probe();
  assertEquals(probe.read(CAP.PM + 2, 2), 0x0003, "version 3, no D1, D2, PME");
  assertEquals(probe.read(CAP.PM + 4, 4), 0);
  assertEquals(probe.write(CAP.PM + 4, 2, 0xffff), ConfigEffect.POWER);
  assertEquals(probe.read(CAP.PM + 4, 2), 0x0003);
  assertEquals(probe.config.powerState, "D3hot");
  assertEquals(probe.write(CAP.PM + 4, 2, 0x0003), 0, "no change");
  assertEquals(probe.write(CAP.PM + 4, 2, 0x0001), 0, "there is no D1");
  assertEquals(probe.read(CAP.PM + 4, 2), 0x0003);
  assertEquals(probe.write(CAP.PM + 4, 2, 0x0000), ConfigEffect.POWER);
  assertEquals(probe.config.powerState, "D0");
  assertEquals(probe.write(CAP.PM + 4, 2, 0x0002), 0, "there is no D2");
  assertEquals(probe.read(CAP.PM + 4, 2), 0x0000);
});

Deno.test("ConfigSpace Express describes an endpoint with function level reset", () => {
  const probe = new Probe();
  assertEquals(probe.read(CAP.EXP + 0x02, 2), 0x0002, "v2 endpoint");
  assertEquals(probe.read(CAP.EXP + 0x04, 4), 0x1000_8fc0);
  assertEquals(probe.read(CAP.EXP + 0x08, 2), 0x2810, "512-byte reads");
  assertEquals(probe.read(CAP.EXP + 0x0a, 2), 0);
  assertEquals(probe.read(CAP.EXP + 0x0c, 4), 0x0040_0011, "2.5 GT/s x1");
  assertEquals(probe.read(CAP.EXP + 0x12, 2), 0x1011);
  assertEquals(probe.read(CAP.EXP + 0x24, 4), 0x10);
  assertEquals(probe.read(CAP.EXP + 0x2c, 4), 0x2);
  assertEquals(probe.read(CAP.EXP + 0x30, 2), 0x1);
});

Deno.test("ConfigSpace Express device control starts a reset with a bit that reads zero", () => {
  const probe = new Probe();
  assertEquals(probe.write(CAP.EXP + 0x08, 2, 0xffff), ConfigEffect.FLR);
  assertEquals(probe.read(CAP.EXP + 0x08, 2), 0x781f);
  assertEquals(probe.write(CAP.EXP + 0x08, 2, 0x7fff), 0);
  assertEquals(probe.write(CAP.EXP + 0x09, 1, 0x80), ConfigEffect.FLR);
  assertEquals(probe.write(CAP.EXP + 0x10, 2, 0xffff), 0);
  assertEquals(probe.read(CAP.EXP + 0x10, 2), 0x00c0);
  assertEquals(probe.write(CAP.EXP + 0x28, 2, 0xffff), 0);
  assertEquals(probe.read(CAP.EXP + 0x28, 2), 0x0010);
});

Deno.test("ConfigSpace MSI has 64-bit addresses and a mask bit per vector", () => {
  const probe = new Probe();
  const { config } = probe;
  assertEquals(probe.read(CAP.MSI + 2, 2), 0x0186, "8 vectors");
  assertEquals(config.msiEnabled, false);
  assertEquals(config.msiAllocated, 1);
  assertEquals(probe.write(CAP.MSI + 2, 2, 0x0021), ConfigEffect.INTERRUPTS);
  assertEquals(probe.read(CAP.MSI + 2, 2), 0x01a7);
  assertEquals(config.msiEnabled, true);
  assertEquals(config.msiAllocated, 4);
  probe.write(CAP.MSI + 2, 2, 0x0071);
  assertEquals(config.msiAllocated, 8, "never more than the function has");
  assertEquals(probe.write(CAP.MSI + 4, 4, 0xfee0_1007), 0);
  assertEquals(probe.read(CAP.MSI + 4, 4), 0xfee0_1004);
  assertEquals(probe.sizing(CAP.MSI + 8), 0xffff_ffff);
  assertEquals(probe.sizing(CAP.MSI + 12), 0x0000_ffff);
  assertEquals(
    probe.write(CAP.MSI + 16, 4, 0xffff_ffff),
    ConfigEffect.INTERRUPTS,
  );
  assertEquals(config.msiMask, 0xff);
  config.setMsiPending(0x81);
  assertEquals(probe.sizing(CAP.MSI + 20), 0x81, "pending is read-only");
});

Deno.test("ConfigSpace MSI with 32 vectors masks all 32", () => {
  const probe = new Probe(
    sampleSpec({ capabilities: [{ kind: "msi", vectors: 32 }] }),
  );
  assertEquals(probe.read(0x42, 2), 0x018a);
  assertEquals(probe.sizing(0x50), 0xffff_ffff);
});

Deno.test("ConfigSpace MSI-X shows table and PBA and takes enable and function mask", () => {
  const probe = new Probe();
  assertEquals(probe.read(CAP.MSIX + 2, 2), 69, "vectors less one");
  assertEquals(probe.read(CAP.MSIX + 4, 4), 0x801);
  assertEquals(probe.read(CAP.MSIX + 8, 4), 0xf01);
  assertEquals(probe.write(CAP.MSIX + 2, 2, 0xffff), ConfigEffect.INTERRUPTS);
  assertEquals(probe.read(CAP.MSIX + 2, 2), 0xc045);
  assertEquals(probe.config.msixEnabled, true);
  assertEquals(probe.config.msixMasked, true);
  assertEquals(probe.write(CAP.MSIX + 3, 1, 0x80), ConfigEffect.INTERRUPTS);
  assertEquals(probe.config.msixMasked, false);
  assertEquals(probe.sizing(CAP.MSIX + 4), 0x801);
});

Deno.test("ConfigSpace vendor body takes writes under its mask", () => {
  const probe = new Probe();
  assertEquals(probe.read(CAP.VENDOR + 2, 1), 8);
  assertEquals(probe.read(CAP.VENDOR + 3, 5), 0xee_ddcc_bbaa);
  probe.write(CAP.VENDOR, 8, 0);
  assertEquals(probe.read(CAP.VENDOR, 8), 0xeedd_c000_aa08_0009);
});

Deno.test("ConfigSpace vendor callbacks see the part of the body that is touched", () => {
  const calls: [string, number, number, number][] = [];
  const vendor: VendorCapability = {
    kind: "vendor",
    body: new Uint8Array(5),
    writable: new Uint8Array(5).fill(0xff),
    onRead(bytes, offset, lengthBytes) {
      calls.push(["read", offset, lengthBytes, bytes.byteLength]);
      bytes.setUint8(0, 0x5a);
    },
    onWrite(bytes, offset, lengthBytes) {
      calls.push(["write", offset, lengthBytes, bytes.getUint8(4)]);
    },
  };
  const probe = new Probe(sampleSpec({ capabilities: [vendor] }));
  assertEquals(probe.read(0x40, 3), 0x08_0009);
  assertEquals(probe.read(0x48, 4), 0);
  assertEquals(calls, [], "id, next, length and what follows are not the body");
  assertEquals(
    probe.read(0x40, 4),
    0x5a08_0009,
    "bytes set in onRead are read",
  );
  probe.write(0x46, 4, 0x0000_77ee);
  assertEquals(calls, [["read", 0, 1, 5], ["write", 3, 2, 0x77]]);
  assertEquals(probe.read(0x46, 2), 0x77ee);
});

Deno.test("ConfigSpace.reset restores everything, vendor bodies too", () => {
  const probe = new Probe();
  const before = Array.from({ length: 4096 }, (_, i) => probe.read(i, 1));
  for (let at = 0; at < 4096; at += 4) probe.write(at, 4, 0xffff_ffff);
  probe.config.setInterruptStatus(true);
  probe.config.setMsiPending(1);
  probe.config.reset();
  const after = Array.from({ length: 4096 }, (_, i) => probe.read(i, 1));
  assertEquals(after, before);
});

Deno.test("ConfigSpace.registerName names header, capabilities and the rest", () => {
  const { config } = new Probe();
  assertEquals(config.registerName(0x04), "PCI_COMMAND");
  assertEquals(config.registerName(0x36), "reserved");
  assertEquals(config.registerName(CAP.MSIX + 3), "PCI_MSIX_FLAGS");
  assertEquals(config.registerName(CAP.VENDOR + 4), "vendor+4");
  assertEquals(config.registerName(0x800), "reserved");
});
