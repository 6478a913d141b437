/**
 * A card plugged into a TAP interface of the host.
 *
 * @module
 */

import { Errno, ErrnoError } from "../errno.ts";
import type { FdWatch, Loop } from "../event_loop.ts";
import {
  Epoll,
  NativeBuffer,
  openTap,
  readv,
  type Tap,
  writev,
} from "../libc/mod.ts";
import { libc } from "../libc/symbols.ts";
import type { Log } from "../log.ts";
import type { ScatterGather } from "../memory/scatter_gather.ts";
import type { NetBackend, NetContext, NetPeer } from "./backend.ts";
import type { TapNetOptions } from "./option_table.ts";
import { clearTapOffload, InterfaceControl } from "./tap_interface.ts";

/** sizeof(struct virtio_net_hdr_v1). */
const VNET_HEADER_BYTES = 12;
/** The kernel queues 500 frames on a TAP unless told otherwise (TUN_READQ_SIZE); more than a few rounds of that is new traffic. */
const DISCARD_MAX = 2048;

/** Frames by readv(2) and writev(2) between guest memory and the kernel. */
export class TapBackend implements NetBackend {
  readonly description: string;
  readonly hasVnetHeader = true;
  /** The interface's name as the kernel gave it. */
  readonly ifname: string;
  readonly #tap: Tap;
  readonly #loop: Loop;
  readonly #log: Log;
  #watch: FdWatch | null = null;
  #peer: NetPeer | null = null;
  #receiving = true;
  #awaitsWritable = false;
  #gone = false;
  #txDropped = 0;
  #rxErrors = 0;

  /** @throws {ErrnoError} With the remedy, when the interface cannot be had */
  constructor(options: TapNetOptions, context: NetContext) {
    this.#loop = context.loop;
    this.#log = context.log;
    using control = new InterfaceControl();
    const existed = control.exists(options.ifname);
    this.#tap = openOrExplain(options.ifname);
    this.ifname = this.#tap.ifname;
    this.description = `tap ${this.ifname}`;
    try {
      clearTapOffload(this.#tap.fd.number);
      if (existed) this.#inspect(control, context.mtu);
      else this.#setUp(control, context.mtu);
    } catch (error) {
      this.close();
      throw error;
    }
  }

  start(peer: NetPeer): void {
    this.stop();
    if (this.#gone) return;
    this.#discardWaiting();
    this.#peer = peer;
    this.#watch = this.#loop.watch(
      this.#tap.fd.number,
      this.#events(),
      (events) => this.#onEvents(events),
    );
  }

  stop(): void {
    this.#watch?.close();
    this.#watch = null;
    this.#peer = null;
    this.#awaitsWritable = false;
  }

  send(frame: ScatterGather): number {
    const n = writev(this.#tap.fd.number, frame.iovec, frame.count);
    if (n >= 0) return n;
    if (n === -Errno.EAGAIN && this.#watch !== null) {
      this.#awaitsWritable = true;
      this.#watch.setEvents(this.#events());
      return n;
    }
    // EIO says the interface is down, EINVAL that the guest's header or frame is nonsense: lost, as on a wire.
    this.#txDropped++;
    return n === -Errno.EAGAIN ? -Errno.ENOBUFS : n;
  }

  receive(into: ScatterGather): number {
    const n = readv(this.#tap.fd.number, into.iovec, into.count);
    if (n < 0 && n !== -Errno.EAGAIN) {
      this.#rxErrors++;
      // Nothing was taken off the queue, and the same would come again.
      return -Errno.EAGAIN;
    }
    return n;
  }

  setReceiving(on: boolean): void {
    this.#receiving = on;
    this.#watch?.setEvents(this.#events());
  }

  counters(): Readonly<Record<string, number>> {
    return { txDropped: this.#txDropped, rxErrors: this.#rxErrors };
  }

  /** Detaches; an interface that was made on opening goes away. */
  close(): void {
    this.stop();
    this.#tap.fd.close();
  }

  #events(): number {
    return (this.#receiving ? Epoll.IN : 0) |
      (this.#awaitsWritable ? Epoll.OUT : 0);
  }

  #onEvents(events: number): void {
    if ((events & Epoll.ERR) !== 0) {
      // Cannot be masked, and lasts.
      this.#gone = true;
      this.stop();
      this.#log.warn(
        `${this.ifname} was deleted: its card has no network any more, restart the device to attach anew`,
      );
      return;
    }
    if ((events & Epoll.OUT) !== 0 && this.#awaitsWritable) {
      this.#awaitsWritable = false;
      this.#watch?.setEvents(this.#events());
      this.#peer?.onWritable();
    }
    if ((events & Epoll.IN) !== 0 && this.#receiving) this.#peer?.onReadable();
  }

  /** What came while nobody listened. */
  #discardWaiting(): void {
    using scratch = new NativeBuffer(1);
    for (let i = 0; i < DISCARD_MAX; i++) {
      const fd = this.#tap.fd.number;
      if (libc.read(fd, scratch.pointer(), scratch.lengthBytes) < 0) return;
    }
  }

  /** Someone else's interface is left as it is; say what will not work. */
  #inspect(control: InterfaceControl, mtu: number): void {
    const { ifname } = this;
    if (!control.isUp(ifname)) {
      this.#log.warn(
        `${ifname} is down and drops all frames: run "ip link set ${ifname} up"`,
      );
    }
    const theirs = control.mtu(ifname);
    if (theirs > mtu) {
      this.#log.warn(
        `${ifname} has an MTU of ${theirs}, the card of ${mtu}, longer packets will be cut: ` +
          `run "ip link set ${ifname} mtu ${mtu}"`,
      );
    }
  }

  /** An interface of our own works at once as far as it can: an address or a bridge is the user's to choose. */
  #setUp(control: InterfaceControl, mtu: number): void {
    const { ifname } = this;
    if (control.mtu(ifname) !== mtu) control.setMtu(ifname, mtu);
    control.bringUp(ifname);
    this.#log.info(
      `Made interface ${ifname} and brought it up: give it an address ("ip address add 192.168.76.1/24 dev ${ifname}") ` +
        `or a bridge ("ip link set ${ifname} master br0")`,
    );
  }
}

function openOrExplain(ifname: string): Tap {
  try {
    return openTap(ifname, VNET_HEADER_BYTES);
  } catch (error) {
    if (!(error instanceof ErrnoError)) throw error;
    const why = explain(error.errno, ifname);
    if (why === null) throw error;
    throw new ErrnoError(
      error.errno,
      `Cannot attach to TAP interface ${ifname}: ${why}`,
      { cause: error },
    );
  }
}

function explain(errno: number, ifname: string): string | null {
  const name = ifname.replace("%d", "0");
  switch (errno) {
    case Errno.EPERM:
      return `not permitted, have root run "ip tuntap add dev ${name} mode tap user $USER" once ` +
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
      return 'there is an interface of that name which is no single-queue TAP, see "ip -details link"';
    default:
      return null;
  }
}
