import { assertEquals } from "@std/assert";
import fc from "fast-check";
import { frame, MAC, NF, Rig } from "./harness.ts";

const OK = 0;
const ERR = 1;
const RX = 0;
const MAC_CLASS = 1;
const VLAN = 2;
const ANNOUNCE = 3;
const GROUP = [0x01, 0x00, 0x5e, 0x00, 0x00, 0xfb];
const OTHER = [0x52, 0x54, 0x00, 0xaa, 0xbb, 0xcc];

function le32(value: number): number[] {
  return [value & 0xff, (value >> 8) & 0xff, value >> 16 & 0xff, value >>> 24];
}

function table(...macs: readonly (readonly number[])[]): number[] {
  return [...le32(macs.length), ...macs.flat()];
}

/** True if a frame for the address reaches the driver. */
function reaches(rig: Rig, destination: readonly number[]): boolean {
  if (rig.rx.ring.inFlight === 0) rig.postRx(2048);
  rig.arrive(frame(60, 1, destination));
  return rig.received().length === 1;
}

for (
  const [name, command, accepted] of [
    ["PROMISC", 0, [NF.CTRL_RX]],
    ["ALLMULTI", 1, [NF.CTRL_RX]],
    ["ALLUNI", 2, [NF.CTRL_RX_EXTRA]],
    ["NOMULTI", 3, [NF.CTRL_RX_EXTRA]],
    ["NOUNI", 4, [NF.CTRL_RX_EXTRA]],
    ["NOBCAST", 5, [NF.CTRL_RX_EXTRA]],
  ] as const
) {
  Deno.test(`control command ${name} takes a byte, where negotiated`, () => {
    using rig = new Rig();
    assertEquals(rig.command([RX, command, 1]), OK);
    assertEquals(rig.command([RX, command, 0]), OK);
    assertEquals(rig.command([RX, command]), ERR);
    rig.bringUp([NF.CTRL_VQ, ...accepted]);
    assertEquals(rig.command([RX, command, 0]), OK);
    rig.bringUp([NF.CTRL_VQ]);
    assertEquals(rig.command([RX, command, 0]), ERR);
  });
}

Deno.test("control commands of the receive modes have their effects", () => {
  using rig = new Rig();
  const all = () =>
    [MAC, OTHER, GROUP, [255, 255, 255, 255, 255, 255]]
      .map((to) => reaches(rig, to));
  assertEquals(all(), [true, true, true, true]);
  rig.command([RX, 0, 0]);
  assertEquals(all(), [true, false, false, true]);
  rig.command([RX, 1, 1]);
  assertEquals(all(), [true, false, true, true]);
  rig.command([RX, 3, 1]);
  rig.command([RX, 2, 1]);
  assertEquals(all(), [true, true, false, true]);
  rig.command([RX, 4, 1]);
  rig.command([RX, 5, 1]);
  assertEquals(all(), [false, false, false, false]);
  rig.command([RX, 0, 1]);
  assertEquals(all(), [true, true, true, true]);
});

Deno.test("control command MAC_TABLE_SET replaces both tables", () => {
  using rig = new Rig();
  rig.command([RX, 0, 0]);
  const set = (...data: number[]) => rig.command([MAC_CLASS, 0, ...data]);
  assertEquals(set(...table(OTHER), ...table(GROUP)), OK);
  assertEquals(reaches(rig, OTHER), true);
  assertEquals(reaches(rig, GROUP), true);
  assertEquals(set(...table(), ...table(GROUP)), OK);
  assertEquals(reaches(rig, OTHER), false);
  assertEquals(reaches(rig, GROUP), true);
});

