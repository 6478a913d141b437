/**
 * Virtio: queues, the state of a device, and virtio over PCI, around the device models of seam 2.
 *
 * @module
 */

export * from "./capabilities.ts";
export * from "./chain_builder.ts";
export * from "./chain_ledger.ts";
export * from "./chain_reader.ts";
export * from "./common_config.ts";
export * from "./defs.ts";
export * from "./device.ts";
export * from "./features.ts";
export * from "./notify_page.ts";
export * from "./options.ts";
export * from "./packed_chain_reader.ts";
export * from "./packed_queue.ts";
export * from "./queue.ts";
export * from "./ring.ts";
export * from "./ring_layout.ts";
export * from "./ring_state.ts";
export * from "./session.ts";
export * from "./session_state.ts";
export * from "./split_queue.ts";
export * from "./virtio_pci.ts";
