import { assertEquals } from "@std/assert";
import fc from "fast-check";
import { VIRTIO_NET_CTRL_RX_CMD as MODE } from "../../../devices/virtio_net/defs.ts";
import {
  FILTER_BYTES,
  MAC_TABLE_ENTRIES,
  ReceiveFilter,
} from "../../../devices/virtio_net/control/filter.ts";

const OWN = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];
const OTHER = [0x52, 0x54, 0x00, 0x12, 0x34, 0x57];
const GROUP = [0x01, 0x00, 0x5e, 0x00, 0x00, 0xfb];
const BROADCAST = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff];

function frame(destination: readonly number[], vid?: number): Uint8Array {
  const bytes = new Uint8Array(FILTER_BYTES);
  bytes.set(destination);
  // 802.1Q with priority 7, which is no part of the VLAN id; or IPv4.
  bytes.set(
    vid === undefined
      ? [0x08, 0x00]
      : [0x81, 0x00, 0xe0 | (vid >> 8), vid & 0xff],
    12,
  );
  return bytes;
}

function filter(filtersVlans = false): ReceiveFilter {
  const made = new ReceiveFilter();
  made.reset(Uint8Array.from(OWN), filtersVlans);
  made.setMode(MODE.PROMISC, false);
  return made;
}

function macs(...addresses: readonly (readonly number[])[]): Uint8Array {
  return Uint8Array.from(addresses.flat());
}

Deno.test("ReceiveFilter lets everything pass after a reset", () => {
  const fresh = new ReceiveFilter();
  fresh.reset(Uint8Array.from(OWN), true);
  assertEquals(fresh.promiscuous, true);
  for (const to of [OWN, OTHER, GROUP, BROADCAST]) {
    assertEquals(fresh.accepts(frame(to), 0), true);
  }
  assertEquals(fresh.accepts(frame(OWN, 5), 0), true);
});

Deno.test("ReceiveFilter lets the own address and broadcast pass", () => {
  const f = filter();
  assertEquals(f.promiscuous, false);
  assertEquals(f.accepts(frame(OWN), 0), true);
  assertEquals(f.accepts(frame(BROADCAST), 0), true);
  assertEquals(f.accepts(frame(OTHER), 0), false);
  assertEquals(f.accepts(frame(GROUP), 0), false);
});

Deno.test("ReceiveFilter compares all six bytes of an address", () => {
  const f = filter();
  for (let i = 0; i < 6; i++) {
    for (const bit of [0x02, 0x80]) {
      const near = OWN.with(i, OWN[i]! ^ bit);
      assertEquals(f.accepts(frame(near), 0), false, `byte ${i}`);
    }
  }
});

Deno.test("ReceiveFilter looks where the frame begins", () => {
  const f = filter();
  const bytes = new Uint8Array(12 + FILTER_BYTES);
  bytes.set(frame(OTHER), 0);
  bytes.set(frame(OWN), 12);
  assertEquals(f.accepts(bytes, 12), true);
  assertEquals(f.accepts(bytes, 0), false);
});

Deno.test("ReceiveFilter.setMac replaces the own address", () => {
  const f = filter();
  f.setMac(Uint8Array.from(OTHER));
  assertEquals(f.accepts(frame(OTHER), 0), true);
  assertEquals(f.accepts(frame(OWN), 0), false);
});

Deno.test("ReceiveFilter.setMacTable lets listed addresses pass", () => {
  const f = filter();
  f.setMacTable(macs(OTHER), macs(GROUP));
  assertEquals(f.accepts(frame(OTHER), 0), true);
  assertEquals(f.accepts(frame(GROUP), 0), true);
  assertEquals(f.accepts(frame(GROUP.with(5, 1)), 0), false);
  f.setMacTable(macs(), macs());
  assertEquals(f.accepts(frame(OTHER), 0), false);
  assertEquals(f.accepts(frame(GROUP), 0), false);
  assertEquals(f.accepts(frame(OWN), 0), true);
});

Deno.test("ReceiveFilter lets all of a kind pass when its table overflows", () => {
  const f = filter();
  f.setMacTable(null, macs());
  assertEquals(f.accepts(frame(OTHER), 0), true);
  assertEquals(f.accepts(frame(GROUP), 0), false);
  f.setMacTable(macs(), null);
  assertEquals(f.accepts(frame(OTHER), 0), false);
  assertEquals(f.accepts(frame(GROUP), 0), true);
});

Deno.test("ReceiveFilter modes widen and narrow what passes", () => {
  const f = filter();
  const passes = () =>
    [OWN, OTHER, GROUP, BROADCAST].map((to) => f.accepts(frame(to), 0));
  f.setMode(MODE.ALLMULTI, true);
  assertEquals(passes(), [true, false, true, true]);
  f.setMode(MODE.NOMULTI, true);
  assertEquals(passes(), [true, false, false, true]);
  f.setMode(MODE.ALLUNI, true);
  assertEquals(passes(), [true, true, false, true]);
  f.setMode(MODE.NOUNI, true);
  assertEquals(passes(), [false, false, false, true]);
  f.setMode(MODE.NOBCAST, true);
  assertEquals(passes(), [false, false, false, false]);
  f.setMode(MODE.PROMISC, true);
  assertEquals(passes(), [true, true, true, true]);
});

Deno.test("ReceiveFilter filters VLANs only for a driver that manages them", () => {
  assertEquals(filter(false).accepts(frame(OWN, 5), 0), true);
  const f = filter(true);
  assertEquals(f.accepts(frame(OWN), 0), true);
  assertEquals(f.accepts(frame(OWN, 5), 0), false);
  f.setVlan(5, true);
  f.setVlan(4095, true);
  assertEquals(f.accepts(frame(OWN, 5), 0), true);
  assertEquals(f.accepts(frame(OWN, 4095), 0), true);
  assertEquals(f.accepts(frame(OWN, 4), 0), false);
  assertEquals(f.accepts(frame(OTHER, 5), 0), false);
  f.setVlan(5, false);
  assertEquals(f.accepts(frame(OWN, 5), 0), false);
  assertEquals(f.accepts(frame(OWN, 4095), 0), true);
});

Deno.test("ReceiveFilter agrees with sets of addresses and VLANs", () => {
  const unicast = fc.tuple(
    fc.constantFrom(0x00, 0x52, 0xfe),
    ...Array.from({ length: 5 }, () => fc.constantFrom(0x00, 0x7f, 0x80, 0xff)),
  );
  const multicast = unicast.map(([first, ...rest]) => [first | 1, ...rest]);
  const tables = { maxLength: MAC_TABLE_ENTRIES };
  const vids = fc.uniqueArray(fc.integer({ min: 0, max: 4095 }));
  fc.assert(fc.property(
    fc.array(unicast, tables),
    fc.array(multicast, tables),
    vids,
    fc.oneof(unicast, multicast, fc.constant(OWN)),
    fc.option(fc.integer({ min: 0, max: 4095 }), { nil: undefined }),
    (uni, multi, allowed, to, vid) => {
      const f = filter(true);
      f.setMacTable(macs(...uni), macs(...multi));
      for (const id of allowed) f.setVlan(id, true);
      const known = new Set(
        [OWN, BROADCAST, ...uni, ...multi].map((mac) => mac.join()),
      );
      assertEquals(
        f.accepts(frame(to, vid), 0),
        known.has(to.join()) && (vid === undefined || allowed.includes(vid)),
      );
    },
  ));
});
