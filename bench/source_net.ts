/**
 * A virtio-net card on a network that swallows every frame and offers frames without end: the card's own cost.
 *
 * @module
 */

import { VirtioNet } from "../devices/virtio_net/mod.ts";
import {
  type DeviceModel,
  Errno,
  type Infer,
  integer,
  options,
  ringFeatures,
  type ScatterGather,
  virtioOptions,
  VirtioPci,
} from "../mod.ts";
import type { NetBackend, NetPeer } from "../src/backend/net/contract.ts";

/** Number of frames that are offered per wake-up before the loop gets its turn. */
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

const OPTIONS = options({
  frameBytes: integer("frame", {
    syntax: "bytes",
    help: "length of the frames it offers; 0 offers none",
    min: 0,
    max: 65_535,
    default: "0",
  }),
  pairs: integer("pairs", {
    help: "queue pairs",
    min: 1,
    max: 8,
    default: "1",
  }),
  rings: virtioOptions(),
});

/** Settings of the card; plain data. */
type SourceOptions = Infer<typeof OPTIONS>;

/** A card on an endless source. */
export const model: DeviceModel<SourceOptions> = {
  name: "source-net",
  help: "virtio-net on an endless source, for benches",
  options: OPTIONS,
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
