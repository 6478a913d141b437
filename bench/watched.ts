/**
 * Another device model whose counters also say what its IOThread's heap holds: `of=MODEL` and that model's options.
 *
 * Asking for the counters collects garbage first, where V8 was started with `--expose-gc`, and tells the size before
 * and after: the first grows by all that was allocated since, the second by what is held.
 *
 * @module
 */

import { loadModel } from "../devices/registry.ts";
import {
  type DeviceModel,
  type Infer,
  oneOf,
  oneOfKinds,
  type Options,
} from "../mod.ts";

/** The models that can be watched. */
const MODELS: ReadonlyMap<string, DeviceModel> = new Map(
  await Promise.all(
    [
      "virtio-net",
      "virtio-blk",
      "nvme",
      new URL("source_net.ts", import.meta.url).href,
    ].map(async (reference) => {
      const model = await loadModel(reference);
      return [model.name, model] as const;
    }),
  ),
);

const NAMES = [...MODELS.keys()];

const OPTIONS = oneOfKinds(
  "of",
  Object.fromEntries(
    [...MODELS].map(([name, { options }]) => [
      name,
      { options: options as Options<object> },
    ]),
  ),
  oneOf("of", NAMES, { help: "the model to watch", default: NAMES[0]! }),
  (of) => `of=${of}`,
  "watched",
);

/** Heap of this thread, now and without garbage, in bytes. */
export function heapCounters(): Record<string, number> {
  const gc = (globalThis as { gc?: () => void }).gc;
  const heapBeforeGc = Deno.memoryUsage().heapUsed;
  gc?.();
  const { heapUsed, rss, external } = Deno.memoryUsage();
  return { heapBeforeGc, heapUsed, rss, external };
}

/** `of=MODEL`: which model to watch; all other options are its own. */
export const model: DeviceModel<Infer<typeof OPTIONS>> = {
  name: "watched",
  help: "another model, and its thread's heap among the counters",
  options: OPTIONS,
  create: (context, { of, ...options }) => {
    const device = MODELS.get(of)!.create(context, options);
    const counters = device.counters?.bind(device);
    // On the device itself: a wrapper around it would be measured too.
    return Object.assign(device, {
      counters: () => ({ ...counters?.(), ...heapCounters() }),
    });
  },
};
