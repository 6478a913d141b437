/** Devices that are held, saved, and go on elsewhere. */

import type { DeviceState } from "../../src/core/state_form.ts";
import { ResourceBag } from "../../src/os/mod.ts";
import { assert, assertEquals, assertThrows } from "@std/assert";
import { createQueue } from "../../src/virtio/queue/mod.ts";
import { Chain } from "../../src/virtio/queue/queue.ts";
import type { Ring } from "../../src/virtio/queue/ring.ts";
import { ringFeatures, VIRTIO_DEFAULTS } from "../../src/virtio/options.ts";
import { VirtioPci } from "../../src/transport/virtio_pci/virtio_pci.ts";
import { fakeContext } from "../../src/testing/fake_context.ts";
import { EchoDevice } from "./echo_device.ts";
import { NaivePackedRing } from "./naive_packed_ring.ts";
import type { NaiveRing } from "./naive_ring.ts";
import {
  DEVICE,
  EVENT_IDX,
  ISR,
  PciDriver,
  REG,
  RING_RESET,
  STATUS,
} from "../transport/virtio_pci/pci_fixture.ts";
import { BASE, DATA, fixture, packedFixture } from "./ring_fixture.ts";

const VERSION_1 = 32;
const RING_PACKED = 34;
const IN = { iova: DATA, length: 4 };
const OUT = { iova: DATA + 64, length: 4, write: true };

interface State {
  readonly session: DeviceState<object>;
}

/** As it arrives after it was written down. */
function saved(driver: PciDriver): unknown {
  assertEquals(driver.pci.hold!(), 0);
  const state = driver.pci.save!();
  assertEquals(driver.pci.save!(), state, "saving changes nothing");
  return JSON.parse(JSON.stringify(state));
}

/** The device on another thread, not started yet. */
function moved(from: PciDriver): PciDriver {
  const state = saved(from);
  using bag = ResourceBag.of();
  from.pci.handOver(bag);
  from.pci.close();
  const to = from.sibling({ bag });
  to.context.interrupts.mode = from.context.interrupts.mode;
  to.pci.load!(state);
  return to;
}

/** Every register that a driver can read without changing anything. */
function registers(driver: PciDriver): number[] {
  const values: number[] = [];
  const selected = driver.r16(REG.queueSelect);
  for (let at = 0; at < 64; at++) {
    if (at !== REG.configGeneration) values.push(driver.r8(at));
  }
  for (const queue of [0, 1, 2]) {
    driver.w16(REG.queueSelect, queue);
    for (let at: number = REG.queueSize; at < 64; at++) {
      values.push(driver.r8(at));
    }
  }
  driver.w16(REG.queueSelect, selected);
  for (let at = 0; at < 6; at++) values.push(driver.r8(DEVICE + at));
  return values;
}

function ask(ring: NaiveRing): number {
  return ring.add([IN, OUT]);
}

function settle(driver: PciDriver): number[] {
  driver.context.loop.settle();
  return driver.context.interrupts.take();
}

Deno.test("VirtioPci can be moved only when its device model can", () => {
  for (const movable of [false, true]) {
    const context = fakeContext();
    const pci = new VirtioPci(context, (transport) => {
      const device = new EchoDevice(context, transport);
      if (movable) device.makeMovable();
      return device;
    });
    assertEquals(
      [pci.hold, pci.save, pci.load].map((it) => it !== undefined),
      [movable, movable, movable],
    );
    if (!movable) {
      assertThrows(() => pci.session.save(), Error, "its model has no save");
      assertThrows(() => pci.session.hold() || pci.session.load({}), Error);
    }
    pci.close();
  }
});

