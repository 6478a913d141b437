/**
 * Module of a device model, as whoever wants to run the device sees it.
 *
 * @module
 */

import type { Options } from "../src/core/options.ts";
import type { DeviceState } from "../src/core/state_form.ts";
import type { Saved } from "../src/os/resource_bag.ts";
import type { DeviceContext } from "../src/pci/context.ts";
import type { PciDevice } from "../src/pci/device.ts";
import type { VirtioDevice, VirtioTransport } from "../src/virtio/device.ts";
import type { QueueContext, QueueService } from "../src/pci/queue_threads.ts";

/** Everything a model is handed; it needs no import of the system or a transport. */
export interface ModelContext extends DeviceContext {
  /** For a model that makes a virtio device: what that may ask of its transport. */
  readonly virtio: VirtioTransport;
}

/** State that a device goes on from: that of its predecessor, and what that had open. */
export type SavedDevice = Saved<DeviceState>;

/**
 * A device model.
 *
 * ```text
 *   main thread: options.parse(texts) ── structured clone ──> IOThread: create(context, options) → a virtio or PCI device
 * ```
 * The module is loaded on both threads; between them only what came of the options travels, so it must consist of plain
 * data. A file that is to be used as `--device ./path/to/model.ts` exports its model as `model` or as its default.
 */
export interface DeviceModel<
  O = unknown,
  Device extends VirtioDevice | PciDevice = VirtioDevice | PciDevice,
> {
  /** The name in `--device NAME`. */
  readonly name: string;
  /** One line on what it is. */
  readonly help: string;
  /** Its options, as of `options({…})`; none when absent. They touch nothing outside. */
  readonly options?: Options<O>;
  /**
   * Looks at what its options name, such as a file, before any device is made.
   *
   * @throws {Error} When they cannot work, with one line and the remedy
   */
  check?(options: O): Promise<void>;
  /**
   * Makes a device, and opens what it needs.
   *
   * @param options What came of its options; empty for a model that has none
   * @param saved What the device's predecessor was and had open, when it goes on here: to be used instead of opening it
   * anew. The state is loaded into the device apart
   * @throws {Error} With one line and the remedy; nothing is left behind
   */
  create(context: ModelContext, options: O, saved?: SavedDevice): Device;
  /**
   * Makes what serves queues of a device on another thread than its own; absent where one thread serves all.
   *
   * @param grant What the device has given for it
   * @throws {Error} With one line and the remedy
   */
  serve?(
    context: QueueContext,
    options: O,
    grant: Saved<unknown>,
  ): QueueService;
}
