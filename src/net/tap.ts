/**
 * A card plugged into a TAP interface of the host.
 *
 * @module
 */

import { Errno } from "../errno.ts";
import { setTapOffloads } from "../libc/mod.ts";
import type { Log } from "../log.ts";
import type { ScatterGather } from "../memory/scatter_gather.ts";
import type {
  NetBackend,
  NetContext,
  NetOffloads,
  NetPeer,
} from "./backend.ts";
import type { TapNetOptions } from "./option_table.ts";
import { InterfaceControl } from "./tap_interface.ts";
import { openTapQueues, probeTapOffloads } from "./tap_open.ts";
import { TapQueue, type TapQueueListener } from "./tap_queue.ts";

/**
 * Frames between guest memory and the kernel, which cuts, joins and checksums them where the card leaves that to it.
 *
 * With several queue pairs the kernel chooses the pair of a received frame: the one that last sent frames of its flow.
 */
export class TapBackend implements NetBackend, TapQueueListener {
  readonly description: string;
  readonly hasVnetHeader = true;
  readonly offloads: NetOffloads;
  readonly queuePairs: number;
  /** The interface's name as the kernel gave it. */
  readonly ifname: string;
  readonly #queues: TapQueue[] = [];
  readonly #log: Log;
  #peer: NetPeer | null = null;
  #gone = false;
  #txDropped = 0;
  #rxErrors = 0;

  /** @throws {ErrnoError} With the remedy, when the interface cannot be had */
  constructor(options: TapNetOptions, context: NetContext) {
    this.#log = context.log;
    this.queuePairs = context.queuePairs ?? 1;
    using control = new InterfaceControl();
    const existed = control.exists(options.ifname);
    const taps = openTapQueues(options.ifname, this.queuePairs);
    taps.forEach(({ fd }, pair) =>
      this.#queues.push(new TapQueue(pair, fd, context.loop, this))
    );
    this.ifname = taps[0]!.ifname;
    this.description = `tap ${this.ifname}`;
    try {
      this.offloads = probeTapOffloads(this.#queues[0]!.fd);
      if (existed) this.#inspect(control, context.mtu);
      else this.#setUp(control, context.mtu);
      this.setQueuePairs(1);
    } catch (error) {
      this.close();
      throw error;
    }
  }

  start(peer: NetPeer): void {
    this.stop();
    if (this.#gone) return;
    this.#peer = peer;
    for (const queue of this.#queues) {
      if (queue.attached) queue.discardWaiting();
      queue.start();
    }
  }

  stop(): void {
    for (const queue of this.#queues) queue.stop();
    this.#peer = null;
  }

  setOffloads(give: number): number {
    return setTapOffloads(this.#queues[0]!.fd, give);
  }

  setQueuePairs(count: number): number {
    // From the end, so that the kernel's numbers of those that remain stay as they are.
    for (let i = this.queuePairs - 1; i >= count; i--) {
      this.#queues[i]!.stop();
      const result = this.#queues[i]!.setAttached(false);
      if (result < 0) return result;
    }
    for (let i = 0; i < count; i++) {
      const result = this.#queues[i]!.setAttached(true);
      if (result < 0) return result;
      if (this.#peer !== null) this.#queues[i]!.start();
    }
    return 0;
  }

  send(frame: ScatterGather, pair: number = 0): number {
    let queue = this.#queues[pair]!;
    // What a driver queued before it gave the pair up still leaves.
    if (!queue.attached) queue = this.#queues[0]!;
    const n = queue.send(frame);
    // EIO says the interface is down, EINVAL that the guest's header or frame is nonsense: lost, as on a wire.
    if (n < 0 && n !== -Errno.EAGAIN) this.#txDropped++;
    return n;
  }

  receive(into: ScatterGather, pair: number = 0): number {
    const n = this.#queues[pair]!.receive(into);
    if (n < 0 && n !== -Errno.EAGAIN) {
      this.#rxErrors++;
      // What it was is lost or will come again; either way this is no time to go on.
      return -Errno.EAGAIN;
    }
    return n;
  }

  setReceiving(on: boolean, pair: number = 0): void {
    this.#queues[pair]!.setReceiving(on);
  }

  onQueueReadable(pair: number): void {
    this.#peer?.onReadable(pair);
  }

  onQueueWritable(pair: number): void {
    this.#peer?.onWritable(pair);
  }

  onGone(): void {
    if (this.#gone) return;
    this.#gone = true;
    this.stop();
    this.#log.warn(
      `${this.ifname} was deleted: its card has no network any more, restart the device to attach anew`,
    );
  }

  counters(): Readonly<Record<string, number>> {
    return { txDropped: this.#txDropped, rxErrors: this.#rxErrors };
  }

  /** Detaches; an interface that was made on opening goes away. */
  close(): void {
    this.stop();
    // Whoever attaches to an interface that stays may not know of offloads; of one that is gone there is nothing to set.
    setTapOffloads(this.#queues[0]!.fd, 0);
    for (const queue of this.#queues) queue.close();
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
