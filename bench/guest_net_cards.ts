/**
 * The cards that the guest's network bench compares, and the host's end of each.
 *
 * @module
 */

import { Guest, vfioUserDevice } from "../tests/guest/guest.ts";
import type { ExtraTool, Kit } from "../tests/guest/provision.ts";
import { treeCommand } from "../tests/guest/provision.ts";
import { Serving } from "../tests/guest/serving.ts";

/** Tools that the guest and the host need besides the kit's own. */
export const GUEST_NET_TOOLS: readonly ExtraTool[] = ["iperf3", "ping"];

/** One card of the guest. */
export interface Card {
  /** For people. */
  readonly name: string;
  readonly mac: string;
  /** Its address in the guest, in a network of 256. */
  readonly guestAddress: string;
  /** Address by which the guest reaches the host. */
  readonly hostAddress: string;
  /** The host's interface; none for a user-mode network. */
  readonly ifname?: string;
  /** The card's counters; none for QEMU's. */
  readonly counters?: () => Promise<Record<string, number>>;
}

/** All cards, by what they are plugged into; the baseline is QEMU's. */
export interface Cards {
  readonly guest: Guest;
  /** Ours, one for each value of `--poll`. */
  readonly tap: readonly Card[];
  readonly qemuTap: Card;
  readonly user: Card;
  readonly qemuUser: Card;
}

/** Settings of the cards. */
export interface CardOptions {
  readonly kit: Kit;
  /** Values of `--poll`. */
  readonly polls: readonly string[];
  readonly cpus: number;
}

/** Runs a program of a tree of the kit on this host. */
export async function runTool(
  kit: Kit,
  tool: "guest" | "iperf3",
  program: string,
  args: readonly string[],
): Promise<void> {
  const tree = tool === "guest" ? kit.guestTree : kit.tools[tool]!.tree;
  const { command, args: prefix } = treeCommand(tree.root, program);
  const { success, stderr } = await new Deno.Command(command, {
    args: [...prefix, ...args],
  }).output();
  if (!success) throw new Error(new TextDecoder().decode(stderr));
}

function macAddress(index: number): string {
  return `52:54:00:00:00:${index.toString(16).padStart(2, "0")}`;
}

function tapCard(index: number, name: string): Card & { ifname: string } {
  return {
    name,
    mac: macAddress(index),
    guestAddress: `10.77.${index}.2`,
    hostAddress: `10.77.${index}.1`,
    ifname: `bench${index}`,
  };
}

function userCard(index: number, name: string): Card {
  return {
    name,
    mac: macAddress(index),
    guestAddress: `10.78.${index}.15`,
    hostAddress: `10.78.${index}.2`,
  };
}

function subnet(card: Card): string {
  return card.hostAddress.replace(/\d+$/, "0/24");
}

function qemuArgs(tap: Card, user: Card): string[] {
  return [
    ...["-netdev", `tap,id=t,ifname=${tap.ifname},script=no,downscript=no`],
    ...["-device", `virtio-net-pci,netdev=t,mac=${tap.mac},addr=0x18`],
    ...["-netdev", `user,id=u,net=${subnet(user)},host=${user.hostAddress}`],
    ...["-device", `virtio-net-pci,netdev=u,mac=${user.mac},addr=0x19`],
  ];
}

async function setUp(kit: Kit, guest: Guest, cards: readonly Card[]) {
  const ip = (...args: string[]) => runTool(kit, "guest", "usr/bin/ip", args);
  await ip("link", "set", "lo", "up");
  for (const { ifname, mac, guestAddress, hostAddress } of cards) {
    if (ifname !== undefined) {
      await ip("addr", "add", `${hostAddress}/24`, "dev", ifname);
      await ip("link", "set", ifname, "up");
    }
    await guest.output(
      `D=$(basename $(dirname $(grep -l ${mac} /sys/class/net/*/address))) && ` +
        `ip link set $D name if${mac.replaceAll(":", "")} && ` +
        `ip addr add ${guestAddress}/24 dev if${mac.replaceAll(":", "")} && ` +
        `ip link set if${mac.replaceAll(":", "")} up`,
    );
  }
}

/** The name of a card's interface in the guest. */
export function guestInterface(card: Card): string {
  return `if${card.mac.replaceAll(":", "")}`;
}

/** @throws {Error} When two cards do not leave the same work to the network */
async function assertSameOffloads(guest: Guest, a: Card, b: Card) {
  const of = async (card: Card) =>
    (await guest.output(`ethtool -k ${guestInterface(card)}`))
      .split("\n").slice(1);
  const [ours, theirs] = [await of(a), await of(b)];
  const different = ours.flatMap((line, i) =>
    line === theirs[i] ? [] : [`${line.trim()} and ${theirs[i]?.trim()}`]
  );
  if (different.length === 0) return;
  throw new Error(
    `Cannot compare ${a.name} with ${b.name}: they have ${
      different.join(", ")
    }`,
  );
}

/** Serves our cards, boots a guest with all of them, and calls `run`. */
export async function withCards<T>(
  { kit, polls, cpus }: CardOptions,
  run: (cards: Cards) => Promise<T>,
): Promise<T> {
  await using stack = new AsyncDisposableStack();
  const serve = async (card: Card, device: string, poll: string) => {
    const serving = stack.use(
      await Serving.start({
        devices: [`virtio-net,mac=${card.mac},${device}`],
        user: "libslirp",
        args: ["--poll", poll],
      }),
    );
    const counters = () => serving.counters("virtio-net0");
    return { card: { ...card, counters }, socket: serving.sockets[0]! };
  };
  const served = [];
  for (const [i, poll] of polls.entries()) {
    const card = tapCard(i + 1, `poll ${poll}`);
    served.push(await serve(card, `net=tap,ifname=${card.ifname}`, poll));
  }
  const user = userCard(1 + polls.length, `poll ${polls[0]}`);
  const network = `subnet=${subnet(user)},host=${user.hostAddress}`;
  served.push(await serve(user, `net=user,${network}`, polls[0]!));
  const qemuTap = tapCard(2 + polls.length, "QEMU's");
  const qemuUser = userCard(3 + polls.length, "QEMU's");
  const guest = stack.use(
    await Guest.boot({
      kit,
      cpus,
      memoryMiB: 512,
      tools: ["busybox", "dash", "ethtool", "ip", "iperf3", "ping"],
      devices: served.map(({ socket }, i) =>
        vfioUserDevice(socket, { addr: `${8 + i}.0` })
      ),
      qemuArgs: qemuArgs(qemuTap, qemuUser),
    }),
  );
  const ours = served.map(({ card }) => card);
  await setUp(kit, guest, [...ours, qemuTap, qemuUser]);
  const tap = ours.slice(0, polls.length);
  for (const card of tap) await assertSameOffloads(guest, card, qemuTap);
  return await run({ guest, tap, qemuTap, user: ours.at(-1)!, qemuUser });
}
