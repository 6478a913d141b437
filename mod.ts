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
 * {@linkcode VirtioDevice} behind {@linkcode VirtioPci}), run with `--device ./model.ts`. Storage of your own, written
 * with promises, is a {@linkcode StoreModel}. A program that serves devices itself imports `@outboard/outboard/process`.
 *
 * @module
 */

export type {
  DeviceModel,
  ModelContext,
  SavedDevice,
} from "./devices/model.ts";
export {
  alignUp,
  bit,
  field,
  getU64,
  high32,
  isPowerOfTwo,
  low32,
  PAGE_SIZE,
  setU64,
  u64,
  withBit,
} from "./src/core/bits.ts";
export { Errno, ErrnoError } from "./src/core/errno.ts";
export type {
  BottomHalf,
  EventFd,
  FdHandler,
  FdWatch,
  Loop,
  Poller,
  PollHooks,
  Timer,
} from "./src/loop/event_loop.ts";
export type { Log } from "./src/core/log.ts";
export {
  type Kinds,
  type Numbered,
  numbered,
  type OfKinds,
  oneOfKinds,
} from "./src/core/option_groups.ts";
export {
  flag,
  type Infer,
  integer,
  list,
  oneOf,
  onOff,
  option,
  OptionError,
  type OptionFields,
  type OptionRow,
  type Options,
  options,
  type OptionSpec,
  type OptionTexts,
  type OptionValue,
  type OptionValues,
  type Refuse,
  refuse,
  size,
  text,
} from "./src/core/options.ts";
export {
  Access,
  type GuestMemory,
  type MemoryListener,
  type MemoryWindow,
  type ScratchMemory,
} from "./src/memory/guest_memory.ts";
export { ScatterGather } from "./src/memory/scatter_gather.ts";
export type { DeviceContext, Interrupts } from "./src/pci/context.ts";
export type {
  AccessWidth,
  BarSpec,
  CapabilitySpec,
  CommandAnswer,
  DeviceCommand,
  Doorbell,
  LaterAnswer,
  MmapArea,
  PciDevice,
  PciSpec,
  ResetReason,
  SharedMemory,
  VendorCapability,
} from "./src/pci/device.ts";
export {
  CONTROL_GROUP,
  CONTROL_THREAD,
  type QueueContext,
  type QueueService,
  type QueueThreads,
  type QueueThreadsListener,
} from "./src/pci/queue_threads.ts";
export { type PostedWrites, WriteOrder } from "./src/pci/posted_writes.ts";
export {
  type Register,
  type RegisterAccess,
  RegisterMap,
  type RegisterName,
  type RegisterRow,
} from "./src/pci/register_map.ts";
export type {
  Store,
  StoreContext,
  StoreInfo,
  StoreModel,
} from "./src/backend/block/async/store.ts";
export type { ResourceBag, Saved } from "./src/os/resource_bag.ts";
export {
  type DeviceState,
  StateForm,
  type StateUpgrade,
} from "./src/core/state_form.ts";
export { StateReader } from "./src/core/state_reader.ts";
export type {
  QueueHandler,
  QueueSharing,
  QueueThreadHandler,
  QueueTransport,
  VirtioDevice,
  VirtioTransport,
} from "./src/virtio/device.ts";
export { VirtioQueueService } from "./src/virtio/session/threads.ts";
export { Features, VIRTIO_F } from "./src/virtio/features.ts";
export {
  mapsNotify,
  ringFeatures,
  VIRTIO_DEFAULTS,
  type VirtioOptions,
  virtioOptions,
} from "./src/virtio/options.ts";
export { Chain, type Virtqueue } from "./src/virtio/queue/queue.ts";
export type { SessionOptions } from "./src/virtio/session/session.ts";
export {
  VirtioPci,
  type VirtioPciOptions,
} from "./src/transport/virtio_pci/virtio_pci.ts";

if (import.meta.main) {
  // Not awaited: a model that imports this module would wait for it, and it for the model.
  import("./src/cli/main.ts").then(({ main }) => main(Deno.args))
    .then(Deno.exit);
}
