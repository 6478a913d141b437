/** An entropy device (virtio 1.3, section 5.4): Linux binds virtio-rng to it and reads /dev/hwrng. */

import {
  Chain,
  type DeviceModel,
  type ModelContext,
  type VirtioDevice,
  type Virtqueue,
} from "../mod.ts";

/** The most bytes that one request is given. */
const BYTES_MAX = 4096;

function create({ memory, random, virtio }: ModelContext): VirtioDevice {
  const chain = new Chain(memory, 64);
  return {
    deviceId: 4,
    queueSizes: [64],
    notify(queue: Virtqueue) {
      let got = 0;
      do {
        queue.disableNotifications();
        while ((got = queue.pop(chain)) > 0) {
          const bytes = Math.min(chain.writable.lengthBytes, BYTES_MAX);
          const given = memory.scatter(chain.writable, random(bytes), bytes);
          queue.push(chain.head, given);
        }
        if (queue.publish()) virtio.interrupt(queue);
        if (got < 0) return virtio.fail(queue.lastError);
      } while (queue.enableNotifications());
    },
  };
}

/** The model: `--device ./examples/virtio_rng.ts`. */
export const model: DeviceModel<unknown, VirtioDevice> = {
  name: "virtio-rng",
  help: "gives random bytes",
  create,
};
