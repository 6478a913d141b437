import { assert, assertEquals, assertThrows } from "@std/assert";
import {
  closeFd,
  createEventFd,
  createMemfd,
  drainEventFd,
  type Fd,
  isOpen,
  signalEventFd,
} from "../../../src/os/mod.ts";
import { ResourceBag } from "../../../src/os/mod.ts";
import type { IrqsState } from "../../../src/transport/vfio_user/client_state.ts";
import { Irqs } from "../../../src/transport/vfio_user/irqs.ts";
import { concat, message, type RawClient, words } from "./raw_client.ts";
import { openFds, Rig } from "./rig.ts";

const EINVAL = 22;
const EOPNOTSUPP = 95;

const NONE = 1;
const BOOL = 2;
const EVENTFD = 4;
const MASK = 8;
const UNMASK = 16;
const TRIGGER = 32;

const INTX = 0;
const MSI = 1;
const MSIX = 2;
const ERR = 3;
const REQ = 4;

interface SetArguments {
  flags: number;
  index: number;
  start?: number;
  count?: number;
  argsz?: number;
  data?: number[];
}

function set(
  rig: Rig,
  client: RawClient,
  args: SetArguments,
  ...fds: Fd[]
): number {
  const { flags, index, start = 0, count = 1, data = [] } = args;
  const argsz = args.argsz ?? 20 + data.length;
  const payload = words(argsz, flags, index, start, count);
  const reply = client.request(
    rig.loop,
    message(8, concat(payload, new Uint8Array(data))),
    fds.map(({ number }) => number),
  );
  assertEquals(reply.payload.byteLength, 0);
  return reply.errno;
}

/** Finds a capability in configuration space and sets bits of its control word. */
function enable(rig: Rig, client: RawClient, id: number, bits: number): void {
  const config = client.request(rig.loop, message(9, words(0n, 7, 256)))
    .payload;
  let at = config.getUint8(16 + 0x34);
  while (at !== 0 && config.getUint8(16 + at) !== id) {
    at = config.getUint8(16 + at + 1);
  }
  assert(at !== 0, "the capability is there");
  const control = config.getUint16(16 + at + 2, true) | bits;
  const bytes = new Uint8Array([control & 0xff, control >> 8]);
  const write = message(10, concat(words(BigInt(at + 2), 7, 2), bytes));
  assertEquals(client.request(rig.loop, write).errno, 0);
}

function enableMsix(rig: Rig, client: RawClient): void {
  enable(rig, client, 0x11, 0x8000);
  for (let vector = 0; vector < 8; vector++) {
    const at = BigInt(vector * 16 + 12);
    const write = message(10, concat(words(at, 4, 4), words(0)));
    assertEquals(client.request(rig.loop, write).errno, 0);
  }
}

Deno.test("DEVICE_GET_IRQ_INFO describes every index", () => {
  using rig = new Rig();
  using client = rig.client();
  const expected = [[7, 1], [3, 4], [3, 8], [1, 1], [1, 0]];
  for (let index = 0; index < 5; index++) {
    const { errno, payload } = client.request(
      rig.loop,
      message(7, words(16, 0, index, 0)),
    );
    assertEquals(errno, 0);
    assertEquals(payload.byteLength, 16);
    assertEquals(payload.getUint32(0, true), 16);
    assertEquals([
      payload.getUint32(4, true),
      payload.getUint32(12, true),
    ], expected[index]);
    assertEquals(payload.getUint32(8, true), index);
  }
});

Deno.test("DEVICE_GET_IRQ_INFO refuses short requests and unknown indices", () => {
  using rig = new Rig();
  using client = rig.client();
  const payloads = [
    words(),
    words(16, 0, 0),
    words(15, 0, 0, 0),
    words(16, 0, 5, 0),
    words(16, 0, 0xffff_ffff, 0),
  ];
  for (const payload of payloads) {
    const reply = client.request(rig.loop, message(7, payload));
    assertEquals(reply.errno, EINVAL);
  }
});

