import { Counters } from "../../src/core/counters.ts";
import { assert, assertEquals, assertMatch } from "@std/assert";
import type { LoopCounters } from "../../src/loop/event_loop.ts";
import {
  type DeviceMetrics,
  type MetricsSnapshot,
  takeSnapshot,
} from "../../src/runtime/metrics/metrics.ts";
import {
  formatMetrics,
  MetricsFormat,
} from "../../src/runtime/metrics/text.ts";
import { shownAs } from "../../src/runtime/metrics/table.ts";
import { BLK_COUNTERS } from "../../devices/virtio_blk/counters.ts";
import { NET_COUNTERS } from "../../devices/virtio_net/counters.ts";
import { NVME_COUNTERS } from "../../devices/nvme/counters.ts";
import { PciDriver } from "../transport/virtio_pci/pci_fixture.ts";

const LOOP: LoopCounters = {
  turns: 1,
  wakeUps: 2,
  events: 3,
  sleeps: 4,
  sleptSeconds: 0.25,
  awakeSeconds: 1.5,
  pollHits: 5,
  pollMisses: 6,
  pollRounds: 7,
};

function deviceMetrics(parts: Partial<DeviceMetrics>): DeviceMetrics {
  return {
    id: "d0",
    model: "m",
    connected: true,
    info: {},
    connection: {},
    device: {},
    memory: { ranges: 2, lengthBytes: 8192 },
    ...parts,
  };
}

/** `name{label=value,…} value` of every sample whose family begins so. */
function samples(snapshot: MetricsSnapshot, prefix: string): string[] {
  return snapshot.families.filter(({ name }) => name.startsWith(prefix))
    .flatMap((family) =>
      family.samples.map(({ labels, value }) =>
        `${family.name}{${
          Object.entries(labels).map((pair) => pair.join("=")).join(",")
        }} ${value}`
      )
    );
}

function snapshotOf(...devices: Partial<DeviceMetrics>[]): MetricsSnapshot {
  return takeSnapshot([{ loop: LOOP, devices: devices.map(deviceMetrics) }]);
}

Deno.test("takeSnapshot gives the counters of each IOThread its number", () => {
  const snapshot = takeSnapshot([
    { loop: LOOP, devices: [] },
    { loop: { ...LOOP, turns: 9 }, devices: [] },
  ]);
  assertEquals(samples(snapshot, "outboard_iothread_turns"), [
    "outboard_iothread_turns{iothread=0} 1",
    "outboard_iothread_turns{iothread=1} 9",
  ]);
  assertEquals(samples(snapshot, "outboard_iothread_sleep_seconds"), [
    "outboard_iothread_sleep_seconds{iothread=0} 0.25",
    "outboard_iothread_sleep_seconds{iothread=1} 0.25",
  ]);
  assertEquals(
    samples(snapshot, "outboard_iothread").length,
    2 * (Object.keys(LOOP).length + 1),
  );
});

Deno.test("takeSnapshot tells of an IOThread that does not answer nothing but that", () => {
  const snapshot = takeSnapshot([null, { loop: LOOP, devices: [] }]);
  assertEquals(samples(snapshot, "outboard_iothread_up"), [
    "outboard_iothread_up{iothread=0} 0",
    "outboard_iothread_up{iothread=1} 1",
  ]);
  assertEquals(samples(snapshot, "outboard_iothread_turns"), [
    "outboard_iothread_turns{iothread=1} 1",
  ]);
});

Deno.test("takeSnapshot tells where a device is and how it is set up", () => {
  const snapshot = snapshotOf({ info: { doorbells: "mmap" } });
  const [device] = snapshot.families.filter(({ name }) =>
    name === "outboard_device"
  );
  assertEquals(device!.type, "info");
  assertEquals(device!.samples, [{
    labels: { device: "d0", model: "m", iothread: "0", doorbells: "mmap" },
    value: 1,
  }]);
  assertEquals(
    samples(snapshot, "outboard_device_dma").concat(
      samples(snapshot, "outboard_device_connected"),
    ),
    [
      "outboard_device_dma_mapped_bytes{device=d0,model=m} 8192",
      "outboard_device_dma_maps{device=d0,model=m} 2",
      "outboard_device_connected{device=d0,model=m} 1",
    ],
  );
});

