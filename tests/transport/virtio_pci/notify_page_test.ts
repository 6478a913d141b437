import { assert, assertEquals } from "@std/assert";
import fc from "fast-check";
import {
  NotifyPage,
  notifyPageBytes,
} from "../../../src/transport/virtio_pci/notify.ts";
import { KickPath } from "../../../src/virtio/session/queues.ts";
import { heapGrowthPerOperation } from "../../resources.ts";

const SEED = 0x5eed;

/** Listener that keeps in order what a page tells. */
class Listener {
  readonly told: string[] = [];

  kick(queue: number): void {
    this.told.push(`${queue}`);
  }

  kickWithData(queue: number, data: number): void {
    this.told.push(`${queue} ${data}`);
  }

  take(): string[] {
    return this.told.splice(0);
  }
}

function pageOf(queues: number) {
  const bytes = new Uint8Array(notifyPageBytes(queues));
  const page = new NotifyPage({ bytes }, queues);
  return { page, view: new DataView(bytes.buffer), listener: new Listener() };
}

Deno.test("NotifyPage tells a 16-bit and a 32-bit write of any queue once", () => {
  const queues = 2000;
  const { page, view, listener } = pageOf(queues);
  assertEquals(view.byteLength, 8192);
  assert(!page.look(listener, KickPath.PAGE));
  for (let queue = 0; queue < queues; queue++) {
    view.setUint16(queue * 4, queue, true);
    assert(page.look(listener, KickPath.PAGE));
    assertEquals(listener.take(), [`${queue}`]);
    assert(!page.look(listener, KickPath.PAGE));
    const data = (queue * 37) & 0x7fff;
    view.setUint32(queue * 4, ((data << 16) | queue) >>> 0, true);
    assert(page.look(listener, KickPath.PAGE));
    assertEquals(listener.take(), [`${queue} ${data}`]);
    assert(!page.look(listener, KickPath.PAGE));
  }
});

Deno.test("NotifyPage tells one of several writes, the last", () => {
  const { page, view, listener } = pageOf(3);
  view.setUint32(8, 0x0001_0002, true);
  view.setUint32(8, 0x0005_0002, true);
  view.setUint16(0, 0, true);
  assert(page.look(listener, KickPath.PAGE));
  assertEquals(listener.take(), ["0", "2 5"]);
});

Deno.test("NotifyPage takes data that look like none for none", () => {
  const { page, view, listener } = pageOf(2);
  view.setUint32(4, 0xffff_0001, true);
  assert(page.look(listener, KickPath.PAGE));
  assertEquals(listener.take(), ["1"]);
});

Deno.test("NotifyPage tells of its own queues whatever a client writes wherever", () => {
  const queues = 5;
  fc.assert(
    fc.property(
      fc.array(
        fc.tuple(
          fc.nat(4095),
          fc.constantFrom(1, 2, 4),
          fc.nat(0xffff_ffff),
        ),
        { maxLength: 20 },
      ),
      (writes) => {
        const { page, view, listener } = pageOf(queues);
        const touched = new Set<number>();
        for (const [at, width, value] of writes) {
          const offset = at - at % width;
          if (width === 1) view.setUint8(offset, value);
          else if (width === 2) view.setUint16(offset, value, true);
          else view.setUint32(offset, value, true);
          touched.add(offset >> 2);
        }
        page.look(listener, KickPath.PAGE);
        for (const told of listener.take()) {
          const [queue, data = 0] = told.split(" ").map(Number);
          assert(queue! < queues && touched.has(queue!), told);
          assert(data >= 0 && data <= 0xffff, told);
        }
        // Once told, all is quiet.
        assert(!page.look(listener, KickPath.PAGE));
      },
    ),
    { seed: SEED, numRuns: 300 },
  );
});

Deno.test("NotifyPage finds a page of zeroes, as after the file behind it was renewed", () => {
  const { page, view, listener } = pageOf(3);
  new Uint8Array(view.buffer).fill(0);
  assert(page.look(listener, KickPath.PAGE));
  assertEquals(listener.take(), ["0 0", "1 0", "2 0"]);
  assert(!page.look(listener, KickPath.PAGE));
});

Deno.test("NotifyPage allocates nothing when it looks", () => {
  const { page, view } = pageOf(64);
  let kicks = 0;
  const listener = {
    kick: () => {
      kicks++;
    },
    kickWithData: () => {
      kicks++;
    },
  };
  const growth = heapGrowthPerOperation(100_000, (operations) => {
    for (let i = 0; i < operations; i++) {
      view.setUint16(12, 3, true);
      page.look(listener, KickPath.PAGE);
    }
  });
  assert(growth < 1, `${growth} bytes`);
  assert(kicks > 0);
});
