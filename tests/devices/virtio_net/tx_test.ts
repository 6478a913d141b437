import { assert, assertEquals } from "@std/assert";
import { Errno } from "../../../src/core/errno.ts";
import { F } from "../../../src/testing/mod.ts";
import {
  ALL_OFFLOADS,
  frame,
  HDR_BYTES,
  NF,
  OF,
  Rig,
  VECTOR,
} from "./harness.ts";

const NO_HEADER = new Uint8Array(HDR_BYTES);

function behind(header: readonly number[], body: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(HDR_BYTES + body.length);
  bytes.set(header);
  bytes.set(body, HDR_BYTES);
  return bytes;
}

Deno.test("VirtioNet transmits a frame without its header", () => {
  using rig = new Rig();
  rig.transmit(frame(60));
  assertEquals(rig.backend.sent, [frame(60)]);
  assertEquals(rig.reclaim(), 1);
  assertEquals(rig.counter("txPackets"), 1);
  assertEquals(rig.counter("txBytes"), 60);
});

Deno.test("VirtioNet transmits a frame with its header to a back end that takes it", () => {
  using rig = new Rig({ vnetHeader: true });
  rig.transmit(frame(60));
  assertEquals(rig.backend.sent, [behind([], frame(60))]);
  assertEquals(rig.counter("txBytes"), 60);
});

Deno.test("VirtioNet transmits a frame from descriptors of any shape", () => {
  using rig = new Rig();
  const bytes = behind([], frame(400));
  rig.queueTx(NO_HEADER, frame(400));
  rig.queueTx(
    bytes.slice(0, 5),
    bytes.slice(5, 11),
    bytes.slice(11, 13),
    bytes.slice(13, 14),
    bytes.slice(14),
  );
  rig.tx.flush();
  rig.settle();
  assertEquals(rig.backend.sent, [frame(400), frame(400)]);
});

Deno.test("VirtioNet drops what is too short for a header and an Ethernet header", () => {
  using rig = new Rig();
  for (const length of [1, 11, 12, 25]) rig.queueTx(new Uint8Array(length));
  rig.queueTx(new Uint8Array(26));
  // No readable part at all.
  rig.tx.ring.begin(1);
  rig.tx.ring.writable(rig.ram.alloc(64), 64);
  rig.tx.ring.end();
  rig.tx.flush();
  rig.settle();
  assertEquals(rig.backend.sent, [new Uint8Array(14)]);
  assertEquals(rig.counter("txDroppedShort"), 5);
  assertEquals(rig.reclaim(), 6);
  assertEquals(rig.needsReset, false);
});

Deno.test("VirtioNet drops frames longer than the MTU and a VLAN tag", () => {
  using rig = new Rig({ mtu: 1000 });
  rig.transmit(frame(1018), frame(1019), frame(65000));
  assertEquals(rig.backend.sent.map((it) => it.length), [1018]);
  assertEquals(rig.counter("txDroppedOversized"), 2);
  assertEquals(rig.reclaim(), 3);
});

for (const vnetHeader of [false, true]) {
  Deno.test(`VirtioNet drops requests for offloads (vnet header ${vnetHeader})`, () => {
    using rig = new Rig({ vnetHeader });
    const headers = [
      [1, 0, 0, 0, 0, 0, 14, 0, 16, 0], // NEEDS_CSUM
      [0, 1, 54, 0, 180, 5], // GSO_TCPV4
      [1, 4], // GSO_TCPV6
      [0, 5], // GSO_UDP_L4
      [0, 0x80], // GSO_ECN
    ];
    for (const header of headers) rig.queueTx(behind(header, frame(60)));
    // Bits without a meaning are to be ignored.
    rig.queueTx(behind([0xfe], frame(60, 2)));
    rig.tx.flush();
    rig.settle();
    assertEquals(rig.counter("txDroppedBadHeader"), 5);
    assertEquals(rig.backend.sent.length, 1);
    assertEquals(rig.backend.sent[0]!.slice(-60), frame(60, 2));
    assertEquals(rig.reclaim(), 6);
  });
}

Deno.test("VirtioNet keeps a frame that the back end cannot take yet", () => {
  using rig = new Rig();
  rig.backend.sendResults.push(1, -Errno.EAGAIN, -Errno.EAGAIN);
  rig.transmit(frame(60, 1), frame(60, 2), frame(60, 3));
  assertEquals(rig.backend.sent, []);
  assertEquals(rig.reclaim(), 1);
  assertEquals(rig.backend.sendResults.length, 1);
  // More frames do not make it try again, nor does a notification.
  rig.transmit(frame(60, 4));
  rig.tx.kick();
  rig.settle();
  assertEquals(rig.backend.sendResults.length, 1);
  rig.backend.peer!.onWritable();
  rig.settle();
  assertEquals(rig.backend.sendResults.length, 0);
  assertEquals(rig.reclaim(), 0);
  rig.backend.peer!.onWritable();
  rig.settle();
  assertEquals(rig.backend.sent, [frame(60, 2), frame(60, 3), frame(60, 4)]);
  assertEquals(rig.reclaim(), 3);
  assertEquals(rig.counter("txBlocked"), 2);
  assertEquals(rig.counter("txPackets"), 4);
});