Deno.test("control command MAC_TABLE_SET lets all of a kind in when the table is too long", () => {
  using rig = new Rig();
  rig.command([RX, 0, 0]);
  const many = (count: number) =>
    Array.from({ length: count }, (_, i) => [2, 0, 0, 0, 1, i]);
  const set = (...data: number[]) => rig.command([MAC_CLASS, 0, ...data]);
  assertEquals(set(...table(...many(64)), ...table()), OK);
  assertEquals(reaches(rig, [2, 0, 0, 0, 1, 63]), true);
  assertEquals(reaches(rig, OTHER), false);
  assertEquals(set(...table(...many(65)), ...table(GROUP)), OK);
  assertEquals(reaches(rig, OTHER), true);
  assertEquals(reaches(rig, GROUP), true);
  assertEquals(reaches(rig, GROUP.with(5, 1)), false);
});

for (
  const [name, data] of [
    ["no data", []],
    ["half a count", [1, 0]],
    ["a count without addresses", le32(1)],
    ["half an address", [...le32(1), 2, 0, 0]],
    ["one table only", table(OTHER)],
    ["a second table cut short", [...table(OTHER), ...le32(2), ...GROUP]],
    ["a count that overflows", [...le32(0xffff_ffff), ...OTHER, ...le32(0)]],
    ["bytes that are left over", [...table(OTHER), ...table(), 0]],
  ] as const
) {
  Deno.test(`control command MAC_TABLE_SET refuses ${name} and changes nothing`, () => {
    using rig = new Rig();
    rig.command([RX, 0, 0]);
    rig.command([MAC_CLASS, 0, ...table(), ...table(GROUP)]);
    assertEquals(rig.command([MAC_CLASS, 0, ...data]), ERR);
    assertEquals(reaches(rig, OTHER), false);
    assertEquals(reaches(rig, GROUP), true);
    assertEquals(rig.counter("ctrlErrors"), 1);
  });
}

Deno.test("control command MAC_ADDR_SET changes the card's address until a reset", () => {
  using rig = new Rig();
  rig.command([RX, 0, 0]);
  assertEquals(rig.command([MAC_CLASS, 1, ...OTHER]), OK);
  assertEquals([...rig.driver.readConfigBytes(0, 6)], OTHER);
  assertEquals(reaches(rig, OTHER), true);
  assertEquals(reaches(rig, MAC), false);
  rig.bringUp();
  assertEquals([...rig.driver.readConfigBytes(0, 6)], [...MAC]);
  rig.command([RX, 0, 0]);
  assertEquals(reaches(rig, MAC), true);
});

Deno.test("control command MAC_ADDR_SET refuses what is no address of a card", () => {
  using rig = new Rig();
  for (
    const bad of [
      [],
      OTHER.slice(1),
      [...OTHER, 0],
      GROUP,
      [0, 0, 0, 0, 0, 0],
    ]
  ) {
    assertEquals(rig.command([MAC_CLASS, 1, ...bad]), ERR, bad.join());
  }
  assertEquals([...rig.driver.readConfigBytes(0, 6)], [...MAC]);
  rig.bringUp([NF.CTRL_VQ, NF.CTRL_RX]);
  assertEquals(rig.command([MAC_CLASS, 1, ...OTHER]), ERR);
  rig.bringUp([NF.CTRL_VQ, NF.CTRL_MAC_ADDR]);
  assertEquals(rig.command([MAC_CLASS, 1, ...OTHER]), OK);
  assertEquals(rig.command([MAC_CLASS, 0, ...table(), ...table()]), ERR);
});

Deno.test("control commands of the VLAN table check their id", () => {
  using rig = new Rig();
  assertEquals(rig.command([VLAN, 0, 0xff, 0x0f]), OK);
  assertEquals(rig.command([VLAN, 0, 0x00, 0x10]), ERR);
  assertEquals(rig.command([VLAN, 1, 0xff, 0x0f]), OK);
  assertEquals(rig.command([VLAN, 1, 5]), ERR);
  assertEquals(rig.command([VLAN, 2, 5, 0]), ERR);
  rig.bringUp([NF.CTRL_VQ, NF.CTRL_RX]);
  assertEquals(rig.command([VLAN, 0, 5, 0]), ERR);
});

