/**
 * Region accesses over the real socket: round trip and pipelined rate.
 *
 * @module
 */

import { type Figure, percentile, rate } from "./report.ts";
import { withDevice } from "./serving.ts";

const BAR4 = 4;
const ROUND_TRIPS = 30_000;
const PIPELINE_DEPTH = 64;

/** REGION_READ of a virtio register, alone and pipelined. */
export function benchRegion(): Promise<Figure[]> {
  return withDevice("virtio-net,net=none", ({ client }) => {
    const samples = new Float64Array(ROUND_TRIPS);
    for (let i = 0; i < 5000; i++) client.readRegion32(BAR4, 0);
    for (let i = 0; i < ROUND_TRIPS; i++) {
      const start = performance.now();
      client.readRegion32(BAR4, 0);
      samples[i] = (performance.now() - start) * 1000;
    }
    samples.sort();
    const alone = 1e6 / percentile(samples, 0.5);
    const pipelined = rate(3, () => {
      // Half a window at a time: one at a time would put both sides to sleep and wake them for each message.
      for (let i = 0; i < PIPELINE_DEPTH / 2; i++) client.queueRead32(BAR4, 0);
      client.settle(PIPELINE_DEPTH / 2);
      return PIPELINE_DEPTH / 2;
    });
    client.settle();
    const posted = rate(3, () => {
      client.writeRegion32(BAR4, 0, 0, true);
      return 1;
    });
    client.readRegion32(BAR4, 0);
    const baseline = { name: "alone", value: alone };
    return [
      {
        name: "REGION_READ round trip p50",
        value: percentile(samples, 0.5),
        unit: "µs",
      },
      {
        name: "REGION_READ round trip p99",
        value: percentile(samples, 0.99),
        unit: "µs",
      },
      {
        name: `REGION_READ pipelined, ${PIPELINE_DEPTH} in flight`,
        value: pipelined,
        unit: "messages/s",
        baseline,
      },
      {
        name: "REGION_WRITE posted",
        value: posted,
        unit: "messages/s",
        baseline,
      },
    ];
  });
}