Deno.test("VirtioNet asks for notifications again after it was blocked", () => {
  using rig = new Rig();
  rig.backend.sendResults.push(-Errno.EAGAIN);
  rig.transmit(frame(60, 1));
  rig.backend.peer!.onWritable();
  rig.settle();
  rig.queueTx(behind([], frame(60, 2)));
  assertEquals(rig.tx.ring.publish(), true);
  rig.tx.kick();
  rig.settle();
  assertEquals(rig.backend.sent.length, 2);
});

Deno.test("VirtioNet drops a frame that the back end refuses", () => {
  using rig = new Rig();
  rig.backend.sendResults.push(-Errno.EIO);
  rig.transmit(frame(60, 1), frame(60, 2));
  assertEquals(rig.backend.sent, [frame(60, 2)]);
  assertEquals(rig.counter("txErrors"), 1);
  assertEquals(rig.counter("txPackets"), 1);
  assertEquals(rig.reclaim(), 2);
});

Deno.test("VirtioNet interrupts once for a batch and lets others have the loop after 64 frames", () => {
  using rig = new Rig();
  for (let i = 0; i < 150; i++) rig.queueTx(behind([], frame(60, i)));
  rig.interrupts(VECTOR.TX);
  rig.tx.ring.enableInterrupts();
  rig.tx.flush();
  rig.loop.turn();
  assertEquals(rig.backend.sent.length, 64);
  assertEquals(rig.reclaim(), 64);
  rig.loop.turn();
  assertEquals(rig.interrupts(VECTOR.TX), 1);
  assertEquals(rig.backend.sent.length, 128);
  rig.settle();
  assertEquals(rig.backend.sent.length, 150);
  assertEquals(rig.backend.sent.at(-1), frame(60, 149));
});

Deno.test("VirtioNet drops frames while the link is down", () => {
  using rig = new Rig();
  rig.card.setLink(false);
  rig.transmit(frame(60), frame(60));
  assertEquals(rig.backend.sent, []);
  assertEquals(rig.counter("txDroppedLinkDown"), 2);
  assertEquals(rig.reclaim(), 2);
  rig.card.setLink(true);
  rig.transmit(frame(60, 3));
  assertEquals(rig.backend.sent, [frame(60, 3)]);
});

Deno.test("VirtioNet drops what waited for the back end when the link goes down", () => {
  using rig = new Rig();
  rig.backend.sendResults.push(-Errno.EAGAIN);
  rig.transmit(frame(60, 1), frame(60, 2));
  rig.card.setLink(false);
  rig.settle();
  assertEquals(rig.reclaim(), 2);
  assertEquals(rig.counter("txDroppedLinkDown"), 2);
});

Deno.test("VirtioNet forgets a blocked frame when the device is reset", () => {
  using rig = new Rig();
  rig.backend.sendResults.push(-Errno.EAGAIN);
  rig.transmit(frame(60, 1));
  const { peer } = rig.backend;
  rig.bringUp();
  peer!.onWritable();
  rig.transmit(frame(60, 2));
  assertEquals(rig.backend.sent, [frame(60, 2)]);
});

Deno.test("VirtioNet goes on with a transmit queue that was reset while blocked", () => {
  using rig = new Rig();
  rig.backend.sendResults.push(-Errno.EAGAIN);
  rig.transmit(frame(60, 1));
  rig.driver.resetQueue(rig.tx);
  rig.driver.reenableQueue(rig.tx);
  rig.transmit(frame(60, 2));
  assertEquals(rig.backend.sent, [frame(60, 2)]);
  assertEquals(rig.reclaim(), 1);
});

Deno.test("VirtioNet fails once on a hostile transmit ring, after the frames before it", () => {
  using rig = new Rig();
  rig.queueTx(behind([], frame(60, 1)));
  rig.tx.ring.makeAvailable(0xffff);
  rig.interrupts(VECTOR.CONFIG);
  rig.tx.flush();
  rig.settle();
  assertEquals(rig.backend.sent, [frame(60, 1)]);
  assertEquals(rig.reclaim(), 1);
  assertEquals(rig.needsReset, true);
  for (let i = 0; i < 3; i++) {
    rig.tx.kick();
    rig.rx.kick();
    rig.settle();
  }
  assertEquals(rig.counter("failures"), 1);
  assertEquals(rig.log.at("warn").length, 1);
  assertEquals(rig.interrupts(VECTOR.CONFIG), 1);
  assertEquals(rig.backend.peer, null);
  rig.bringUp();
  rig.transmit(frame(60, 2));
  assertEquals(rig.backend.sent.length, 2);
});

