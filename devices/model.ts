/**
 * What a device model's module offers to whoever wants to run the device.
 *
 * @module
 */

import type { Options } from "../src/core/options.ts";
import type { DeviceContext, PciDevice } from "../src/pci/device.ts";

/**
 * A device model.
 *
 * ```text
 *   main thread: options.parse(texts) ── structured clone ──> IOThread: create(context, options) → PciDevice
 * ```
 * The module is loaded on both threads; between them only what came of the options travels, so it must consist of plain
 * data. A file that is to be used as `--device ./path/to/model.ts` exports its model as `model` or as its default.
 */
export interface DeviceModel<O = unknown> {
  /** The name in `--device NAME`. */
  readonly name: string;
  /** One line on what it is. */
  readonly help: string;
  /** Its options, as of `options({…})`; none when absent. They touch nothing outside. */
  readonly options?: Options<O>;
  /**
   * How many IOThreads can share the queues of a device with these options; 1 for all devices of a model without this.
   *
   * @param options What came of its options
   */
  maxIOThreads?(options: O): number;
  /**
   * Makes a device, and opens what it needs.
   *
   * @param options What came of its options; empty for a model that has none
   * @param inherited What {@linkcode PciDevice.handOver} of the device's predecessor gave, when it moved here from
   * another thread: to be used instead of opening it anew, and owned from here on, unless this throws
   * @throws {Error} With one line and the remedy; nothing is left behind
   */
  create(context: DeviceContext, options: O, inherited?: unknown): PciDevice;
}
