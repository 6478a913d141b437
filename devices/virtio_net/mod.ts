/**
 * The virtio network card: `--device virtio-net`.
 *
 * @module
 */

import { openNetBackend } from "../../src/net/open.ts";
import type { DeviceContext, PciDevice } from "../../src/pci/device.ts";
import { ringFeatures } from "../../src/virtio/options.ts";
import { VirtioPci } from "../../src/virtio/virtio_pci.ts";
import type { DeviceModel } from "../model.ts";
import {
  formatMac,
  parseVirtioNetOptions,
  randomMac,
  VIRTIO_NET_OPTIONS,
  type VirtioNetOptions,
} from "./config.ts";
import { VirtioNet } from "./device.ts";

export { VirtioNet, type VirtioNetParts } from "./device.ts";
export { type VirtioNetOptions } from "./config.ts";

function create(context: DeviceContext, options: VirtioNetOptions): PciDevice {
  const { mtu, linkUp, queueSize, queuePairs, offloads } = options;
  const mac = options.mac === null
    ? randomMac((lengthBytes) => context.random(lengthBytes))
    : Uint8Array.from(options.mac);
  const { loop, log, memory } = context;
  const backend = openNetBackend(options.net, {
    loop,
    log,
    memory,
    mtu,
    mac,
    queuePairs,
  });
  try {
    const device = new VirtioPci(
      context,
      (transport) =>
        new VirtioNet({
          context,
          transport,
          backend,
          options: { mac, mtu, linkUp, queueSize, queuePairs, offloads },
        }),
      { ringFeatures: ringFeatures(options.rings) },
    );
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

/** The model behind `--device virtio-net`. */
export const virtioNetModel: DeviceModel<VirtioNetOptions> = {
  name: "virtio-net",
  help: "virtio network card",
  options: VIRTIO_NET_OPTIONS,
  parse: parseVirtioNetOptions,
  create,
};
