/**
 * TAP interfaces through /dev/net/tun.
 *
 * @module
 */

import { Errno } from "../core/errno.ts";
import { SyscallError } from "./errors.ts";
import { type Fd, openFd, setNonblocking } from "./fd.ts";
import { lastErrno, libc } from "./symbols.ts";

const TUNSETIFF = 0x4004_54ca;
const TUNSETOFFLOAD = 0x4004_54d0;
const TUNSETVNETHDRSZ = 0x4004_54d8;
const TUNSETQUEUE = 0x4004_54d9;
const IFF_TAP = 0x0002;
const IFF_MULTI_QUEUE = 0x0100;
const IFF_ATTACH_QUEUE = 0x0200;
const IFF_DETACH_QUEUE = 0x0400;
const IFF_NO_PI = 0x1000;
const IFF_VNET_HDR = 0x4000;

// struct ifreq { char ifr_name[16]; short ifr_flags; … }
const IFREQ = { NAME: 0, FLAGS: 16, SIZE: 40 } as const;

/** The longest interface name, IFNAMSIZ less its NUL. */
export const IFNAME_MAX = 15;

function ioctl(
  fd: number,
  request: number,
  argument: Uint8Array<ArrayBuffer>,
  what: string,
): void {
  if (libc.ioctl(fd, request, argument) < 0) {
    throw new SyscallError("ioctl", lastErrno(), what);
  }
}

/** An open TAP interface, or one queue of it. */
export interface Tap {
  /** Frames are read and written here, each behind a virtio-net header. */
  readonly fd: Fd;
  /** The interface's name as the kernel gave it. */
  readonly ifname: string;
}

/**
 * Attaches to a TAP interface, or makes a new one where none has that name (needs CAP_NET_ADMIN).
 *
 * @param ifname Interface name; may hold `%d` for the kernel to fill in
 * @param vnetHeaderBytes Length of the virtio-net header before each frame, 10 or 12
 * @param multiQueue Whether the interface has several queues, each of which is opened by a call of its own
 * @throws {SyscallError} ENOENT (no tun driver), EPERM (not permitted), EBUSY (in use by another process), EINVAL (an
 * interface of another kind), E2BIG (too many queues)
 */
export function openTap(
  ifname: string,
  vnetHeaderBytes: number,
  multiQueue = false,
): Tap {
  const O_RDWR = 2;
  if (ifname.length === 0 || ifname.length > IFNAME_MAX) {
    throw new SyscallError(
      "ioctl",
      Errno.EINVAL,
      `Cannot use interface name "${ifname}", 1 to ${IFNAME_MAX} characters are allowed`,
    );
  }
  const fd = openFd("/dev/net/tun", O_RDWR);
  try {
    const ifreq = new Uint8Array(IFREQ.SIZE);
    new TextEncoder().encodeInto(ifname, ifreq);
    new DataView(ifreq.buffer).setUint16(
      IFREQ.FLAGS,
      IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (multiQueue ? IFF_MULTI_QUEUE : 0),
      true,
    );
    ioctl(
      fd.number,
      TUNSETIFF,
      ifreq,
      `Cannot attach to TAP interface ${ifname}`,
    );
    const size = new Uint8Array(4);
    new DataView(size.buffer).setInt32(0, vnetHeaderBytes, true);
    ioctl(
      fd.number,
      TUNSETVNETHDRSZ,
      size,
      `Cannot set the header size of ${ifname}`,
    );
    setNonblocking(fd.number);
    const name = new TextDecoder().decode(ifreq.subarray(0, ifreq.indexOf(0)));
    return { fd, ifname: name };
  } catch (error) {
    fd.close();
    throw error;
  }
}

/**
 * Chooses what the kernel may leave to the reader of a TAP; of all queues, whichever is named.
 *
 * @param offloads Bits TUN_F_*; 0 has it give whole, checksummed frames
 * @returns 0, or −errno: −EINVAL when the kernel does not know all bits
 */
export function setTapOffloads(fd: number, offloads: number): number {
  // The argument is the number itself.
  return libc.ioctl_value(fd, TUNSETOFFLOAD, offloads) < 0 ? -lastErrno() : 0;
}

/**
 * Takes a queue of a TAP out of service, so that the kernel gives it no frames, or back into it.
 *
 * @returns 0 or −errno
 */
export function setTapQueueAttached(fd: number, attached: boolean): number {
  const ifreq = new Uint8Array(IFREQ.SIZE);
  new DataView(ifreq.buffer).setUint16(
    IFREQ.FLAGS,
    attached ? IFF_ATTACH_QUEUE : IFF_DETACH_QUEUE,
    true,
  );
  return libc.ioctl(fd, TUNSETQUEUE, ifreq) < 0 ? -lastErrno() : 0;
}