Deno.test("takeSnapshot lets no model from outside spoil the metrics of the others", () => {
  const info = {
    device: "other",
    iothread: "9",
    "a-b": "1",
    "a.b": "2",
    __name__: "up",
    queues: 4 as unknown as string,
  };
  const device = { nan: NaN, less: -1, text: "x" as unknown as number, it: 3 };
  const snapshot = snapshotOf({ info, device });
  assertEquals(samples(snapshot, "outboard_device_others"), [
    "outboard_device_others{device=d0,model=m,name=it} 3",
  ]);
  for (const format of Object.values(MetricsFormat)) {
    const lines = formatMetrics(snapshot, format).split("\n");
    assertEquals(lines.filter((it) => it.startsWith("outboard_device_info{")), [
      'outboard_device_info{device="d0",model="m",iothread="0",a_b="1",_name__="up",queues="4"} 1',
    ]);
  }
});

Deno.test("takeSnapshot sorts counters into families with labels", () => {
  const snapshot = snapshotOf({
    connection: { interrupts: 3, regionReads: 4 },
    device: {
      interrupts: 5,
      messageKicks: 6,
      pageKicks: 7,
      "pair3.txBytes": 8,
      "ns2.reads": 9,
      "backend.oddity": 10,
    },
  });
  const at = "device=d0,model=m";
  assertEquals([
    ...samples(snapshot, "outboard_connection"),
    ...samples(snapshot, "outboard_device_interrupts"),
    ...samples(snapshot, "outboard_device_kicks"),
    ...samples(snapshot, "outboard_device_pair"),
    ...samples(snapshot, "outboard_backend"),
  ], [
    `outboard_connection_interrupts{${at}} 3`,
    `outboard_connection_region_accesses{${at},op=read} 4`,
    `outboard_device_interrupts{${at},kind=queue} 5`,
    `outboard_device_kicks{${at},path=message} 6`,
    `outboard_device_kicks{${at},path=page} 7`,
    `outboard_device_pair_transfer_bytes{${at},pair=3,direction=transmit} 8`,
    `outboard_backend_others{${at},name=oddity} 10`,
    `outboard_backend_requests{${at},namespace=2,op=read} 9`,
  ]);
});

Deno.test("takeSnapshot loses no counter of a model from outside, and adds up what would be told twice", () => {
  const device: Record<string, unknown> = {
    brewed: 4,
    constructor: 5,
    errors: 1,
    failedCommands: 2,
    label: "x",
  };
  const snapshot = snapshotOf({
    device: device as Record<string, number>,
    connection: { oddity: 6 },
  });
  assertEquals(samples(snapshot, "outboard_device_others").sort(), [
    "outboard_device_others{device=d0,model=m,name=brewed} 4",
    "outboard_device_others{device=d0,model=m,name=constructor} 5",
    "outboard_device_others{device=d0,model=m,name=oddity} 6",
  ]);
  assertEquals(samples(snapshot, "outboard_device_errors"), [
    "outboard_device_errors{device=d0,model=m,kind=request} 3",
  ]);
});

Deno.test("shownAs knows every counter of the built-in models", () => {
  const names = [
    ...Object.keys(new Counters(NET_COUNTERS).toRecord()),
    ...Object.keys(new Counters(BLK_COUNTERS).toRecord()),
    ...Object.keys(new Counters(NVME_COUNTERS).toRecord()),
    ...Object.keys(new PciDriver().pci.session.counters()),
  ];
  assert(names.length > 40);
  assertEquals(
    names.filter((name) =>
      shownAs("device", name)[0].name === "outboard_device_others"
    ),
    [],
  );
});