Deno.test("DEVICE_SET_IRQS refuses what is not sound and keeps no descriptor", () => {
  using rig = new Rig();
  using client = rig.client();
  using fd = createEventFd();
  using file = createMemfd("test", 4096);
  const before = openFds();
  const cases: [string, SetArguments, Fd[], number][] = [
    ["argsz", { flags: NONE | TRIGGER, index: MSIX, argsz: 19 }, [], EINVAL],
    ["index", { flags: NONE | TRIGGER, index: 5 }, [], EINVAL],
    [
      "an index without vectors",
      { flags: NONE | TRIGGER, index: REQ },
      [],
      EINVAL,
    ],
    ["no action", { flags: NONE, index: MSIX }, [], EINVAL],
    ["two actions", { flags: NONE | MASK | UNMASK, index: MSIX }, [], EINVAL],
    ["no data", { flags: MASK, index: MSIX }, [], EINVAL],
    [
      "two kinds of data",
      { flags: NONE | BOOL | MASK, index: MSIX, data: [1] },
      [],
      EINVAL,
    ],
    ["unknown flag", { flags: NONE | MASK | 64, index: MSIX }, [], EINVAL],
    ["start", { flags: NONE | MASK, index: MSIX, start: 8 }, [], EINVAL],
    [
      "range",
      { flags: NONE | MASK, index: MSIX, start: 7, count: 2 },
      [],
      EINVAL,
    ],
    [
      "range that wraps",
      { flags: NONE | MASK, index: MSIX, start: 7, count: 0xffff_fffa },
      [],
      EINVAL,
    ],
    ["mask of ERR", { flags: NONE | MASK, index: ERR }, [], EINVAL],
    ["two of ERR", { flags: NONE | TRIGGER, index: ERR, count: 2 }, [], EINVAL],
    [
      "count 0 with a start",
      { flags: NONE | TRIGGER, index: MSIX, start: 1, count: 0 },
      [],
      EINVAL,
    ],
    [
      "count 0 to mask",
      { flags: NONE | MASK, index: MSIX, count: 0 },
      [],
      EINVAL,
    ],
    [
      "count 0 with bools",
      { flags: BOOL | TRIGGER, index: MSIX, count: 0 },
      [],
      EINVAL,
    ],
    [
      "count 0 with eventfds",
      { flags: EVENTFD | TRIGGER, index: MSIX, count: 0 },
      [],
      EINVAL,
    ],
    [
      "too few bools",
      { flags: BOOL | TRIGGER, index: MSIX, count: 2, data: [1] },
      [],
      EINVAL,
    ],
    [
      "too many bools",
      { flags: BOOL | TRIGGER, index: MSIX, count: 2, data: [1, 1, 1] },
      [],
      EINVAL,
    ],
    [
      "descriptor with bools",
      { flags: BOOL | TRIGGER, index: MSIX, data: [1] },
      [fd],
      EINVAL,
    ],
    [
      "descriptor with nothing",
      { flags: NONE | TRIGGER, index: MSIX },
      [fd],
      EINVAL,
    ],
    [
      "too few descriptors",
      { flags: EVENTFD | TRIGGER, index: MSIX, count: 2 },
      [fd],
      EINVAL,
    ],
    ["too many descriptors", { flags: EVENTFD | TRIGGER, index: MSIX }, [
      fd,
      fd,
    ], EINVAL],
    [
      "a file",
      { flags: EVENTFD | TRIGGER, index: MSIX, count: 2 },
      [fd, file],
      EINVAL,
    ],
    [
      "a file to unmask by",
      { flags: EVENTFD | UNMASK, index: INTX },
      [file],
      EINVAL,
    ],
    [
      "eventfd to mask",
      { flags: EVENTFD | MASK, index: INTX },
      [fd],
      EOPNOTSUPP,
    ],
    [
      "eventfd to unmask MSI",
      { flags: EVENTFD | UNMASK, index: MSI },
      [fd],
      EOPNOTSUPP,
    ],
  ];
  for (const [what, args, fds, errno] of cases) {
    assertEquals(set(rig, client, args, ...fds), errno, what);
    assertEquals(openFds(), before, what);
  }
  for (let length = 0; length < 20; length += 4) {
    const short = words(20, NONE | MASK, MSIX, 0, 1).slice(0, length);
    assertEquals(client.request(rig.loop, message(8, short)).errno, EINVAL);
  }
});

