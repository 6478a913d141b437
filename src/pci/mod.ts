/**
 * PCI functions: configuration space, BARs, interrupts, and the seam to device models.
 *
 * @module
 */

export * from "./access.ts";
export * from "./config_space.ts";
export * from "./context.ts";
export * from "./defs.ts";
export * from "./device.ts";
export * from "./function.ts";
export * from "./interrupts.ts";
export * from "./msix.ts";
export * from "./posted_writes.ts";
export * from "./register_map.ts";
export {
  msixPbaBytes,
  msixTableBytes,
  validatePciSpec,
  VENDOR_PREFIX_BYTES,
} from "./validate.ts";
export type { ConfigImage, PlacedCapability } from "./capabilities.ts";
