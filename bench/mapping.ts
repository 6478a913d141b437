/**
 * A driver behind an IOMMU: for each request a page is mapped, with the descriptor of the guest's memory, and unmapped when
 * the request is done, as QEMU does for a guest with a virtual IOMMU. What the server has after many of these, it must have
 * had after a few.
 *
 * @module
 */

import { DiskOp } from "./disk_driver.ts";
import { GuestRam } from "../src/transport/vfio_user/client/mod.ts";
import { CONTROLLERS } from "./disk_load.ts";
import { residentMiB } from "./proc.ts";
import { atMost, type Figure } from "./report.ts";
import { withDevice, withRam } from "./serving.ts";
import { type BenchSettings, count } from "./settings.ts";

const PAGE_BYTES = 4096;
const DEPTH = 32;
const MAPS = 200_000;
const WARM_UP = 50_000;
const LIMIT_MIB = 4;
const RAM_BYTES = 1024 * 1024;
/** First address of the IOMMU, and number of pages that are used in turn. */
const IOVA = 0x8_0000_0000;
const IOVA_PAGES = 1 << 16;

/** Requests a second, and growth of the server over 200,000 maps. */
export function benchMapping(settings: BenchSettings): Promise<Figure[]> {
  return withDevice(
    "virtio-blk,memory=16M",
    (served) =>
      withRam(served.client, RAM_BYTES, (ram) => {
        const { client, outboard } = served;
        // Mapped nowhere by itself.
        using pages = new GuestRam(DEPTH * PAGE_BYTES, IOVA);
        const iovas = new Float64Array(DEPTH);
        const disk = CONTROLLERS["virtio-blk"]!(client, ram, {
          slots: DEPTH,
          transferBytes: PAGE_BYTES,
          bufferIova: (slot) => iovas[slot]!,
        });
        let issued = 0;
        const issue = (slot: number) => {
          iovas[slot] = IOVA + issued % IOVA_PAGES * PAGE_BYTES;
          client.dmaMap({
            iova: iovas[slot]!,
            lengthBytes: PAGE_BYTES,
            readable: true,
            writable: true,
            bytes: pages.memory.bytes.subarray(
              slot * PAGE_BYTES,
              (slot + 1) * PAGE_BYTES,
            ),
            fd: pages.fd,
            fdOffset: slot * PAGE_BYTES,
          });
          const sectors = PAGE_BYTES / 512;
          const place = Math.imul(issued++, 2654435761) >>> 0;
          disk.issue(slot, DiskOp.READ, place * sectors % disk.sectors);
        };
        const run = (maps: number) => {
          const until = issued + maps;
          for (let slot = 0; slot < DEPTH; slot++) issue(slot);
          disk.flush();
          for (let flying = DEPTH; flying > 0;) {
            const done = disk.reap();
            for (let i = 0; i < done; i++) {
              const slot = disk.done[i]!;
              if (disk.status[slot] !== 0) throw new Error("a read failed");
              client.dmaUnmap(iovas[slot]!, PAGE_BYTES);
              if (issued < until) issue(slot);
              else flying--;
            }
            if (done > 0) disk.flush();
          }
        };
        run(count(settings, WARM_UP, DEPTH));
        const before = residentMiB(outboard.pid);
        const start = performance.now();
        const maps = count(settings, MAPS, DEPTH);
        run(maps);
        const perSecond = maps / (performance.now() - start) * 1000;
        const grown = residentMiB(outboard.pid) - before;
        disk.close();
        const name = `virtio-blk read, depth ${DEPTH}, a page mapped for each`;
        return [
          { name, value: perSecond, unit: "IOPS" },
          atMost(`${name}: growth over ${maps} maps`, grown, "MiB", LIMIT_MIB),
        ];
      }),
    ["--poll", "always"],
  );
}
