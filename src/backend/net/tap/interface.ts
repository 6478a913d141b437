/**
 * What the kernel knows of a network interface, by ioctl (netdevice(7)).
 *
 * @module
 */

import { Errno } from "../../../core/errno.ts";
import { check, Fd } from "../../../os/mod.ts";
import { lastErrno, libc } from "../../../os/symbols.ts";

const SIOCGIFFLAGS = 0x8913;
const SIOCSIFFLAGS = 0x8914;
const SIOCGIFMTU = 0x8921;
const SIOCSIFMTU = 0x8922;
const IFF_UP = 1;

// struct ifreq { char ifr_name[16]; union { short ifr_flags; int ifr_mtu; … } ifr; }
const IFREQ = { NAME: 0, FLAGS: 16, MTU: 16, SIZE: 40 } as const;

/** The kernel's handle for interface questions: any socket will do. */
export class InterfaceControl implements Disposable {
  readonly #socket: Fd;

  /** @throws {SyscallError} */
  constructor() {
    const AF_INET = 2;
    const SOCK_DGRAM_CLOEXEC = 2 | 0o2000000;
    this.#socket = new Fd(
      check(libc.socket(AF_INET, SOCK_DGRAM_CLOEXEC, 0), "socket"),
    );
  }

  /** Whether there is an interface of that name. */
  exists(ifname: string): boolean {
    const { ifreq } = request(ifname);
    return libc.ioctl(this.#socket.number, SIOCGIFFLAGS, ifreq) === 0 ||
      lastErrno() !== Errno.ENODEV;
  }

  /** @throws {SyscallError} ENODEV */
  isUp(ifname: string): boolean {
    const { ifreq, view } = request(ifname);
    this.#ioctl(SIOCGIFFLAGS, ifreq, `Cannot look at ${ifname}`);
    return (view.getUint16(IFREQ.FLAGS, true) & IFF_UP) !== 0;
  }

  /** @throws {SyscallError} EPERM without CAP_NET_ADMIN */
  bringUp(ifname: string): void {
    const { ifreq, view } = request(ifname);
    this.#ioctl(SIOCGIFFLAGS, ifreq, `Cannot look at ${ifname}`);
    const flags = view.getUint16(IFREQ.FLAGS, true);
    view.setUint16(IFREQ.FLAGS, flags | IFF_UP, true);
    this.#ioctl(SIOCSIFFLAGS, ifreq, `Cannot bring up ${ifname}`);
  }

  /** @throws {SyscallError} ENODEV */
  mtu(ifname: string): number {
    const { ifreq, view } = request(ifname);
    this.#ioctl(SIOCGIFMTU, ifreq, `Cannot look at ${ifname}`);
    return view.getInt32(IFREQ.MTU, true);
  }

  /** @throws {SyscallError} EPERM without CAP_NET_ADMIN, EINVAL */
  setMtu(ifname: string, mtu: number): void {
    const { ifreq, view } = request(ifname);
    view.setInt32(IFREQ.MTU, mtu, true);
    this.#ioctl(SIOCSIFMTU, ifreq, `Cannot set the MTU of ${ifname} to ${mtu}`);
  }

  /** Closes the socket. */
  close(): void {
    this.#socket.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #ioctl(
    number: number,
    ifreq: Uint8Array<ArrayBuffer>,
    context: string,
  ): void {
    check(libc.ioctl(this.#socket.number, number, ifreq), "ioctl", context);
  }
}

function request(
  ifname: string,
): { ifreq: Uint8Array<ArrayBuffer>; view: DataView } {
  const ifreq = new Uint8Array(IFREQ.SIZE);
  // A longer name is cut and names nothing; the option parser has refused it before.
  new TextEncoder().encodeInto(ifname, ifreq.subarray(0, 15));
  return { ifreq, view: new DataView(ifreq.buffer) };
}
