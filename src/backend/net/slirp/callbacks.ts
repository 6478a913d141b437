/**
 * The functions libslirp calls, as native function pointers.
 *
 * @module
 */

import { setU64 } from "../../../core/bits.ts";
import { NativeBuffer } from "../../../os/mod.ts";
import type { SlirpPoll } from "./poll.ts";
import { SLIRP_CB } from "./symbols.ts";

/** Receiver of what libslirp has for the guest, on the thread that called it and before that call returns. */
export interface SlirpHost {
  /** A frame for the guest; its bytes are good during the call. */
  onFrame(hva: number, lengthBytes: number): void;
  /** The guest did something wrong. */
  onGuestError(message: string): void;
}

// Parameters that are not needed (the trailing `opaque`) are not declared: the callee may ignore registers.
// A size_t that is below 2^32 is taken as its low half.
// deno-fmt-ignore
const TYPES = {
  // ssize_t send_packet(const void *buf, size_t len, void *opaque)
  send_packet: { parameters: ["usize", "u32"], result: "isize" },
  // void guest_error(const char *msg, void *opaque)
  guest_error: { parameters: ["pointer"], result: "void" },
  // int64_t clock_get_ns(void *opaque)
  clock_get_ns: { parameters: [], result: "i64" },
  // void timer_free(void *timer, void *opaque)
  timer_free: { parameters: ["usize"], result: "void" },
  // void timer_mod(void *timer, int64_t expire_time, void *opaque)
  timer_mod: { parameters: ["usize", "i64"], result: "void" },
  // void notify(void *opaque), register_poll_fd and the like: each turn asks for all there is anyway
  nothing: { parameters: [], result: "void" },
  // void *timer_new_opaque(SlirpTimerId id, void *cb_opaque, void *opaque)
  timer_new_opaque: { parameters: ["i32", "pointer"], result: "usize" },
  // int add_poll(int fd, int events, void *opaque)
  add_poll: { parameters: ["i32", "i32"], result: "i32" },
  // int get_revents(int idx, void *opaque)
  get_revents: { parameters: ["i32"], result: "i32" },
} as const satisfies Record<string, Deno.UnsafeCallbackDefinition>;

function messageAt(pointer: Deno.PointerValue): string {
  // SAFETY: libslirp passes a NUL-terminated string that is good during the call.
  return pointer === null
    ? ""
    : new Deno.UnsafePointerView(pointer).getCString();
}

// Room behind the structure stays zero: a later library may have a longer one.
const TABLE_BYTES = SLIRP_CB.SIZE * 2;

/** `struct SlirpCb` and the two callbacks that are passed by themselves, made once. */
export class SlirpCallbacks implements Disposable {
  /** A `SlirpAddPollCb`. */
  readonly addPoll: Deno.PointerObject;
  /** A `SlirpGetREventsCb`. */
  readonly getRevents: Deno.PointerObject;
  readonly #table = new NativeBuffer(TABLE_BYTES);
  readonly #closers: (() => void)[] = [];

  constructor(host: SlirpHost, poll: SlirpPoll) {
    // Numbers are taken wherever a 64-bit integer is to be returned; the types say bigint.
    const word = (value: number) => value as unknown as bigint;
    const at = SLIRP_CB;
    const put = (offset: number, callback: Deno.PointerObject) =>
      setU64(
        this.#table.view,
        offset,
        Number(Deno.UnsafePointer.value(callback)),
      );
    const frame = this.#make(TYPES.send_packet, (hva, length) => {
      host.onFrame(Number(hva), length);
      // A frame that finds no room is lost, as on a wire: TCP sends it again.
      return word(length);
    });
    put(at.SEND_PACKET, frame);
    const error = this.#make(TYPES.guest_error, (message) => {
      host.onGuestError(messageAt(message));
    });
    put(at.GUEST_ERROR, error);
    // Half a millisecond more, so that no rounding of so large a number leads to the millisecond before.
    const clock = () => word((poll.clockMs() + 0.5) * 1e6);
    put(at.CLOCK_GET_NS, this.#make(TYPES.clock_get_ns, clock));
    const create = this.#make(
      TYPES.timer_new_opaque,
      (id, opaque) => word(poll.createTimer(id, opaque)),
    );
    put(at.TIMER_NEW_OPAQUE, create);
    const free = this.#make(
      TYPES.timer_free,
      (timer) => poll.freeTimer(Number(timer)),
    );
    put(at.TIMER_FREE, free);
    const arm = this.#make(TYPES.timer_mod, (timer, expireMs) => {
      poll.armTimer(Number(timer), Number(expireMs));
    });
    put(at.TIMER_MOD, arm);
    const nothing = this.#make(TYPES.nothing, () => {});
    put(at.REGISTER_POLL_FD, nothing);
    put(at.UNREGISTER_POLL_FD, nothing);
    put(at.NOTIFY, nothing);
    put(at.INIT_COMPLETED, nothing);
    this.addPoll = this.#make(
      TYPES.add_poll,
      (fd, events) => poll.add(fd, events),
    );
    this.getRevents = this.#make(
      TYPES.get_revents,
      (index) => poll.revents(index),
    );
  }

  /** The structure. */
  get table(): Deno.PointerObject {
    return this.#table.pointer();
  }

  /** Frees the callbacks and the structure; libslirp may use none of them any more. */
  close(): void {
    for (const close of this.#closers.splice(0)) close();
    this.#table.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #make<const T extends Deno.UnsafeCallbackDefinition>(
    definition: T,
    callback: Deno.UnsafeCallbackFunction<T["parameters"], T["result"]>,
  ): Deno.PointerObject {
    // SAFETY: alive until close(), which comes after slirp_cleanup(); called by this thread only.
    const made = new Deno.UnsafeCallback(
      definition as never,
      callback as never,
    );
    this.#closers.push(() => made.close());
    return made.pointer;
  }
}
