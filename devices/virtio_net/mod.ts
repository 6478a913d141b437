/**
 * The virtio network card: `--device virtio-net`.
 *
 * @module
 */

import { openNetBackend } from "../../src/backend/net/open.ts";
import type {
  QueueContext,
  QueueService,
} from "../../src/pci/queue_threads.ts";
import type { VirtioDevice } from "../../src/virtio/device.ts";
import { VirtioQueueService } from "../../src/virtio/session/threads.ts";
import type { Saved } from "../../src/os/resource_bag.ts";
import type { DeviceModel, ModelContext, SavedDevice } from "../model.ts";
import {
  formatMac,
  randomMac,
  VIRTIO_NET_OPTIONS,
  type VirtioNetOptions,
} from "./config.ts";
import { type NetGrant, VirtioNet } from "./device.ts";
import { NetQueues } from "./queue/net_queues.ts";
import { macFromText, parseNetState } from "./state.ts";

export { VirtioNet, type VirtioNetParts } from "./device.ts";
export { type VirtioNetOptions } from "./config.ts";

function create(
  context: ModelContext,
  options: VirtioNetOptions,
  saved?: SavedDevice,
): VirtioDevice {
  const { mac: given, net, rings, ...card } = options;
  const { mtu, queuePairs } = card;
  const state = saved && parseNetState(saved.state, queuePairs);
  const linkUp = state?.linkUp ?? card.linkUp;
  const mac = state !== undefined
    ? macFromText(state.permanentMac)!
    : given === null
    ? randomMac((lengthBytes) => context.random(lengthBytes))
    : Uint8Array.from(given);
  const { loop, log, memory } = context;
  const backend = openNetBackend(net, {
    loop,
    log,
    memory,
    mtu,
    mac,
    queuePairs,
  }, state && { state: state.backend, bag: saved!.bag.at("backend") });
  try {
    const device = new VirtioNet({
      context,
      transport: context.virtio,
      backend,
      options: { ...card, mac, linkUp, offer: rings },
    });
    if (state !== undefined) return device;
    log.info(
      `network card ${
        formatMac(mac)
      }, MTU ${mtu}, plugged into ${backend.description}`,
      { mac: formatMac(mac), mtu, network: backend.description },
    );
    return device;
  } catch (error) {
    backend.close();
    throw error;
  }
}

function serve(
  context: QueueContext,
  options: VirtioNetOptions,
  grant: Saved<unknown>,
): QueueService {
  return new VirtioQueueService(context, grant, (transport, { state, bag }) => {
    const granted = state as NetGrant;
    const queueOptions = { ...granted, mac: macFromText(granted.mac)! };
    const backend = openNetBackend(
      options.net,
      { ...context, ...queueOptions },
      { state: granted.backend, bag },
    );
    return new NetQueues({
      ...{ context, transport, backend },
      options: queueOptions,
      // The control thread sees that for itself.
      onLinkChange: () => {},
    });
  });
}

/** The model behind `--device virtio-net`. */
export const virtioNetModel: DeviceModel<VirtioNetOptions> = {
  name: "virtio-net",
  help: "virtio network card",
  options: VIRTIO_NET_OPTIONS,
  create,
  serve,
};
