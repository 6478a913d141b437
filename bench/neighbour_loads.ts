/**
 * The worst that a client can ask of the IOThread that it shares with others.
 *
 * @module
 */

import { setU64 } from "../src/core/bits.ts";
import { createEventFd } from "../src/os/mod.ts";
import { NetDriver, VirtioDriver } from "../src/testing/mod.ts";
import { ethernet, udp } from "../tests/backend/net/frames.ts";
import {
  type DmaMapping,
  GuestRam,
  PciClient,
  VfioUserClient,
} from "../src/transport/vfio_user/client/mod.ts";
import {
  VFIO_PCI_MSIX_IRQ_INDEX,
  VFIO_USER_REGION_WRITE_MULTI,
  WRITE_MULTI,
  WRITE_MULTI_ENTRY,
} from "../src/transport/vfio_user/defs.ts";
import { ETH_P_IP } from "../src/backend/net/frame/packets.ts";
import { WIDE_BAR, WIDE_VECTORS } from "./wide_device.ts";

/** A kind of device that such a client has. */
export type LoadDevice = "card" | "disk" | "wide" | "user";

/** Load that such a client makes, over and over. */
export interface Load {
  readonly name: string;
  readonly device: LoadDevice;
  /** @param socket Path of the device's socket @returns What one round is */
  start(socket: string, owned: DisposableStack): () => void;
}

/** As long as a message that holds an IOThread may make another one wait, several times over. */
const TIMEOUT_MS = 60_000;
/** As many as a message of 1 MiB holds. */
const WRITES = 43_690;
const TRANSFER_BYTES = 1 << 20;
const RANGES = 4000;
const PAGE_BYTES = 4096;
/** Requests in flight at once. */
const MAPS_AT_ONCE = 100;
/** BAR of virtio's common configuration, and a register of it that is cheap to write (queue_select). */
const COMMON_BAR = 4;
const QUEUE_SELECT = 0x16;

/** A user-mode network, and what its host throws away or has no ears for. */
const GUEST = "10.0.2.15";
const HOST = "10.0.2.2";
const HOST_MAC = Uint8Array.of(0x52, 0x55, 10, 0, 2, 2);
const DISCARD = 9;
const FIRST_PORT = 10_000;
const DATAGRAMS = 12_000;
const FLOW_RAM_BYTES = 8 << 20;

function connect(socket: string): VfioUserClient {
  const client = new VfioUserClient(socket, { timeoutMs: TIMEOUT_MS });
  client.negotiate();
  return client;
}

function writesOfOneMessage(): Uint8Array {
  const bytes = new Uint8Array(
    WRITE_MULTI.SIZE + WRITES * WRITE_MULTI_ENTRY.SIZE,
  );
  const view = new DataView(bytes.buffer);
  setU64(view, WRITE_MULTI.WR_CNT, WRITES);
  for (let i = 0; i < WRITES; i++) {
    const at = WRITE_MULTI.WRS + i * WRITE_MULTI_ENTRY.SIZE;
    setU64(view, at + WRITE_MULTI_ENTRY.OFFSET, QUEUE_SELECT);
    view.setUint32(at + WRITE_MULTI_ENTRY.REGION, COMMON_BAR, true);
    view.setUint32(at + WRITE_MULTI_ENTRY.COUNT, 2, true);
  }
  return bytes;
}

function writeMulti(name: string, device: LoadDevice): Load {
  return {
    name: `a message of ${WRITES} writes, ${name}`,
    device,
    start: (socket, owned) => {
      const client = owned.use(connect(socket));
      const payload = writesOfOneMessage();
      return () => {
        const reply = client.call(VFIO_USER_REGION_WRITE_MULTI, payload);
        const done = new DataView(reply.payload.buffer)
          .getUint32(reply.payload.byteOffset + WRITE_MULTI.WR_CNT, true);
        if (done !== WRITES) {
          throw new Error(`Cannot measure: ${done} of ${WRITES} writes done`);
        }
      };
    },
  };
}

