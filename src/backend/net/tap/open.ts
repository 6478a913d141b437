/**
 * Opening a TAP interface, and saying what to do when that fails.
 *
 * @module
 */

import { Errno, ErrnoError } from "../../../core/errno.ts";
import { openTap, setTapOffloads, type Tap } from "../../../os/mod.ts";
import { NetOffload, type NetOffloads } from "../contract.ts";

/** sizeof(struct virtio_net_hdr_v1). */
const VNET_HEADER_BYTES = 12;

const { CSUM, TSO4, TSO6, ECN, UFO, USO4, USO6 } = NetOffload;

/**
 * Opens the queues of an interface, a descriptor each.
 *
 * @param ifname May hold `%d`
 * @param count How many; an interface with one queue is of another kind than one with several
 * @throws {ErrnoError} With the remedy; nothing is left open
 */
export function openTapQueues(ifname: string, count: number): Tap[] {
  const queues: Tap[] = [];
  try {
    for (let i = 0; i < count; i++) {
      // The kernel has numbered it by then.
      const name = queues[0]?.ifname ?? ifname;
      queues.push(openTap(name, VNET_HEADER_BYTES, count > 1));
    }
    return queues;
  } catch (error) {
    for (const { fd } of queues) fd.close();
    if (!(error instanceof ErrnoError)) throw error;
    const why = explain(error.errno, ifname, count);
    if (why === null) throw error;
    throw new ErrnoError(
      error.errno,
      `Cannot attach to TAP interface ${ifname}: ${why}`,
      { cause: error },
    );
  }
}

/**
 * What this kernel's TAPs can do; leaves all off.
 *
 * @param fd A queue of the interface
 * @throws {ErrnoError} When nothing can be set at all
 */
export function probeTapOffloads(fd: number): NetOffloads {
  let give = CSUM | TSO4 | TSO6 | ECN;
  // Linux 6.2 brought USO, to both directions at once; UFO is known since ever and no longer given since 4.14.
  for (const more of [UFO, USO4 | USO6]) {
    if (setTapOffloads(fd, give | more) === 0) give |= more;
  }
  // An interface that outlives its user remembers what the last one could take.
  const result = setTapOffloads(fd, 0);
  if (result < 0) {
    throw new ErrnoError(-result, "Cannot set the offloads of a TAP");
  }
  // Whatever the kernel can give it can also take: it cuts by itself what a network card cannot.
  return { take: give, give };
}

function explain(errno: number, ifname: string, count: number): string | null {
  const name = ifname.replace("%d", "0");
  const multiQueue = count > 1 ? " multi_queue" : "";
  switch (errno) {
    case Errno.EPERM:
      return `not permitted, have root run "ip tuntap add dev ${name} mode tap${multiQueue} user $USER" once ` +
        `and use ifname=${name}, or run with CAP_NET_ADMIN`;
    case Errno.EACCES:
      return 'not permitted, have root run "chmod 666 /dev/net/tun" or run as root';
    case Errno.ENOENT:
    case Errno.ENODEV:
    case Errno.ENXIO:
      return 'this host has no TAP driver, have root run "modprobe tun"';
    case Errno.EBUSY:
      return "another process uses it, choose another name";
    case Errno.EINVAL:
      return count > 1
        ? "there is an interface of that name which is no multi-queue TAP, " +
          `make it with "ip tuntap add dev ${name} mode tap multi_queue" or leave queues= out`
        : 'there is an interface of that name which is no single-queue TAP, see "ip -details link"';
    default:
      return null;
  }
}