Deno.test("DEVICE_SET_IRQS assigns, replaces and takes back eventfds", () => {
  using rig = new Rig();
  using client = rig.client();
  enableMsix(rig, client);
  using a = createEventFd();
  using b = createEventFd();
  using c = createEventFd();
  const before = openFds();
  const assign = { flags: EVENTFD | TRIGGER, index: MSIX };
  assertEquals(set(rig, client, { ...assign, start: 2, count: 2 }, a, b), 0);
  assertEquals(openFds(), before + 2);
  rig.interrupts.raise(2);
  rig.interrupts.raise(3);
  rig.interrupts.raise(3);
  assertEquals([a, b].map(({ number }) => drainEventFd(number)), [1, 2]);
  assertEquals(set(rig, client, { ...assign, start: 3 }, c), 0);
  assertEquals(openFds(), before + 2);
  rig.interrupts.raise(3);
  assertEquals([b, c].map(({ number }) => drainEventFd(number)), [0, 1]);
  // No descriptors: these vectors are de-assigned, the other stays.
  assertEquals(set(rig, client, { ...assign, start: 3 }), 0);
  assertEquals(openFds(), before + 1);
  rig.interrupts.raise(3);
  rig.interrupts.raise(2);
  assertEquals([a, c].map(({ number }) => drainEventFd(number)), [1, 0]);
  // What was raised meanwhile is delivered when there is an eventfd again.
  assertEquals(set(rig, client, { ...assign, start: 3 }, b), 0);
  assertEquals(drainEventFd(b.number), 1);
  const disable = { flags: NONE | TRIGGER, index: MSIX, count: 0 };
  assertEquals(set(rig, client, disable), 0);
  assertEquals(openFds(), before);
  assertEquals(rig.server.counters().interrupts, 6);
});

Deno.test("DEVICE_SET_IRQS refuses a set with one bad descriptor as a whole", () => {
  using rig = new Rig();
  using client = rig.client();
  enableMsix(rig, client);
  using good = createEventFd();
  using other = createEventFd();
  using file = createMemfd("test", 4096);
  const assign = { flags: EVENTFD | TRIGGER, index: MSIX, count: 2 };
  assertEquals(set(rig, client, assign, good, good), 0);
  assertEquals(set(rig, client, assign, other, file), EINVAL);
  rig.interrupts.raise(0);
  assertEquals([good, other].map((fd) => drainEventFd(fd.number)), [1, 0]);
});

Deno.test("DEVICE_SET_IRQS masks messages, which wait, and unmasks them", () => {
  using rig = new Rig();
  using client = rig.client();
  enableMsix(rig, client);
  using fd = createEventFd();
  const all = [fd, fd, fd];
  assertEquals(
    set(
      rig,
      client,
      { flags: EVENTFD | TRIGGER, index: MSIX, count: 3 },
      ...all,
    ),
    0,
  );
  const bools = { index: MSIX, count: 3, data: [1, 0, 1] };
  assertEquals(set(rig, client, { flags: BOOL | MASK, ...bools }), 0);
  for (let vector = 0; vector < 3; vector++) rig.interrupts.raise(vector);
  assertEquals(drainEventFd(fd.number), 1, "the one that is not masked");
  assertEquals(
    set(rig, client, { flags: NONE | UNMASK, index: MSIX, start: 2 }),
    0,
  );
  assertEquals(drainEventFd(fd.number), 1);
  assertEquals(
    set(rig, client, { flags: BOOL | UNMASK, ...bools }),
    0,
  );
  assertEquals(drainEventFd(fd.number), 1);
});

