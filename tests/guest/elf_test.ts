import { assert, assertEquals, assertThrows } from "@std/assert";
import { linkedLibraries, neededLibraries } from "./elf.ts";

/**
 * An ELF file with nothing but what tells the libraries that it needs: the header, one loaded segment and the dynamic
 * section in it. Addresses are not offsets, as in a file of a linker's.
 */
function elf(needed: readonly string[]): Uint8Array<ArrayBuffer> {
  const LOADED_AT = 0x1000;
  const strings = new TextEncoder().encode(`\0${needed.join("\0")}\0`);
  const dynamic = 64 + 2 * 56;
  const table = dynamic + (needed.length + 2) * 16;
  const file = new Uint8Array(table + strings.length);
  const view = new DataView(file.buffer);
  const u64 = (at: number, value: number) =>
    view.setBigUint64(at, BigInt(value), true);
  file.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]);
  u64(32, 64); // e_phoff
  view.setUint16(54, 56, true); // e_phentsize
  view.setUint16(56, 2, true); // e_phnum
  view.setUint32(64, 1, true); // PT_LOAD, all of it
  u64(64 + 16, LOADED_AT);
  u64(64 + 32, file.length);
  view.setUint32(120, 2, true); // PT_DYNAMIC
  u64(120 + 8, dynamic);
  u64(120 + 32, table - dynamic);
  let name = 1;
  needed.forEach((library, i) => {
    u64(dynamic + i * 16, 1); // DT_NEEDED
    u64(dynamic + i * 16 + 8, name);
    name += library.length + 1;
  });
  u64(dynamic + needed.length * 16, 5); // DT_STRTAB
  u64(dynamic + needed.length * 16 + 8, LOADED_AT + table);
  file.set(strings, table);
  return file;
}

Deno.test("neededLibraries reads the names of an ELF file, and refuses what is none", () => {
  assertEquals(neededLibraries(elf(["libc.so.6", "libz.so.1"])), [
    "libc.so.6",
    "libz.so.1",
  ]);
  assertEquals(neededLibraries(elf([])), []);
  assertThrows(() => neededLibraries(new Uint8Array(100)), Error, "ELF");
});

Deno.test("neededLibraries reads a program of this host", async () => {
  const names = neededLibraries(await Deno.readFile("/bin/sh"));
  assert(names.includes("libc.so.6"), names.join());
});

Deno.test("linkedLibraries follows what is in the tree, and tells what is not", async () => {
  const tree = await Deno.makeTempDir();
  try {
    const put = async (path: string, needed: readonly string[]) => {
      const folder = `${tree}/${path.slice(0, path.lastIndexOf("/"))}`;
      await Deno.mkdir(folder, { recursive: true });
      await Deno.writeFile(`${tree}/${path}`, elf(needed));
    };
    await put("usr/lib/arch/liba.so.0", ["libb.so.1", "libc.so.6"]);
    // In a circle, and in a folder of its own.
    await put("lib/arch/private/libb.so.1", ["liba.so.0", "libd.so.2"]);
    await put("usr/lib/arch/libother.so.1", []);
    await put("usr/lib/arch/glibc-hwcaps/v3/libd.so.2", []);
    const { found, missing } = await linkedLibraries(tree, ["liba.so.0"]);
    assertEquals(Object.fromEntries(found), {
      "liba.so.0": `${tree}/usr/lib/arch/liba.so.0`,
      "libb.so.1": `${tree}/lib/arch/private/libb.so.1`,
    });
    assertEquals(missing.toSorted(), ["libc.so.6", "libd.so.2"]);
  } finally {
    await Deno.remove(tree, { recursive: true });
  }
});
