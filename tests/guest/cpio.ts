/**
 * A writer of cpio archives in the "newc" format, which is what Linux takes as an initramfs
 * (Documentation/driver-api/early-userspace/buffer-format.rst).
 *
 * @module
 */

/** One entry of an archive; parent folders are added by the writer. */
export type CpioEntry =
  & { readonly path: string }
  & (
    | {
      readonly type: "file";
      readonly mode: number;
      readonly data: Uint8Array;
    }
    | { readonly type: "symlink"; readonly target: string }
    | { readonly type: "directory" }
  );

const S_IFDIR = 0o040000;
const S_IFREG = 0o100000;
const S_IFLNK = 0o120000;

const encoder = new TextEncoder();

/** Writes an archive; entries of the same path are an error, their order is kept. */
export function writeCpio(entries: readonly CpioEntry[]): Uint8Array {
  const chunks: Uint8Array[] = [];
  let inode = 1;
  const add = (path: string, mode: number, data: Uint8Array) => {
    const name = encoder.encode(`${path}\0`);
    const fields = [
      inode++,
      mode,
      0, // uid
      0, // gid
      1, // nlink
      0, // mtime: archives of the same content are the same bytes
      data.length,
      0, // devmajor
      0, // devminor
      0, // rdevmajor
      0, // rdevminor
      name.length,
      0, // check
    ];
    const hex = fields.map((field) => field.toString(16).padStart(8, "0"));
    const header = encoder.encode(`070701${hex.join("")}`);
    chunks.push(header, name, padding(header.length + name.length));
    chunks.push(data, padding(data.length));
  };

  const written = new Set<string>();
  const addParents = (path: string) => {
    const parts = path.split("/").slice(0, -1);
    for (let n = 1; n <= parts.length; n++) {
      const dir = parts.slice(0, n).join("/");
      if (written.has(dir)) continue;
      written.add(dir);
      add(dir, S_IFDIR | 0o755, new Uint8Array());
    }
  };
  for (const entry of entries) {
    addParents(entry.path);
    if (written.has(entry.path)) {
      if (entry.type === "directory") continue;
      throw new Error(`two entries ${entry.path} in an archive`);
    }
    written.add(entry.path);
    switch (entry.type) {
      case "file":
        add(entry.path, S_IFREG | entry.mode, entry.data);
        break;
      case "symlink":
        add(entry.path, S_IFLNK | 0o777, encoder.encode(entry.target));
        break;
      case "directory":
        add(entry.path, S_IFDIR | 0o755, new Uint8Array());
        break;
      default:
        entry satisfies never;
    }
  }
  add("TRAILER!!!", 0, new Uint8Array());
  return concatenate(chunks);
}

/** Names and data are each padded to a multiple of 4 bytes, from the start of the header. */
function padding(length: number): Uint8Array {
  return new Uint8Array(-length & 3);
}

function concatenate(chunks: readonly Uint8Array[]): Uint8Array {
  const total = chunks.reduce((sum, chunk) => sum + chunk.length, 0);
  const out = new Uint8Array(total);
  let offset = 0;
  for (const chunk of chunks) {
    out.set(chunk, offset);
    offset += chunk.length;
  }
  return out;
}
