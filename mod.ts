/**
 * Outboard emulates PCI devices outside the VMM, over vfio-user.
 *
 * Run it, and a stock QEMU uses the device as real hardware:
 *
 * ```sh
 * deno run -A mod.ts --device virtio-net --socket /tmp/dev.sock
 * ```
 *
 * Import it, and write a device of your own: a {@linkcode DeviceModel} that makes a {@linkcode PciDevice} (or a
 * {@linkcode VirtioDevice} behind {@linkcode VirtioPci}), run with `--device ./model.ts`. A program that serves devices
 * itself imports `@outboard/outboard/process`.
 *
 * @module
 */

export * from "./src/errno.ts";
export * from "./src/bits.ts";
export type { Log } from "./src/log.ts";
export type {
  BottomHalf,
  FdHandler,
  FdWatch,
  Loop,
  Poller,
  Timer,
} from "./src/event_loop.ts";
export * from "./src/memory/guest_memory.ts";
export * from "./src/memory/scatter_gather.ts";
export * from "./src/pci/mod.ts";
export * from "./src/virtio/mod.ts";
export * from "./src/net/backend.ts";
export * from "./devices/model.ts";

if (import.meta.main) {
  // Not awaited: a model that imports this module would wait for it, and it for the model.
  import("./src/cli/main.ts").then(({ main }) => main(Deno.args))
    .then(Deno.exit);
}
