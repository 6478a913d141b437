/**
 * vfio-user as a transport: a PCI device is offered as it is, a virtio device by way of virtio-pci.
 *
 * @module
 */

import { describeModel } from "../../core/model_fault.ts";
import {
  type DeviceContext,
  type PciDevice,
  PciFunction,
  PciInterrupts,
} from "../../pci/mod.ts";
import type { SavedDevice } from "../../../devices/model.ts";
import { type DeviceState, StateForm } from "../../core/state_form.ts";
import type { ResourceBag } from "../../os/mod.ts";
import { SocketWrites } from "../../pci/socket_writes.ts";
import { validatePciDevice } from "../../pci/validate.ts";
import { validateVirtioDevice } from "../../virtio/validate.ts";
import {
  isVirtioDevice,
  type VirtioDevice,
  VirtioPort,
} from "../../virtio/device.ts";
import type {
  Transport,
  TransportKind,
  TransportOptions,
} from "../contract.ts";
import { modelState, offerVirtioDevice } from "../virtio_pci/virtio_pci.ts";
import { parseServerState, type ServerState } from "./client_state.ts";
import { VfioUserServer } from "./server.ts";

const UNSHARED_ADVICE =
  "guest RAM is not shared with this process, so the device cannot reach it: start QEMU with " +
  "-object memory-backend-memfd,id=mem,size=SIZE,share=on -machine memory-backend=mem " +
  "(SIZE as in -m; or memory-backend-file with share=on)";

/** Body of the state of a device and its client. */
interface VfioUserState {
  /** Configuration space and interrupts. */
  readonly pci: DeviceState;
  /** The client, with everything it brought. */
  readonly server: ServerState;
  /** The device as the client sees it. */
  readonly device: DeviceState;
}

const FORM = new StateForm<VfioUserState>(
  "vfio-user",
  "the vfio-user server",
);

function parseState(state: unknown): VfioUserState {
  const reader = FORM.read(state);
  return {
    pci: reader.value("pci") as DeviceState,
    server: parseServerState(reader.part("server")),
    device: reader.value("device") as DeviceState,
  };
}

/** The kernel's limit for a process, or what it is where nobody changed it and it may not be read. */
function mapsMax(): number {
  try {
    return Number(Deno.readTextFileSync("/proc/sys/vm/max_map_count"));
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) return 65_530;
    throw error;
  }
}

/**
 * Number of mappings one client may have: the kernel gives a process so many (vm.max_map_count), and one client must
 * not take them all.
 */
function dmaMapsMax(): number {
  return Math.min(65_535, mapsMax() >> 2);
}

/** Parts that exist once there is a device. */
interface Attached {
  readonly device: PciDevice;
  readonly pci: PciFunction;
  readonly server: VfioUserServer;
}

class VfioUserTransport implements Transport {
  readonly interrupts = new PciInterrupts();
  readonly writes = new SocketWrites();
  readonly context: Transport["context"];
  readonly savedDevice: SavedDevice | undefined;
  readonly #options: TransportOptions;
  readonly #virtio = new VirtioPort();
  /** State it goes on from; null once it does, or without a predecessor. */
  #state: VfioUserState | null = null;
  #given: VirtioDevice | PciDevice | null = null;
  #attached: Attached | null = null;

  constructor(options: TransportOptions) {
    this.#options = options;
    this.context = {
      interrupts: this.interrupts,
      posted: this.writes,
      virtio: this.#virtio,
    };
    const { saved } = options;
    if (saved === undefined) return;
    this.#state = parseState(saved.state);
    this.savedDevice = {
      state: modelState(this.#state.device),
      bag: saved.bag.at("device"),
    };
  }

  attach(given: VirtioDevice | PciDevice, context: DeviceContext): void {
    const { memory, log, model } = this.#options;
    const name = describeModel(model);
    this.#given = given;
    let device: PciDevice;
    if (isVirtioDevice(given)) {
      validateVirtioDevice(given, name);
      const bag = this.savedDevice?.bag;
      device = offerVirtioDevice(given, context, this.#virtio, bag);
    } else {
      validatePciDevice(given, name);
      device = given;
    }
    this.#given = device;
    this.#options.onMemory();
    const pci = new PciFunction(device, memory, this.interrupts, log, name);
    if (this.#state !== null) pci.load(this.#state.pci);
    this.#attached = { device, pci, server: this.#makeServer(pci) };
  }

  start(): void {
    const { device, pci, server } = this.#all;
    server.start();
    if (this.#state === null) return;
    // Nothing is received before the next turn, so that all is as it was when the device looks at it.
    device.load?.(this.#state.device);
    this.#state = null;
    pci.release();
  }

  get device(): PciDevice {
    return this.#all.device;
  }

  get clientPid(): number | null {
    return this.#all.server.clientPid;
  }

  counters(): Readonly<Record<string, number>> {
    return this.#all.server.counters();
  }

  hold(): number {
    const { pci, server } = this.#all;
    return pci.hold() + (server.waiting ? 1 : 0);
  }

  release(): void {
    this.#all.pci.release();
  }

  save(bag: ResourceBag): DeviceState {
    const { device, pci, server } = this.#all;
    return FORM.write({
      pci: pci.save(),
      server: server.save(bag.at("client")),
      device: device.save!(),
    });
  }

  handOver(bag: ResourceBag): void {
    this.#given?.handOver?.(bag.at("device"));
    this.#attached?.server.leave();
    try {
      this.#given?.close?.();
    } catch (error) {
      // What matters has been given away by now: a leak here must not cost the device.
      this.#options.log.error("cannot close what the device left behind", {
        error,
      });
    }
  }

  close(): void {
    this.#attached?.server.close();
    this.#given?.close?.();
  }

  get #all(): Attached {
    if (this.#attached === null) throw new Error("Cannot serve no device");
    return this.#attached;
  }

  #makeServer(pci: PciFunction): VfioUserServer {
    const { loop, log, listener, memory, helloTimeoutMs, onClient, saved } =
      this.#options;
    return new VfioUserServer({
      ...{ loop, log, listener, memory, helloTimeoutMs, pci },
      interrupts: this.interrupts,
      writes: this.writes,
      limits: { maxDmaMaps: dmaMapsMax() },
      onUnsharedMemory: () => log.warn(UNSHARED_ADVICE),
      onClient: (pid, _, reason) => onClient(pid, reason),
      ...(saved === undefined ? {} : {
        saved: { state: this.#state!.server, bag: saved.bag.at("client") },
      }),
    });
  }
}

/** vfio-user (QEMU's docs/interop/vfio-user). */
export const vfioUser: TransportKind = {
  open: (options) => new VfioUserTransport(options),
};
