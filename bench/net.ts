/**
 * virtio-net's queues, driven from another process over the real socket, rings and eventfds.
 *
 * @module
 */

import { NetDriver, VirtioDriver } from "../src/testing/mod.ts";
import {
  GuestRam,
  PciClient,
  type VfioUserClient,
} from "../src/vfio_user/client/mod.ts";
import { type Figure, rate } from "./report.ts";
import { withDevice } from "./serving.ts";

const RAM_BYTES = 16 * 1024 * 1024;
const SECONDS = 3;

function withDriver<T>(
  client: VfioUserClient,
  run: (net: NetDriver) => T,
): T {
  using ram = new GuestRam(RAM_BYTES);
  ram.share(client);
  const net = new NetDriver(
    new VirtioDriver(new PciClient(client), ram.memory),
  );
  try {
    return run(net);
  } finally {
    net.virtio.reset();
    ram.unshare(client);
  }
}

const model = `${import.meta.dirname}/source_net.ts`;

function transmitRate(frameBytes: number): Promise<number> {
  return withDevice(
    `${model},frame=0`,
    ({ client }) =>
      withDriver(client, (net) => {
        const frame = new Uint8Array(frameBytes).fill(0xff, 0, 6);
        net.fillFrames(frame);
        return rate(SECONDS, () => net.transmitBurst(32, frameBytes));
      }),
  );
}

function receiveRate(frameBytes: number): Promise<number> {
  return withDevice(
    `${model},frame=${frameBytes}`,
    ({ client }) =>
      withDriver(client, (net) => rate(SECONDS, () => net.receiveBurst())),
  );
}

/** Packets per second each way at the smallest and the largest ordinary frame. */
export async function benchNet(): Promise<Figure[]> {
  const figures: Figure[] = [];
  for (const frameBytes of [64, 1514]) {
    figures.push({
      name: `virtio-net transmit, ${frameBytes} B`,
      value: await transmitRate(frameBytes),
      unit: "packets/s",
    });
    figures.push({
      name: `virtio-net receive, ${frameBytes} B`,
      value: await receiveRate(frameBytes),
      unit: "packets/s",
    });
  }
  return figures;
}
