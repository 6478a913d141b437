/**
 * A card plugged into a datagram socket, as QEMU's `-netdev dgram`: one frame a datagram.
 *
 * @module
 */

import { Counters, indicesOf } from "../../../core/counters.ts";
import { Errno, ErrnoError } from "../../../core/errno.ts";
import type { FdWatch, Timer } from "../../../loop/event_loop.ts";
import {
  bindUnixDatagram,
  Epoll,
  openUdp,
  type ResourceBag,
  type Saved,
  sockaddrUn,
  socketError,
  SyscallError,
} from "../../../os/mod.ts";
import type { ScatterGather } from "../../../memory/scatter_gather.ts";
import type { NetBackend, NetContext, NetPeer } from "../contract.ts";
import type { OpenNet } from "../driver.ts";
import { explainBind, OwnSocket } from "./own_socket.ts";
import { SegmentMessage } from "../../../memory/segments.ts";
import type { DeviceState } from "../../../core/state_form.ts";
import { KEEPING_EVENTS, netForm, Ownership } from "../state.ts";
import {
  DGRAM_COUNTERS,
  type DgramNetOptions,
  formatEndpoint,
} from "./drivers.ts";
import { makeSocketFile } from "../../../os/socket/socket_file.ts";

/** Most datagrams that are thrown away before the loop gets its turn. */
const DISCARD_MAX = 256;
/** Nothing tells when a UNIX socket's queue (of 10 datagrams by default) has room again: it is looked after. */
const RETRY_FIRST_MS = 0.1;
const RETRY_MAX_MS = 10;

const KIND = "dgram";

const Count = indicesOf(DGRAM_COUNTERS);

const FORM = netForm(KIND);

/** Opens a datagram socket. */
export const openDgram: OpenNet<DgramNetOptions> = (
  options,
  context,
  saved,
) => new DgramBackend(options, context, saved);

/** Frames by sendmsg(2) and recvmsg(2) between guest memory and the kernel, without a copy in between. */
class DgramBackend implements NetBackend {
  readonly description: string;
  readonly hasVnetHeader = false;
  readonly #socket: OwnSocket;
  readonly #fd: number;
  readonly #ownership: Ownership;
  readonly #message: SegmentMessage;
  readonly #watch: FdWatch;
  readonly #retry: Timer;
  readonly #isUnix: boolean;
  #retryMs = RETRY_FIRST_MS;
  #peer: NetPeer | null = null;
  #receiving = true;
  #refused = false;
  /** True while what waits is kept for the first start. */
  #keeping = false;
  #closed = false;
  readonly #counters = new Counters(DGRAM_COUNTERS);

