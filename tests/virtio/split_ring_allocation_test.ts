import { assert } from "@std/assert";
import { MappedWindow } from "../../src/memory/mapped_window.ts";
import { heapGrowthPerOperation } from "../resources.ts";
import { DATA, type Fixture, fixture, TABLES } from "./ring_fixture.ts";

const ROUNDS = 500_000;

/** A driver that offers the chain at descriptor 0 again and again, and allocates nothing either. */
function serve(at: Fixture, avail: MappedWindow, rounds: number): number {
  const { queue, chain } = at;
  let idx = avail.loadU16(2);
  let interrupts = 0;
  for (let i = 0; i < rounds; i++) {
    idx = (idx + 1) & 0xffff;
    avail.storeU16(2, idx);
    queue.disableNotifications();
    if (queue.pop(chain) !== 1) throw new Error(queue.lastError);
    queue.push(chain.head, 64);
    if (queue.publish()) interrupts++;
    if (queue.enableNotifications()) throw new Error("more than was offered");
  }
  return interrupts;
}

for (const indirect of [false, true]) {
  for (const eventIdx of [false, true]) {
    const name = `${indirect ? "indirect" : "direct"}, ${
      eventIdx ? "EVENT_IDX" : "flags"
    }`;
    Deno.test(`SplitRing allocates nothing per chain (${name})`, () => {
      const at = fixture({ eventIdx });
      // High addresses in several mappings, as a guest of some gigabytes has them.
      at.memory.map({ iova: 0x1_8000_0000, lengthBytes: 0x1_0000 });
      at.memory.map({ iova: 0x9_0000_0000, lengthBytes: 0x1_0000 });
      const buffers = [
        { iova: 0x1_8000_0010, length: 16 },
        { iova: 0x9_0000_0010, length: 16 },
        { iova: DATA, length: 16, write: true },
        { iova: DATA + 0x100, length: 512, write: true },
        { iova: DATA + 0x1000, length: 1, write: true },
      ];
      at.ring.add(buffers, indirect ? TABLES : undefined);
      at.ring.availIdx = 0;
      const avail = new MappedWindow(
        at.buffer,
        at.places.avail - 0x10_0000,
        20,
      );
      const bytes = heapGrowthPerOperation(
        ROUNDS,
        (n) => void serve(at, avail, n),
      );
      assert(bytes < 1, `${bytes} bytes per chain`);
    });
  }
}
