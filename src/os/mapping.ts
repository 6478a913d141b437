/**
 * Mapped memory: owners of mmap-ed ranges, memfds, and native scratch buffers with a stable address.
 *
 * @module
 */

import { alignUp, high32, PAGE_SIZE } from "../core/bits.ts";
import { check, cString, SyscallError } from "./errors.ts";
import { Fd, truncateFd } from "./fd.ts";
import { lastErrno, libc } from "./symbols.ts";

/** Protection bits of mmap(2). */
export const Prot = { NONE: 0, READ: 1, WRITE: 2 } as const;

const MAP_SHARED = 0x01;
const MAP_PRIVATE = 0x02;
const MAP_FIXED = 0x10;
const MAP_ANONYMOUS = 0x20;
const MAP_NORESERVE = 0x4000;
const MAP_FAILED = 0xffff_ffff_ffff_ffffn;

function mmap(
  address: number,
  lengthBytes: number,
  prot: number,
  flags: number,
  fd: number,
  offset: number,
): Deno.PointerObject {
  const pointer = libc.mmap(address, lengthBytes, prot, flags, fd, offset);
  if (pointer === null || Deno.UnsafePointer.value(pointer) === MAP_FAILED) {
    throw new SyscallError(
      "mmap",
      lastErrno(),
      `Cannot map ${lengthBytes} bytes`,
    );
  }
  return pointer;
}

/** An address as C calls take it; not 0. */
function pointerTo(hva: number): Deno.PointerObject {
  return Deno.UnsafePointer.create(BigInt(hva))!;
}

/** Range to map; offset and length in bytes, offset page-aligned. */
export interface MappingOptions {
  /** The file to map; anonymous memory without one. */
  readonly fd?: number;
  /** First byte in the file. */
  readonly offset?: number;
  /** Length of the mapping. */
  readonly lengthBytes: number;
  /** Bits of {@linkcode Prot}; read and write unless told. */
  readonly prot?: number;
  /** Pages that are mapped already, at this address: taken over as they are, whatever the other options say of them. */
  readonly hva?: number;
}

/**
 * A mapped range of this process with one owner.
 *
 * Views made from {@linkcode Mapping.buffer} must not be used after {@linkcode Mapping.close}; the owner sees to
 * that. {@linkcode Mapping.poison} makes a mistake visible instead of dangerous.
 */
export class Mapping implements Disposable {
  /** Address of the first byte. */
  readonly hva: number;
  /** Length in bytes. */
  readonly lengthBytes: number;
  readonly #pointer: Deno.PointerObject;
  #buffer: ArrayBuffer | null = null;
  #open = true;

