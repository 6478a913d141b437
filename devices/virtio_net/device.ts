/**
 * The virtio network card (virtio 1.3, section 5.1).
 *
 * @module
 */

import { Errno, ErrnoError } from "../../src/core/errno.ts";
import type { Log } from "../../src/core/log.ts";
import type { DeviceContext } from "../../src/pci/context.ts";
import type {
  AccessWidth,
  CommandAnswer,
  DeviceCommand,
} from "../../src/pci/device.ts";
import { type NetBackend, NetOffload } from "../../src/backend/net/contract.ts";
import { CONTROL_GROUP } from "../../src/pci/queue_threads.ts";
import type {
  QueueSharing,
  VirtioDevice,
  VirtioTransport,
} from "../../src/virtio/device.ts";
import { Features } from "../../src/virtio/features.ts";
import type { VirtioOptions } from "../../src/virtio/options.ts";
import type { Virtqueue } from "../../src/virtio/queue/queue.ts";
import { CoalescingControl } from "./control/coalescing_control.ts";
import { type CardOptions, formatMac, NetConfig } from "./config.ts";
import { ControlQueue, CTRL_QUEUE_SIZE } from "./control/control.ts";
import {
  PCI_CLASS_NETWORK_ETHERNET,
  VIRTIO_ID_NET,
  VIRTIO_NET_CONFIG,
  VIRTIO_NET_F,
  VIRTIO_NET_S_ANNOUNCE,
  VIRTIO_NET_S_LINK_UP,
} from "./defs.ts";
import type { DeviceState } from "../../src/core/state_form.ts";
import type { ResourceBag } from "../../src/os/resource_bag.ts";
import {
  areRequirementsMet,
  givenOffloads,
  offeredFeatures,
} from "./features.ts";
import { NetQueues, type NetQueuesOptions } from "./queue/net_queues.ts";
import { SEGMENTS_MAX } from "./queue/pair.ts";
import {
  macFromText,
  NET_FORM,
  type NetSettings,
  type NetState,
  parseNetState,
} from "./state.ts";

/** Parts of a {@linkcode VirtioNet}. */
export interface VirtioNetParts {
  /** As handed to the model. */
  readonly context: DeviceContext;
  readonly transport: VirtioTransport;
  /** Network that it is plugged into; the card closes it. */
  readonly backend: NetBackend;
  /** Its address and shape. */
  /** One pair, all offloads and no delays where nothing is said. */
  readonly options:
    & Pick<CardOptions, "mac" | "mtu" | "linkUp" | "queueSize">
    & Partial<CardOptions>
    & {
      /** Offer to drivers. */
      readonly offer?: VirtioOptions;
    };
}

const NO_FEATURES = new Features(0, 0);

/** Parts of {@linkcode NetQueues} of another thread. Plain data. */
export interface NetGrant extends Omit<NetQueuesOptions, "mac"> {
  /** The card's address, as people write it. */
  readonly mac: string;
  /** Part of the back end that is shared. */
  readonly backend: unknown;
}

/** There is no such queue. */
const NO_QUEUE = -1;

/**
 * A network card with pairs of receive and transmit queues, and a control queue: what a driver configures, around the
 * {@linkcode NetQueues} of its own thread.
 *
 * ```text
 *   idle --start--> running --reset--> idle        in each: link up ⇄ down
 *                      ╰─ a rule broken ─> failed --reset--> idle
 * ```
 */
export class VirtioNet implements VirtioDevice {
  readonly deviceId: number = VIRTIO_ID_NET;
  readonly pciClassCode: number = PCI_CLASS_NETWORK_ETHERNET;
  readonly features: Features;
  readonly queueSizes: readonly number[];
  readonly configLengthBytes: number = VIRTIO_NET_CONFIG.SIZE;
  readonly commands: Readonly<Record<string, DeviceCommand>>;
  readonly #transport: VirtioTransport;
  readonly #log: Log;
  readonly #backend: NetBackend;
  /** The address that a reset restores. */
  readonly #mac: Uint8Array;
  readonly #config: NetConfig;
  readonly sharing: QueueSharing;
  readonly offer: Partial<VirtioOptions>;
  readonly #pairs: NetQueues;
  readonly #coalescing: CoalescingControl;
  readonly #control: ControlQueue;
  /** True when it is plugged in, as was chosen. */
  #linkUp: boolean;
  #negotiated: Features = NO_FEATURES;
  #queues: readonly Virtqueue[] = [];
  /** Number of pairs that receive. */
  #activePairs = 1;
  /** Number of the control queue. */
  #ctrlIndex = NO_QUEUE;
  /** Offloads that are left to the driver, a set of NetOffload. */
  #guestOffloads = 0;
  #running = false;
  #held = false;

