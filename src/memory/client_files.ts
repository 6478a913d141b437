/**
 * The files behind a client's memory, each mapped once.
 *
 * @module
 */

import { PAGE_SIZE } from "../core/bits.ts";
import { Errno, ErrnoError } from "../core/errno.ts";
import {
  dupFd,
  type Fd,
  type FdStat,
  freeBytes,
  hugePageBytes,
  isRegularFile,
  Mapping,
  Prot,
  statFd,
  SyscallError,
} from "../os/mod.ts";
import { Access } from "./guest_memory.ts";
import { Backing, type Region } from "./region.ts";

/** Longer files are mapped range by range: the address space of a process has 128 TiB, for all clients. */
const WHOLE_FILE_MAX_BYTES = 2 ** 40;

/** A part of a client's file. */
export interface FilePart {
  readonly fd: number;
  /** Offset in the file, page-aligned. */
  readonly offset: number;
  readonly lengthBytes: number;
  readonly access: Access;
}

/** Place where a part of a file is mapped. */
export interface MappedPart {
  readonly backing: Backing;
  /** Offset in the backing. */
  readonly offset: number;
  /** True when the file was not mapped before. */
  readonly isNew: boolean;
}

/** Options of mappings. */
export interface ClientFilesOptions {
  /** Leave inaccessible pages where a mapping was; each range is then mapped by itself. */
  readonly poison: boolean;
  /** Have every page of a file there before it is used. */
  readonly prealloc: boolean;
}

/** Part of a file that another process maps to see the same. */
export interface FilePlace {
  /** Stays that of whoever tells. */
  readonly fd: number;
  /** Offset in the file, page-aligned. */
  readonly offset: number;
}

/** A descriptor of a file, for as long as a part of it is mapped. */
interface OpenFile {
  readonly identity: string;
  readonly fd: Fd;
  mappings: number;
}

/** A mapping, and the part of a file that it shows. */
interface Mapped {
  readonly mapping: Mapping;
  readonly file: OpenFile;
  readonly offset: number;
}

/**
 * Files by device and inode, each with one descriptor of our own. A range of a file that is mapped already costs no system call that changes the address
 * space, and no page fault: behind an IOMMU thousands of one page each come and go. The mapping ends with its last range.
 */
export class ClientFiles {
  readonly #options: ClientFilesOptions;
  readonly #open = new Map<string, OpenFile>();
  /** Those mapped as a whole. */
  readonly #files = new Map<string, Backing>();
  readonly #mappings = new Map<Backing, Mapped>();

  constructor(options: ClientFilesOptions) {
    this.#options = options;
  }

  /**
   * Maps a part of a file.
   *
   * @throws {ErrnoError} EINVAL when the file does not reach so far, and what mmap says
   */
  map(part: FilePart): MappedPart {
    const { fd, offset, lengthBytes, access } = part;
    const stat = statFd(fd);
    checkSize(stat, part);
    const { identity } = stat;
    if (this.#options.poison || !isRegularFile(stat)) {
      return this.#apart(part, identity);
    }
    const key = `${identity}:${access}`;
    const known = this.#files.get(key);
    if (known !== undefined && offset + lengthBytes <= known.lengthBytes) {
      return { backing: known, offset, isNew: false };
    }
    const wholeBytes = stat.sizeBytes - stat.sizeBytes % PAGE_SIZE;
    if (wholeBytes > WHOLE_FILE_MAX_BYTES) return this.#apart(part, identity);
    const whole = { fd, offset: 0, lengthBytes: wholeBytes, access };
    try {
      const backing = this.#map(whole, identity, key);
      return { backing, offset, isNew: true };
    } catch (error) {
      checkReserved(fd, wholeBytes, error);
      // There may be addresses for the part.
      return this.#apart(part, identity);
    }
  }

  /** Finds the part of a file that a range shows; null for what is no file. */
  placeOf({ backing, offset }: Region): FilePlace | null {
    const mapped = this.#mappings.get(backing);
    return mapped === undefined
      ? null
      : { fd: mapped.file.fd.number, offset: mapped.offset + offset };
  }

