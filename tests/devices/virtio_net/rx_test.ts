import { assert, assertEquals } from "@std/assert";
import fc from "fast-check";
import { Errno } from "../../../src/core/errno.ts";
import { DriverMemory } from "../../../src/testing/driver_memory.ts";
import { F } from "../../../src/testing/virtio_defs.ts";
import { frame, NF, Rig, taggedFrame, VECTOR } from "./harness.ts";

const ONE_BUFFER = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

Deno.test("VirtioNet receives a frame into one mergeable buffer", () => {
  using rig = new Rig();
  rig.postRx(2048, 2048);
  rig.interrupts(VECTOR.RX);
  const sent = frame(60);
  rig.arrive(sent);
  assertEquals(rig.interrupts(VECTOR.RX), 1);
  assertEquals(rig.received(), [{
    header: ONE_BUFFER,
    frame: sent,
    lengths: [72],
  }]);
  assertEquals(rig.counter("rxPackets"), 1);
  assertEquals(rig.counter("rxBytes"), 60);
});

Deno.test("VirtioNet spreads a frame over mergeable buffers and keeps the rest", () => {
  using rig = new Rig();
  rig.postRx(600, 600, 600, 600, 600, 600);
  const sent = frame(1514);
  rig.arrive(sent);
  const [got] = rig.received();
  assertEquals(got, {
    header: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0],
    frame: sent,
    lengths: [600, 600, 326],
  });
  // The other three are still there for the next one.
  rig.arrive(frame(1514, 2));
  assertEquals(rig.received()[0]!.lengths, [600, 600, 326]);
  assertEquals(rig.rx.ring.inFlight, 0);
});

Deno.test("VirtioNet writes a header that lies in many descriptors", () => {
  using rig = new Rig();
  rig.postRx([1, 2, 3, 4, 5, 6, 7, 1600]);
  const sent = frame(1000);
  rig.arrive(sent);
  assertEquals(rig.received(), [{
    header: ONE_BUFFER,
    frame: sent,
    lengths: [1012],
  }]);
});

Deno.test("VirtioNet receives into one buffer without MRG_RXBUF", () => {
  using rig = new Rig({ features: [NF.MAC] });
  rig.postRx([12, 1514], [12, 1514]);
  const sent = frame(1514);
  rig.arrive(sent, frame(60, 2));
  assertEquals(rig.received(), [
    { header: ONE_BUFFER, frame: sent, lengths: [1526] },
    { header: ONE_BUFFER, frame: frame(60, 2), lengths: [72] },
  ]);
});

Deno.test("VirtioNet fills the smallest proper buffer when it is the only one", () => {
  using rig = new Rig({ features: [] });
  rig.postRx(1526);
  rig.arrive(frame(1514));
  assertEquals(rig.received()[0]!.frame, frame(1514));
});

Deno.test("VirtioNet drops a frame that was cut to the last, too small buffer", () => {
  using rig = new Rig({ features: [] });
  rig.postRx(100);
  rig.arrive(frame(1514), frame(88), frame(87, 2));
  assertEquals(rig.received().map((it) => it.frame), [frame(87, 2)]);
  assertEquals(rig.counter("rxDroppedNoRoom"), 2);
});

Deno.test("VirtioNet drops a frame that was cut to as many buffers as there can be", () => {
  using rig = new Rig({ mtu: 9000, queueSize: 512 });
  // 256 buffers for one frame is the limit: 3840 bytes.
  rig.postRx(...new Array(300).fill(15));
  rig.arrive(frame(9014), frame(3820, 2));
  assertEquals(rig.received().map((it) => it.frame), [frame(3820, 2)]);
  assertEquals(rig.counter("rxDroppedNoRoom"), 1);
});

Deno.test("VirtioNet drops a frame that does not fit and reuses the buffer", () => {
  using rig = new Rig({ features: [] });
  rig.postRx(100, 100);
  rig.arrive(frame(89), frame(1514), frame(88, 3));
  assertEquals(rig.received().map((it) => it.frame), [frame(88, 3)]);
  assertEquals(rig.counter("rxDroppedNoRoom"), 2);
  rig.arrive(frame(20));
  assertEquals(rig.received().map((it) => it.lengths), [[32]]);
});

