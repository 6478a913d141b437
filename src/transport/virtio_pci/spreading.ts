/**
 * A virtio device on PCI whose queues are served by several threads.
 *
 * @module
 */

import type {
  RegisterWrite,
  Spreading,
  SpreadingListener,
} from "../../pci/spreading.ts";
import type { VirtioDevice } from "../../virtio/device.ts";
import type { VirtioSession } from "../../virtio/session/session.ts";

/** A device model that says which queues belong together. */
export type SpreadableDevice =
  & VirtioDevice
  & Required<
    Pick<VirtioDevice, "queueGroup" | "share" | "save" | "load">
  >;

/** Whether the queues of a device model can be served by several threads. */
export function isSpreadable(device: VirtioDevice): device is SpreadableDevice {
  return device.queueGroup !== undefined && device.share !== undefined &&
    device.save !== undefined && device.load !== undefined;
}

/** The part of the transport that a {@linkcode VirtioSpreading} needs. */
export interface SpreadingTransport {
  /** The queue that a write notifies, FOR_ALL or FOR_HOME of src/pci/spreading.ts. */
  targetOfWrite(bar: number, offset: number): number;
  /** Raises the interrupt for used buffers where it is not by vector. */
  raiseLine(): void;
  /** Has writes by way of configuration space go to `write`. */
  redirectWrites(write: RegisterWrite): void;
}

/** {@linkcode Spreading} of a virtio device: status, features and queues are the session's. */
export class VirtioSpreading implements Spreading {
  readonly queueCount: number;
  readonly #session: VirtioSession;
  readonly #device: SpreadableDevice;
  readonly #transport: SpreadingTransport;

  constructor(
    session: VirtioSession,
    device: SpreadableDevice,
    transport: SpreadingTransport,
  ) {
    this.#session = session;
    this.#device = device;
    this.#transport = transport;
    this.queueCount = session.queues.length;
  }

  groupOf(queue: number): number {
    return this.#device.queueGroup(queue, this.#session.offered);
  }

  targetOfWrite(bar: number, offset: number): number {
    return this.#transport.targetOfWrite(bar, offset);
  }

  targetOfDoorbell(_bar: number, doorbell: number): number {
    return doorbell;
  }

  begin(isMine: (group: number) => boolean, listener: SpreadingListener): void {
    const session = this.#session;
    session.limit({
      // Which queues there are, and what for, depends on the features that the driver took.
      isMine: (queue) =>
        isMine(this.#device.queueGroup(queue, session.accepted)),
      onSharedState: () => listener.onSharedState(),
      onFailure: (reason) => listener.onFailure(reason),
      onReset: () => listener.onReset(),
      onForeignKick: (queue) => listener.onForeignKick(queue),
    });
    this.#transport.redirectWrites(listener.onIndirectWrite);
  }

  kick(queue: number): void {
    this.#session.kick(queue);
  }

  share(groups: readonly number[]): unknown {
    // What this thread counted stays its own.
    const counted = Object.keys(this.#session.counters);
    const sessionCounters = Object.fromEntries(
      counted.map((name) => [name, 0]),
    );
    return { ...this.#device.share(groups), sessionCounters };
  }

  saveShared(): unknown {
    return this.#device.save();
  }

  loadShared(state: unknown): void {
    const session = this.#session;
    const { stopped } = session;
    // As when a device is loaded: nothing moves meanwhile, and every queue is looked at afterwards.
    session.stop();
    session.hold();
    try {
      this.#device.load(state);
    } finally {
      if (!stopped) session.start();
    }
  }

  fail(reason: string): void {
    this.#session.fail(reason);
  }

  raiseLine(): void {
    this.#transport.raiseLine();
  }
}