  /**
   * @param saved State and descriptors of a predecessor, if there was one
   * @throws {ErrnoError} With the remedy, when the socket cannot be had
   */
  constructor(
    options: DgramNetOptions,
    context: NetContext,
    saved?: Saved<unknown>,
  ) {
    const { local, remote } = options;
    const { loop } = context;
    this.description = `dgram ${formatEndpoint(local)} to ${
      formatEndpoint(remote)
    }`;
    this.#isUnix = local.family === "unix";
    const destination = remote.family === "unix"
      ? sockaddrUn(remote.path)
      : null;
    this.#ownership = new Ownership(loop, saved === undefined);
    const state = saved && FORM.read(saved.state);
    if (state !== undefined) {
      this.#keeping = state.flag("running");
      this.#counters.restore(state.value("counters"));
    }
    this.#socket = new OwnSocket(
      this.#ownership,
      () => bindTo(options),
      state && { state, bag: saved!.bag },
    );
    this.#fd = this.#socket.fd;
    this.#message = new SegmentMessage(destination);
    this.#retry = loop.timer(() => this.#tellWritable());
    try {
      this.#watch = loop.watch(
        this.#fd,
        this.#events(),
        (events) => this.#onEvents(events),
      );
    } catch (error) {
      this.#release();
      throw error;
    }
  }

  start(peer: NetPeer): void {
    this.#ownership.take();
    if (!this.#keeping) this.#discard();
    this.#keeping = false;
    this.#peer = peer;
    this.#update();
  }

  stop(): void {
    this.#peer = null;
    this.#keeping = false;
    this.#refused = false;
    this.#retry.cancel();
    if (!this.#closed) this.#update();
  }

  send(frame: ScatterGather): number {
    this.#setSegments(frame);
    const n = this.#message.send(this.#fd);
    if (n >= 0) {
      this.#retryMs = RETRY_FIRST_MS;
      return n;
    }
    if (n === -Errno.EAGAIN && this.#peer !== null) {
      this.#refused = true;
      if (this.#isUnix) {
        this.#retry.arm(this.#retryMs);
        this.#retryMs = Math.min(this.#retryMs * 2, RETRY_MAX_MS);
      } else this.#update();
      return n;
    }
    // The other side is not there (yet, or any more): lost, as on a wire.
    const lost = n === -Errno.ECONNREFUSED || n === -Errno.ENOENT
      ? Count.txUnreachable
      : Count.txDropped;
    this.#counters.add(lost, 1);
    return n === -Errno.EAGAIN ? -Errno.ENOBUFS : n;
  }

  receive(into: ScatterGather): number {
    this.#setSegments(into);
    const n = this.#message.receiveDatagram(this.#fd);
    if (n < 0 && n !== -Errno.EAGAIN) {
      // Of UDP: an earlier frame was not delivered. None was taken off the queue, and the card is called again.
      this.#counters.add(Count.rxErrors, 1);
      return -Errno.EAGAIN;
    }
    return n;
  }

  setReceiving(on: boolean): void {
    this.#receiving = on;
    this.#update();
  }

  counters(): Readonly<Record<string, number>> {
    return this.#counters.toRecord();
  }

  save(): DeviceState {
    return FORM.write({
      file: this.#socket.file,
      running: this.#peer !== null || this.#keeping,
      counters: this.#counters.toRecord(),
    });
  }

  handOver(bag: ResourceBag): void {
    this.#socket.handOver(bag);
    this.#ownership.giveAway();
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.stop();
    this.#watch.close();
    this.#release();
  }

  #release(): void {
    this.#retry.close();
    this.#message.close();
    this.#socket.close();
  }

  #events(): number {
    if (this.#keeping) return KEEPING_EVENTS;
    const reading = this.#peer === null || this.#receiving;
    const writing = this.#refused && !this.#isUnix;
    return (reading ? Epoll.IN : 0) | (writing ? Epoll.OUT : 0);
  }

  #update(): void {
    this.#watch.setEvents(this.#events());
  }

  #onEvents(events: number): void {
    if (this.#keeping) return;
    // Cannot be masked, and lasts until it is asked for.
    if ((events & Epoll.ERR) !== 0 && socketError(this.#fd) !== 0) {
      this.#counters.add(Count.rxErrors, 1);
    }
    if ((events & Epoll.OUT) !== 0) this.#tellWritable();
    if ((events & Epoll.IN) === 0 || this.#closed) return;
    if (this.#peer === null) this.#discard();
    else if (this.#receiving) this.#peer.onReadable();
  }

  #tellWritable(): void {
    if (!this.#refused) return;
    this.#refused = false;
    this.#update();
    this.#peer?.onWritable();
  }

  #setSegments(list: ScatterGather): void {
    const { segments } = this.#message;
    segments.clear();
    segments.addRange(list, 0, list.lengthBytes);
  }

  /** Throws away what comes while nobody listens, so that nobody's queue fills up at the other end. */
  #discard(): void {
    // No room for any byte.
    this.#message.segments.clear();
    for (let i = 0; i < DISCARD_MAX; i++) {
      if (this.#message.receiveDatagram(this.#fd) < 0) return;
    }
  }
}

function bindTo({ local, remote }: DgramNetOptions) {
  // Both ends are of one family, as the options have it.
  if (local.family === "unix") return makeSocketFile(local, bindUnixDatagram);
  const { address } = remote as typeof local;
  try {
    return { made: openUdp(local.address, address), file: null };
  } catch (error) {
    if (!(error instanceof SyscallError)) throw error;
    const { errno } = error;
    const why = errno === Errno.EINVAL || errno === Errno.ENETUNREACH
      ? "the remote address cannot be reached from the local one"
      : explainBind(errno);
    if (why === null) throw error;
    throw new ErrnoError(errno, `Cannot plug the card in: ${why}`, {
      cause: error,
    });
  }
}