Deno.test("VirtioNet refuses a frame outside guest memory", () => {
  using rig = new Rig();
  rig.tx.ring.begin(1);
  rig.tx.ring.readable(0xdead_0000, 100);
  rig.tx.ring.end();
  rig.tx.flush();
  rig.settle();
  assertEquals(rig.needsReset, true);
  assertEquals(rig.backend.sent, []);
});

Deno.test("VirtioNet echoes through a back end that answers from inside send", () => {
  using rig = new Rig({ features: [NF.MRG_RXBUF] });
  rig.postRx(...new Array(10).fill(2048));
  rig.backend.onSend = () => {
    rig.backend.incoming.push(frame(60, 7));
    rig.backend.peer!.onReadable();
    rig.backend.peer!.onWritable();
  };
  rig.transmit(frame(60, 1), frame(60, 2));
  assertEquals(rig.backend.sent.length, 2);
  assertEquals(rig.received().length, 2);
  assertEquals(rig.reclaim(), 2);
});

Deno.test("VirtioNet leaves the transmit queue alone while the device is stopped", () => {
  using rig = new Rig();
  rig.device.stop();
  rig.transmit(frame(60));
  assertEquals(rig.backend.sent, []);
  rig.device.start();
  rig.settle();
  assertEquals(rig.backend.sent, [frame(60)]);
  assert(rig.reclaim() === 1);
});

/** A frame was just sent, and an interrupt is wanted for that. */
function withFrameSent(): Rig {
  const rig = new Rig();
  rig.postRx(2048, 2048);
  rig.queueTx(new Uint8Array(HDR_BYTES), frame(60));
  rig.tx.flush();
  rig.loop.turn();
  assertEquals(rig.backend.sent.length, 1);
  assertEquals(rig.interrupts(VECTOR.TX), 0);
  return rig;
}

Deno.test("VirtioNet tells of an answer before it tells that the question was sent", () => {
  using rig = withFrameSent();
  rig.backend.incoming.push(frame(60, 2));
  rig.backend.pump();
  assertEquals([rig.interrupts(VECTOR.RX), rig.interrupts(VECTOR.TX)], [1, 0]);
  rig.loop.turn();
  assertEquals([rig.interrupts(VECTOR.RX), rig.interrupts(VECTOR.TX)], [0, 1]);
  rig.settle();
  assertEquals(rig.interrupts(VECTOR.TX), 0);
  assertEquals(rig.reclaim(), 1);
});

Deno.test("VirtioNet tells at once that frames were sent when it is to hold", () => {
  using rig = withFrameSent();
  assertEquals(rig.device.hold!(), 0);
  assertEquals(rig.interrupts(VECTOR.TX), 1);
  assertEquals(rig.loop.hasScheduled, false);
});

Deno.test("VirtioNet tells no driver that its predecessor's frames were sent", () => {
  using rig = withFrameSent();
  rig.driver.reset();
  rig.bringUp();
  assertEquals(rig.interrupts(VECTOR.TX), 0);
});

for (const vnetHeader of [false, true]) {
  const options = { vnetHeader, keeps: true };

  Deno.test(`VirtioNet has what it sends flushed before the driver gets its buffers back (vnet header ${vnetHeader})`, () => {
    using rig = new Rig(options);
    const flushed: number[] = [];
    rig.backend.onFlush = () => {
      assertEquals(rig.tx.ring.hasUsed, false);
      flushed.push(rig.backend.kept.length);
    };
    for (let i = 0; i < 150; i++) rig.queueTx(behind([], frame(60, i)));
    rig.tx.flush();
    for (const count of [64, 64, 22]) {
      rig.loop.turn();
      assertEquals(flushed.splice(0), [count]);
      assertEquals(rig.reclaim(), count);
    }
    assertEquals(
      rig.backend.sent.map((bytes) => bytes.slice(-60)),
      Array.from({ length: 150 }, (_, i) => frame(60, i)),
    );
    // Nothing was sent, nothing is flushed.
    rig.tx.kick();
    rig.settle();
    rig.transmit(new Uint8Array(3));
    assertEquals(flushed, []);
  });

  Deno.test(`VirtioNet has frames flushed that it sent before it was blocked (vnet header ${vnetHeader})`, () => {
    using rig = new Rig(options);
    rig.backend.onSend = () => {
      if (rig.backend.kept.length === 2) {
        rig.backend.sendResults.push(-Errno.EAGAIN);
      }
    };
    rig.transmit(frame(60, 1), frame(60, 2), frame(60, 3));
    assertEquals(rig.backend.sent.length, 2);
    assertEquals(rig.reclaim(), 2);
    rig.backend.onSend = null;
    rig.backend.peer!.onWritable();
    rig.settle();
    assertEquals(rig.backend.sent.length, 3);
    assertEquals(rig.reclaim(), 1);
  });

  Deno.test(`VirtioNet has frames flushed that are before a hostile one (vnet header ${vnetHeader})`, () => {
    using rig = new Rig(options);
    rig.queueTx(behind([], frame(60, 1)));
    rig.queueTx(behind([], frame(60, 2)));
    rig.tx.ring.makeAvailable(0xffff);
    rig.tx.flush();
    rig.settle();
    assertEquals(rig.backend.sent.length, 2);
    assertEquals([rig.reclaim(), rig.needsReset], [2, true]);
  });
}

