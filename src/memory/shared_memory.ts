/**
 * Device memory that can be handed to clients: a memfd and our own view of it.
 *
 * @module
 */

import { createMemfd, type Fd, Mapping, type ResourceBag } from "../os/mod.ts";

/** Memory of the device that clients may map into their own address space. */
export interface SharedMemory {
  /** The bytes, zero at first; what a client writes appears here. */
  readonly bytes: Uint8Array<ArrayBuffer>;
}

/** Memory of a device in a memfd. Its creator owns it. */
export class MemfdMemory implements SharedMemory, Disposable {
  #fd: Fd;
  /** True when the memory shows {@linkcode MemfdMemory.fd}, and not a part of somebody else's file. */
  #showsOwn = true;
  readonly #mapping: Mapping;
  readonly bytes: Uint8Array<ArrayBuffer>;

  /**
   * @param name For /proc, up to 249 bytes
   * @param lengthBytes Whole pages
   * @throws {import("../os/mod.ts").SyscallError}
   */
  constructor(name: string, lengthBytes: number) {
    this.#fd = createMemfd(name, lengthBytes);
    try {
      this.#mapping = new Mapping({ fd: this.#fd.number, lengthBytes });
    } catch (error) {
      this.#fd.close();
      throw error;
    }
    this.bytes = new Uint8Array(this.#mapping.buffer);
  }

  /** Address of the memory in this process, for other threads. */
  get hva(): number {
    return this.#mapping.hva;
  }

  /** The memfd, to be passed to clients. */
  get fd(): number {
    return this.#fd.number;
  }

  /**
   * Moves the memory, with what is in it, into a part of another file. {@linkcode MemfdMemory.bytes} stays good;
   * {@linkcode MemfdMemory.fd} is no longer what it shows.
   *
   * @param fd A file that the caller keeps the length of; may be closed afterwards
   * @param offset Where in the file, page-aligned
   * @throws {import("../os/mod.ts").SyscallError}
   */
  relocate(fd: number, offset: number): void {
    const content = this.bytes.slice();
    this.show(fd, offset);
    this.bytes.set(content);
  }

  /**
   * Shows a part of another file in place of what was in the memory. Otherwise as {@linkcode MemfdMemory.relocate}.
   *
   * @throws {import("../os/mod.ts").SyscallError}
   */
  show(fd: number, offset: number): void {
    this.#mapping.replace(fd, offset);
    this.#showsOwn = false;
  }

  /** Puts the memfd that the memory shows into a bag; nothing when it is in somebody else's file. */
  save(bag: ResourceBag, name: string): void {
    if (this.#showsOwn) bag.put(name, this.#fd.number);
  }

  /**
   * Shows what {@linkcode MemfdMemory.save} of memory of the same length put, in place of what was in this.
   *
   * @throws {import("../os/mod.ts").SyscallError}
   */
  load(bag: ResourceBag, name: string): void {
    if (!bag.has(name)) return;
    const fd = bag.take(name);
    try {
      this.show(fd.number, 0);
    } catch (error) {
      fd.close();
      throw error;
    }
    this.#fd.close();
    this.#fd = fd;
    this.#showsOwn = true;
  }

  /** Unmaps and closes; clients that mapped it keep their mapping. */
  close(): void {
    this.#mapping.close();
    this.#fd.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