const SNAPSHOT: MetricsSnapshot = {
  families: [
    {
      name: "outboard_x_bytes",
      help: 'back\\slash, "quote"\nline',
      type: "counter",
      unit: "bytes",
      samples: [
        { labels: { device: 'a"b\\c\nd', "odd-name": "e" }, value: 3 },
        { labels: {}, value: Infinity },
      ],
    },
    {
      name: "outboard_y",
      help: "y",
      type: "info",
      unit: "",
      samples: [{ labels: { "9": "f" }, value: 1 }],
    },
    {
      name: "outboard_z",
      help: "z",
      type: "gauge",
      unit: "",
      samples: [{ labels: {}, value: 0.5 }, { labels: { n: "" }, value: NaN }],
    },
  ],
};

Deno.test("formatMetrics writes OpenMetrics 1.0", () => {
  assertEquals(
    formatMetrics(SNAPSHOT, MetricsFormat.OPENMETRICS),
    `\
# TYPE outboard_x_bytes counter
# UNIT outboard_x_bytes bytes
# HELP outboard_x_bytes back\\\\slash, \\"quote\\"\\nline
outboard_x_bytes_total{device="a\\"b\\\\c\\nd",odd_name="e"} 3
outboard_x_bytes_total +Inf
# TYPE outboard_y info
# HELP outboard_y y
outboard_y_info{_9="f"} 1
# TYPE outboard_z gauge
# HELP outboard_z z
outboard_z 0.5
outboard_z{n=""} NaN
# EOF
`,
  );
});

Deno.test("formatMetrics writes the text format of Prometheus", () => {
  assertEquals(
    formatMetrics(SNAPSHOT, MetricsFormat.PROMETHEUS),
    `\
# TYPE outboard_x_bytes_total counter
# HELP outboard_x_bytes_total back\\\\slash, "quote"\\nline
outboard_x_bytes_total{device="a\\"b\\\\c\\nd",odd_name="e"} 3
outboard_x_bytes_total +Inf
# TYPE outboard_y_info gauge
# HELP outboard_y_info y
outboard_y_info{_9="f"} 1
# TYPE outboard_z gauge
# HELP outboard_z z
outboard_z 0.5
outboard_z{n=""} NaN
# EOF
`,
  );
});

Deno.test("a snapshot obeys the rules of OpenMetrics for names", () => {
  const snapshot = snapshotOf({
    device: {
      ...new Counters(NET_COUNTERS).toRecord(),
      ...new Counters(BLK_COUNTERS).toRecord(),
      ...new Counters(NVME_COUNTERS).toRecord(),
      ...new PciDriver().pci.session.counters(),
      "backend.oddity": 1,
      "backend.reads": 1,
      "backend.sockets": 1,
      brewed: 1,
    },
  });
  const seen = new Set<string>();
  for (const { name, unit, type, samples } of snapshot.families) {
    assertMatch(name, /^(outboard|process)(_[a-z]+)+$/);
    assert(!/_(total|info|count|sum|bucket|created)$/.test(name), name);
    // As promtool has it: a name says neither the type nor a unit that is no base unit, nor is it short for another.
    assert(
      !/(^|_)(counter|gauge|histogram|summary|info|untyped)(_|$)/.test(name),
      name,
    );
    assert(
      !/_(ms|us|ns|s|sec|milliseconds|microseconds|nanoseconds|minutes|b|kb|kib|mb|mib|percent)(_|$)/
        .test(name),
      name,
    );
    assert(unit === "" || name.endsWith(`_${unit}`), name);
    assert(type !== "info" || samples.every(({ value }) => value === 1));
    assert(!seen.has(name), name);
    seen.add(name);
    const labels = samples.map((it) => JSON.stringify(it.labels));
    assertEquals(new Set(labels).size, labels.length, name);
  }
});
