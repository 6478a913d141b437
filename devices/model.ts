/**
 * What a device model's module offers to whoever wants to run the device.
 *
 * @module
 */

import type { DeviceContext, PciDevice } from "../src/pci/device.ts";
import type { VirtioDevice, VirtioTransport } from "../src/virtio/device.ts";
import type { QueueContext, QueueService } from "../src/pci/queue_threads.ts";

/** One `key=value` of `--device MODEL,key=value`, as data for help texts. */
export interface OptionSpec {
  /** The key. */
  readonly name: string;
  /** What the value looks like, such as `bytes` or `up|down`. */
  readonly syntax: string;
  /** One line for people. */
  readonly help: string;
  /** The value when the key is not given; none when absent. */
  readonly default?: string;
  /** Whether the key may be given more than once; not unless told. */
  readonly repeatable?: boolean;
}

/** Everything a model is handed; it needs no import of the system or a transport. */
export interface ModelContext extends DeviceContext {
  /** For a model that makes a virtio device: what that may ask of its transport. */
  readonly virtio: VirtioTransport;
}

/**
 * A device model.
 *
 * ```text
 *   main thread: parse(text options) ── structured clone ──> IOThread: create(context, options) → a virtio or PCI device
 * ```
 * The module is loaded on both threads; between them only what `parse` returned travels, so it must consist of plain
 * data. A file that is to be used as `--device ./path/to/model.ts` exports its model as `model` or as its default.
 */
export interface DeviceModel<
  Options = unknown,
  Device extends VirtioDevice | PciDevice = VirtioDevice | PciDevice,
> {
  /** The name in `--device NAME`. */
  readonly name: string;
  /** One line on what it is. */
  readonly help: string;
  /** Every option that {@linkcode DeviceModel.parse} knows; others are refused before it is asked. */
  readonly options: readonly OptionSpec[];
  /**
   * Checks and converts options; touches nothing outside.
   *
   * @param options As on the command line; a repeated key has all its values
   * @returns Plain data that survives a structured clone
   * @throws {Error} With one line that says what is wrong and what would be right
   */
  parse(
    options: Readonly<Record<string, string | readonly string[]>>,
  ): Options;
  /**
   * How many IOThreads can share the queues of a device with these options; 1 for all devices of a model without this.
   *
   * @param options What {@linkcode DeviceModel.parse} returned
   */
  maxIOThreads?(options: Options): number;
  /**
   * Makes a device, and opens what it needs.
   *
   * @param inherited What {@linkcode PciDevice.handOver} of the device's predecessor gave, when it moved here from
   * another thread: to be used instead of opening it anew, and owned from here on, unless this throws
   * @throws {Error} With one line and the remedy; nothing is left behind
   */
  create(
    context: ModelContext,
    options: Options,
    inherited?: unknown,
  ): Device;
  /**
   * Makes what serves queues of a device on another thread than its own; absent where one thread serves all.
   *
   * @param grant What the device has given for it
   * @throws {Error} With one line and the remedy; what was granted is then still the device's
   */
  serve?(
    context: QueueContext,
    options: Options,
    grant: unknown,
  ): QueueService;
}