Deno.test("VirtioNet fails when a receive buffer has no room for the header", () => {
  using rig = new Rig();
  rig.postRx(2048);
  rig.postRx(11);
  rig.arrive(frame(60));
  assertEquals(rig.received().map((it) => it.frame), [frame(60)]);
  assertEquals(rig.needsReset, true);
  assertEquals(rig.backend.peer, null);
  assertEquals(rig.log.at("warn").length, 1);
  assert(rig.log.at("warn")[0]!.includes("11 bytes"));
});

Deno.test("VirtioNet takes chains without writable buffers as a broken rule", () => {
  using rig = new Rig();
  rig.rx.ring.begin(1);
  rig.rx.ring.readable(rig.ram.alloc(64), 64);
  rig.rx.ring.end();
  rig.rx.flush();
  rig.arrive(frame(60));
  assertEquals(rig.needsReset, true);
});

for (const features of [[NF.MRG_RXBUF], [NF.MRG_RXBUF, F.RING_EVENT_IDX], []]) {
  Deno.test(`VirtioNet waits for buffers when there are none (features ${features})`, () => {
    using rig = new Rig({ features });
    rig.arrive(frame(60, 1), frame(60, 2));
    assertEquals(rig.backend.receiving, false);
    assertEquals(rig.backend.incoming.length, 2);
    assertEquals(rig.counter("rxStarved"), 1);
    assertEquals(rig.postRx(2048), true, "the driver must be asked to notify");
    assertEquals(rig.received().map((it) => it.frame), [frame(60, 1)]);
    assertEquals(rig.backend.receiving, false);
    assertEquals(rig.postRx(2048), true);
    assertEquals(rig.received().map((it) => it.frame), [frame(60, 2)]);
  });

  Deno.test(`VirtioNet wants no notifications while it has buffers (features ${features})`, () => {
    using rig = new Rig({ features });
    rig.postRx(2048, 2048, 2048, 2048);
    rig.arrive(frame(60, 1));
    assertEquals(rig.postRx(2048), false);
    rig.arrive(frame(60, 2));
    assertEquals(rig.postRx(2048), false);
    assertEquals(rig.received().length, 2);
  });
}

for (const features of [[NF.MRG_RXBUF], [NF.MRG_RXBUF, F.RING_EVENT_IDX]]) {
  Deno.test(`VirtioNet waits until there is room for the largest frame (features ${features})`, () => {
    using rig = new Rig({ mtu: 9000, features: [...features, NF.MTU] });
    rig.postRx(4000, 4000);
    rig.arrive(frame(60));
    assertEquals(rig.received(), []);
    assertEquals(rig.backend.incoming.length, 1);
    assertEquals(rig.postRx(100), true);
    assertEquals(rig.received(), []);
    assertEquals(rig.postRx(2000), true);
    assertEquals(rig.received().map((it) => it.lengths), [[72]]);
    rig.postRx(4000);
    const jumbo = frame(9014);
    rig.arrive(jumbo);
    assertEquals(rig.received(), [{
      header: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0],
      frame: jumbo,
      lengths: [4000, 100, 2000, 2926],
    }]);
  });
}

Deno.test("VirtioNet asks a driver that does not know the MTU for standard buffers only", () => {
  using rig = new Rig({ mtu: 9000, features: [NF.MRG_RXBUF] });
  rig.postRx(1526);
  rig.arrive(frame(1514));
  assertEquals(rig.received()[0]!.frame, frame(1514));
});

Deno.test("VirtioNet drops runts and frames longer than the MTU and a VLAN tag", () => {
  using rig = new Rig({ mtu: 1000 });
  rig.postRx(2048, 2048, 2048);
  rig.arrive(frame(13), frame(1019), new Uint8Array(0), frame(1018), frame(14));
  assertEquals(rig.received().map((it) => it.frame.length), [1018, 14]);
  assertEquals(rig.counter("rxDroppedRunt"), 2);
  assertEquals(rig.counter("rxDroppedOversized"), 1);
});

