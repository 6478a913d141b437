/** The card on memory that is not in reach at once. */

import { F } from "../../../src/testing/virtio_defs.ts";
import { ringFeatures, virtioOptions } from "../../../src/virtio/options.ts";
import { beStrict } from "../../memory_under_test.ts";
import { type Meanwhile, unmapAndMap, walkPending } from "../pending_walk.ts";
import { frame, NF, Rig } from "./harness.ts";

beStrict();

function featuresOf(packed: boolean): number[] {
  return [
    ...Object.values(NF),
    F.RING_EVENT_IDX,
    F.RING_INDIRECT_DESC,
    F.RING_RESET,
    ...(packed ? [F.RING_PACKED] : []),
  ];
}

function meanwhiles(packed: boolean): readonly Meanwhile<Rig>[] {
  const recover = (rig: Rig) => rig.bringUp(featuresOf(packed));
  return [
    { name: "nothing happens", happen: () => {} },
    { name: "memory is unmapped and mapped", happen: unmapAndMap },
    {
      name: "the driver resets the device",
      happen: (rig) => rig.driver.status = 0,
      recover,
    },
    {
      name: "the driver resets the queues",
      happen: (rig) => {
        rig.driver.resetQueue(rig.rx);
        rig.driver.resetQueue(rig.tx);
      },
      recover,
    },
    {
      name: "the client goes",
      happen: (rig) => {
        rig.memory.unmapAll();
        rig.device.reset("client_gone");
        unmapAndMap(rig);
      },
      recover,
    },
  ];
}

/** A command, two frames out, two frames in. */
function serve(rig: Rig): boolean {
  const { ctrl, backend } = rig;
  backend.sent.length = backend.incoming.length = 0;
  const ack = rig.ram.alloc(1, 1);
  rig.ram.at(ack, 1)[0] = 0xff;
  const command = rig.ram.alloc(3, 1);
  // VIRTIO_NET_CTRL_RX, PROMISC, on.
  rig.ram.write(command, Uint8Array.of(0, 0, 1));
  ctrl!.ring.begin(2);
  ctrl!.ring.readable(command, 3);
  ctrl!.ring.writable(ack, 1);
  ctrl!.ring.end();
  ctrl!.flush();
  rig.settle();
  rig.transmit(frame(60, 1), frame(61, 2));
  rig.postRx(2048, [100, 2000], 2048);
  rig.arrive(frame(60, 3), frame(900, 4));
  const sent = backend.sent.map((bytes) => bytes.length);
  if (sent.join() !== "60,61" || rig.ram.at(ack, 1)[0] !== 0) return false;
  const received = rig.received();
  return rig.reclaim() === 2 && received.length === 2 &&
    received[1]!.frame.every((byte, i) => byte === frame(900, 4)[i]);
}

for (const packed of [false, true]) {
  for (const meanwhile of meanwhiles(packed)) {
    Deno.test(`VirtioNet does a step again when it can: ${meanwhile.name} (packed ${packed})`, () => {
      const make = () =>
        new Rig({
          features: featuresOf(packed),
          ringFeatures: ringFeatures(
            virtioOptions().parse({ packed: packed ? "on" : "off" }),
          ),
        });
      walkPending(make, serve, meanwhile);
    });
  }
}