function ranges(ram: GuestRam): DmaMapping[] {
  return Array.from({ length: RANGES }, (_, i) => ({
    iova: ram.memory.iova + 2 * i * PAGE_BYTES,
    lengthBytes: PAGE_BYTES,
    fd: ram.fd,
    fdOffset: i * PAGE_BYTES,
  }));
}

function mapAll(client: VfioUserClient, mappings: readonly DmaMapping[]): void {
  for (let at = 0; at < mappings.length; at += MAPS_AT_ONCE) {
    client.dmaMapAll(mappings.slice(at, at + MAPS_AT_ONCE));
  }
}

/** Sends datagrams to the host of a user-mode network, each round as many, from so many ports in turn. */
function datagrams(ports: number): Load {
  return {
    name: `datagrams of ${ports} flows`,
    device: "user",
    start: (socket, owned) => {
      const ram = owned.use(new GuestRam(FLOW_RAM_BYTES));
      const client = owned.use(connect(socket));
      ram.share(client);
      const virtio = new VirtioDriver(new PciClient(client), ram.memory);
      const net = owned.use(new NetDriver(virtio));
      const frames = Array.from({ length: ports }, (_, i) => {
        const from = FIRST_PORT + i;
        const datagram = udp(GUEST, from, HOST, DISCARD, new Uint8Array(64));
        return ethernet(HOST_MAC, ETH_P_IP, datagram);
      });
      return () => {
        for (let i = 0; i < DATAGRAMS; i++) {
          while (!net.transmit(frames[i % ports]!));
        }
        // What has come is taken, for the card not to be held up.
        while (net.receive() !== null);
      };
    },
  };
}

/** Of many flows, and of one that the many are held against. */
export const MANY_FLOWS: Load = datagrams(12_000);
export const ONE_FLOW: Load = datagrams(1);

/** All of them. */
export const LOADS: readonly Load[] = [
  writeMulti("one thread", "card"),
  writeMulti("two threads", "disk"),
  {
    name: "reads of 1 MiB of registers",
    device: "wide",
    start: (socket, owned) => {
      const client = owned.use(connect(socket));
      return () => client.readRegion(WIDE_BAR, 0, TRANSFER_BYTES);
    },
  },
  {
    name: "writes of 1 MiB of registers",
    device: "wide",
    start: (socket, owned) => {
      const client = owned.use(connect(socket));
      const data = new Uint8Array(TRANSFER_BYTES);
      return () => client.writeRegion(WIDE_BAR, 0, data);
    },
  },
  {
    name: `${RANGES} DMA_MAPs, then all taken back at once`,
    device: "card",
    start: (socket, owned) => {
      const ram = owned.use(new GuestRam(RANGES * PAGE_BYTES));
      const client = owned.use(connect(socket));
      return () => {
        mapAll(client, ranges(ram));
        client.unmapAll();
      };
    },
  },
  {
    name: `connects, ${RANGES} DMA_MAPs, then hangs up`,
    device: "card",
    start: (socket, owned) => {
      const ram = owned.use(new GuestRam(RANGES * PAGE_BYTES));
      return () => {
        using client = connect(socket);
        mapAll(client, ranges(ram));
      };
    },
  },
  ONE_FLOW,
  MANY_FLOWS,
  {
    name: `SET_IRQS of ${WIDE_VECTORS} vectors`,
    device: "wide",
    start: (socket, owned) => {
      const event = owned.use(createEventFd());
      const client = owned.use(connect(socket));
      const index = VFIO_PCI_MSIX_IRQ_INDEX;
      client.setIrqEventFds(
        index,
        0,
        new Array<number>(WIDE_VECTORS).fill(event.number),
      );
      const booleans = new Array<boolean>(WIDE_VECTORS).fill(true);
      return () => {
        client.setIrqs({ index, action: "trigger", booleans });
        client.setIrqs({ index, action: "mask", count: WIDE_VECTORS });
        client.setIrqs({ index, action: "unmask", count: WIDE_VECTORS });
      };
    },
  },
];
