/** The disk on memory that is not in reach at once. */

import { beStrict } from "../../memory_under_test.ts";
import { type Meanwhile, unmapAndMap, walkPending } from "../pending_walk.ts";
import { header, pattern, Rig, S, T, UNTOUCHED } from "./harness.ts";

beStrict();

const MEANWHILE: readonly Meanwhile<Rig>[] = [
  { name: "nothing happens", happen: () => {} },
  { name: "memory is unmapped and mapped", happen: unmapAndMap },
  {
    name: "the driver resets the device",
    happen: (rig) => rig.driver.status = 0,
    recover: (rig) => rig.bringUp(),
  },
  {
    name: "the driver resets the queue",
    happen: (rig) => rig.driver.resetQueue(rig.queues[0]!),
    recover: (rig) => rig.bringUp(),
  },
  {
    name: "the client goes",
    happen: (rig) => {
      rig.memory.unmapAll();
      rig.device.reset("client_gone");
      unmapAndMap(rig);
    },
    recover: (rig) => rig.bringUp(),
  },
];

/** Two requests in one batch, one of them in pieces. */
function serve(rig: Rig): boolean {
  const data = pattern(1024);
  const write = rig.queue(
    Uint8Array.of(...header(T.OUT, 2), ...data),
    1,
    { readable: [16, 100] },
  );
  const read = rig.queueRead(0, 512);
  rig.flush();
  while (rig.backend.finishAll() > 0) rig.loop.settle();
  const heads = rig.takeHeads();
  return heads.length === 2 && rig.reply(write, 1).status === S.OK &&
    rig.reply(read, 513).status === S.OK &&
    rig.reply(read, 513).data.every((byte) => byte !== UNTOUCHED) &&
    rig.backend.bytes.slice(1024, 2048).every((byte, i) => byte === data[i]);
}

for (const packed of [false, true]) {
  for (const meanwhile of MEANWHILE) {
    Deno.test(`VirtioBlk does a step again when it can: ${meanwhile.name} (packed ${packed})`, () => {
      walkPending(() => new Rig({ packed }), serve, meanwhile);
    });
  }
}