  constructor(parts: VirtioNetParts) {
    const { context, transport, backend, options } = parts;
    this.#log = context.log;
    this.#transport = transport;
    this.#backend = backend;
    this.#mac = options.mac.slice();
    this.offer = options.offer ?? {};
    const count = options.queuePairs ?? 1;
    if (count > (backend.queuePairs ?? 1)) {
      throw new RangeError(
        `Cannot have ${count} queue pairs: ${backend.description} has ${
          backend.queuePairs ?? 1
        }`,
      );
    }
    this.#config = new NetConfig(options.mac, options.mtu, count);
    this.#linkUp = options.linkUp;
    this.#setStatus(this.#hasLink());
    this.features = offeredFeatures(
      backend,
      count,
      options.offloads ?? true,
    );
    this.queueSizes = [
      ...new Array<number>(count * 2).fill(options.queueSize),
      CTRL_QUEUE_SIZE,
    ];
    const queueOptions = {
      mac: options.mac,
      mtu: options.mtu,
      linkUp: options.linkUp,
      queueSize: options.queueSize,
      queuePairs: count,
      txDelayUsec: options.txDelayUsec ?? 0,
      rxReliefUsec: options.rxReliefUsec ?? 0,
    };
    const fail = (reason: string) => this.#fail(reason);
    const interrupt = (queue: Virtqueue) => transport.interrupt(queue);
    this.#pairs = new NetQueues({
      ...{ context, backend },
      transport: { interrupt, fail },
      options: queueOptions,
      onLinkChange: () => this.onLinkChange(),
    });
    this.#coalescing = new CoalescingControl(count * 2);
    this.#control = new ControlQueue({
      ...{ interrupt, fail },
      memory: context.memory,
      loop: context.loop,
      filter: this.#pairs.filter,
      counters: this.#pairs.tally,
      chainSegments: Math.min(options.queueSize, SEGMENTS_MAX),
      coalescing: this.#coalescing,
      isInUse: (index) =>
        this.#pairs.has(index) && this.#queues[index]?.enabled === true,
      setMac: (mac) => this.#setMac(mac),
      acknowledgeAnnounce: () => this.#clearAnnounce(),
      setQueuePairs: (count) => this.#setQueuePairs(count),
      setGuestOffloads: (offloads) => this.#setGuestOffloads(offloads),
      apply: () => this.#applySettings(),
    });
    this.sharing = {
      groupOf: (queue, features) => this.#groupOf(queue, features),
      grant: (pairs, bag): NetGrant => ({
        ...queueOptions,
        mac: formatMac(options.mac),
        backend: backend.share!(pairs, bag),
      }),
      reclaim: () => backend.reclaim?.(),
      settings: () => this.#settings(),
    };
    this.commands = {
      link: {
        help: "link up|down: plug the card in or out; without a word, tell",
        run: (args) => this.#runLink(args),
      },
      announce: {
        help: "ask the driver to announce the card on the network",
        run: () => this.#runAnnounce(),
      },
    };
  }

  /** True when the link is up, as the driver is told: the card is plugged in, and into something that is there. */
  get linkUp(): boolean {
    return (this.#config.status & VIRTIO_NET_S_LINK_UP) !== 0;
  }

  /** Tells the driver whether the link is up, if that has changed. */
  onLinkChange(): void {
    const up = this.#hasLink();
    if (up === this.linkUp) return;
    this.#setStatus(up);
    this.#logLink();
    if (up && this.#canAnnounce()) {
      this.#config.status |= VIRTIO_NET_S_ANNOUNCE;
    }
    this.#transport.configChanged();
  }

  /**
   * Plugs the card in or out, and tells the driver. A driver that can is asked to announce itself when the link
   * comes up.
   */
  setLink(up: boolean): void {
    if (up === this.#linkUp) return;
    this.#linkUp = up;
    this.#applySettings();
    this.onLinkChange();
  }

  /**
   * Asks the driver to announce the card on the network.
   *
   * @returns Whether it can be asked: it must have negotiated GUEST_ANNOUNCE, and the link must be up
   */
  announce(): boolean {
    if (!this.linkUp || !this.#canAnnounce()) return false;
    this.#config.status |= VIRTIO_NET_S_ANNOUNCE;
    this.#transport.configChanged();
    return true;
  }

  /** The commands of the control queue are about the queues; frames go by what was commanded and acknowledged. */
  dependsOnRegisters(queue: number, features: Features): boolean {
    const pairs = features.has(VIRTIO_NET_F.MQ) ? this.#pairs.count : 1;
    return queue >= pairs * 2;
  }

  acceptsFeatures(features: Features): boolean {
    return areRequirementsMet(features);
  }

  readConfig(offset: number, width: AccessWidth): number {
    return this.#config.read(offset, width);
  }

  writeConfig(_offset: number, _width: AccessWidth, _value: number): void {
    // The driver MUST NOT write to any field (5.1.4.2); the address is set by command.
  }

  start(features: Features, queues: readonly Virtqueue[]): void {
    const has = (feature: number) => features.has(feature);
    this.#negotiated = features;
    this.#queues = queues;
    this.#running = true;
    // What changed while nobody was to be told.
    if (this.#hasLink() !== this.linkUp) {
      this.#setStatus(this.#hasLink());
      this.#logLink();
    }
    this.#pairs.filter.reset(this.#config.mac, has(VIRTIO_NET_F.CTRL_VLAN));
    this.#pairs.start(features, queues);
    this.#ctrlIndex = has(VIRTIO_NET_F.CTRL_VQ)
      ? this.#pairs.known * 2
      : NO_QUEUE;
    if (this.#ctrlIndex !== NO_QUEUE) {
      this.#control.start(queues[this.#ctrlIndex]!, features);
    }
    this.#setQueuePairs(1);
    this.#setGuestOffloads(givenOffloads(features));
    this.#pairs.configure(this.#settings());
  }

  notify(queue: Virtqueue): void {
    if (!this.#running) return;
    if (queue.index === this.#ctrlIndex) this.#control.run();
    else this.#pairs.notify(queue);
  }

  resetQueue(queue: Virtqueue): void {
    const { index } = queue;
    if (index === this.#ctrlIndex) return this.#control.resetQueue();
    if (!this.#pairs.has(index)) return;
    this.#pairs.resetQueue(queue);
    this.#coalescing.resetQueue(index);
  }

  reset(): void {
    this.#halt();
    this.#negotiated = NO_FEATURES;
    this.#config.setMac(this.#mac);
    this.#pairs.filter.reset(this.#mac, false);
    this.#clearAnnounce();
  }

  hold(): number {
    this.#held = true;
    return this.#pairs.hold();
  }

  pause(): void {
    this.#pairs.pause();
  }

  resume(): void {
    const held = this.#held;
    this.#held = false;
    if (held && this.#running) {
      this.#backend.setQueuePairs?.(this.#activePairs);
      this.#backend.setOffloads?.(this.#guestOffloads);
    }
    this.#pairs.resume();
    if (held && this.#running) this.onLinkChange();
  }

  save(): DeviceState<NetState> {
    return NET_FORM.write({
      permanentMac: formatMac(this.#mac),
      announce: (this.#config.status & VIRTIO_NET_S_ANNOUNCE) !== 0,
      ...this.#settings(),
      counters: this.#pairs.tally.toRecord(),
      pairs: this.#pairs.pairCounts(),
      backend: this.#backend.save?.() ?? null,
    });
  }

  load(value: unknown): void {
    const state = parseNetState(value, this.#pairs.count);
    const { linkUp, announce } = state;
    this.#pairs.countFrom(state.counters, state.pairs);
    this.#mac.set(macFromText(state.permanentMac)!);
    this.#setMac(macFromText(state.mac)!);
    this.#linkUp = linkUp;
    this.#setStatus(this.#hasLink());
    if (announce) this.#config.status |= VIRTIO_NET_S_ANNOUNCE;
    this.#pairs.filter.load(state.filter);
    this.#coalescing.load(state.coalescing);
    if (!this.#running) return this.#pairs.configure(this.#settings());
    if (!this.#setQueuePairs(state.activePairs)) {
      throw new ErrnoError(
        Errno.EINVAL,
        `Cannot load the network card: ${state.activePairs} queue pairs are in use, the driver knows ${this.#pairs.known}`,
      );
    }
    this.#setGuestOffloads(
      state.guestOffloads & givenOffloads(this.#negotiated),
    );
    this.#pairs.configure(this.#settings());
  }

  handOver(bag: ResourceBag): void {
    this.#backend.handOver?.(bag.at("backend"));
    // Nothing but to close it is left to do for its last owner.
    this.#running = false;
    this.#pairs.leave();
  }

  counters(): Readonly<Record<string, number>> {
    return this.#pairs.counters();
  }

  close(): void {
    this.#halt();
    this.#pairs.close();
  }

  /** Stops everything that moves; the driver's queues are not touched any more. */
  #halt(): void {
    this.#running = false;
    this.#pairs.reset();
    this.#control.stop();
    this.#coalescing.reset();
    this.#queues = [];
  }

  #fail(reason: string): void {
    if (!this.#running) return;
    this.#halt();
    this.#transport.fail(reason);
  }

  /** A pair is a group where each has frames of its own, as on a TAP; a connection has one thread. */
  #groupOf(queue: number, features: Features): number {
    // Without MQ there is one pair, and the control queue comes right behind it.
    const pairs = features.has(VIRTIO_NET_F.MQ) ? this.#pairs.count : 0;
    return queue < pairs * 2 && this.#backend.share !== undefined
      ? queue >> 1
      : CONTROL_GROUP;
  }

  #settings(): NetSettings {
    return {
      mac: formatMac(this.#config.mac),
      linkUp: this.#linkUp,
      activePairs: this.#activePairs,
      guestOffloads: this.#guestOffloads,
      filter: this.#pairs.filter.save(),
      coalescing: this.#coalescing.save(),
    };
  }

  /** Has what was chosen be in force for all queues, on whichever thread. */
  #applySettings(): void {
    this.#pairs.configure(this.#settings());
    this.#transport.settingsChanged?.();
  }

  #setQueuePairs(count: number): boolean {
    if (count < 1 || count > this.#pairs.known) return false;
    // Taking pairs away and giving them back would lose their frames.
    if (!this.#held && (this.#backend.setQueuePairs?.(count) ?? 0) < 0) {
      return false;
    }
    this.#activePairs = count;
    return true;
  }

  #setGuestOffloads(offloads: number): boolean {
    // None of the others can be without the checksum (5.1.3.1).
    const possible = (offloads & NetOffload.CSUM) !== 0 ? offloads : 0;
    if (!this.#held && (this.#backend.setOffloads?.(possible) ?? 0) < 0) {
      return false;
    }
    this.#guestOffloads = possible;
    return true;
  }

  /** True when it is plugged into something that is there. */
  #hasLink(): boolean {
    return this.#linkUp && (this.#backend.linkUp ?? true);
  }

  /** Tells nobody; the driver is not asked to announce anything. */
  #setStatus(up: boolean): void {
    this.#config.status = up ? VIRTIO_NET_S_LINK_UP : 0;
  }

  #setMac(mac: Uint8Array): void {
    this.#config.setMac(mac);
    this.#pairs.filter.setMac(mac);
  }

  #canAnnounce(): boolean {
    return this.#running && this.#negotiated.has(VIRTIO_NET_F.GUEST_ANNOUNCE);
  }

  #clearAnnounce(): void {
    this.#config.status &= ~VIRTIO_NET_S_ANNOUNCE;
  }

  #logLink(): void {
    const up = this.linkUp;
    this.#log.info(`link is ${up ? "up" : "down"}`, {
      event: "LINK_CHANGED",
      up,
    });
  }

  #runLink(args: readonly string[]): CommandAnswer {
    const [state, ...rest] = args;
    if (
      rest.length > 0 ||
      (state !== undefined && state !== "up" && state !== "down")
    ) {
      throw new Error(`Cannot set link ${args.join(" ")}: it is up or down`);
    }
    if (state !== undefined) this.setLink(state === "up");
    const up = this.linkUp;
    const why = !up && this.#linkUp
      ? `: nobody is at the other end of ${this.#backend.description}`
      : "";
    return { text: `link is ${up ? "up" : "down"}${why}`, data: { up } };
  }

  #runAnnounce(): string {
    if (!this.announce()) {
      throw new Error(
        this.linkUp
          ? "Cannot announce: no driver is running that can do it (GUEST_ANNOUNCE)"
          : "Cannot announce: the link is down",
      );
    }
    return "the driver was asked to announce itself";
  }
}
