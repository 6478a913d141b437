/**
 * A virtio-net card on a network that swallows every frame and offers frames without end: the card's own cost.
 *
 * @module
 */

import { VirtioNet } from "../devices/virtio_net/mod.ts";
import type {
  DeviceModel,
  NetBackend,
  NetPeer,
  ScatterGather,
} from "../mod.ts";
import { Errno, VirtioPci } from "../mod.ts";

/** How many frames are offered per wake-up before the loop gets its turn. */
const BURST = 256;

class EndlessNet implements NetBackend {
  readonly description = "endless source";
  readonly hasVnetHeader = false;
  readonly #frameBytes: number;
  readonly #more: () => void;
  #left = 0;
  #receiving = true;
  #peer: NetPeer | null = null;

  constructor(frameBytes: number, schedule: (run: () => void) => () => void) {
    this.#frameBytes = frameBytes;
    this.#more = schedule(() => this.#offer());
  }

  #offer(): void {
    if (!this.#receiving || this.#peer === null) return;
    this.#left = BURST;
    this.#peer.onReadable();
    if (this.#receiving) this.#more();
  }

  start(peer: NetPeer): void {
    this.#peer = peer;
    if (this.#frameBytes > 0) this.#more();
  }

  stop(): void {
    this.#peer = null;
  }

  send(_frame: ScatterGather): number {
    return 0;
  }

  receive(_into: ScatterGather): number {
    return this.#left-- > 0 ? this.#frameBytes : -Errno.EAGAIN;
  }

  setReceiving(on: boolean): void {
    this.#receiving = on;
    if (on && this.#frameBytes > 0) this.#more();
  }

  close(): void {}
}

/** `frame=BYTES`: the length of the frames it offers; 0 offers none. */
export const model: DeviceModel<number> = {
  name: "source-net",
  help: "virtio-net on an endless source, for benches",
  options: [{ name: "frame", syntax: "bytes", help: "length of the frames" }],
  parse: (options) => Number(options["frame"] ?? 0),
  create: (context, frameBytes) =>
    new VirtioPci(context, (transport) =>
      new VirtioNet({
        context,
        transport,
        backend: new EndlessNet(frameBytes, (run) => {
          const half = context.loop.bottomHalf(run);
          return () => half.schedule();
        }),
        options: {
          mac: Uint8Array.of(2, 0, 0, 0, 0, 1),
          mtu: 1500,
          linkUp: true,
          queueSize: 256,
        },
      })),
};
