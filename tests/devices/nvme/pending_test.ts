/** The controller on memory that is not in reach at once. */

import { beStrict } from "../../memory_under_test.ts";
import { type Meanwhile, unmapAndMap, walkPending } from "../pending_walk.ts";
import { Rig } from "./rig.ts";

beStrict();

const PAGE = 4096;

const MEANWHILE: readonly Meanwhile<Rig>[] = [
  { name: "nothing happens", happen: () => {} },
  { name: "memory is unmapped and mapped", happen: unmapAndMap },
  {
    name: "the driver resets the controller",
    happen: (rig) => rig.driver.write(0x14, 0x0046_0000),
    recover: (rig) => {
      rig.settle();
      rig.driver.shadow = null;
      rig.driver.enable();
    },
  },
  {
    name: "the client goes",
    happen: (rig) => {
      rig.memory.unmapAll();
      rig.device.reset("client_gone");
      unmapAndMap(rig);
    },
    recover: (rig) => {
      rig.driver.shadow = null;
      rig.driver.enable();
    },
  },
];

/** Makes queues, with shadow doorbells, writes through a PRP list, reads and compares. */
function serve(rig: Rig): boolean {
  const { driver, ram } = rig;
  try {
    const io = rig.io();
    driver.shadow = driver.page();
    driver.eventIdx = driver.page();
    const buffers = { prp1: driver.shadow, prp2: driver.eventIdx };
    if (driver.run({ opcode: 0x7c, ...buffers }).status !== 0) return false;
    const data = [driver.page(), driver.page(), driver.page()];
    data.forEach((page, i) => ram.at(page, PAGE).fill(i + 1));
    const prp2 = driver.page();
    ram.writeU64(prp2, data[1]!);
    ram.writeU64(prp2 + 8, data[2]!);
    const blocks = { nsid: 1, prp1: data[0]!, prp2, cdw12: 23 };
    if (driver.run({ opcode: 1, ...blocks }, io).status !== 0) return false;
    if (driver.run({ opcode: 5, ...blocks }, io).status !== 0) return false;
    for (const page of data) ram.at(page, PAGE).fill(0);
    if (driver.run({ opcode: 2, ...blocks }, io).status !== 0) return false;
    return data.every((page, i) =>
      ram.at(page, PAGE).every((byte) => byte === i + 1)
    );
  } catch {
    // The driver gets no answer.
    return false;
  }
}

for (const meanwhile of MEANWHILE) {
  Deno.test(`NvmeController does a step again when it can: ${meanwhile.name}`, () => {
    walkPending(() => new Rig(), serve, meanwhile);
  });
}
