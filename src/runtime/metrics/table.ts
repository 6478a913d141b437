/**
 * Counters as they are shown: the declarations of all that counts, by the names that arrive here.
 *
 * @module
 */

import {
  counter,
  type CounterTable,
  gauge,
  info,
  type MetricShape,
  type Shown,
} from "../../core/counters.ts";
import { BLOCK_DRIVERS } from "../../backend/block/options.ts";
import { NET_DRIVERS } from "../../backend/net/options.ts";
import { CONNECTION_COUNTERS } from "../../transport/vfio_user/counters.ts";
import { SESSION_COUNTERS } from "../../virtio/session/queues.ts";
import { BLK_COUNTERS } from "../../../devices/virtio_blk/counters.ts";
import {
  NET_COUNTERS,
  PAIR_COUNTERS,
} from "../../../devices/virtio_net/counters.ts";
import { NVME_COUNTERS } from "../../../devices/nvme/counters.ts";

/** Families whose values are made here. The names of the process are those of all Prometheus clients. */
export const METRIC_FAMILIES = {
  build: info("build", "What runs"),
  device: info("device", "Which devices there are, and how they are set up"),
  connected: gauge("device_connected", "Whether a client is connected"),
  up: gauge("iothread_up", "Whether the IOThread answers"),
  cpuSeconds: {
    name: "process_cpu_seconds",
    help: "User and system CPU time spent",
    type: "counter",
    unit: "seconds",
  },
  residentBytes: {
    name: "process_resident_memory_bytes",
    help: "Resident memory, shared guest memory included",
    type: "gauge",
    unit: "bytes",
  },
  openFds: {
    name: "process_open_fds",
    help: "Open file descriptors",
    type: "gauge",
    unit: "",
  },
  startTime: {
    name: "process_start_time_seconds",
    help: "When the process started, since the epoch",
    type: "gauge",
    unit: "seconds",
  },
} as const satisfies Record<string, MetricShape>;

const DEVICE_OTHERS = counter(
  "device_others",
  "What else a device model counts, by the name it gives it",
);
const BACKEND_OTHERS = counter(
  "backend_others",
  "What else a back end counts, by the name it gives it",
);

const DEVICES: CounterTable = {
  ...SESSION_COUNTERS,
  ...NET_COUNTERS,
  ...BLK_COUNTERS,
  ...NVME_COUNTERS,
};
const BACKENDS: CounterTable = Object.assign(
  {},
  ...[BLOCK_DRIVERS, NET_DRIVERS].flatMap((drivers) =>
    Object.values(drivers).map(({ counters }) => counters)
  ),
);

type Labels = Readonly<Record<string, string>>;

function find(
  table: CounterTable,
  name: string,
  labels: Labels = {},
): Shown {
  const shown = Object.hasOwn(table, name) ? table[name]! : null;
  return shown && [shown[0], { ...labels, ...shown[1] }];
}

/**
 * The family and the labels of a counter. Names with a dot are of a part of the device: `backend.`, `nsN.` (the storage of
 * a namespace) and `pairN.`. One that nobody declares is shown by its name.
 */
export function shownAs(
  scope: "connection" | "device",
  name: string,
): NonNullable<Shown> {
  if (scope === "connection") {
    return find(CONNECTION_COUNTERS, name) ?? [DEVICE_OTHERS, { name }];
  }
  const [, part, number, rest = name] =
    /^(backend|ns|pair)(\d*)\.(.+)$/.exec(name) ?? [];
  if (part === undefined || part === "pair") {
    const labels: Labels = part === undefined ? {} : { pair: number! };
    const table = part === undefined ? DEVICES : PAIR_COUNTERS;
    return find(table, rest, labels) ?? [DEVICE_OTHERS, { name }];
  }
  const labels: Labels = part === "ns" ? { namespace: number! } : {};
  return find(BACKENDS, rest, labels) ??
    [BACKEND_OTHERS, { ...labels, name: rest }];
}