Deno.test("control command ANNOUNCE_ACK is for drivers that announce", () => {
  using rig = new Rig();
  assertEquals(rig.command([ANNOUNCE, 0]), OK);
  assertEquals(rig.command([ANNOUNCE, 1]), ERR);
  rig.bringUp([NF.CTRL_VQ, NF.CTRL_RX]);
  assertEquals(rig.command([ANNOUNCE, 0]), ERR);
});

Deno.test("control queue answers malformed commands", () => {
  using rig = new Rig();
  assertEquals(rig.command([]), ERR);
  assertEquals(rig.command([RX]), ERR);
  for (
    const unknown of [[RX, 6, 0], [MAC_CLASS, 2], [4, 0, 1, 0], [255, 255]]
  ) {
    assertEquals(rig.command(unknown), ERR, unknown.join());
  }
  // More room than one byte for the ack is no mistake.
  assertEquals(rig.command([RX, 0, 1], 64), OK);
  assertEquals(rig.counter("ctrlErrors"), 6);
  assertEquals(rig.counter("ctrlCommands"), 1);
  assertEquals(rig.needsReset, false);
});

Deno.test("control queue does nothing for a command without room for the ack", () => {
  using rig = new Rig();
  assertEquals(rig.command([RX, 0, 0], 0), -1);
  assertEquals(reaches(rig, OTHER), true);
  assertEquals(rig.counter("ctrlErrors"), 1);
});

Deno.test("control queue serves many commands at once", () => {
  using rig = new Rig();
  const queue = rig.ctrl!;
  const at = rig.ram.alloc(64 * 4);
  for (let round = 0; round < 2; round++) {
    for (let i = 0; i < 32; i++) {
      rig.ram.write(at + i * 4, Uint8Array.of(RX, 0, i % 2, 0xee));
      queue.ring.begin(2);
      queue.ring.readable(at + i * 4, 3);
      queue.ring.writable(at + i * 4 + 3, 1);
      queue.ring.end();
    }
    queue.flush();
    rig.settle();
    for (let i = 0; i < 32; i++) {
      assertEquals(queue.ring.take(), true);
      assertEquals(rig.ram.at(at + i * 4 + 3, 1)[0], OK);
    }
  }
  assertEquals(rig.counter("ctrlCommands"), 64);
});

Deno.test("control queue fails once on a hostile ring", () => {
  using rig = new Rig();
  rig.ctrl!.ring.makeAvailable(200);
  rig.ctrl!.flush();
  rig.settle();
  assertEquals(rig.needsReset, true);
  rig.ctrl!.kick();
  rig.settle();
  assertEquals(rig.counter("failures"), 1);
});

Deno.test("control queue is not served without CTRL_VQ", () => {
  using rig = new Rig({ features: [] });
  const queue = rig.driver.setupQueue(2);
  const at = rig.ram.alloc(4);
  rig.ram.write(at, Uint8Array.of(RX, 0, 0, 0xee));
  queue.ring.begin(2);
  queue.ring.readable(at, 3);
  queue.ring.writable(at + 3, 1);
  queue.ring.end();
  queue.flush();
  rig.settle();
  assertEquals(queue.ring.hasUsed, false);
  assertEquals(rig.ram.at(at + 3, 1)[0], 0xee);
});

Deno.test("control queue survives any bytes", () => {
  const commands = fc.array(
    fc.tuple(
      fc.constantFrom(0, 1, 2, 3, 4, 255),
      fc.integer({ min: 0, max: 6 }),
      fc.array(fc.constantFrom(0, 1, 2, 6, 0x52, 0xff), { maxLength: 40 }),
    ).map(([first, second, rest]) => [first, second, ...rest]),
    { maxLength: 10 },
  );
  fc.assert(
    fc.property(commands, (list) => {
      using rig = new Rig();
      for (const data of list) {
        const ack = rig.command(data);
        assertEquals(ack === OK || ack === ERR, true);
      }
      assertEquals(
        rig.counter("ctrlCommands") + rig.counter("ctrlErrors"),
        list.length,
      );
      assertEquals(rig.needsReset, false);
    }),
    { numRuns: 30 },
  );
});
