/**
 * The virtio network card (virtio 1.3, section 5.1).
 *
 * @module
 */

import { Errno, ErrnoError } from "../../src/core/errno.ts";
import type { Log } from "../../src/core/log.ts";
import type {
  AccessWidth,
  CommandAnswer,
  DeviceCommand,
  DeviceContext,
} from "../../src/pci/device.ts";
import {
  type NetBackend,
  NetOffload,
  type NetPeer,
} from "../../src/backend/net/contract.ts";
import { FOR_HOME } from "../../src/pci/spreading.ts";
import type { VirtioDevice, VirtioTransport } from "../../src/virtio/device.ts";
import { Features } from "../../src/virtio/features.ts";
import type { Virtqueue } from "../../src/virtio/queue/queue.ts";
import { CoalescingControl } from "./control/coalescing_control.ts";
import { formatMac, NetConfig } from "./config.ts";
import { ControlQueue, CTRL_QUEUE_SIZE } from "./control/control.ts";
import { NetCounters } from "./counters.ts";
import {
  PCI_CLASS_NETWORK_ETHERNET,
  VIRTIO_ID_NET,
  VIRTIO_NET_CONFIG,
  VIRTIO_NET_F,
  VIRTIO_NET_S_ANNOUNCE,
  VIRTIO_NET_S_LINK_UP,
} from "./defs.ts";
import { areRequirementsMet } from "./feature_rules.ts";
import { ReceiveFilter } from "./control/filter.ts";
import { givenOffloads, NO_OFFLOADS, offloadFeatures } from "./offloads.ts";
import { QueuePairs } from "./queue/queue_pairs.ts";
import {
  macFromText,
  NET_STATE_VERSION,
  type NetHandOver,
  type NetState,
  NOTHING_MOVED,
  parseNetState,
} from "./state.ts";

/** What a {@linkcode VirtioNet} is made with. */
export interface VirtioNetParts {
  /** As handed to the model. */
  readonly context: DeviceContext;
  readonly transport: VirtioTransport;
  /** What it is plugged into; the card closes it. */
  readonly backend: NetBackend;
  /** Its address and shape. */
  readonly options: {
    /** Six bytes. */
    readonly mac: Uint8Array;
    /** Largest IP packet in bytes. */
    readonly mtu: number;
    /** Whether the link is up at first. */
    readonly linkUp: boolean;
    /** Largest size of the receive and transmit queues. */
    readonly queueSize: number;
    /** How many queue pairs it has, as many as the back end at most; 1 when absent. */
    readonly queuePairs?: number;
    /** Whether it offers the back end's offloads; it does when absent. */
    readonly offloads?: boolean;
    /** How long a busy transmit queue is left alone, in microseconds; not at all when absent. */
    readonly txDelayUsec?: number;
    /** The longest that frames are kept from an overloaded driver, in microseconds; not at all when absent. */
    readonly rxReliefUsec?: number;
  };
  /** What its predecessor counted. */
  readonly inherited?: Pick<NetHandOver, "counters" | "pairs">;
}

const FEATURES = Features.of(
  VIRTIO_NET_F.MTU,
  VIRTIO_NET_F.MAC,
  VIRTIO_NET_F.MRG_RXBUF,
  VIRTIO_NET_F.STATUS,
  VIRTIO_NET_F.CTRL_VQ,
  VIRTIO_NET_F.CTRL_RX,
  VIRTIO_NET_F.CTRL_VLAN,
  VIRTIO_NET_F.CTRL_RX_EXTRA,
  VIRTIO_NET_F.GUEST_ANNOUNCE,
  VIRTIO_NET_F.CTRL_MAC_ADDR,
  VIRTIO_NET_F.VQ_NOTF_COAL,
  VIRTIO_NET_F.NOTF_COAL,
);
const MQ = Features.of(VIRTIO_NET_F.MQ);

const NO_FEATURES = new Features(0, 0);

/** IOV_MAX: what one readv(2) or writev(2) takes. */
const SEGMENTS_MAX = 1024;

/** There is no such queue. */
const NO_QUEUE = -1;

/**
 * A network card with pairs of receive and transmit queues, and a control queue.
 *
 * ```text
 *   idle --start--> running --reset--> idle        in each: link up ⇄ down
 *                      ╰─ a rule broken ─> failed --reset--> idle
 * ```
 * The back end runs while the device runs and the link is up. Of the chains that are held between calls none has been
 * written to, so nothing needs to come to its end when the card holds: frames then wait in the ring and in the back
 * end, which is left as it is; what was chosen meanwhile is done when the card goes on.
 */
export class VirtioNet implements VirtioDevice, NetPeer {
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
  readonly #counters = new NetCounters();
  readonly #filter = new ReceiveFilter();
  readonly #pairs: QueuePairs;
  readonly #coalescing: CoalescingControl;
  readonly #control: ControlQueue;
  readonly #unsubscribe: () => void;
  /** Whether it is plugged in, as was chosen. */
  #linkUp: boolean;
  #negotiated: Features = NO_FEATURES;
  #queues: readonly Virtqueue[] = [];
  /** How many pairs receive. */
  #activePairs = 1;
  /** Number of the control queue. */
  #ctrlIndex = NO_QUEUE;
  /** What is left to the driver, a set of NetOffload. */
  #guestOffloads = 0;
  #running = false;
  #held = false;
  /** Whether the back end is started. */
  #plugged = false;

