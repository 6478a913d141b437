/** The smallest virtio device: it copies what it reads of a chain to where it writes, and remembers what it was told. */

import type { DeviceState } from "../../src/core/state_form.ts";
import type { AccessWidth } from "../../src/pci/device.ts";
import type { DeviceContext } from "../../src/pci/context.ts";
import { Chain, type Virtqueue } from "../../src/virtio/queue/queue.ts";
import type { VirtioDevice, VirtioTransport } from "../../src/virtio/device.ts";
import { Features } from "../../src/virtio/features.ts";

export const ECHO_FEATURE = 3;
/** A feature that requires {@linkcode ECHO_FEATURE}. */
export const DEPENDENT_FEATURE = 5;

export class EchoDevice implements VirtioDevice {
  readonly deviceId = 42;
  readonly pciClassCode = 0x00ff00;
  readonly features = Features.of(ECHO_FEATURE, DEPENDENT_FEATURE);
  readonly queueSizes: readonly number[];
  readonly configLengthBytes: number;
  readonly config: Uint8Array;
  readonly transport: VirtioTransport;
  /** Events in order. */
  readonly events: string[] = [];
  /** True if chains are kept instead of answered. */
  keeps = false;
  readonly held: number[] = [];
  started: Features | null = null;
  readonly #context: DeviceContext;
  readonly #chain: Chain;
  /** Only once it is movable. */
  save?: () => DeviceState;
  load?: (state: unknown) => void;

  constructor(
    context: DeviceContext,
    transport: VirtioTransport,
    queueSizes: readonly number[] = [8, 16],
    configLengthBytes = 6,
  ) {
    this.#context = context;
    this.transport = transport;
    this.queueSizes = queueSizes;
    this.configLengthBytes = configLengthBytes;
    this.config = Uint8Array.from({ length: configLengthBytes }, (_, i) => i);
    this.#chain = new Chain(context.memory, 16);
  }

  /** Makes it a model that can be saved and loaded: its configuration is its state. */
  makeMovable(): void {
    this.save = () => ({
      ...{ kind: "echo", version: 1 },
      body: { config: Array.from(this.config) },
    });
    this.load = (state) => {
      this.events.push("load");
      this.config.set((state as DeviceState<{ config: number[] }>).body.config);
    };
  }

  acceptsFeatures(features: Features): boolean {
    return !features.has(DEPENDENT_FEATURE) || features.has(ECHO_FEATURE);
  }

  readConfig(offset: number, width: AccessWidth): number {
    let value = 0;
    for (let i = 0; i < width; i++) {
      value += this.config[offset + i]! * 2 ** (8 * i);
    }
    return value;
  }

  writeConfig(offset: number, width: AccessWidth, value: number): void {
    for (let i = 0; i < width; i++) {
      this.config[offset + i] = value >>> (8 * i);
    }
  }

  start(features: Features, queues: readonly Virtqueue[]): void {
    this.started = features;
    const enabled = queues.filter((queue) => queue.enabled);
    this.events.push(`start ${enabled.map((queue) => queue.index)}`);
  }

  notify(queue: Virtqueue): void {
    this.events.push(`notify ${queue.index}`);
    const chain = this.#chain;
    let got: number;
    do {
      queue.disableNotifications();
      while ((got = queue.pop(chain)) > 0) {
        if (this.keeps) this.held.push(chain.head);
        else queue.push(chain.head, this.#echo(chain));
      }
      if (queue.publish()) this.transport.interrupt(queue);
      if (got < 0) return this.transport.fail(queue.lastError);
    } while (queue.enableNotifications());
  }

  /** Completes what was held, as a request that took its time. */
  complete(queue: Virtqueue): void {
    for (const head of this.held.splice(0)) queue.push(head, 0);
    if (queue.publish()) this.transport.interrupt(queue);
  }

  pause(): void {
    this.events.push("pause");
  }

  resume(): void {
    this.events.push("resume");
  }

  resetQueue(queue: Virtqueue): void {
    this.events.push(`resetQueue ${queue.index}`);
  }

  reset(): void {
    this.events.push("reset");
    this.started = null;
  }

  counters(): Record<string, number> {
    return { echoes: this.events.length };
  }

  close(): void {
    this.events.push("close");
  }

  #echo(chain: Chain): number {
    const memory = this.#context.memory;
    const bytes = new Uint8Array(chain.readable.lengthBytes);
    memory.gather(chain.readable, bytes, bytes.length);
    return memory.scatter(chain.writable, bytes, bytes.length);
  }
}
