/**
 * The TAP interface behind a card: it is opened and looked at here, and what to do is said when that fails.
 *
 * @module
 */

import { Errno, ErrnoError } from "../../../core/errno.ts";
import type { Log } from "../../../core/log.ts";
import {
  check,
  Fd,
  openTap,
  setTapOffloads,
  type Tap,
} from "../../../os/mod.ts";
import { lastErrno, libc } from "../../../os/symbols.ts";
import { NetOffload, type NetOffloads } from "../contract.ts";
import { IFNAME_MAX } from "./driver.ts";
import { VIRTIO_NET_HDR } from "../frame/vnet_header.ts";

const { CSUM, TSO4, TSO6, ECN, UFO, USO4, USO6 } = NetOffload;

/**
 * Opens the queues of an interface, a descriptor each. An interface that is new works at once as far as it can; about one
 * that was there, what will not work is logged.
 *
 * @param ifname May hold `%d`
 * @param count Number of them; an interface with one queue is of another kind than one with several
 * @param mtu The card's, in bytes
 * @throws {ErrnoError} With the remedy; nothing is left open
 */
export function openInterface(
  ifname: string,
  count: number,
  mtu: number,
  log: Log,
): Tap[] {
  using control = new InterfaceControl();
  const existed = control.exists(ifname);
  const queues = openTapQueues(ifname, count);
  try {
    if (existed) inspect(control, queues[0]!.ifname, mtu, log);
    else setUp(control, queues[0]!.ifname, mtu, log);
    return queues;
  } catch (error) {
    for (const { fd } of queues) fd.close();
    throw error;
  }
}

/**
 * Opens the queues of an interface, and does nothing else to it.
 *
 * @throws {ErrnoError} As {@linkcode openInterface}
 */
export function openTapQueues(ifname: string, count: number): Tap[] {
  const queues: Tap[] = [];
  try {
    for (let i = 0; i < count; i++) {
      // The kernel has numbered it by then.
      const name = queues[0]?.ifname ?? ifname;
      queues.push(openTap(name, VIRTIO_NET_HDR.SIZE, count > 1));
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
 * Finds out what this kernel's TAPs can do; leaves all off.
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

/** Someone else's interface is left as it is; says what will not work. */
function inspect(
  control: InterfaceControl,
  ifname: string,
  mtu: number,
  log: Log,
): void {
  if ((control.get(SIOCGIFFLAGS, ifname) & IFF_UP) === 0) {
    log.warn(
      `${ifname} is down and drops all frames: run "ip link set ${ifname} up"`,
    );
  }
  const theirs = control.get(SIOCGIFMTU, ifname);
  if (theirs > mtu) {
    log.warn(
      `${ifname} has an MTU of ${theirs}, the card of ${mtu}, longer packets will be cut: ` +
        `run "ip link set ${ifname} mtu ${mtu}"`,
    );
  }
}

/** Makes a new interface ready for use: an address or a bridge is the user's to choose. */
function setUp(
  control: InterfaceControl,
  ifname: string,
  mtu: number,
  log: Log,
): void {
  if (control.get(SIOCGIFMTU, ifname) !== mtu) {
    const action = `set the MTU of ${ifname} to ${mtu}`;
    control.set(SIOCSIFMTU, ifname, mtu, action);
  }
  const flags = control.get(SIOCGIFFLAGS, ifname) | IFF_UP;
  control.set(SIOCSIFFLAGS, ifname, flags, `bring up ${ifname}`);
  log.info(
    `Made interface ${ifname} and brought it up: give it an address ("ip address add 192.168.76.1/24 dev ${ifname}") ` +
      `or a bridge ("ip link set ${ifname} master br0")`,
  );
}

const SIOCGIFFLAGS = 0x8913;
const SIOCSIFFLAGS = 0x8914;
const SIOCGIFMTU = 0x8921;
const SIOCSIFMTU = 0x8922;
const IFF_UP = 1;

// struct ifreq { char ifr_name[16]; union { short ifr_flags; int ifr_mtu; … } ifr; }, the rest of the union being zero
const IFREQ = { NAME: 0, VALUE: 16, SIZE: 40 } as const;

/** Settings of network interfaces by ioctl (netdevice(7)), for which any socket will do. */
class InterfaceControl implements Disposable {
  readonly #socket: Fd;

  /** @throws {SyscallError} */
  constructor() {
    const AF_INET = 2;
    const SOCK_DGRAM_CLOEXEC = 2 | 0o2000000;
    this.#socket = new Fd(
      check(libc.socket(AF_INET, SOCK_DGRAM_CLOEXEC, 0), "socket"),
    );
  }

  exists(ifname: string): boolean {
    return this.#ioctl(SIOCGIFFLAGS, ifname).result === 0 ||
      lastErrno() !== Errno.ENODEV;
  }

  /** @throws {SyscallError} ENODEV */
  get(request: number, ifname: string): number {
    const { result, value } = this.#ioctl(request, ifname);
    check(result, "ioctl", `Cannot look at ${ifname}`);
    return value;
  }

  /** @throws {SyscallError} EPERM without CAP_NET_ADMIN, EINVAL */
  set(request: number, ifname: string, value: number, action: string): void {
    const { result } = this.#ioctl(request, ifname, value);
    check(result, "ioctl", `Cannot ${action}`);
  }

  [Symbol.dispose](): void {
    this.#socket.close();
  }

  #ioctl(request: number, ifname: string, value = 0) {
    const ifreq = new Uint8Array(IFREQ.SIZE);
    const view = new DataView(ifreq.buffer);
    // A longer name is cut and names nothing; the option parser has refused it before.
    new TextEncoder().encodeInto(ifname, ifreq.subarray(0, IFNAME_MAX));
    view.setInt32(IFREQ.VALUE, value, true);
    const result = libc.ioctl(this.#socket.number, request, ifreq);
    return { result, value: view.getInt32(IFREQ.VALUE, true) };
  }
}
