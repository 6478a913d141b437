/**
 * The shared libraries that a program or a library is linked with, read from the ELF files themselves: whatever a
 * release's packages link with comes along, and nothing has to be run for it.
 *
 * @module
 */

import { join } from "node:path";

/** Fields of `Elf64_Ehdr`, `Elf64_Phdr` and `Elf64_Dyn`, by their offsets. */
const AT = {
  E_PHOFF: 32,
  E_PHENTSIZE: 54,
  E_PHNUM: 56,
  P_OFFSET: 8,
  P_VADDR: 16,
  P_FILESZ: 32,
} as const;

const PT_LOAD = 1;
const PT_DYNAMIC = 2;
const DT_NEEDED = 1n;
const DT_STRTAB = 5n;

/** A part of the file and where in memory it is loaded. */
interface Segment {
  readonly type: number;
  readonly offset: number;
  readonly address: number;
  readonly lengthBytes: number;
}

function segmentsOf(view: DataView): Segment[] {
  // 64-bit, little-endian: what every host that we run on has.
  const identity = [0x7f454c46, 0x0201];
  if (
    view.byteLength < 64 || view.getUint32(0) !== identity[0] ||
    view.getUint16(4) !== identity[1]
  ) {
    throw new Error("Cannot read it as a 64-bit little-endian ELF file");
  }
  const u64 = (at: number) => Number(view.getBigUint64(at, true));
  const size = view.getUint16(AT.E_PHENTSIZE, true);
  return Array.from({ length: view.getUint16(AT.E_PHNUM, true) }, (_, i) => {
    const at = u64(AT.E_PHOFF) + i * size;
    return {
      type: view.getUint32(at, true),
      offset: u64(at + AT.P_OFFSET),
      address: u64(at + AT.P_VADDR),
      lengthBytes: u64(at + AT.P_FILESZ),
    };
  });
}

/**
 * The names in an ELF file's DT_NEEDED entries; none of one that is linked statically.
 *
 * @throws {Error} When it is no 64-bit little-endian ELF file
 */
export function neededLibraries(file: Uint8Array<ArrayBuffer>): string[] {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  const segments = segmentsOf(view);
  const dynamic = segments.find(({ type }) => type === PT_DYNAMIC);
  if (dynamic === undefined) return [];
  const names: number[] = [];
  let table = 0;
  for (let at = 0; at < dynamic.lengthBytes; at += 16) {
    const tag = view.getBigInt64(dynamic.offset + at, true);
    const value = Number(view.getBigUint64(dynamic.offset + at + 8, true));
    if (tag === DT_NEEDED) names.push(value);
    if (tag === DT_STRTAB) table = value;
  }
  const home = segments.find(({ type, address, lengthBytes }) =>
    type === PT_LOAD && address <= table && table < address + lengthBytes
  );
  if (home === undefined) return [];
  const strings = table - home.address + home.offset;
  return names.map((name) => {
    const start = strings + name;
    return new TextDecoder().decode(
      file.subarray(start, file.indexOf(0, start)),
    );
  });
}

/** Libraries of a tree, and those that it lacks. */
export interface Linked {
  /** Paths by the name that a library is asked for by. */
  readonly found: ReadonlyMap<string, string>;
  /** Names of libraries that the tree lacks. */
  readonly missing: readonly string[];
}

/** Finds libraries among the files of a tree of packages, and all that these are linked with in turn. */
export async function linkedLibraries(
  tree: string,
  names: readonly string[],
): Promise<Linked> {
  const libraries = await librariesIn(tree);
  const found = new Map<string, string>();
  const missing = new Set<string>();
  const wanted = [...names];
  for (let name; (name = wanted.pop()) !== undefined;) {
    const path = libraries.get(name);
    if (path === undefined) missing.add(name);
    if (path === undefined || found.has(name)) continue;
    found.set(name, path);
    wanted.push(...neededLibraries(await Deno.readFile(path)));
  }
  return { found, missing: [...missing] };
}

const indexes = new Map<string, Promise<Map<string, string>>>();

/** Every shared library of a tree, by name. */
function librariesIn(tree: string): Promise<Map<string, string>> {
  let index = indexes.get(tree);
  if (index === undefined) {
    index = indexLibraries(tree);
    indexes.set(tree, index);
  }
  return index;
}

async function indexLibraries(tree: string): Promise<Map<string, string>> {
  const libraries = new Map<string, string>();
  const visit = async (dir: string): Promise<void> => {
    for await (const entry of Deno.readDir(dir)) {
      const path = join(dir, entry.name);
      // Builds of the same libraries for newer processors.
      if (entry.name === "glibc-hwcaps") continue;
      if (entry.isDirectory) await visit(path);
      else if (/\.so(\.|$)/.test(entry.name) && !libraries.has(entry.name)) {
        libraries.set(entry.name, path);
      }
    }
  };
  for await (const { name, isDirectory } of Deno.readDir(tree)) {
    if (isDirectory && ["lib", "usr"].includes(name)) {
      await visit(join(tree, name));
    }
  }
  return libraries;
}