Deno.test("DEVICE_SET_IRQS triggers interrupts for the client to see", () => {
  using rig = new Rig();
  using client = rig.client();
  using a = createEventFd();
  using b = createEventFd();
  const two = { index: MSIX, start: 1, count: 2 };
  assertEquals(set(rig, client, { flags: EVENTFD | TRIGGER, ...two }, a, b), 0);
  assertEquals(set(rig, client, { flags: NONE | TRIGGER, ...two }), 0);
  assertEquals([a, b].map(({ number }) => drainEventFd(number)), [1, 1]);
  assertEquals(
    set(rig, client, { flags: BOOL | TRIGGER, ...two, data: [0, 1] }),
    0,
  );
  assertEquals([a, b].map(({ number }) => drainEventFd(number)), [0, 1]);
  assertEquals(
    set(rig, client, { flags: EVENTFD | TRIGGER, index: ERR }, a),
    0,
  );
  assertEquals(set(rig, client, { flags: NONE | TRIGGER, index: ERR }), 0);
  assertEquals(drainEventFd(a.number), 1);
  assertEquals(set(rig, client, { flags: NONE | TRIGGER, index: MSI }), 0);
});

Deno.test("DEVICE_SET_IRQS: MSI is delivered by its eventfds", () => {
  using rig = new Rig();
  using client = rig.client();
  enable(rig, client, 0x05, 0x21);
  using fd = createEventFd();
  assertEquals(
    set(rig, client, { flags: EVENTFD | TRIGGER, index: MSI, start: 1 }, fd),
    0,
  );
  rig.interrupts.raise(1);
  assertEquals(drainEventFd(fd.number), 1);
});

Deno.test("DEVICE_SET_IRQS: INTx masks itself and comes again after it is unmasked, while it is up", () => {
  using rig = new Rig();
  using client = rig.client();
  using fd = createEventFd();
  assertEquals(
    set(rig, client, { flags: EVENTFD | TRIGGER, index: INTX }, fd),
    0,
  );
  rig.interrupts.setLevel(true);
  assertEquals(drainEventFd(fd.number), 1);
  rig.interrupts.setLevel(false);
  rig.interrupts.setLevel(true);
  assertEquals(drainEventFd(fd.number), 0, "masked");
  const unmask = { flags: NONE | UNMASK, index: INTX };
  assertEquals(set(rig, client, unmask), 0);
  assertEquals(drainEventFd(fd.number), 1, "still up");
  rig.interrupts.setLevel(false);
  assertEquals(set(rig, client, unmask), 0);
  assertEquals(drainEventFd(fd.number), 0, "down");
  rig.interrupts.setLevel(true);
  assertEquals(drainEventFd(fd.number), 1);
});

Deno.test("DEVICE_SET_IRQS: INTx that is taken away while masked comes again when assigned", () => {
  using rig = new Rig();
  using client = rig.client();
  using fd = createEventFd();
  const assign = { flags: EVENTFD | TRIGGER, index: INTX };
  assertEquals(set(rig, client, assign, fd), 0);
  rig.interrupts.setLevel(true);
  assertEquals(drainEventFd(fd.number), 1);
  assertEquals(set(rig, client, assign), 0);
  assertEquals(set(rig, client, assign, fd), 0);
  assertEquals(drainEventFd(fd.number), 1);
});

