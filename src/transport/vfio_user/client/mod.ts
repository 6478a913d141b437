/**
 * The client side of vfio-user: drive a device without a VM.
 *
 * The client blocks its thread, as a VMM does while it waits for a reply, so the server must be in another process
 * or Worker.
 *
 * @example Read a device's identity and its first register
 * ```ts ignore
 * import { PciClient, VfioUserClient } from "@outboard/outboard/client";
 *
 * using client = new VfioUserClient("/tmp/dev.sock");
 * client.negotiate();
 * const pci = new PciClient(client);
 * console.log(pci.readConfig(0, 2).toString(16), pci.readBar(0, 0, 4));
 * ```
 *
 * @module
 */

export { Fd } from "../../../os/fd.ts";
export type {
  Mapping,
  MappingOptions,
  NativeBuffer,
} from "../../../os/mapping.ts";
export * from "./client.ts";
export * from "./connection.ts";
export * from "./dma_table.ts";
export * from "./guest_ram.ts";
export * from "./irqs.ts";
export type {
  DeviceInfo,
  DmaMapping,
  IrqInfo,
  RegionWrite,
} from "./messages.ts";
export * from "./negotiation.ts";
export * from "./pci.ts";
export * from "./region_info.ts";