  /**
   * Maps, or takes over what is mapped.
   *
   * @throws {SyscallError} When mmap fails
   */
  constructor(options: MappingOptions) {
    const prot = options.prot ?? (Prot.READ | Prot.WRITE);
    const flags = options.fd === undefined
      ? MAP_PRIVATE | MAP_ANONYMOUS
      : MAP_SHARED;
    this.#pointer = options.hva === undefined
      ? mmap(
        0,
        options.lengthBytes,
        prot,
        flags,
        options.fd ?? -1,
        options.offset ?? 0,
      )
      : pointerTo(options.hva);
    this.hva = Number(Deno.UnsafePointer.value(this.#pointer));
    this.lengthBytes = options.lengthBytes;
  }

  /** The mapping as an ArrayBuffer (made on first use). */
  get buffer(): ArrayBuffer {
    // SAFETY: the pages stay mapped until close(); after it #buffer is dropped and a stale view
    // faults (poison) or reads nothing of ours. The buffer is only used on threads of this process.
    return this.#buffer ??= Deno.UnsafePointerView.getArrayBuffer(
      this.#pointer,
      this.lengthBytes,
    );
  }

  /**
   * Replaces the pages by inaccessible ones but keeps the addresses taken, so that a stale view faults
   * at once and can never read a later mapping.
   */
  poison(): void {
    if (!this.#open) return;
    mmap(
      this.hva,
      this.lengthBytes,
      Prot.NONE,
      MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
      -1,
      0,
    );
    this.#buffer = null;
    this.#open = false;
  }

  /**
   * Puts pages of another file under the same addresses: views stay good and show that file's bytes.
   *
   * @param offset Where in the file; page-aligned, with all of the mapping's length inside the file
   * @throws {SyscallError}
   */
  replace(fd: number, offset: number): void {
    mmap(
      this.hva,
      this.lengthBytes,
      Prot.READ | Prot.WRITE,
      MAP_FIXED | MAP_SHARED,
      fd,
      offset,
    );
  }

  /**
   * Has every page there, so that no access to them can find that there is no memory left.
   *
   * @param writable Whether the mapping may be written
   * @throws {SyscallError} EFAULT or ENOMEM when there is not enough; EINVAL before Linux 5.14
   */
  populate(writable: boolean): void {
    const MADV_POPULATE_READ = 22;
    const MADV_POPULATE_WRITE = 23;
    check(
      libc.madvise(
        this.hva,
        this.lengthBytes,
        writable ? MADV_POPULATE_WRITE : MADV_POPULATE_READ,
      ),
      "madvise",
      `Cannot reserve ${this.lengthBytes} bytes of guest memory`,
    );
  }

  /** Asks for huge pages, where the system has some to give: random accesses then miss fewer translations. */
  preferHugePages(): void {
    const MADV_HUGEPAGE = 14;
    // A kernel without them says EINVAL, and the pages stay small.
    libc.madvise(this.hva, this.lengthBytes, MADV_HUGEPAGE);
  }

  /**
   * Gives the pages away as they are: this object no longer owns them.
   *
   * @returns Where they are, for {@linkcode MappingOptions.hva}, on whichever thread
   */
  release(): number {
    this.#open = false;
    this.#buffer = null;
    return this.hva;
  }

  /** Unmaps; further calls do nothing. */
  close(): void {
    if (!this.#open) return;
    this.#open = false;
    this.#buffer = null;
    libc.munmap(this.hva, this.lengthBytes);
  }

  /** Closes it. */
  [Symbol.dispose](): void {
    this.close();
  }
}

/**
 * A memfd of the given length: memory that can be passed to another process.
 *
 * @throws {SyscallError}
 */
export function createMemfd(name: string, lengthBytes: number): Fd {
  const MFD_CLOEXEC = 1;
  const MFD_ALLOW_SEALING = 2;
  const fd = new Fd(
    check(
      libc.memfd_create(cString(name), MFD_CLOEXEC | MFD_ALLOW_SEALING),
      "memfd_create",
    ),
  );
  try {
    truncateFd(fd.number, lengthBytes);
  } catch (error) {
    fd.close();
    throw error;
  }
  return fd;
}

/**
 * Fixes the length of a memfd for good, so that whoever it is passed to cannot cut it and make our accesses fault.
 *
 * @throws {SyscallError}
 */
export function sealLength(fd: number): void {
  const F_ADD_SEALS = 1033;
  const F_SEAL_SEAL = 1;
  const F_SEAL_SHRINK = 2;
  const F_SEAL_GROW = 4;
  check(
    libc.fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW),
    "fcntl",
  );
}

/**
 * Looks at memory that somebody else in this process mapped.
 *
 * @param hva Where
 * @param lengthBytes How much; 1 at least
 */
export function viewMemory(hva: number, lengthBytes: number): ArrayBuffer {
  // SAFETY: the caller knows that it is mapped, and for how long.
  return Deno.UnsafePointerView.getArrayBuffer(
    pointerTo(hva),
    lengthBytes,
  );
}

/** Scratch memory outside the JavaScript heap: its address never changes, so C may keep it. */
export class NativeBuffer implements Disposable {
  readonly #mapping: Mapping;
  /** All bytes. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** The same bytes, for multi-byte fields. */
  readonly view: DataView<ArrayBuffer>;
  /** The address in two words. */
  readonly #low: number;
  readonly #high: number;

  /**
   * Makes memory of zeros.
   *
   * @param lengthBytes At least; rounded up to whole pages
   */
  constructor(lengthBytes: number) {
    this.#mapping = new Mapping({
      lengthBytes: alignUp(lengthBytes, PAGE_SIZE),
    });
    this.bytes = new Uint8Array(this.#mapping.buffer);
    this.view = new DataView(this.#mapping.buffer);
    this.#low = this.hva >>> 0;
    this.#high = high32(this.hva);
  }

  /** Address of the first byte. */
  get hva(): number {
    return this.#mapping.hva;
  }

  /**
   * Puts the address of a byte into memory that C reads, by words: a sum of addresses that goes from function to function
   * as a number is allocated wherever a call is not compiled into its caller.
   *
   * @param offset Which byte
   */
  putAddress(view: DataView, at: number, offset: number): void {
    const low = this.#low + offset;
    // Stored modulo 2^32.
    view.setUint32(at, low, true);
    view.setUint32(
      at + 4,
      low < 0x1_0000_0000 ? this.#high : this.#high + 1,
      true,
    );
  }

  /**
   * The same address, or one `offset` bytes further, as C calls take it. Make it once: it is an object.
   */
  pointer(offset = 0): Deno.PointerObject {
    return pointerTo(this.hva + offset);
  }

  /** Usable length in bytes. */
  get lengthBytes(): number {
    return this.#mapping.lengthBytes;
  }

  /** Frees the memory; further calls do nothing. */
  close(): void {
    this.#mapping.close();
  }

  /** Closes it. */
  [Symbol.dispose](): void {
    this.close();
  }
}
