/**
 * Frames to and from a socket, straight out of and into the card's segments.
 *
 * @module
 */

import { setU64 } from "../../../core/bits.ts";
import { Errno } from "../../../core/errno.ts";
import { NativeBuffer } from "../../../os/mod.ts";
import { lastErrno, libc } from "../../../os/symbols.ts";
import type { ScatterGather } from "../../../memory/scatter_gather.ts";

const MSG_TRUNC = 0x20;
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;

/** IOV_MAX: the most segments in one call. */
const IOV_MAX = 1024;
const IOVEC_BYTES = 16;
const WORDS = IOVEC_BYTES / 4;

// struct msghdr { void *name; socklen_t namelen; iovec *iov; size_t iovlen; void *control; size_t controllen; int flags; }
const MSGHDR = { NAME: 0, NAMELEN: 8, IOV: 16, IOVLEN: 24 } as const;
const AT = { MSGHDR: 0, NAME: 128, IOVEC: 256 } as const;
const NAME_MAX = AT.IOVEC - AT.NAME;

/**
 * The msghdr and iovec of one socket. The bytes of a frame stay where they are; its list of segments is copied, so that
 * a destination can go along. No control data is taken: descriptors that a peer sends are closed by the
 * kernel.
 */
export class FrameMessage implements Disposable {
  readonly #memory = new NativeBuffer(AT.IOVEC + IOV_MAX * IOVEC_BYTES);
  readonly #view = this.#memory.view;
  readonly #pointer = this.#memory.pointer(AT.MSGHDR);
  readonly #iovec = new Uint32Array(
    this.#memory.bytes.buffer,
    AT.IOVEC,
    IOV_MAX * WORDS,
  );
  readonly #nameBytes: number;

  /** @param destination Where {@linkcode send} sends to, a struct sockaddr; a connected socket needs none */
  constructor(destination: Uint8Array | null = null) {
    const { hva, bytes } = this.#memory;
    if (destination !== null) {
      bytes.set(destination.subarray(0, NAME_MAX), AT.NAME);
      setU64(this.#view, AT.MSGHDR + MSGHDR.NAME, hva + AT.NAME);
    }
    this.#nameBytes = destination?.length ?? 0;
    setU64(this.#view, AT.MSGHDR + MSGHDR.IOV, hva + AT.IOVEC);
  }

  /**
   * Sends a frame as one datagram.
   *
   * @returns Bytes sent, or −errno
   */
  send(fd: number, frame: ScatterGather): number {
    this.#put(frame, this.#nameBytes);
    return this.#send(fd);
  }

  /**
   * Sends bytes of the caller's own.
   *
   * @returns Bytes sent, possibly fewer than all; or −errno
   */
  sendBytes(fd: number, hva: number, lengthBytes: number): number {
    this.#setFirst(hva, lengthBytes);
    this.#setCounts(1, 0);
    return this.#send(fd);
  }

  /**
   * Receives one datagram into the list.
   *
   * @returns Its length, also when it was cut because the list is shorter; or −errno
   */
  receive(fd: number, into: ScatterGather): number {
    this.#put(into, 0);
    return this.#receive(fd, MSG_DONTWAIT | MSG_TRUNC);
  }

  /**
   * Receives bytes of a stream into memory of the caller's own.
   *
   * @returns Bytes received, 0 at its end, or −errno
   */
  receiveBytes(fd: number, hva: number, lengthBytes: number): number {
    this.#setFirst(hva, lengthBytes);
    this.#setCounts(1, 0);
    return this.#receive(fd, MSG_DONTWAIT);
  }

  /** Frees the native memory. */
  close(): void {
    this.#memory.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #send(fd: number): number {
    for (;;) {
      const n = libc.sendmsg(fd, this.#pointer, MSG_DONTWAIT | MSG_NOSIGNAL);
      if (n >= 0) return n;
      const errno = lastErrno();
      if (errno !== Errno.EINTR) return -errno;
    }
  }

  #receive(fd: number, flags: number): number {
    for (;;) {
      const n = libc.recvmsg(fd, this.#pointer, flags);
      if (n >= 0) return n;
      const errno = lastErrno();
      if (errno !== Errno.EINTR) return -errno;
    }
  }

  #setFirst(hva: number, lengthBytes: number): void {
    const iovec = this.#iovec;
    iovec[0] = hva >>> 0;
    iovec[1] = Math.floor(hva / 0x1_0000_0000);
    iovec[2] = lengthBytes;
    iovec[3] = 0;
  }

  /** Copies the list's segments; a longer list than there is room for is cut. */
  #put(list: ScatterGather, nameBytes: number): void {
    const count = Math.min(list.count, IOV_MAX);
    const from = list.words;
    const iovec = this.#iovec;
    for (let i = 0, end = count * WORDS; i < end; i++) iovec[i] = from[i]!;
    this.#setCounts(count, nameBytes);
  }

  /** recvmsg(2) writes to the header what it gave: every field that may differ is set each time. */
  #setCounts(segments: number, nameBytes: number): void {
    const view = this.#view;
    view.setUint32(AT.MSGHDR + MSGHDR.NAMELEN, nameBytes, true);
    view.setUint32(AT.MSGHDR + MSGHDR.IOVLEN, segments, true);
  }
}