Deno.test("VirtioNet sees that a frame was cut to buffers of just the right size", () => {
  for (const features of [[NF.MRG_RXBUF], []]) {
    using rig = new Rig({ features });
    rig.postRx(1530, 1530, 1530);
    rig.arrive(frame(1519), frame(1518, 2));
    assertEquals(rig.received().map((it) => it.frame), [frame(1518, 2)]);
  }
});

Deno.test("VirtioNet counts frames that the back end lost and goes on", () => {
  using rig = new Rig();
  rig.postRx(2048);
  rig.arrive(-Errno.EIO, frame(60));
  assertEquals(rig.received().length, 1);
  assertEquals(rig.counter("rxErrors"), 1);
});

Deno.test("VirtioNet rewrites the header of a back end that has one", () => {
  using rig = new Rig({ vnetHeader: true });
  rig.postRx(600, 600, 600, 600, 600);
  const sent = frame(1514);
  rig.arrive(sent, frame(60, 2));
  assertEquals(rig.received(), [
    {
      header: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0],
      frame: sent,
      lengths: [600, 600, 326],
    },
  ]);
  rig.postRx(600, 600);
  assertEquals(rig.received(), [
    { header: ONE_BUFFER, frame: frame(60, 2), lengths: [72] },
  ]);
  assertEquals(rig.counter("rxBytes"), 1574);
});

Deno.test("VirtioNet takes a header without a frame for a runt", () => {
  using rig = new Rig({ vnetHeader: true });
  rig.postRx(2048);
  rig.arrive(7, 12, 25);
  assertEquals(rig.received(), []);
  assertEquals(rig.counter("rxDroppedRunt"), 3);
});

for (const vnetHeader of [false, true]) {
  Deno.test(`VirtioNet filters by address and VLAN (vnet header ${vnetHeader})`, () => {
    using rig = new Rig({ vnetHeader });
    rig.postRx(2048, 2048, 2048, 2048, 2048);
    assertEquals(rig.command([0, 0, 0]), 0);
    const stranger = [0x52, 0x54, 0, 9, 9, 9];
    rig.arrive(
      frame(60, 1, stranger),
      frame(60, 2),
      taggedFrame(64, 7),
      frame(60, 3, [0x33, 0x33, 0, 0, 0, 1]),
      frame(60, 4, [255, 255, 255, 255, 255, 255]),
    );
    assertEquals(rig.received().map((it) => it.frame), [
      frame(60, 2),
      frame(60, 4, [255, 255, 255, 255, 255, 255]),
    ]);
    assertEquals(rig.counter("rxDroppedFilter"), 3);
    assertEquals(rig.command([2, 0, 7, 0]), 0);
    rig.arrive(taggedFrame(64, 7), taggedFrame(64, 8));
    assertEquals(rig.received().map((it) => it.frame), [taggedFrame(64, 7)]);
  });
}

Deno.test("VirtioNet filters a frame whose first bytes lie in many buffers", () => {
  using rig = new Rig();
  assertEquals(rig.command([0, 0, 0]), 0);
  const small = Array.from({ length: 8 }, () => [14, 1, 1]);
  rig.postRx(...small, 2048);
  rig.arrive(taggedFrame(64, 7), frame(64, 1));
  assertEquals(rig.received().map((it) => it.frame), [frame(64, 1)]);
  assertEquals(rig.counter("rxDroppedFilter"), 1);
});

Deno.test("VirtioNet interrupts once for a batch of frames", () => {
  using rig = new Rig();
  rig.postRx(...new Array(20).fill(2048));
  rig.interrupts(VECTOR.RX);
  rig.arrive(...Array.from({ length: 20 }, (_, i) => frame(60, i)));
  assertEquals(rig.interrupts(VECTOR.RX), 1);
  assertEquals(rig.received().length, 20);
});

Deno.test("VirtioNet lets others have the loop after 64 frames", () => {
  using rig = new Rig();
  rig.postRx(...new Array(200).fill(2048));
  for (let i = 0; i < 200; i++) rig.backend.incoming.push(frame(60, i));
  rig.backend.peer!.onReadable();
  assertEquals(rig.received().length, 64);
  rig.settle();
  assertEquals(rig.received().length, 136);
});

