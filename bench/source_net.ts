/**
 * A virtio-net card on a network that swallows every frame and offers frames without end: the card's own cost.
 *
 * @module
 */

import { VirtioNet } from "../devices/virtio_net/mod.ts";
import {
  type DeviceModel,
  Errno,
  parseVirtioOptions,
  ringFeatures,
  type ScatterGather,
  type VirtioOptions,
  VirtioPci,
} from "../mod.ts";
import type { NetBackend, NetPeer } from "../src/backend/net/contract.ts";

/** How many frames are offered per wake-up before the loop gets its turn. */
const BURST = 256;

class EndlessNet implements NetBackend {
  readonly description = "endless source";
  readonly hasVnetHeader = false;
  readonly queuePairs: number;
  readonly #frameBytes: number;
  readonly #more: () => void;
  /** By pair: whether it receives. */
  readonly #receiving: boolean[];
  #active = 1;
  #left = 0;
  #peer: NetPeer | null = null;

  constructor(
    options: SourceOptions,
    schedule: (run: () => void) => () => void,
  ) {
    this.queuePairs = options.pairs;
    this.#frameBytes = options.frameBytes;
    this.#receiving = new Array<boolean>(options.pairs).fill(true);
    this.#more = schedule(() => this.#offer());
  }

  #offer(): void {
    let more = false;
    for (let pair = 0; pair < this.#active; pair++) {
      if (!this.#receiving[pair] || this.#peer === null) continue;
      this.#left = BURST;
      this.#peer.onReadable(pair);
      if (this.#receiving[pair]) more = true;
    }
    if (more) this.#more();
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

  setReceiving(on: boolean, pair = 0): void {
    this.#receiving[pair] = on;
    if (on && this.#frameBytes > 0) this.#more();
  }

  setQueuePairs(count: number): number {
    this.#active = count;
    if (this.#frameBytes > 0) this.#more();
    return 0;
  }

  close(): void {}
}

/** What the card is like; plain data. */
interface SourceOptions {
  readonly frameBytes: number;
  readonly pairs: number;
  readonly rings: VirtioOptions;
}

/** `frame=BYTES`: the length of the frames it offers; 0 offers none. */
export const model: DeviceModel<SourceOptions> = {
  name: "source-net",
  help: "virtio-net on an endless source, for benches",
  options: [
    { name: "frame", syntax: "bytes", help: "length of the frames" },
    { name: "pairs", syntax: "1-8", help: "queue pairs" },
    { name: "packed", syntax: "on|off", help: "offer packed queues" },
  ],
  parse: (options) => ({
    frameBytes: Number(options["frame"] ?? 0),
    pairs: Number(options["pairs"] ?? 1),
    rings: parseVirtioOptions({ packed: options["packed"] ?? "off" }),
  }),
  create: (context, options) =>
    new VirtioPci(context, (transport) =>
      new VirtioNet({
        context,
        transport,
        backend: new EndlessNet(options, (run) => {
          const half = context.loop.bottomHalf(run);
          return () => half.schedule();
        }),
        options: {
          mac: Uint8Array.of(2, 0, 0, 0, 0, 1),
          mtu: 1500,
          linkUp: true,
          queueSize: 256,
          queuePairs: options.pairs,
        },
      }), { ringFeatures: ringFeatures(options.rings) }),
};