Deno.test("VirtioPci.hold finds nothing new and shows what comes back", () => {
  const driver = new PciDriver();
  const [ring] = driver.start();
  driver.device.keeps = true;
  const first = ask(ring!);
  const second = ask(ring!);
  driver.kick(0);
  settle(driver);
  assertEquals(driver.pci.hold!(), 2);
  assertThrows(
    () => driver.pci.save!(),
    Error,
    "queue 0 has 2 chains in flight",
  );
  ask(ring!);
  driver.kick(0);
  assertEquals(settle(driver), []);
  assertEquals(driver.pci.session.poll(), false);
  assertEquals(driver.device.held.length, 2);
  driver.device.complete(driver.pci.session.queues[0]!);
  assertEquals(settle(driver), [1]);
  assertEquals(ring!.collect().map(({ id }) => id), [first, second]);
  assertEquals(driver.pci.hold!(), 0);
  driver.device.keeps = false;
  driver.pci.start();
  assertEquals(settle(driver), [1]);
  assertEquals(ring!.collect().length, 1);
});

Deno.test("VirtioPci.hold counts what could not be shown to the driver yet", () => {
  const driver = new PciDriver();
  const [ring] = driver.start();
  driver.device.keeps = true;
  ask(ring!);
  driver.kick(0);
  settle(driver);
  driver.pci.stop();
  driver.device.complete(driver.pci.session.queues[0]!);
  assertEquals(driver.pci.session.queues[0]!.inFlight, 0);
  assertEquals(driver.pci.hold!(), 1);
  driver.pci.start();
  driver.device.complete(driver.pci.session.queues[0]!);
  assertEquals(driver.pci.hold!(), 0);
  assertEquals(ring!.collect().length, 1);
});

for (const eventIdx of [false, true]) {
  Deno.test(`VirtioPci goes on elsewhere with what waited${eventIdx ? ", EVENT_IDX" : ""}`, () => {
    const bits = [VERSION_1, RING_RESET, ...(eventIdx ? [EVENT_IDX] : [])];
    let at = new PciDriver();
    const rings = at.start(bits);
    const features = at.device.started;
    for (let round = 0; round < 40; round++) {
      const ring = rings[round % 2]!;
      at.pci.hold!();
      const head = ask(ring);
      // A device that holds may be told, or not.
      if (round % 3 === 0) at.kick(round % 2);
      settle(at);
      const before = registers(at);
      const to = moved(at);
      assertEquals(registers(to), before);
      assertEquals(settle(to), [], "not before it is started");
      assertEquals(to.device.started!.toString(), features!.toString());
      to.pci.start();
      settle(to);
      assertEquals(ring.collect().map(({ id }) => id), [head]);
      assert(
        eventIdx ? ring.availEvent === ring.availIdx : ring.usedFlags === 0,
        "the driver is asked to notify",
      );
      at = to;
    }
    assertEquals(at.pci.counters().kicks, 14);
    assertEquals(at.device.events.filter((it) => it === "load"), ["load"]);
  });
}

Deno.test("VirtioPci asks a driver again that was told to be silent where the device was before", () => {
  const from = new PciDriver();
  const [ring] = from.start();
  from.pci.session.queues[0]!.disableNotifications();
  assertEquals(ring!.usedFlags, 1);
  const to = moved(from);
  to.pci.start();
  settle(to);
  assertEquals(ring!.usedFlags, 0);
});

Deno.test("VirtioPci tells its model to pause and hold before it starts it on loading", () => {
  const from = new PciDriver();
  from.start();
  from.device.config[2] = 0x77;
  const to = moved(from);
  assertEquals(to.device.events, ["pause", "start 0,1", "load"]);
  assertEquals(to.r8(DEVICE + 2), 0x77);
  to.pci.start();
  settle(to);
  assertEquals(to.device.events.slice(3), ["resume", "notify 0", "notify 1"]);
});

Deno.test("VirtioPci that holds can be reset and started by its driver", () => {
  const driver = new PciDriver();
  driver.start();
  driver.pci.hold!();
  const [ring] = driver.start();
  ask(ring!);
  driver.kick(0);
  assertEquals(settle(driver), []);
  const to = moved(driver);
  to.pci.start();
  assertEquals(settle(to), [1]);
  assertEquals(ring!.collect().length, 1);
});