Deno.test("VirtioNet waits for buffers again after a reset of the receive queue", () => {
  using rig = new Rig();
  rig.postRx(2048, 2048);
  rig.arrive(frame(60));
  rig.driver.resetQueue(rig.rx);
  rig.arrive(frame(60, 2));
  assertEquals(rig.backend.receiving, false);
  rig.driver.reenableQueue(rig.rx);
  rig.postRx(2048);
  assertEquals(rig.received().map((it) => it.frame), [frame(60, 2)]);
});

Deno.test("VirtioNet fails once on a hostile receive ring", () => {
  using rig = new Rig();
  rig.postRx(2048);
  rig.interrupts(VECTOR.CONFIG);
  rig.rx.ring.publishRaw(5000);
  const { peer } = rig.backend;
  rig.backend.incoming.push(frame(60, 1), frame(60, 2));
  peer!.onReadable();
  peer!.onReadable();
  rig.rx.kick();
  rig.settle();
  assertEquals(rig.needsReset, true);
  assertEquals(rig.counter("failures"), 1);
  assertEquals(rig.log.at("warn").length, 1);
  assertEquals(rig.interrupts(VECTOR.CONFIG), 1);
  assertEquals(rig.backend.peer, null);
});

Deno.test("VirtioNet delivers what came before the driver broke a rule", () => {
  using rig = new Rig();
  rig.postRx(2048);
  rig.rx.ring.makeAvailable(999);
  rig.rx.ring.publish();
  rig.arrive(frame(60, 1), frame(60, 2));
  assertEquals(rig.received().map((it) => it.frame), [frame(60, 1)]);
  assertEquals(rig.needsReset, true);
});

Deno.test("VirtioNet is not confused by a back end that calls from inside receive", () => {
  using rig = new Rig();
  rig.postRx(2048, 2048, 2048);
  rig.backend.onReceive = () => rig.backend.peer!.onReadable();
  rig.arrive(frame(60, 1), frame(60, 2));
  assertEquals(rig.received().map((it) => it.frame), [
    frame(60, 1),
    frame(60, 2),
  ]);
});

Deno.test("VirtioNet stops at guest memory that went away and goes on when it is back", () => {
  using rig = new Rig({ features: [NF.MRG_RXBUF] });
  rig.postRx(2048, 2048);
  const buffer = rig.ram.bytes.buffer;
  rig.memory.unmap(rig.ram.iova, rig.ram.lengthBytes);
  rig.arrive(frame(60));
  assertEquals(rig.backend.incoming.length, 1);
  rig.memory.map({
    iova: rig.ram.iova,
    lengthBytes: buffer.byteLength,
    buffer,
  });
  rig.settle();
  assertEquals(rig.received().map((it) => it.frame), [frame(60)]);
});

/** Rig with the card's receive queue after a first frame has left a buffer at hand. */
function withBufferAtHand(): Rig {
  const rig = new Rig({ features: [NF.MRG_RXBUF, F.RING_EVENT_IDX] });
  rig.postRx(2048, 2048);
  rig.arrive(frame(60, 1));
  assertEquals(rig.received().map((it) => it.frame), [frame(60, 1)]);
  return rig;
}

Deno.test("VirtioNet leaves a buffer at hand alone when its memory goes away", () => {
  using rig = withBufferAtHand();
  const before = rig.ram.bytes.slice();
  rig.memory.unmap(rig.ram.iova, rig.ram.lengthBytes);
  rig.arrive(frame(60, 2));
  assertEquals(rig.backend.incoming.length, 1);
  assert(rig.ram.bytes.every((byte, i) => byte === before[i]), "written to");
  rig.memory.map({
    iova: rig.ram.iova,
    lengthBytes: rig.ram.lengthBytes,
    buffer: rig.ram.bytes.buffer,
  });
  rig.settle();
  assertEquals(rig.received().map((it) => it.frame), [frame(60, 2)]);
});