Deno.test("VirtioNet counts frames that the back end took and lost", () => {
  using rig = new Rig({ keeps: true });
  rig.backend.lost = 2;
  rig.transmit(frame(60, 1), frame(60, 2), frame(60, 3));
  assertEquals(rig.reclaim(), 3);
  assertEquals([rig.counter("txPackets"), rig.counter("txErrors")], [3, 2]);
});

Deno.test("VirtioNet keeps a header for each frame until it is flushed", () => {
  using rig = new Rig({
    offloads: ALL_OFFLOADS,
    keeps: true,
    features: [...Object.values(NF), OF.CSUM],
  });
  const headers = Array.from(
    { length: 64 },
    (_, i) => i % 3 === 0 ? [] : [1, 0, 0, 0, 0, 0, 14 + i % 40, 0, 2, 0],
  );
  const all = headers.map((header, i) => behind(header, frame(60, i)));
  for (const bytes of all) rig.queueTx(bytes);
  rig.tx.flush();
  rig.settle();
  assertEquals(rig.backend.sent, all);
});

/** Number of times the driver was asked to notify the device of one more frame. */
function sendOne(rig: Rig, i: number): boolean {
  const { kicks } = rig.tx;
  rig.queueTx(behind([], frame(60, i)));
  rig.tx.flush();
  rig.loop.turn();
  return rig.tx.kicks > kicks;
}

for (const eventIdx of [false, true]) {
  Deno.test(`VirtioNet looks again by itself in a rush of frames (EVENT_IDX ${eventIdx})`, () => {
    const features = eventIdx ? [F.RING_EVENT_IDX] : [];
    using rig = new Rig({ txDelayUsec: 100, features });
    const sent = () => rig.backend.sent.length;
    // One at a time is no rush: each is sent at once.
    for (let i = 0; i < 3; i++) assert(sendOne(rig, i));
    assertEquals(sent(), 3);
    rig.queueTx(behind([], frame(60, 3)));
    rig.queueTx(behind([], frame(60, 4)));
    rig.tx.flush();
    rig.loop.turn();
    assertEquals(sent(), 5);
    // The driver need not notify of what comes now, and it is not looked at before its time.
    for (let round = 0; round < 3; round++) {
      assert(!sendOne(rig, 5));
      assert(!sendOne(rig, 6));
      rig.loop.advance(0.05);
      assertEquals(sent(), 5 + round * 2);
      rig.loop.advance(0.06);
      rig.settle();
      assertEquals(sent(), 7 + round * 2);
    }
    // It is quiet: the driver notifies again, and nothing is left to be done.
    rig.loop.advance(0.2);
    rig.settle();
    assert(sendOne(rig, 7));
    assertEquals(sent(), 12);
    assertEquals(rig.reclaim(), 12);
  });
}

Deno.test("VirtioNet leaves no look behind when a queue is taken away in a rush", () => {
  using rig = new Rig({ txDelayUsec: 100 });
  rig.queueTx(behind([], frame(60, 0)));
  rig.queueTx(behind([], frame(60, 1)));
  rig.tx.flush();
  rig.loop.turn();
  rig.device.reset("device_reset");
  rig.bringUp();
  rig.queueTx(behind([], frame(60, 2)));
  // Not shown to the device yet, so a look that was left behind would find nothing but ask for notifications.
  rig.loop.advance(1);
  rig.tx.flush();
  rig.settle();
  assertEquals(rig.backend.sent.length, 3);
});

Deno.test("VirtioNet goes on in a rush after it was held", () => {
  using rig = new Rig({ txDelayUsec: 100 });
  rig.queueTx(behind([], frame(60, 0)));
  rig.queueTx(behind([], frame(60, 1)));
  rig.tx.flush();
  rig.loop.turn();
  assertEquals(rig.device.hold!(), 0);
  assert(!sendOne(rig, 2));
  rig.loop.advance(1);
  assertEquals(rig.backend.sent.length, 2);
  rig.device.start();
  rig.settle();
  assertEquals(rig.backend.sent.length, 3);
});
