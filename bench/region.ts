/**
 * Register accesses over the socket: ours against the least a server in C can be (minimal_server.c), both driven by
 * the same client in C (region_client.c), which costs so little that the server is what is measured.
 *
 * All servers run throughout and are measured in turns, the order changing from turn to turn: waking a sleeping thread
 * is most of a round trip, and takes twice as long on some days as on others. A server that polls is stopped by signal
 * while another has its turn. Figures are medians over the turns.
 *
 * C sleeps in recvmsg, and in a second process in epoll_wait: what lies between the two is the price of serving more than
 * one descriptor, not of the language.
 *
 * Each side is measured where the scheduler puts it, which for two threads that take turns to sleep tends to be one
 * core, and with client and server on a core each, as a vCPU and a device have them. A poller never shares its core, so
 * only the second place compares it with like.
 *
 * @module
 */

import { startOutboard } from "../src/testing/outboard_process.ts";
import { compileC, LineProgram } from "./c_program.ts";
import { allowedCpus, confine } from "./proc.ts";
import {
  type Baseline,
  type Figure,
  leftOut,
  median,
  ratioAtMost,
} from "./report.ts";
import { withFolder } from "./serving.ts";
import { type BenchSettings, count } from "./settings.ts";

const BAR4 = 4;
const TURNS = 9;
const WARM_UP_TRIPS = 500;
const ROUND_TRIPS = 3000;
const PIPELINE_DEPTH = 64;
const RATE_MS = 300;

/** CPUs that client and server may run on. */
interface Placement {
  readonly name: string;
  readonly clientCpus: readonly number[];
  readonly serverCpus: readonly number[];
}

/** Samples of a side in one place, one value a turn. */
interface Samples {
  readonly p50: number[];
  readonly p99: number[];
  readonly pipelined: number[];
  readonly posted: number[];
}

/** A server and the client on it. */
interface Side {
  readonly name: string;
  readonly client: LineProgram;
  readonly serverPid: number;
  /** True if it uses its core all the time, and must be stopped while others are measured. */
  readonly polls: boolean;
  /** By placement. */
  readonly samples: ReadonlyMap<Placement, Samples>;
}

function side(
  name: string,
  client: LineProgram,
  serverPid: number,
  polls = false,
): Side {
  const samples = new Map<Placement, Samples>(
    placements().map((place) => [
      place,
      { p50: [], p99: [], pipelined: [], posted: [] },
    ]),
  );
  return { name, client, serverPid, polls, samples };
}

const cpus = allowedCpus();
const PLACEMENTS: readonly Placement[] = [
  { name: "anywhere", clientCpus: cpus, serverCpus: cpus },
  {
    name: "cores apart",
    clientCpus: cpus.slice(0, 1),
    serverCpus: cpus.slice(1, 2),
  },
];

/** Those that this machine has the cores for. */
function placements(): readonly Placement[] {
  return cpus.length > 1 ? PLACEMENTS : PLACEMENTS.slice(0, 1);
}

async function turn(
  side: Side,
  place: Placement,
  settings: BenchSettings,
): Promise<void> {
  const { client } = side;
  const samples = side.samples.get(place)!;
  if (side.polls) Deno.kill(side.serverPid, "SIGCONT");
  try {
    await confine(client.pid, place.clientCpus);
    await confine(side.serverPid, place.serverCpus);
    await client.ask(`trip ${WARM_UP_TRIPS}`);
    const trips = count(settings, ROUND_TRIPS, 100);
    const [p50, p99] = await client.ask(`trip ${trips}`);
    samples.p50.push(p50! / 1000);
    samples.p99.push(p99! / 1000);
    const ms = count(settings, RATE_MS, 20);
    const [pipelined] = await client.ask(`pipe ${PIPELINE_DEPTH} ${ms}`);
    samples.pipelined.push(pipelined!);
    const [posted] = await client.ask(`post ${ms}`);
    samples.posted.push(posted!);
  } finally {
    if (side.polls) Deno.kill(side.serverPid, "SIGSTOP");
  }
}

const ROWS: readonly (readonly [keyof Samples, string, string])[] = [
  ["p50", "REGION_READ round trip p50", "µs"],
  ["p99", "REGION_READ round trip p99", "µs"],
  ["pipelined", `REGION_READ, ${PIPELINE_DEPTH} in flight`, "messages/s"],
  ["posted", "REGION_WRITE posted", "messages/s"],
];

/** Most that our round trip may take of C's, by side. */
const TARGETS: Readonly<Record<string, number>> = {
  "ours, blocking": 1.1,
  "ours, polled": 0.6,
};

function figuresOf(side: Side, c: Side, place: Placement): Figure[] {
  return ROWS.map(([key, what, unit]) => {
    const figure = {
      name: `${what}, ${place.name}, ${side.name}`,
      value: median(side.samples.get(place)![key]),
      unit,
    };
    if (c === side) return figure;
    const baseline: Baseline = {
      name: c.name,
      value: median(c.samples.get(place)![key]),
    };
    const target = TARGETS[side.name];
    return key === "p50" && target !== undefined
      ? ratioAtMost(figure, baseline, target)
      : { ...figure, baseline };
  });
}

async function measure(
  sides: readonly Side[],
  settings: BenchSettings,
): Promise<void> {
  const polling = sides.filter((side) => side.polls);
  for (const { serverPid } of polling) Deno.kill(serverPid, "SIGSTOP");
  try {
    const turns = count(settings, TURNS, 3);
    for (let i = 0; i < turns; i++) {
      for (const place of placements()) {
        for (let j = 0; j < sides.length; j++) {
          await turn(sides[(i + j) % sides.length]!, place, settings);
        }
      }
    }
  } finally {
    for (const { serverPid } of polling) Deno.kill(serverPid, "SIGCONT");
  }
}

/** REGION_READ and REGION_WRITE of a register, alone and pipelined, against C. */
export function benchRegion(settings: BenchSettings): Promise<Figure[]> {
  return withFolder(async (folder) => {
    const clientProgram = await compileC("region_client", folder);
    const serverProgram = await compileC("minimal_server", folder);
    if (clientProgram === null || serverProgram === null) {
      return [leftOut("REGION_READ and REGION_WRITE", "there is no cc")];
    }
    const device = ["--device", "virtio-net,net=none", "--socket"];
    const path = (name: string) => `${folder}/${name}.sock`;
    const connect = (name: string) =>
      new LineProgram(clientProgram, [path(name), `${BAR4}`]);

    await using server = new LineProgram(serverProgram, [path("c")]);
    await server.line();
    await using epollServer = new LineProgram(
      serverProgram,
      [path("epoll"), "epoll"],
    );
    await epollServer.line();
    await using blocking = await startOutboard(
      [...device, path("blocking"), "--poll", "off"],
    );
    await using polled = await startOutboard(
      [...device, path("polled"), "--poll", "always"],
    );
    await using onC = connect("c");
    await using onEpoll = connect("epoll");
    await using onBlocking = connect("blocking");
    await using onPolled = connect("polled");
    const c = side("C, blocking", onC, server.pid);
    const sides = [
      c,
      side("C on epoll", onEpoll, epollServer.pid),
      side("ours, blocking", onBlocking, blocking.pid),
      side("ours, polled", onPolled, polled.pid, true),
    ];
    await measure(sides, settings);
    return placements().flatMap((place) =>
      sides.flatMap((side) => figuresOf(side, c, place))
    );
  });
}