  /** Maps a range by itself. */
  #apart(part: FilePart, identity: string): MappedPart {
    checkHugePages(part.fd, part.offset, part.lengthBytes);
    const backing = this.#map(part, identity, null);
    return { backing, offset: 0, isNew: true };
  }

  #map(part: FilePart, identity: string, key: string | null): Backing {
    const { fd, offset } = part;
    const mapping = this.#mapPages(part);
    try {
      const file = this.#hold(identity, () => dupFd(fd));
      return this.#back({ mapping, file, offset }, key);
    } catch (error) {
      mapping.close();
      throw error;
    }
  }

  #hold(identity: string, open: () => Fd): OpenFile {
    let file = this.#open.get(identity);
    if (file === undefined) {
      file = { identity, fd: open(), mappings: 0 };
      this.#open.set(identity, file);
    }
    file.mappings++;
    return file;
  }

  #letGo(file: OpenFile): void {
    if (--file.mappings > 0) return;
    this.#open.delete(file.identity);
    file.fd.close();
  }

  #mapPages({ fd, offset, lengthBytes, access }: FilePart): Mapping {
    const prot = (access & Access.READ ? Prot.READ : 0) |
      (access & Access.WRITE ? Prot.WRITE : 0);
    const mapping = new Mapping({ fd, offset, lengthBytes, prot });
    if (!this.#options.prealloc) return mapping;
    try {
      mapping.populate((access & Access.WRITE) !== 0);
    } catch (error) {
      mapping.close();
      throw error;
    }
    return mapping;
  }

  #back(mapped: Mapped, key: string | null): Backing {
    const { mapping, file } = mapped;
    // SAFETY: the last range is gone before release is called; windows end with the generation, and whoever keeps a
    // translation is told before its range goes.
    const backing: Backing = new Backing(mapping.buffer, mapping.hva, () => {
      this.#mappings.delete(backing);
      if (key !== null && this.#files.get(key) === backing) {
        this.#files.delete(key);
      }
      if (this.#options.poison) mapping.poison();
      else mapping.close();
      this.#letGo(file);
    });
    this.#mappings.set(backing, mapped);
    if (key !== null) this.#files.set(key, backing);
    return backing;
  }
}

/**
 * Says what could end the process though the file reaches as far as it should: a page that is used first here and for
 * which there is no storage left raises SIGBUS, as does one behind the end of a file that was cut.
 *
 * @returns For the log; null when nothing is known of
 */
export function overcommitOf(fd: number): string | null {
  const { mode, sizeBytes, allocatedBytes } = statFd(fd);
  // Mapping has reserved what lies on huge pages.
  if (!isRegularFile({ mode }) || hugePageBytes(fd) > 0) return null;
  const missing = sizeBytes - allocatedBytes;
  const free = freeBytes(fd);
  if (missing <= free) return null;
  return `guest memory is a file of ${sizeBytes} bytes, ${missing} of which have no storage yet, and its file system ` +
    `has ${free} left: when those are used up this process ends (SIGBUS); make room, have the client reserve its ` +
    "memory (QEMU: prealloc=on), or start this with --prealloc";
}

/** A page behind the end of its file faults when touched, so the file must reach. */
function checkSize(stat: FdStat, { offset, lengthBytes }: FilePart): void {
  const end = offset + lengthBytes;
  if (offset % PAGE_SIZE !== 0) {
    throw new ErrnoError(
      Errno.EINVAL,
      `Cannot map memory: offset ${offset} is not page-aligned`,
    );
  }
  if (!isRegularFile(stat) || stat.sizeBytes >= end) return;
  throw new ErrnoError(
    Errno.EINVAL,
    `Cannot map memory: its file has ${stat.sizeBytes} bytes, ${end} are needed`,
  );
}

/** Mapping a file reserves the huge pages that its client has not: without them a use of it would end the process. */
function checkReserved(fd: number, lengthBytes: number, error: unknown): void {
  if (!(error instanceof SyscallError)) throw error;
  const pageBytes = hugePageBytes(fd);
  if (pageBytes === 0 || error.errno !== Errno.ENOMEM) return;
  throw new ErrnoError(
    Errno.ENOMEM,
    `Cannot map memory: its file of ${lengthBytes} bytes is on huge pages of ${pageBytes}, and not so many are free; ` +
      "have more of them (vm.nr_hugepages), or the client reserve its own (QEMU: prealloc=on)",
  );
}

/** A mapping of a part of a huge page could never be unmapped. */
function checkHugePages(fd: number, offset: number, lengthBytes: number): void {
  const pageBytes = hugePageBytes(fd);
  if (
    pageBytes === 0 ||
    (offset % pageBytes === 0 && lengthBytes % pageBytes === 0)
  ) return;
  throw new ErrnoError(
    Errno.EINVAL,
    `Cannot map memory: offset or size is not a multiple of its pages of ${pageBytes} bytes`,
  );
}