Deno.test("VirtioNet finds a buffer at hand anew in other memory at the same address", () => {
  using rig = withBufferAtHand();
  const { iova, lengthBytes, bytes } = rig.ram;
  rig.memory.unmap(iova, lengthBytes);
  const buffer = bytes.slice().buffer;
  rig.memory.map({ iova, lengthBytes, buffer });
  const before = bytes.slice();
  rig.arrive(frame(60, 2));
  assert(bytes.every((byte, i) => byte === before[i]), "written to");
  const other = new DriverMemory(buffer, iova);
  assert(
    other.bytes.some((byte, i) => byte !== before[i]),
    "the frame is not there",
  );
});

Deno.test("VirtioNet gives a buffer at hand back when it stops, and takes it again", () => {
  using rig = withBufferAtHand();
  rig.device.stop();
  assertEquals(rig.device.session.queues[0]!.inFlight, 0);
  rig.arrive(frame(60, 2));
  assertEquals(rig.rx.ring.hasUsed, false);
  rig.device.start();
  rig.settle();
  assertEquals(rig.received().map((it) => it.frame), [frame(60, 2)]);
});

Deno.test("VirtioNet gives a buffer at hand back when it holds, and takes it again", () => {
  using rig = withBufferAtHand();
  assertEquals(rig.device.hold!(), 0);
  rig.arrive(frame(60, 2));
  assertEquals(rig.rx.ring.hasUsed, false);
  rig.device.start();
  rig.settle();
  assertEquals(rig.received().map((it) => it.frame), [frame(60, 2)]);
});

Deno.test("VirtioNet is notified of buffers after polling ended while it waited for some", () => {
  using rig = new Rig({
    mtu: 9000,
    features: [NF.MRG_RXBUF, NF.MTU, F.RING_EVENT_IDX],
  });
  rig.device.session.beginPolling();
  rig.postRx(4000);
  rig.arrive(frame(60, 1));
  assertEquals(rig.counter("rxStarved"), 1);
  assertEquals(rig.device.session.endPolling(), false);
  assertEquals(rig.postRx(4000, 4000), true, "nobody would look");
  assertEquals(rig.received().map((it) => it.frame), [frame(60, 1)]);
});

Deno.test("VirtioNet receives while stopped only what it can deliver afterwards", () => {
  using rig = new Rig();
  rig.postRx(2048, 2048);
  rig.device.stop();
  rig.arrive(frame(60));
  assertEquals(rig.rx.ring.hasUsed, false);
  rig.device.start();
  rig.settle();
  assertEquals(rig.received().map((it) => it.frame), [frame(60)]);
});

Deno.test("VirtioNet delivers frames of any size through buffers of any shape", () => {
  const buffers = fc.array(
    fc.array(fc.integer({ min: 1, max: 700 }), { minLength: 1, maxLength: 4 })
      .map(([first, ...rest]) => [first! + 11, ...rest]),
    { minLength: 1, maxLength: 40 },
  );
  const sizes = fc.array(fc.integer({ min: 14, max: 1518 }), { maxLength: 12 });
  fc.assert(
    fc.property(
      fc.boolean(),
      fc.boolean(),
      buffers,
      sizes,
      (vnetHeader, mergeable, shapes, lengths) => {
        using rig = new Rig({
          vnetHeader,
          features: mergeable ? [NF.MRG_RXBUF] : [],
        });
        rig.postRx(...shapes);
        const frames = lengths.map((length, i) => frame(length, i));
        rig.arrive(...frames);
        const got = rig.received();
        let next = 0;
        for (const { frame: bytes, header } of got) {
          // Whole, in order; dropped ones only without merging.
          while (frames[next]!.length !== bytes.length) {
            assert(!mergeable);
            next++;
          }
          assertEquals(bytes, frames[next++]);
          assertEquals(header.slice(0, 10), ONE_BUFFER.slice(0, 10));
        }
        assertEquals(
          got.length + rig.counter("rxDroppedNoRoom") +
            // The scripted back end cuts a frame in silence, maybe to a runt.
            rig.counter("rxDroppedRunt") +
            rig.backend.incoming.length,
          frames.length,
        );
        assertEquals(rig.needsReset, false);
      },
    ),
    { numRuns: 40 },
  );
});
