/**
 * The guest's network bench proper, a program for a network namespace of its own: prints its figures as JSON.
 *
 * @module
 */

import type { Guest } from "../tests/guest/guest.ts";
import {
  type Kit,
  kitOrThrow,
  provision,
  treeCommand,
} from "../tests/guest/provision.ts";
import {
  type Card,
  type Cards,
  GUEST_NET_TOOLS,
  withCards,
} from "./guest_net_cards.ts";
import { type Baseline, type Figure, median, percentile } from "./report.ts";

const scale = Number(Deno.args[0]);
/** iperf3 takes whole seconds. */
const SECONDS = Math.max(1, Math.round(3 * scale));
const PINGS = Math.max(50, Math.round(1000 * scale));
const ROUNDS = scale < 1 ? 1 : 3;
/** Seconds between two pings, in which the virtual CPU goes to sleep. */
const PING_INTERVAL = 0.002;
/** Payload of a small datagram in bytes. */
const DATAGRAM_BYTES = 64;

/** One thing that is measured, on each card in turn. */
interface Measurement {
  readonly name: string;
  readonly unit: string;
  /** The ratio that is wanted, and on which side of it. */
  readonly target?: { readonly atLeast: number } | { readonly atMost: number };
}

/** Measured together: the values are in the order of the measurements. */
interface Job {
  readonly measurements: readonly Measurement[];
  readonly run: (guest: Guest, card: Card) => Promise<number[]>;
}

async function iperf(guest: Guest, card: Card, options: string) {
  const text = await guest.output(
    `iperf3 -J -t ${SECONDS} -c ${card.hostAddress} ${options}`,
    { timeoutMs: 120_000 },
  );
  return JSON.parse(text).end.sum_received;
}

function tcp(name: string, options: string): Job {
  return {
    measurements: [{ name, unit: "Mbit/s", target: { atLeast: 1 } }],
    run: async (guest, card) => {
      const sum = await iperf(guest, card, options);
      return [sum.bits_per_second / 1e6];
    },
  };
}

function udp(name: string, options: string): Job {
  return {
    measurements: [{ name, unit: "packets/s", target: { atLeast: 1 } }],
    run: async (guest, card) => {
      const sum = await iperf(
        guest,
        card,
        `-u -l ${DATAGRAM_BYTES} -b 0 ${options}`,
      );
      return [(sum.packets - sum.lost_packets) / sum.seconds];
    },
  };
}

const ROUND_TRIP: Job = {
  measurements: [
    { name: "ping p50", unit: "µs", target: { atMost: 1.2 } },
    { name: "ping p99", unit: "µs" },
  ],
  run: async (guest, card) => {
    const text = await guest.output(
      `ping -n -c ${PINGS} -i ${PING_INTERVAL} ${card.hostAddress}`,
    );
    const times = [...text.matchAll(/ time=([\d.]+) ms/g)]
      .map((match) => Number(match[1]) * 1000);
    if (times.length < PINGS * 0.99) throw new Error(text);
    const sorted = new Float64Array(times).sort();
    return [percentile(sorted, 0.5), percentile(sorted, 0.99)];
  },
};

/** Networks and jobs to run, by part of their names. */
const ONLY = new RegExp(Deno.env.get("OUTBOARD_BENCH_ONLY") ?? "");

const JOBS: readonly Job[] = [
  tcp("TCP guest→host", ""),
  tcp("TCP host→guest", "-R"),
  udp(`UDP ${DATAGRAM_BYTES} B guest→host`, ""),
  udp(`UDP ${DATAGRAM_BYTES} B host→guest`, "-R"),
  ROUND_TRIP,
];

/** Counters that tell what a run was like. */
const TRACED = [
  "rxPackets",
  "txPackets",
  "rxGsoPackets",
  "txGsoPackets",
  "rxStarved",
  "kicks",
  "interrupts",
];

/** Runs a job and says how it went, with what our card moved and how often it and the driver told each other. */
async function traced(
  card: Card,
  run: () => Promise<number[]>,
): Promise<number[]> {
  const before = await card.counters?.();
  const values = await run();
  const after = await card.counters?.();
  const counted = before === undefined || after === undefined
    ? []
    : TRACED.map((name) => `${name}=${after[name]! - before[name]!}`);
  const shown = values.map((value) => value.toFixed(1));
  console.error(`  ${[`${card.name}:`, ...shown, ...counted].join(" ")}`);
  return values;
}

function figure(
  where: string,
  { name, unit, target }: Measurement,
  value: number,
  baseline: Baseline,
): Figure {
  const plain = { name: `${where}, ${name}`, value, unit, baseline };
  if (target === undefined) return plain;
  const ratio = value / baseline.value;
  return {
    ...plain,
    target: "atLeast" in target
      ? { text: `≥ ${target.atLeast}×`, met: ratio >= target.atLeast }
      : { text: `≤ ${target.atMost}×`, met: ratio <= target.atMost },
  };
}

async function compare(
  guest: Guest,
  network: string,
  ours: readonly Card[],
  theirs: Card,
): Promise<Figure[]> {
  const figures: Figure[] = [];
  const cards = [...ours, theirs];
  for (const job of JOBS) {
    const { measurements } = job;
    const title = `${network}, ${measurements[0]!.name}`;
    if (!ONLY.test(title)) continue;
    console.error(title);
    const samples = cards.map(() => measurements.map((): number[] => []));
    // In turns, so that whatever else the machine does falls on all.
    for (let round = 0; round < ROUNDS; round++) {
      for (const [c, card] of cards.entries()) {
        const values = await traced(card, () => job.run(guest, card));
        values.forEach((value, m) => samples[c]![m]!.push(value));
      }
    }
    measurements.forEach((measurement, m) => {
      const medians = samples.map((of) => median(of[m]!));
      const baseline = { name: theirs.name, value: medians.at(-1)! };
      ours.forEach((card, c) =>
        figures.push(
          figure(
            `${network}, ${card.name}`,
            measurement,
            medians[c]!,
            baseline,
          ),
        )
      );
    });
  }
  return figures;
}

async function benchCards(kit: Kit, cards: Cards): Promise<Figure[]> {
  const server = treeCommand(kit.tools.iperf3!.tree.root, "usr/bin/iperf3");
  await using _iperf = new DisposableChild(server.command, [
    ...server.args,
    "-s",
  ]);
  const { guest, tap, qemuTap, user, qemuUser } = cards;
  return [
    ...await compare(guest, "TAP", tap, qemuTap),
    ...await compare(guest, "user", [user], qemuUser),
  ];
}

/** A program that runs until it is disposed of. */
class DisposableChild implements AsyncDisposable {
  readonly #child: Deno.ChildProcess;

  constructor(command: string, args: string[]) {
    this.#child = new Deno.Command(command, {
      args,
      stdin: "null",
      stdout: "null",
    }).spawn();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    // It complains of any other signal.
    this.#child.kill("SIGKILL");
    await this.#child.status;
  }
}

const polls = (Deno.env.get("OUTBOARD_BENCH_POLL") ?? "50000,off").split(",");
if (polls.length > 1 && polls.includes("always")) {
  throw new Error(
    'Cannot compare "always" with other polling: it takes a core from them too, bench it alone',
  );
}
const cpus = Number(Deno.env.get("OUTBOARD_BENCH_CPUS") ?? 1);
const kit = kitOrThrow(await provision({ tools: GUEST_NET_TOOLS }));
const figures = await withCards(
  { kit, polls, cpus },
  (cards) => benchCards(kit, cards),
);
console.log(JSON.stringify(figures));
