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
  BlockKind,
  BlockOp,
  type BlockRequest,
  openBlockBackend,
  parseBlockOptions,
} from "../../src/backend/block/mod.ts";
import {
  type DeviceContext,
  type DeviceModel,
  Errno,
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
export const model: DeviceModel<{ nvme: boolean }> = {
  name: "faulty-disk",
  help: "a disk with bad places, for tests",
  options: [
    { name: "controller", syntax: "virtio-blk|nvme", help: "how it is driven" },
  ],
  parse: (options) => ({ nvme: options["controller"] === "nvme" }),
  create(context, { nvme }) {
    const inner = openBlockBackend(
      parseBlockOptions({ [BlockKind.MEMORY]: "16M" }),
      context,
    );
    const backend = new FaultyDisk(inner);
    return nvme
      ? createNvme(context, backend)
      : createVirtioBlk(context, backend);
  },
};
