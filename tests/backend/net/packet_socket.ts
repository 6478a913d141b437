/**
 * Frames on an interface, as the host sees them.
 *
 * @module
 */

import { check, Fd, setNonblocking } from "../../../src/os/mod.ts";
import { libc } from "../../../src/os/symbols.ts";

/** Local experimental EtherType 1 (IEEE 802), for which the kernel knows no taker. */
export const ETH_P_EXPERIMENTAL = [0x88, 0xb5];

const AF_PACKET = 17;
const SOCK_RAW_CLOEXEC = 3 | 0o2000000;
const SIOCGIFINDEX = 0x8933;

/** A packet socket (packet(7)) for frames of {@linkcode ETH_P_EXPERIMENTAL}; what is sent leaves the host. */
export class PacketSocket implements Disposable {
  readonly #fd: Fd;
  readonly #buffer = new Uint8Array(1 << 17);
  readonly #pointer = Deno.UnsafePointer.of(this.#buffer);

  /**
   * @param listens Whether it gets the frames that come
   * @throws {SyscallError} ENODEV, EPERM without CAP_NET_RAW
   */
  constructor(ifname: string, listens = true) {
    this.#fd = new Fd(
      check(libc.socket(AF_PACKET, SOCK_RAW_CLOEXEC, 0), "socket"),
    );
    setNonblocking(this.#fd.number);
    const ifreq = new Uint8Array(40);
    new TextEncoder().encodeInto(ifname, ifreq);
    check(libc.ioctl(this.#fd.number, SIOCGIFINDEX, ifreq), "ioctl");
    // struct sockaddr_ll { u16 family; be16 protocol; s32 ifindex; u16 hatype; u8 pkttype, halen; u8 addr[8]; }
    const address = new Uint8Array(20);
    address[0] = AF_PACKET;
    if (listens) address.set(ETH_P_EXPERIMENTAL, 2);
    address.set(ifreq.subarray(16, 20), 4);
    check(libc.bind(this.#fd.number, address, address.length), "bind");
  }

  /** Sends the first `lengthBytes` of C memory. */
  sendFrom(frame: Deno.PointerValue, lengthBytes: number): void {
    check(libc.write(this.#fd.number, frame, lengthBytes), "write");
  }

  /** Takes all frames that have come. */
  take(): Uint8Array[] {
    const frames: Uint8Array[] = [];
    for (;;) {
      const n = libc.read(this.#fd.number, this.#pointer, this.#buffer.length);
      if (n < 0) return frames;
      frames.push(this.#buffer.slice(0, n));
    }
  }

  [Symbol.dispose](): void {
    this.#fd.close();
  }
}
