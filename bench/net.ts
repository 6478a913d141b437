/**
 * virtio-net's queues, driven from another process over the real socket, rings and eventfds; behind the card is a
 * network that swallows frames and offers them without end, so that the card is what is measured.
 *
 * The driver is net_load.ts on this process's one thread: it fills descriptors, polls the used rings and serves all
 * queue pairs by itself, on a core of its own where there is one. What it costs (about as much as the card) limits what
 * two pairs can reach.
 *
 * @module
 */

import { VirtioDriver } from "../src/testing/mod.ts";
import { PciClient } from "../src/transport/vfio_user/client/mod.ts";
import { NetLoad } from "./net_load.ts";
import { atLeast, type Figure, rate } from "./report.ts";
import { withDevice, withRam } from "./serving.ts";
import { type BenchSettings, seconds } from "./settings.ts";

const RAM_BYTES = 16 * 1024 * 1024;
const SECONDS = 2;
const WARM_UP_SECONDS = 0.5;
const FRAME_BYTES = [64, 1514];

/** The path of a model that benches use. */
const model = `${import.meta.dirname}/source_net.ts`;

interface Case {
  readonly transmit: boolean;
  readonly frameBytes: number;
  readonly packed: boolean;
  readonly pairs: number;
  /** For `--poll`. */
  readonly poll: string;
}

/** Targets of the smallest frames, with one split pair and a server that polls. */
const TARGETS = { transmit: 2_000_000, receive: 1_500_000 } as const;

function measure(load: Case, settings: BenchSettings): Promise<number> {
  const frame = load.transmit ? 0 : load.frameBytes;
  const packed = load.packed ? "on" : "off";
  return withDevice(
    `${model},frame=${frame},pairs=${load.pairs},packed=${packed}`,
    ({ client }) =>
      withRam(client, RAM_BYTES, (ram) => {
        const virtio = new VirtioDriver(new PciClient(client), ram.memory);
        try {
          const net = new NetLoad(virtio, {
            ...load,
            transmitBytes: load.transmit ? load.frameBytes : 0,
            receive: !load.transmit,
          });
          rate(WARM_UP_SECONDS, () => net.step());
          return rate(seconds(settings, SECONDS), () => net.step());
        } finally {
          virtio.reset();
        }
      }),
    ["--poll", load.poll],
  );
}

function* cases(): Generator<Case> {
  for (const poll of ["always", "50000"]) {
    for (const packed of [false, true]) {
      for (const pairs of [1, 2]) {
        for (const frameBytes of FRAME_BYTES) {
          for (const transmit of [true, false]) {
            yield { transmit, frameBytes, packed, pairs, poll };
          }
        }
      }
    }
  }
}

/** Packets per second each way, at the smallest and the largest ordinary frame. */
export async function benchNet(settings: BenchSettings): Promise<Figure[]> {
  const figures: Figure[] = [];
  for (const load of cases()) {
    const value = await measure(load, settings);
    const direction = load.transmit ? "transmit" : "receive";
    const name = [
      `virtio-net ${direction} ${load.frameBytes} B`,
      load.packed ? "packed" : "split",
      load.pairs === 1 ? "1 pair" : `${load.pairs} pairs`,
      load.poll === "always" ? "polled" : "adaptive",
    ].join(", ");
    const judged = load.frameBytes === FRAME_BYTES[0] && !load.packed &&
      load.pairs === 1 && load.poll === "always";
    figures.push(
      judged
        ? atLeast(name, value, "packets/s", TARGETS[direction])
        : { name, value, unit: "packets/s" },
    );
  }
  return figures;
}
