/**
 * Guest memory that a server can map: a memfd, shared by DMA_MAP.
 *
 * @module
 */

import { createMemfd, type Fd, Mapping } from "../../../os/mod.ts";
import { DriverMemory } from "../../../testing/driver_memory.ts";
import type { VfioUserClient } from "./client.ts";

/** Settings for guest memory that is shared with the server. */
export interface ShareOptions {
  /** Pass no descriptor, so that the server must ask for every byte by message. */
  readonly byMessage?: boolean;
  /** True if the device may read it; yes unless told. */
  readonly readable?: boolean;
  /** True if the device may write it; yes unless told. */
  readonly writable?: boolean;
}

/** Address at which QEMU's q35 puts the memory above 4 GiB: one that needs 64 bits. */
const DEFAULT_IOVA = 0x1_0000_0000;

/** Guest memory in a memfd; owns it. */
export class GuestRam implements Disposable {
  /** The memory, for drivers. */
  readonly memory: DriverMemory;
  readonly #fd: Fd;
  readonly #mapping: Mapping;

  /**
   * Makes memory of zeros.
   *
   * @param lengthBytes Whole pages
   * @param iova Where the device sees it; page-aligned
   */
  constructor(lengthBytes: number, iova: number = DEFAULT_IOVA) {
    this.#fd = createMemfd("outboard-guest-ram", lengthBytes);
    this.#mapping = new Mapping({ fd: this.#fd.number, lengthBytes });
    this.memory = new DriverMemory(this.#mapping.buffer, iova);
  }

  /** The memfd. */
  get fd(): number {
    return this.#fd.number;
  }

  /** Shares all of it with the server of a client. */
  share(
    client: Pick<VfioUserClient, "dmaMap" | "dmaUnmap">,
    options: ShareOptions = {},
  ): void {
    client.dmaMap({
      iova: this.memory.iova,
      lengthBytes: this.memory.lengthBytes,
      readable: options.readable ?? true,
      writable: options.writable ?? true,
      bytes: this.memory.bytes,
      ...(options.byMessage ? {} : { fd: this.#fd.number }),
    });
  }

  /** Ends that. */
  unshare(client: Pick<VfioUserClient, "dmaMap" | "dmaUnmap">): void {
    client.dmaUnmap(this.memory.iova, this.memory.lengthBytes);
  }

  /** Unmaps and closes; a server that mapped it keeps its mapping until told otherwise. */
  close(): void {
    this.#mapping.close();
    this.#fd.close();
  }

  /** Closes it. */
  [Symbol.dispose](): void {
    this.close();
  }
}