  constructor(parts: VirtioNetParts) {
    const { context, transport, backend, options } = parts;
    this.#log = context.log;
    this.#transport = transport;
    this.#backend = backend;
    this.#mac = options.mac.slice();
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
    this.#filter.reset(options.mac, false);
    const common = {
      memory: context.memory,
      loop: context.loop,
      backend,
      filter: this.#filter,
      counters: this.#counters,
      mtu: options.mtu,
      chainSegments: Math.min(options.queueSize, SEGMENTS_MAX),
      delayMs: (options.txDelayUsec ?? 0) / 1000,
      reliefMs: (options.rxReliefUsec ?? 0) / 1000,
      fail: (reason: string) => this.#fail(reason),
    };
    const interrupt = (queue: Virtqueue) => transport.interrupt(queue);
    this.#pairs = new QueuePairs(
      { ...common, interrupt },
      count,
      options.linkUp,
    );
    this.#coalescing = new CoalescingControl(
      this.#pairs.notifiers,
      (index) => this.#pairs.has(index) && this.#queues[index]!.enabled,
    );
    this.#unsubscribe = context.memory.subscribe({
      onUnmap: (iova, lengthBytes) => this.#pairs.loseMemory(iova, lengthBytes),
    });
    this.#control = new ControlQueue({
      ...common,
      interrupt,
      coalescing: this.#coalescing,
      setMac: (mac) => this.#setMac(mac),
      acknowledgeAnnounce: () => this.#clearAnnounce(),
      setQueuePairs: (count) => this.#setQueuePairs(count),
      setGuestOffloads: (offloads) => this.#setGuestOffloads(offloads),
    });
    if (parts.inherited !== undefined) {
      this.#counters.load(parts.inherited.counters);
      this.#pairs.countFrom(parts.inherited.pairs);
    }
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

  /** Whether the link is up, as the driver is told: the card is plugged in, and into something that is there. */
  get linkUp(): boolean {
    return (this.#config.status & VIRTIO_NET_S_LINK_UP) !== 0;
  }

  onLinkChange(): void {
    const up = this.#hasLink();
    if (up === this.linkUp) return;
    this.#setStatus(up);
    this.#logLink();
    if (up && this.#canAnnounce()) {
      this.#config.status |= VIRTIO_NET_S_ANNOUNCE;
    }
    this.#transport.sharedStateChanged?.();
    this.#transport.configChanged();
  }

  /**
   * Plugs the card in or out, and tells the driver. A driver that can is asked to announce itself when the link
   * comes up.
   */
  setLink(up: boolean): void {
    if (up === this.#linkUp) return;
    this.#linkUp = up;
    this.#pairs.setLink(up);
    if (this.#running) {
      if (up) this.#startBackend();
      else this.#stopBackend();
    }
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
    this.#filter.reset(this.#config.mac, has(VIRTIO_NET_F.CTRL_VLAN));
    this.#pairs.start(features, queues);
    this.#ctrlIndex = has(VIRTIO_NET_F.CTRL_VQ)
      ? this.#pairs.known * 2
      : NO_QUEUE;
    if (this.#ctrlIndex !== NO_QUEUE) {
      this.#control.start(queues[this.#ctrlIndex]!, features);
    }
    this.#setQueuePairs(1);
    this.#setGuestOffloads(givenOffloads(features));
    if (this.#linkUp) this.#startBackend();
  }

  notify(queue: Virtqueue): void {
    if (!this.#running) return;
    const { index } = queue;
    if (index === this.#ctrlIndex) {
      this.#control.run();
      this.#transport.sharedStateChanged?.();
    } else this.#pairs.notify(index);
  }

  onReadable(pair: number = 0): void {
    if (!this.#running || !this.#linkUp || pair >= this.#activePairs) return;
    if (!this.#held) this.#pairs.rx[pair]!.run();
  }

  onWritable(pair: number = 0): void {
    this.#pairs.tx[pair]!.onWritable();
  }

  resetQueue(queue: Virtqueue): void {
    const { index } = queue;
    if (index === this.#ctrlIndex) return this.#control.resetQueue();
    if (!this.#pairs.has(index)) return;
    this.#pairs.resetQueue(index);
    this.#coalescing.resetQueue(index);
  }

  reset(): void {
    this.#halt();
    this.#negotiated = NO_FEATURES;
    this.#config.setMac(this.#mac);
    this.#filter.reset(this.#mac, false);
    this.#clearAnnounce();
  }

  hold(): number {
    if (!this.#held) {
      this.#held = true;
      this.#pairs.hold();
    }
    this.#pairs.flushInterrupts();
    return 0;
  }

  pause(): void {
    this.#pairs.pause();
  }

  resume(): void {
    if (!this.#held) return;
    this.#held = false;
    if (!this.#running) return;
    this.#backend.setQueuePairs?.(this.#activePairs);
    this.#backend.setOffloads?.(this.#guestOffloads);
    if (this.#linkUp) this.#startBackend();
    this.onLinkChange();
  }

  save(): NetState {
    return {
      version: NET_STATE_VERSION,
      permanentMac: formatMac(this.#mac),
      mac: formatMac(this.#config.mac),
      linkUp: this.#linkUp,
      announce: (this.#config.status & VIRTIO_NET_S_ANNOUNCE) !== 0,
      activePairs: this.#activePairs,
      guestOffloads: this.#guestOffloads,
      filter: this.#filter.save(),
      coalescing: this.#coalescing.save(),
    };
  }

  load(value: unknown): void {
    const state = parseNetState(value, this.#pairs.count);
    const { linkUp, announce } = state;
    this.#mac.set(macFromText(state.permanentMac)!);
    this.#setMac(macFromText(state.mac)!);
    this.#linkUp = linkUp;
    this.#setStatus(this.#hasLink());
    if (announce) this.#config.status |= VIRTIO_NET_S_ANNOUNCE;
    this.#pairs.setLink(linkUp);
    if (!linkUp && this.#plugged) this.#stopBackend();
    this.#filter.load(state.filter);
    this.#coalescing.load(state.coalescing);
    if (!this.#running) return;
    if (!this.#setQueuePairs(state.activePairs)) {
      throw new ErrnoError(
        Errno.EINVAL,
        `Cannot load the network card: ${state.activePairs} queue pairs are in use, the driver knows ${this.#pairs.known}`,
      );
    }
    this.#setGuestOffloads(
      state.guestOffloads & givenOffloads(this.#negotiated),
    );
  }

  handOver(): NetHandOver {
    const backend = this.#backend.handOver?.();
    // Nothing but to close it is left to do for its last owner.
    this.#running = this.#plugged = false;
    return {
      version: NET_STATE_VERSION,
      mac: formatMac(this.#mac),
      linkUp: this.#linkUp,
      counters: this.#counters.toRecord(),
      pairs: this.#pairs.counts(),
      backend,
    };
  }

  queueGroup(queue: number, features: Features): number {
    // Without MQ there is one pair, and the control queue comes right behind it.
    const pairs = features.has(VIRTIO_NET_F.MQ) ? this.#pairs.count : 0;
    return queue < pairs * 2 ? queue >> 1 : FOR_HOME;
  }

  share(pairs: readonly number[]): NetHandOver {
    const backend = this.#backend;
    if (backend.share === undefined) {
      throw new Error(
        `Cannot use several IOThreads: ${backend.description} is served by one; a TAP can be served by several`,
      );
    }
    return {
      version: NET_STATE_VERSION,
      mac: formatMac(this.#mac),
      linkUp: this.#linkUp,
      counters: {},
      pairs: this.#pairs.counts().map(() => NOTHING_MOVED),
      backend: backend.share(pairs),
    };
  }

  counters(): Readonly<Record<string, number>> {
    const counters = this.#counters.toRecord();
    this.#pairs.addCounters(counters);
    for (
      const [name, value] of Object.entries(this.#backend.counters?.() ?? {})
    ) {
      counters[`backend.${name}`] = value;
    }
    return counters;
  }

  close(): void {
    this.#halt();
    this.#unsubscribe();
    this.#pairs.close();
    this.#backend.close();
  }

  /** Stops everything that moves; the driver's queues are not touched any more. */
  #halt(): void {
    if (this.#running && this.#linkUp) this.#stopBackend();
    this.#running = false;
    this.#pairs.stop();
    this.#control.stop();
    this.#coalescing.reset();
    this.#queues = [];
  }

  #fail(reason: string): void {
    if (!this.#running) return;
    this.#halt();
    this.#transport.fail(reason);
  }

  #startBackend(): void {
    if (this.#held) return;
    if (!this.#plugged) {
      this.#plugged = true;
      this.#backend.start(this);
    }
    this.#pairs.resume();
  }

  /** Drops what waits, also of a back end that was handed over and not started yet. */
  #stopBackend(): void {
    this.#plugged = false;
    this.#backend.stop();
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
    this.#pairs.setOffloads(possible);
    return true;
  }

  /** Whether it is plugged into something that is there. */
  #hasLink(): boolean {
    return this.#linkUp && (this.#backend.linkUp ?? true);
  }

  /** Tells nobody; the driver is not asked to announce anything. */
  #setStatus(up: boolean): void {
    this.#config.status = up ? VIRTIO_NET_S_LINK_UP : 0;
  }

  #setMac(mac: Uint8Array): void {
    this.#config.setMac(mac);
    this.#filter.setMac(mac);
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

function offeredFeatures(
  backend: NetBackend,
  pairs: number,
  offloads: boolean,
): Features {
  const able = offloads && backend.hasVnetHeader
    ? backend.offloads ?? NO_OFFLOADS
    : NO_OFFLOADS;
  const features = FEATURES.union(offloadFeatures(able));
  return pairs > 1 ? features.union(MQ) : features;
}
