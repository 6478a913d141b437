import { assert, assertEquals, assertThrows } from "@std/assert";
import {
  DriverMemory,
  F,
  NET_CTRL,
  NET_F,
  NET_OK,
  NetDriver,
  type NetDriverOptions,
  VirtioDriver,
} from "../../src/testing/mod.ts";
import { heapGrowthPerOperation } from "../resources.ts";
import { NaiveCard } from "./naive_card.ts";

const OFFERED = [
  F.VERSION_1,
  F.RING_EVENT_IDX,
  F.RING_INDIRECT_DESC,
  NET_F.MAC,
  NET_F.STATUS,
  NET_F.MTU,
  NET_F.MRG_RXBUF,
  NET_F.CTRL_VQ,
];

function setUp(
  options: NetDriverOptions = {},
  offered: number[] = OFFERED,
  iova = 0x1_0000_0000,
) {
  const memory = new DriverMemory(new ArrayBuffer(1 << 20), iova);
  const card = new NaiveCard(memory, offered);
  [0x52, 0x54, 0, 1, 2, 3].forEach((byte, i) => card.device.setUint8(i, byte));
  card.device.setUint16(6, 1, true);
  card.device.setUint16(8, 4, true);
  card.device.setUint16(10, 1500, true);
  const net = new NetDriver(
    new VirtioDriver(card, memory, { vectors: 4 }),
    options,
  );
  return { memory, card, net };
}

function frameOf(lengthBytes: number): Uint8Array<ArrayBuffer> {
  return Uint8Array.from({ length: lengthBytes }, (_, i) => (i * 7) & 0xff);
}

Deno.test("NetDriver reads the card's configuration", () => {
  const { net } = setUp();
  assertEquals([...net.mac], [0x52, 0x54, 0, 1, 2, 3]);
  assertEquals([net.linkUp, net.mtu, net.maxPairs], [true, 1500, 4]);
});

for (
  const [what, options] of [
    ["one descriptor each", {}],
    ["a descriptor for the header", { splitHeader: true }],
    ["indirect tables", { splitHeader: true, indirect: 2 }],
    ["vectors", { vectors: { rx: 1, tx: 2, ctrl: 3 } }],
  ] as [string, NetDriverOptions][]
) {
  Deno.test(`frames come back as they were sent, with ${what}`, () => {
    const { net } = setUp(options);
    // Past the end of the ring, more than once.
    for (let i = 0; i < 50; i++) {
      const frame = frameOf(60 + i * 20);
      assert(net.transmit(frame));
      assert(net.waitTransmitted(1000));
      assertEquals(net.receive(1000), frame);
    }
    assertEquals([net.txFrames, net.rxFrames], [50, 50]);
    assertEquals(net.receive(), null);
    assertEquals(net.receive(1), null);
  });
}

Deno.test("a frame over several receive buffers is put together", () => {
  const { net } = setUp({ rxBufferBytes: 256, txBufferBytes: 2000 });
  const frame = frameOf(1514);
  net.transmit(frame);
  assertEquals(net.receive(1000), frame);
  net.transmit(frame);
  assertEquals(net.receiveBurst(), 1);
  assertEquals(net.rxBytes, 2 * 1514);
});

Deno.test("transmit says when the ring is full and goes on when it is not", () => {
  const { card, net } = setUp({ queueSize: 4 });
  card.deaf = true;
  for (let i = 0; i < 4; i++) assert(net.transmit(frameOf(60)));
  assertEquals(net.transmit(frameOf(60)), false);
  assertEquals(net.transmitBurst(3, 60), 0);
  assertEquals(net.waitTransmitted(1), false);
  card.deaf = false;
  net.tx.kick();
  assert(net.waitTransmitted(1000));
  assertEquals(net.transmitBurst(9, 60), 4);
  assertThrows(() => net.transmit(frameOf(2049)), RangeError, "2049");
});

Deno.test("the control queue comes after the pairs", () => {
  const { card, net } = setUp();
  assertEquals(net.ctrl!.index, 2);
  const data = Uint8Array.of(1, 2, 3);
  assertEquals(net.command(NET_CTRL.MAC, 1, data), NET_OK);
  card.ack = 1;
  assertEquals(net.command(NET_CTRL.RX, 0), 1);
  assertEquals(card.commands, [[1, 1, 1, 2, 3], [0, 0]]);
  card.deaf = true;
  assertThrows(() => net.command(0, 0, data, 1), Error, "does not answer");
  const plain = setUp({}, OFFERED.filter((bit) => bit !== NET_F.CTRL_VQ));
  assertEquals(plain.net.ctrl, null);
  assertThrows(() => plain.net.command(0, 0), Error, "no control queue");
});

Deno.test("without MRG_RXBUF every frame has one buffer", () => {
  const { net } = setUp({}, OFFERED.filter((bit) => bit !== NET_F.MRG_RXBUF));
  net.transmit(frameOf(100));
  assertEquals(net.receive(1000), frameOf(100));
});

Deno.test("bursts send what fillFrames put there and count what came back", () => {
  const { card, net } = setUp({ queueSize: 16 });
  net.fillFrames(frameOf(64));
  assertEquals(net.transmitBurst(16, 64), 16);
  assertEquals(net.receiveBurst(), 16);
  assertEquals(net.rxBytes, 16 * 64);
  card.deliver(frameOf(33));
  assertEquals(net.receive(), frameOf(33));
  assertEquals(net.transmitBurst(1, 64), 1);
  assertEquals(net.txFrames, 16);
  assertEquals(net.receive(), frameOf(64));
});

Deno.test("close resets the card and gives all memory back", () => {
  const { memory, card, net } = setUp();
  assert(memory.usedBytes > 0);
  net.close();
  assertEquals([memory.usedBytes, card.statuses.at(-1)], [0, 0]);
});

Deno.test("bursts allocate nothing", () => {
  // A higher address is an object on its way to the ring: 16 bytes, twice a frame.
  const iova = 0x1000_0000;
  const options = { queueSize: 16, rxBuffers: 16 };
  const { memory, card, net } = setUp(options, OFFERED, iova);
  card.deaf = true;
  // The device's side by hand, for the naive card allocates.
  const { ring: tx } = net.tx;
  const { ring: rx } = net.rx;
  let idx = 0;
  const complete = (used: number, head: number, length: number) => {
    const at = memory.offset(used);
    memory.view.setUint32(at + 4 + (idx & 15) * 8, head, true);
    memory.view.setUint32(at + 8 + (idx & 15) * 8, length, true);
    memory.view.setUint16(at + 2, idx + 1, true);
  };
  const avail = (iova: number) =>
    memory.view.getUint16(memory.offset(iova) + 4 + (idx & 15) * 2, true);
  const growth = heapGrowthPerOperation(200_000, (operations) => {
    for (let i = 0; i < operations; i++) {
      net.transmitBurst(1, 64);
      complete(tx.usedIova, avail(tx.availIova), 0);
      complete(rx.usedIova, avail(rx.availIova), 76);
      net.receiveBurst();
      net.reclaim();
      idx = (idx + 1) & 0xffff;
    }
  });
  assert(growth < 1, `${growth} bytes a frame`);
  assertEquals(net.txFrames, net.rxFrames);
});
