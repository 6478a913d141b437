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
import { ResourceBag, type Saved } from "../../os/mod.ts";
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
  TransportState,
} from "../contract.ts";
import {
  offerVirtioDevice,
  VirtioPci,
  type VirtioPciState,
} from "../virtio_pci/virtio_pci.ts";
import type { ServerState } from "./client_state.ts";
import { describeForQemu, qemuDeviceArguments } from "./qemu_arguments.ts";
import { VfioUserServer } from "./server.ts";

const UNSHARED_ADVICE =
  "guest RAM is not shared with this process, so the device cannot reach it: start QEMU with " +
  "-object memory-backend-memfd,id=mem,size=SIZE,share=on -machine memory-backend=mem " +
  "(SIZE as in -m; or memory-backend-file with share=on)";

/** The transport's part of {@linkcode TransportState}. */
interface State {
  /** Configuration space and interrupts. */
  readonly pci: unknown;
  /** The client, with everything it brought. */
  readonly server: ServerState;
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
 * How many mappings one client may have: the kernel gives a process so many (vm.max_map_count), and one client must
 * not take them all.
 */
function dmaMapsMax(): number {
  return Math.min(65_535, mapsMax() >> 2);
}

/** What exists once there is a device. */
interface Attached {
  readonly device: PciDevice;
  readonly pci: PciFunction;
  readonly server: VfioUserServer;
}

class VfioUserTransport implements Transport {
  readonly interrupts = new PciInterrupts();
  readonly writes = new SocketWrites();
  readonly context: Transport["context"];
  readonly #options: TransportOptions;
  readonly #virtio = new VirtioPort();
  #given: VirtioDevice | PciDevice | null = null;
  #attached: Attached | null = null;

  constructor(options: TransportOptions) {
    this.#options = options;
    this.context = {
      interrupts: this.interrupts,
      posted: this.writes,
      virtio: this.#virtio,
    };
  }

  attach(given: VirtioDevice | PciDevice, context: DeviceContext): void {
    const { memory, log, model, saved } = this.#options;
    const name = describeModel(model);
    const state = saved?.state.transport as State | undefined;
    this.#given = given;
    let device: PciDevice;
    if (isVirtioDevice(given)) {
      validateVirtioDevice(given, name);
      const bag = saved?.bag.at("device");
      device = offerVirtioDevice(given, context, this.#virtio, bag);
    } else {
      validatePciDevice(given, name);
      device = given;
    }
    this.#given = device;
    this.#options.onMemory();
    const pci = new PciFunction(device, memory, this.interrupts, log, name);
    if (state !== undefined) pci.load(state.pci);
    const server = this.#makeServer(
      pci,
      state && { state: state.server, bag: saved!.bag.at("client") },
    );
    this.#attached = { device, pci, server };
  }

  start(): void {
    const { device, pci, server } = this.#all;
    server.start();
    const { saved } = this.#options;
    if (saved === undefined) return;
    // Nothing is received before the next turn, so that all is as it was when the device looks at it.
    device.load?.(saved.state.device);
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

  handOver(bag: ResourceBag): TransportState {
    const { device, pci, server } = this.#all;
    const deviceState = device.save!();
    const pciState = pci.save();
    const serverState = server.save(bag.at("client"));
    const resources = device.handOver?.(bag.at("device"));
    server.leave();
    this.#closeDevice("cannot close what the device left behind");
    return {
      transport: { pci: pciState, server: serverState } satisfies State,
      device: deviceState,
      model: device instanceof VirtioPci
        ? (deviceState as VirtioPciState).session.device
        : deviceState,
      resources,
    };
  }

  giveBack(): void {
    this.#attached?.server.leave();
    using bag = ResourceBag.of();
    this.#given?.handOver?.(bag);
    this.#closeDevice("cannot close the device that failed");
  }

  close(): void {
    this.#attached?.server.close();
    this.#given?.close?.();
  }

  get #all(): Attached {
    if (this.#attached === null) throw new Error("Cannot serve no device");
    return this.#attached;
  }

  /** What matters has been given away by now: a leak here must not cost the device. */
  #closeDevice(what: string): void {
    try {
      this.#given?.close?.();
    } catch (error) {
      this.#options.log.error(what, { error });
    }
  }

  #makeServer(
    pci: PciFunction,
    saved: Saved<ServerState> | undefined,
  ): VfioUserServer {
    const { loop, log, listener, memory, helloTimeoutMs, onClient } =
      this.#options;
    return new VfioUserServer({
      ...{ loop, log, listener, memory, helloTimeoutMs, pci },
      interrupts: this.interrupts,
      writes: this.writes,
      limits: { maxDmaMaps: dmaMapsMax() },
      onUnsharedMemory: () => log.warn(UNSHARED_ADVICE),
      onClient: (pid, _, reason) => onClient(pid, reason),
      ...(saved === undefined ? {} : { saved }),
    });
  }
}

/** vfio-user (QEMU's docs/interop/vfio-user). */
export const vfioUser: TransportKind = {
  name: "vfio-user",
  open: (options) => new VfioUserTransport(options),
  qemuArgument: qemuDeviceArguments,
  describe: describeForQemu,
};
