/**
 * A disk in memory with bad places, behind either controller: `--device ./faulty_disk.ts,controller=nvme`.
 *
 * Reads that touch the second MiB fail with EIO, writes that touch the third with ENOSPC.
 *
 * @module
 */

import { NvmeController } from "../../devices/nvme/mod.ts";
import { VirtioBlk } from "../../devices/virtio_blk/mod.ts";
import {
  type BlockBackend,
  type BlockClient,
  type BlockInfo,
  BlockOp,
  type BlockRequest,
} from "../../src/backend/block/contract.ts";
import { openBlockBackend } from "../../src/backend/block/open.ts";
import { BLOCK_OPTIONS } from "../../src/backend/block/options.ts";
import {
  type DeviceContext,
  type DeviceModel,
  Errno,
  oneOf,
  options,
  VirtioPci,
} from "../../mod.ts";

const MIB = 1024 * 1024;

class FaultyDisk implements BlockBackend {
  readonly description = "memory with bad places";
  readonly #inner: BlockBackend;

  constructor(inner: BlockBackend) {
    this.#inner = inner;
  }

  get info(): BlockInfo {
    return this.#inner.info;
  }

  start(client: BlockClient): void {
    this.#inner.start(client);
  }

  submit(request: BlockRequest): number {
    const { op, offset, lengthBytes } = request;
    const touches = (mib: number) =>
      offset < (mib + 1) * MIB && offset + lengthBytes > mib * MIB;
    if (op === BlockOp.READ && touches(1)) return -Errno.EIO;
    if (op === BlockOp.WRITE && touches(2)) return -Errno.ENOSPC;
    return this.#inner.submit(request);
  }

  commit(): void {
    this.#inner.commit();
  }

  drain(): void {
    this.#inner.drain();
  }

  setWriteCache(on: boolean): number {
    return this.#inner.setWriteCache(on);
  }

  close(): void {
    this.#inner.close();
  }
}

function createNvme(context: DeviceContext, backend: BlockBackend) {
  const serial = "FAULTY-1";
  return new NvmeController(context, {
    identity: {
      serial,
      model: "Outboard faulty",
      firmware: "1.0",
      subnqn: `nqn.2014-08.org.nvmexpress:uuid:${serial}`,
    },
    queues: 1,
    queueEntries: 128,
    msix: true,
    mapDoorbells: false,
  }, [{ nsid: 1, backend }]);
}

function createVirtioBlk(context: DeviceContext, backend: BlockBackend) {
  return new VirtioPci(context, (transport) =>
    new VirtioBlk({
      context,
      transport,
      backend,
      options: {
        queues: 1,
        queueSize: 128,
        segMax: 126,
        serial: "",
        writeCache: true,
      },
    }));
}

/** The model. */
export const model: DeviceModel<{ controller: string }> = {
  name: "faulty-disk",
  help: "a disk with bad places, for tests",
  options: options({
    controller: oneOf("controller", ["virtio-blk", "nvme"], {
      help: "how it is driven",
      default: "virtio-blk",
    }),
  }),
  create(context, { controller }) {
    const inner = openBlockBackend(
      BLOCK_OPTIONS.parse({ memory: "16M" }),
      context,
    );
    const backend = new FaultyDisk(inner);
    return controller === "nvme"
      ? createNvme(context, backend)
      : createVirtioBlk(context, backend);
  },
};
