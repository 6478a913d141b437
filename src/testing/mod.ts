/**
 * For authors of devices: what a device model needs to run inside a unit test, and drivers to drive it with.
 *
 * Importing this needs no permission; {@linkcode startOutboard} needs `--allow-run`. Guest memory that a server in
 * another process can map is `GuestRam` of `@outboard/outboard/client`.
 *
 * @example Drive a network card that another process serves
 * ```ts ignore
 * import { GuestRam, PciClient, VfioUserClient } from "@outboard/outboard/client";
 * import { NetDriver, VirtioDriver } from "@outboard/outboard/testing";
 *
 * using client = new VfioUserClient("/tmp/dev.sock");
 * client.negotiate();
 * using ram = new GuestRam(16 << 20);
 * ram.share(client);
 * using pci = new PciClient(client);
 * const net = new NetDriver(new VirtioDriver(pci, ram.memory));
 * net.transmit(new Uint8Array(60));
 * net.waitTransmitted(1000);
 * ```
 *
 * @module
 */

export * from "../memory/array_memory.ts";
export type { ListStorage, MappedMemory } from "../memory/mapped_memory.ts";
export type { DmaRange } from "../memory/region.ts";
export * from "./driver_memory.ts";
export * from "./driver_ring.ts";
export * from "./fake_context.ts";
export * from "./manual_loop.ts";
export * from "./net_driver.ts";
export * from "./outboard_process.ts";
export * from "./packed_vring.ts";
export * from "./pci_access.ts";
export * from "./strict_memory.ts";
export * from "./virtio_defs.ts";
export * from "./virtio_driver.ts";
export * from "./vring.ts";
export { VirtioPort } from "../virtio/device.ts";
