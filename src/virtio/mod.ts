/**
 * Virtio: queues, the state of a device, and virtio over PCI, around the device models of seam 2.
 *
 * @module
 */

export * from "./capabilities.ts";
export * from "./chain_reader.ts";
export * from "./common_config.ts";
export * from "./defs.ts";
export * from "./device.ts";
export * from "./features.ts";
export * from "./queue.ts";
export * from "./session.ts";
export * from "./split_queue.ts";
export * from "./virtio_pci.ts";