Deno.test("VirtioPci that holds keeps holding when the ring format changes", () => {
  const driver = new PciDriver({
    ringFeatures: ringFeatures({ ...VIRTIO_DEFAULTS, packed: true }),
  });
  driver.pci.hold!();
  assert(driver.negotiate([VERSION_1, RING_PACKED]));
  const addresses = driver.setupQueue(0, { size: 8 }).places;
  driver.driverOk();
  const queue = driver.pci.session.queues[0]!;
  assert(queue.save().format === "packed" && queue.enabled);
  const { desc, avail: at, used: device } = addresses;
  const places = { desc, driver: at, device };
  const ring = new NaivePackedRing(driver.buffer, BASE, 8, places);
  ring.add([IN, OUT]);
  assertEquals(settle(driver), []);
  assertEquals(queue.pop(new Chain(driver.context.memory, 8)), 0);
  const to = moved(driver);
  assertEquals(to.pci.session.queues[0]!.save().format, "packed");
  assertEquals(settle(to), []);
  to.pci.start();
  assertEquals(settle(to), [1]);
  assertEquals(ring.collect().length, 1);
  // And back again.
  to.pci.hold!();
  const [split] = to.start();
  ask(split!);
  assertEquals(settle(to), []);
  assertEquals(
    to.pci.session.queues[0]!.pop(new Chain(to.context.memory, 8)),
    0,
  );
  to.pci.start();
  assertEquals(settle(to), [1]);
});

Deno.test("VirtioPci is as it was in every state that a driver can leave it in", () => {
  const states: Record<string, (driver: PciDriver) => void> = {
    "reset": () => {},
    "acknowledged": (driver) => driver.w8(REG.status, 3),
    "features half written": (driver) => {
      driver.w8(REG.status, 3);
      driver.w32(REG.deviceFeatureSelect, 1);
      for (const word of [1, 2]) {
        driver.w32(REG.driverFeatureSelect, word);
        driver.w32(REG.driverFeature, 1);
      }
    },
    "queues enabled": (driver) => {
      driver.negotiate([VERSION_1]);
      driver.setupQueue(1, { size: 8, vector: 2 });
    },
    "a queue set up halfway": (driver) => {
      driver.negotiate([VERSION_1]);
      driver.w16(REG.queueSelect, 1);
      driver.w16(REG.queueSize, 4);
      driver.w32(REG.queueDesc + 4, 0xffff_ffff);
      driver.w16(REG.queueVector, 1);
    },
    "FAILED": (driver) => {
      driver.start();
      driver.w8(REG.status, 15 | STATUS.FAILED);
    },
    "NEEDS_RESET": (driver) => {
      driver.start();
      driver.device.transport.fail("it is a bad driver");
    },
    "NEEDS_RESET before DRIVER_OK": (driver) => {
      driver.w8(REG.status, 3);
      driver.w16(REG.queueEnable, 1);
    },
  };
  for (const [name, bring] of Object.entries(states)) {
    const from = new PciDriver();
    bring(from);
    settle(from);
    const before = registers(from);
    const status = from.status;
    const to = moved(from);
    assertEquals(registers(to), before, name);
    to.pci.start();
    to.kick(0);
    to.kick(1);
    assertEquals(settle(to), [], name);
    assertEquals(to.status, status, name);
    assertEquals(
      to.device.events.filter((it) => it.startsWith("notify")),
      [],
      name,
    );
    if (name === "features half written") {
      // A feature above 63 was accepted, which makes FEATURES_OK fail.
      to.w8(REG.status, 11);
      assertEquals(to.status, 3);
    }
    const [ring] = to.start();
    ask(ring!);
    to.kick(0);
    assertEquals(settle(to), [1], name);
  }
});

Deno.test("VirtioPci that halted can be moved although the driver waits for chains", () => {
  const from = new PciDriver();
  const [ring] = from.start();
  from.device.keeps = true;
  ask(ring!);
  from.kick(0);
  settle(from);
  from.device.transport.fail("it is a bad driver");
  assertEquals(from.pci.hold!(), 1, "the model still has it");
  from.device.complete(from.pci.session.queues[0]!);
  assertEquals(from.pci.hold!(), 0);
  const to = moved(from);
  assertEquals(to.status & STATUS.NEEDS_RESET, STATUS.NEEDS_RESET);
  to.pci.start();
  settle(to);
  assertEquals(ring!.usedIdx, 0);
});

