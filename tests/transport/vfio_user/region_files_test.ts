import { assertEquals, assertThrows } from "@std/assert";
import { ErrnoError } from "../../../src/core/errno.ts";
import { Mapping, ResourceBag } from "../../../src/os/mod.ts";
import { MemfdMemory } from "../../../src/memory/shared_memory.ts";
import type { BarSpec, MmapArea } from "../../../src/pci/device.ts";
import type { PciFunction } from "../../../src/pci/function.ts";
import { RegionFiles } from "../../../src/transport/vfio_user/region_files.ts";
import { openFds } from "./rig.ts";

/** The one question that RegionFiles asks. */
function functionWith(sizeBytes: number, ...mmap: MmapArea[]): PciFunction {
  const bar: BarSpec = { index: 3, sizeBytes, kind: "memory32", mmap };
  return {
    bar: (index: number) => index === 3 ? bar : undefined,
  } as PciFunction;
}

function byteAt(fd: number, offset: number, sizeBytes: number): number {
  using mapping = new Mapping({ fd, lengthBytes: sizeBytes });
  return new Uint8Array(mapping.buffer)[offset]!;
}

Deno.test("RegionFiles keeps what is in the memory, each area at its offset", () => {
  using low = new MemfdMemory("low", 0x1000);
  using high = new MemfdMemory("high", 0x2000);
  low.bytes[1] = 11;
  high.bytes[0x1fff] = 22;
  using files = new RegionFiles(
    functionWith(
      0x8000,
      { offset: 0, memory: low },
      { offset: 0x5000, memory: high },
    ),
  );
  const fd = files.fd(3)!;
  assertEquals(byteAt(fd, 1, 0x8000), 11);
  assertEquals(byteAt(fd, 0x6fff, 0x8000), 22);
  assertEquals([low.bytes[1], high.bytes[0x1fff]], [11, 22]);
  low.bytes[2] = 33;
  assertEquals(byteAt(fd, 2, 0x8000), 33);
  assertEquals([files.fd(0), files.fd(7)], [undefined, undefined]);
});

Deno.test("RegionFiles.renew parts from whoever has the old file and leaves no descriptor", () => {
  using memory = new MemfdMemory("area", 0x1000);
  using files = new RegionFiles(
    functionWith(0x1000, { offset: 0, memory }),
  );
  using old = new Mapping({ fd: files.fd(3)!, lengthBytes: 0x1000 });
  const before = openFds();
  memory.bytes[0] = 1;
  for (let i = 0; i < 5; i++) files.renew();
  new Uint8Array(old.buffer)[0] = 99;
  assertEquals(memory.bytes[0], 1);
  assertEquals(openFds(), before);
});

Deno.test("RegionFiles refuses areas that are not whole pages inside their BAR", () => {
  using memory = new MemfdMemory("area", 0x2000);
  const before = openFds();
  for (const [offset, sizeBytes] of [[0x800, 0x8000], [0x1000, 0x2000]]) {
    const error = assertThrows(
      () =>
        new RegionFiles(
          functionWith(sizeBytes!, { offset: offset!, memory }),
        ),
      ErrnoError,
    );
    assertEquals(error.code, "EINVAL");
  }
  assertEquals(openFds(), before);
});

Deno.test("RegionFiles offers nothing of memory that cannot be passed on", () => {
  const memory = { bytes: new Uint8Array(0x1000) };
  using files = new RegionFiles(functionWith(0x1000, { offset: 0, memory }));
  assertEquals(files.fd(3), undefined);
});

Deno.test("RegionFiles.save gives files that the next one shows without a copy, or leaves alone", () => {
  const before = openFds();
  {
    using memory = new MemfdMemory("area", 0x1000);
    const files = new RegionFiles(functionWith(0x4000, { offset: 0, memory }));
    memory.bytes[5] = 1;
    using bag = ResourceBag.of();
    const state = files.save(bag);
    files.close();
    assertEquals(files.fd(3), undefined);
    using next = new MemfdMemory("area", 0x1000);
    next.bytes[5] = 2;
    const successor = functionWith(0x4000, { offset: 0, memory: next });
    assertThrows(
      () => new RegionFiles(functionWith(0x1000), { state, bag }),
      Error,
      "Cannot take over mappable memory: there were files for BARs 3, there are for none",
    );
    assertThrows(
      () => new RegionFiles(successor, { state: [], bag }),
      Error,
      "there were files for BARs none, there are for 3",
    );
    using shown = new RegionFiles(successor, { state, bag });
    assertEquals([next.bytes[5], memory.bytes[5]], [1, 1]);
    next.bytes[6] = 7;
    assertEquals(byteAt(shown.fd(3)!, 6, 0x4000), 7);
  }
  assertEquals(openFds(), before);
});