Deno.test("DEVICE_SET_IRQS: INTx is unmasked through an eventfd", () => {
  using rig = new Rig();
  using client = rig.client();
  using fd = createEventFd();
  using resample = createEventFd();
  const before = openFds();
  const byEventFd = { flags: EVENTFD | UNMASK, index: INTX };
  set(rig, client, { flags: EVENTFD | TRIGGER, index: INTX }, fd);
  assertEquals(set(rig, client, byEventFd, resample), 0);
  assertEquals(set(rig, client, byEventFd, resample), 0, "replaced");
  assertEquals(openFds(), before + 2);
  rig.interrupts.setLevel(true);
  for (let i = 0; i < 3; i++) {
    assertEquals(drainEventFd(fd.number), 1);
    signalEventFd(resample.number);
    rig.settle();
  }
  assertEquals(drainEventFd(fd.number), 1);
  assertEquals(set(rig, client, byEventFd), 0, "taken back");
  signalEventFd(resample.number);
  rig.settle();
  assertEquals(drainEventFd(fd.number), 0);
  const disable = { flags: NONE | TRIGGER, index: INTX, count: 0 };
  assertEquals(set(rig, client, byEventFd, resample), 0);
  assertEquals(set(rig, client, disable), 0);
  assertEquals(openFds(), before);
});

Deno.test("DEVICE_SET_IRQS: interrupts end with their client and wait for the next", () => {
  using rig = new Rig();
  using fd = createEventFd();
  const first = rig.client();
  set(rig, first, { flags: EVENTFD | TRIGGER, index: INTX }, fd);
  first.close();
  rig.settle();
  rig.interrupts.setLevel(true);
  assertEquals(drainEventFd(fd.number), 0);
  using second = rig.client();
  set(rig, second, { flags: EVENTFD | TRIGGER, index: INTX }, fd);
  assertEquals(drainEventFd(fd.number), 1);
});

Deno.test("DEVICE_SET_IRQS: no eventfd is closed that another thread may be signalling", () => {
  using rig = new Rig();
  const EIO = 5;
  const assign = { flags: EVENTFD | TRIGGER, index: MSIX, start: 1 };
  const direct = new Int32Array(new SharedArrayBuffer(9 * 4)).fill(-1, 1);
  let broken = false;
  let used = -1;
  let fences = 0;
  const end = rig.interrupts.publishDirect(direct, () => {
    fences++;
    assertEquals(direct[2], -1);
    assert(isOpen(used));
    if (broken) throw new Error("a thread does not answer");
  });
  using fd = createEventFd();
  {
    using client = rig.client();
    enableMsix(rig, client);
    assertEquals(set(rig, client, assign, fd), 0);
    const first = used = direct[2]!;
    signalEventFd(first);
    assertEquals(drainEventFd(fd.number), 1);
    assertEquals(set(rig, client, assign, fd), 0);
    assertEquals([fences, isOpen(first)], [1, false]);
    used = direct[2]!;
    broken = true;
    assertEquals(set(rig, client, assign, fd), EIO);
    rig.settle();
    assertEquals(rig.clients, ["connected self", "gone self"]);
    assert(isOpen(used), "a thread may use it");
    closeFd(used);
    used = fd.number;
  }
  broken = false;
  using client = rig.client();
  enableMsix(rig, client);
  assertEquals(set(rig, client, assign, fd), 0);
  signalEventFd(direct[2]!);
  assertEquals(drainEventFd(fd.number), 1);
  used = direct[2]!;
  end();
  assertEquals([...direct.subarray(1)], new Array(8).fill(-1));
});

Deno.test("Irqs refuses what belongs to a device with other interrupts", () => {
  using rig = new Rig();
  const { loop, interrupts } = rig;
  using bag = ResourceBag.of();
  const make = (state?: IrqsState) =>
    new Irqs(
      ...[loop, rig.log(), interrupts, { interrupts: 0 }] as const,
      state && { state, bag },
    );
  const state = make().save(bag);
  assertEquals(state.masked.map(({ length }) => length), [1, 4, 8, 1, 0]);
  make(state).close();
  const masked = state.masked.with(MSIX, new Uint8Array(1));
  assertThrows(
    () => make({ masked }),
    Error,
    "Cannot take over interrupts of index 2: there were 1, there are 8",
  );
});