Deno.test("VirtioPci sends where it goes on what it owed", () => {
  const from = new PciDriver();
  from.start();
  from.r8(REG.configGeneration);
  const generation = () => {
    from.r8(DEVICE);
    return from.r8(REG.configGeneration);
  };
  const before = generation();
  from.pci.stop();
  const { queues } = from.pci.session;
  from.device.transport.interrupt(queues[1]!);
  from.device.transport.configChanged();
  const to = moved(from);
  assertEquals(settle(to), []);
  to.pci.start();
  assertEquals(settle(to).toSorted(), [0, 2]);
  to.r8(DEVICE);
  assertEquals(to.r8(REG.configGeneration), before + 1);
  to.pci.stop();
  to.pci.start();
  assertEquals(settle(to), []);
});

Deno.test("VirtioPci keeps the ISR status", () => {
  const from = new PciDriver();
  from.context.interrupts.mode = "intx";
  const [ring] = from.start();
  ask(ring!);
  from.kick(0);
  settle(from);
  from.device.transport.configChanged();
  const to = moved(from);
  to.pci.start();
  assertEquals(to.r8(ISR), 3);
  assertEquals(to.r8(ISR), 0);
});

Deno.test("VirtioPci touches nothing of the guest's before it is started", () => {
  const from = new PciDriver();
  from.start([VERSION_1, EVENT_IDX]);
  const state = saved(from);
  const bytes = new Uint8Array(from.buffer);
  // The event words among them.
  bytes.fill(0xee);
  const to = from.sibling();
  to.pci.load!(state);
  to.pci.session.beginPolling();
  to.pci.session.endPolling();
  to.kick(0);
  settle(to);
  assert(bytes.every((byte) => byte === 0xee));
  to.pci.close();
});

Deno.test("VirtioPci touches nothing of the guest's after it handed over", () => {
  const from = new PciDriver();
  const [ring] = from.start([VERSION_1, EVENT_IDX]);
  const queue = from.pci.session.queues[0]!;
  saved(from);
  using bag = ResourceBag.of();
  from.pci.handOver(bag);
  ask(ring!);
  const bytes = new Uint8Array(from.buffer).slice();
  from.pci.session.endPolling();
  assertEquals(queue.endPolling(), false);
  from.kick(0);
  settle(from);
  from.pci.close();
  assertEquals(new Uint8Array(from.buffer), bytes);
});

/** Every way to spoil one value of a structure, and where. */
function* spoiled(value: unknown, path = ""): Generator<[string, unknown]> {
  if (Array.isArray(value)) {
    yield [path, null];
    for (let i = 0; i < value.length; i++) {
      for (const [where, bad] of spoiled(value[i], `${path}[${i}]`)) {
        yield [where, value.with(i, bad)];
      }
    }
    return;
  }
  if (typeof value === "object" && value !== null) {
    yield [path, null];
    yield [path, 7];
    for (const [name, field] of Object.entries(value)) {
      const { [name]: _, ...others } = value as Record<string, unknown>;
      yield [`${path}.${name} left out`, others];
      for (const [where, bad] of spoiled(field, `${path}.${name}`)) {
        yield [where, { ...value, [name]: bad }];
      }
    }
    return;
  }
  const bad = typeof value === "number" ? [-1, 0.5, 2 ** 53, "1", NaN] : [0];
  for (const other of [...bad, undefined]) {
    yield [`${path} = ${other}`, other];
  }
}

Deno.test("VirtioPci.load refuses what cannot be", () => {
  const from = new PciDriver();
  from.start();
  from.pci.stop();
  from.device.transport.interrupt(from.pci.session.queues[1]!);
  const sessionOf = (state: unknown) =>
    (state as Partial<DeviceState<Partial<State>>> | null)?.body?.session
      ?.body as { device?: unknown } | undefined | null;
  const state = saved(from);
  // That is the model's to check.
  delete sessionOf(state)!.device;
  let count = 0;
  for (const [where, bad] of spoiled(state)) {
    // Another version may not have counted it.
    if (/\.counters\.\w+ left out$/.test(where)) continue;
    const session = sessionOf(bad);
    if (session !== null && typeof session === "object") {
      session.device = { kind: "echo", version: 1, body: { config: [] } };
    }
    assertThrows(
      () => from.sibling().pci.load!(bad),
      Error,
      "Cannot load",
      where,
    );
    delete session?.device;
    count++;
  }
  assert(count > 200, `${count}`);
});

