/**
 * The built-in gateway: a network that gives the guest an address and answers its pings, and leads nowhere. It stands
 * in for libslirp where that is not installed.
 *
 * @module
 */

import { Counters } from "../../../core/counters.ts";
import { Errno, ErrnoError } from "../../../core/errno.ts";
import type { BottomHalf } from "../../../loop/event_loop.ts";
import type { GuestMemory } from "../../../memory/guest_memory.ts";
import type { ScatterGather } from "../../../memory/scatter_gather.ts";
import type { NetBackend, NetContext, NetPeer } from "../contract.ts";
import type { DeviceState, StateForm } from "../../../core/state_form.ts";
import { netForm } from "../state.ts";
import { GatewayReplies } from "./replies.ts";
import {
  GATEWAY_COUNTERS,
  GatewayCounter,
  type UserNetOptions,
} from "../user/driver.ts";

/** The longest frame taken: 64 KiB of IP behind an Ethernet and a VLAN header. */
const FRAME_MAX = 65535 + 18;
/** Most answers that wait for the card; a guest that asks without listening loses the rest. */
const QUEUE_MAX = 64;

/** Form of its state. It leases one address to whoever asks and keeps no table. */
export const GATEWAY_FORM: StateForm<object> = netForm("gateway");

/**
 * A gateway in TypeScript. It sees a handful of frames in a guest's life, so it allocates as it likes.
 */
export class GatewayBackend implements NetBackend {
  readonly description = "user (built-in gateway)";
  readonly hasVnetHeader = false;
  readonly #memory: GuestMemory;
  readonly #replies: GatewayReplies;
  readonly #notify: BottomHalf;
  readonly #queue: Uint8Array<ArrayBuffer>[] = [];
  #peer: NetPeer | null = null;
  #receiving = true;
  readonly #counters = new Counters(GATEWAY_COUNTERS);

  /**
   * @param saved The state of a predecessor, if there was one
   * @throws {ErrnoError} EOPNOTSUPP when ports are to be forwarded or files served, which takes libslirp
   */
  constructor(
    options: UserNetOptions,
    context: NetContext,
    saved?: unknown,
  ) {
    refuseWhatTakesLibslirp(options);
    this.#memory = context.memory;
    this.#replies = new GatewayReplies(options, context.mtu);
    this.#notify = context.loop.bottomHalf(() => {
      if (this.#peer === null || !this.#receiving) return;
      if (this.#queue.length === 0) return;
      this.#peer.onReadable();
      this.#wake();
    });
    if (saved === undefined) return;
    const state = GATEWAY_FORM.read(saved);
    this.#queue.push(...state.byteArrays("frames").slice(0, QUEUE_MAX));
    this.#counters.restore(state.value("counters"));
  }

  start(peer: NetPeer): void {
    this.#peer = peer;
    this.#wake();
  }

  stop(): void {
    this.#peer = null;
    this.#queue.length = 0;
    this.#notify.cancel();
  }

  send(frame: ScatterGather): number {
    const bytes = this.#gather(frame);
    if (bytes === null) {
      this.#counters.add(GatewayCounter.txErrors, 1);
      return -Errno.EINVAL;
    }
    const reply = this.#replies.reply(bytes);
    if (reply === null) this.#counters.add(GatewayCounter.ignored, 1);
    else if (this.#peer === null || this.#queue.length >= QUEUE_MAX) {
      this.#counters.add(GatewayCounter.rxDropped, 1);
    } else {
      this.#queue.push(reply);
      this.#counters.add(GatewayCounter.answered, 1);
      this.#wake();
    }
    return 0;
  }

  receive(into: ScatterGather): number {
    const frame = this.#queue.shift();
    if (frame === undefined) return -Errno.EAGAIN;
    if (into.lengthBytes < frame.length) {
      this.#counters.add(GatewayCounter.rxDropped, 1);
      return -Errno.EMSGSIZE;
    }
    if (this.#memory.scatter(into, frame, frame.length) < frame.length) {
      this.#counters.add(GatewayCounter.rxDropped, 1);
      return -Errno.EFAULT;
    }
    return frame.length;
  }

  setReceiving(on: boolean): void {
    this.#receiving = on;
    if (on) this.#wake();
  }

  counters(): Readonly<Record<string, number>> {
    return this.#counters.toRecord();
  }

  save(): DeviceState {
    return GATEWAY_FORM.write({
      frames: [...this.#queue],
      counters: this.#counters.toRecord(),
    });
  }

  close(): void {
    this.stop();
  }

  #wake(): void {
    if (this.#queue.length > 0 && this.#receiving) this.#notify.schedule();
  }

  /** A copy of the frame, which the guest cannot change while it is looked at; null when it is too long. */
  #gather(frame: ScatterGather): Uint8Array<ArrayBuffer> | null {
    if (frame.lengthBytes > FRAME_MAX) return null;
    const bytes = new Uint8Array(frame.lengthBytes);
    const copied = this.#memory.gather(frame, bytes, bytes.length);
    return copied < bytes.length ? null : bytes;
  }
}

/** Advice to install it, for people. */
export const INSTALL_LIBSLIRP =
  "install libslirp 4.7 or later (apt install libslirp0, or dnf install libslirp)";

function refuseWhatTakesLibslirp(options: UserNetOptions): void {
  const refuse = (what: string) => {
    throw new ErrnoError(
      Errno.EOPNOTSUPP,
      `Cannot ${what}: the built-in gateway leads nowhere, ${INSTALL_LIBSLIRP}`,
    );
  };
  if (options.hostForwards.length > 0) refuse("forward host ports");
  if (options.tftp !== null || options.bootFile !== null) {
    refuse("serve files by TFTP");
  }
}