Deno.test("VirtioPci.load refuses the state of a device that differs", () => {
  const from = new PciDriver();
  from.start([VERSION_1, EVENT_IDX]);
  const state = saved(from);
  assertThrows(
    () =>
      from.sibling({
        ringFeatures: ringFeatures({ ...VIRTIO_DEFAULTS, eventIdx: false }),
      }).pci.load!(state),
    Error,
    "Cannot load the virtio device: the driver had accepted",
  );
  assertThrows(
    () => from.sibling({ vectors: 2 }).pci.load!(state),
    Error,
    "it uses vector 2, there are 2 here",
  );
  const one = new PciDriver({}, [8]);
  assertThrows(
    () => one.pci.load!(state),
    Error,
    "has 2 of queues, 1 are wanted",
  );
});

const rings: [
  string,
  () => { queue: Ring; load: (state: unknown) => number },
][] = [
  ["SplitRing", () => {
    const { queue, features } = fixture();
    return { queue, load: (it) => queue.load(features, it as never) };
  }],
  ["PackedRing", () => {
    const { queue, features } = packedFixture();
    return { queue, load: (it) => queue.load(features, it as never) };
  }],
];

for (const [name, make] of rings) {
  Deno.test(`${name}.load checks a ring as enable does, and where it stands`, () => {
    const good = make().queue.save();
    const bad: [Record<string, unknown>, RegExp][] = [
      [{ size: 16 }, /queue size 16/],
      [{ size: 0 }, /queue size 0/],
      [{ descIova: good.descIova + 1 }, /is not aligned/],
      [{ availIova: good.availIova + 1 }, /is not aligned/],
      [{ usedIova: good.usedIova + 1 }, /is not aligned/],
      [{ usedIova: Number.MAX_SAFE_INTEGER - 3 }, /ends above 2\^53-1/],
      good.format === "split"
        ? [{ usedIdx: 3 }, /indices 0 and 3 are further apart/]
        : [{ usedAt: 8 }, /descriptors 0 and 8 do not exist/],
      [
        { format: good.format === "split" ? "packed" : "split" },
        /queue was saved, this is a/,
      ],
    ];
    for (const [change, message] of bad) {
      const { queue, load } = make();
      assertEquals(load({ ...good, ...change }), -22);
      assert(message.test(queue.lastError), queue.lastError);
      assert(!queue.enabled);
    }
    const { queue, load } = make();
    assertEquals(load({ ...good, enabled: false }), 0);
    assert(!queue.enabled);
    assertEquals(load(good), 0);
    assert(queue.enabled && queue.outstanding === 0);
  });
}

Deno.test("Ring.load knows whether the driver was told to be silent", () => {
  const split = fixture();
  split.queue.disableNotifications();
  assertEquals(split.ring.usedFlags, 1);
  const one = createQueue(split.memory, 3, 8);
  assertEquals(one.load(split.features, split.queue.save()), 0);
  assert(!one.enableNotifications());
  assertEquals(split.ring.usedFlags, 0);
  const packed = packedFixture();
  packed.queue.disableNotifications();
  assertEquals(packed.ring.deviceEvent[0], 1);
  const other = createQueue(packed.memory, 3, 8);
  assertEquals(other.load(packed.features, packed.queue.save()), 0);
  assert(!other.enableNotifications());
  assertEquals(packed.ring.deviceEvent[0], 0);
});

Deno.test("Ring.load does not touch memory, which may not be there yet", () => {
  const at = fixture();
  const state = at.queue.save();
  at.memory.unmapAll();
  const queue = createQueue(at.memory, 3, 8);
  assertEquals(queue.load(at.features, state), 0);
  assertEquals(queue.pop(at.chain), 0);
  assert(!queue.resolved);
});
