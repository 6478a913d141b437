/**
 * Tests that every guest with a virtio-net card must pass, in the guest's own words.
 *
 * @module
 */

import { assertEquals, assertMatch, equal } from "@std/assert";
import type { Guest } from "./guest.ts";
import type { TapPeer } from "./tap_peer.ts";
import { sha256, TcpSink, TcpSource, testPattern } from "./tcp_peer.ts";

/** Bytes that the TCP tests move each way. */
export const TRANSFER_BYTES = 64 * 1024 * 1024;

/** The host at the other end of a TAP, see {@linkcode TapPeer}. */
export const TAP_HOST = "192.0.2.1";

/** Transfers under TCG take half a minute each way beside three others on two cores, and longer beside more. */
const TRANSFER_TIMEOUT_MS = 600_000;

/** Checks that Linux's own driver has the card and uses MSI-X. */
export async function assertBound(guest: Guest): Promise<void> {
  const driver = await guest.output(
    "basename $(readlink /sys/class/net/eth0/device/driver)",
  );
  assertEquals(driver.trim(), "virtio_net");
  assertMatch(
    await guest.output("cat /proc/interrupts"),
    /PCI-MSIX.*virtio\d+-input\.0/,
  );
}

/** Sum of the interrupts that the guest counted on vectors whose name matches. */
export async function interruptCount(
  guest: Guest,
  name: RegExp,
): Promise<number> {
  const lines = (await guest.output("cat /proc/interrupts")).split("\n");
  return lines.filter((line) => name.test(line)).reduce((sum, line) => {
    const counts = line.split(":")[1]!.trim().split(/\s+/);
    return sum + (Number(counts[0]) || 0);
  }, 0);
}

/** Packets received and sent. */
export interface PacketCounts {
  readonly rx: number;
  readonly tx: number;
}

/** Packets that the guest's driver has counted, on all queues together. */
async function driverPackets(guest: Guest): Promise<PacketCounts> {
  const text = await guest.output(
    "cd /sys/class/net/eth0/statistics; cat rx_packets tx_packets",
  );
  const [rx, tx] = text.trim().split(/\s+/).map(Number);
  return { rx: rx!, tx: tx! };
}

/** Packets by queue pair as the device counts them. */
export async function devicePackets(
  peer: TapPeer,
  pairs: number,
): Promise<Readonly<Record<"rx" | "tx", number[]>>> {
  const counters = await peer.counters();
  const of = (way: string) =>
    Array.from(
      { length: pairs },
      (_, pair) => counters[`pair${pair}.${way}Packets`]!,
    );
  return { rx: of("rx"), tx: of("tx") };
}

const AGREE_TRIES = 20;

/**
 * Waits until driver and device have counted the same packets since they met. A driver counts a sent packet when it gets
 * the buffer back, which is when it looks after that queue next.
 */
export async function assertPacketsAgree(
  guest: Guest,
  peer: TapPeer,
  pairs: number,
): Promise<void> {
  const sum = (counts: number[]) => counts.reduce((a, b) => a + b, 0);
  let driver: PacketCounts | undefined;
  let device: PacketCounts | undefined;
  for (let i = 0; i < AGREE_TRIES; i++) {
    driver = await driverPackets(guest);
    const counts = await devicePackets(peer, pairs);
    device = { rx: sum(counts.rx), tx: sum(counts.tx) };
    if (equal(driver, device)) return;
    await ping(guest, TAP_HOST, 1);
  }
  assertEquals(driver, device);
}

/**
 * Gets a DHCP lease and sets the interface up with it.
 *
 * @returns The address
 */
export async function dhcp(guest: Guest): Promise<string> {
  await guest.output("ip link set eth0 up");
  const text = await guest.output(
    "udhcpc -i eth0 -n -q -f -t 25 -T 2 -s /bin/udhcpc.script 2>&1",
  );
  const address = /lease of (\S+) obtained/.exec(text)?.[1];
  if (address === undefined) throw new Error(`no lease:\n${text}`);
  return address.replace(/,$/, "");
}

/** Files that {@linkcode dhcp} needs in the guest. */
export const DHCP_FILES: Readonly<Record<string, string>> = {
  "/bin/udhcpc.script": [
    "#!/bin/busybox sh",
    '[ "$1" = bound ] || exit 0',
    'ip addr replace "$ip/$mask" dev "$interface"',
    '[ -z "$router" ] || ip route replace default via "$router"',
    "",
  ].join("\n"),
};

/** Result of ping(1). */
export interface PingResult {
  readonly sent: number;
  readonly received: number;
  /** Of the quickest answer: on a busy machine the others tell of that. */
  readonly minMs: number;
  readonly averageMs: number;
}

/**
 * Pings an address.
 *
 * @param waitSeconds How long to wait for answers once everything was sent
 */
export async function ping(
  guest: Guest,
  address: string,
  count: number,
  waitSeconds = 30,
): Promise<PingResult> {
  const { output } = await guest.run(
    `ping -c ${count} -i 0.2 -W ${waitSeconds} ${address}`,
    { timeoutMs: 120_000 },
  );
  const packets = /(\d+) packets transmitted, (\d+) packets received/
    .exec(output);
  const times = /min\/avg\/max = ([\d.]+)\/([\d.]+)\//.exec(output);
  if (packets === null) throw new Error(output);
  return {
    sent: Number(packets[1]),
    received: Number(packets[2]),
    minMs: Number(times?.[1] ?? Infinity),
    averageMs: Number(times?.[2] ?? Infinity),
  };
}

/** Pings an address and wants every answer. */
export async function assertPing(
  guest: Guest,
  address: string,
  count = 10,
): Promise<void> {
  const result = await ping(guest, address, count);
  assertEquals([result.sent, result.received], [count, count]);
}

/** Has a connection echo a few bytes, which may come back in pieces. */
export async function assertEcho(conn: Deno.Conn): Promise<void> {
  const text = "echo this";
  await conn.write(new TextEncoder().encode(text));
  const chunk = new Uint8Array(64);
  const decoder = new TextDecoder();
  let answer = "";
  while (answer.length < text.length) {
    const n = await conn.read(chunk);
    if (n === null) break;
    answer += decoder.decode(chunk.subarray(0, n), { stream: true });
  }
  assertEquals(answer, text);
}

/** Sends a file of the guest to a port of the host and gives its SHA-256. */
export async function guestSends(
  guest: Guest,
  address: string,
  port: number,
  lengthBytes = TRANSFER_BYTES,
): Promise<string> {
  const text = await guest.output(
    `head -c ${lengthBytes} /dev/urandom > /tmp/blob && nc ${address} ${port} < /tmp/blob && sha256sum < /tmp/blob && rm /tmp/blob`,
    { timeoutMs: TRANSFER_TIMEOUT_MS },
  );
  return text.split(" ")[0]!;
}

/** Receives from a port of the host until the end and gives the SHA-256. */
export async function guestReceives(
  guest: Guest,
  address: string,
  port: number,
): Promise<string> {
  const text = await guest.output(
    `nc ${address} ${port} < /dev/null | sha256sum`,
    { timeoutMs: TRANSFER_TIMEOUT_MS },
  );
  return text.split(" ")[0]!;
}

/**
 * Moves so many bytes each way and compares.
 *
 * @param hostname Where the host listens
 * @param address The same place as the guest knows it
 */
export async function assertTransfers(
  guest: Guest,
  hostname: string,
  address: string,
  lengthBytes = TRANSFER_BYTES,
): Promise<void> {
  {
    using sink = new TcpSink(hostname);
    const sent = await guestSends(guest, address, sink.port, lengthBytes);
    assertEquals(await sink.received, { lengthBytes, sha256: sent });
  }
  const bytes = testPattern(lengthBytes);
  using source = new TcpSource(hostname, bytes);
  const received = await guestReceives(guest, address, source.port);
  await source.sent;
  assertEquals(received, await sha256(bytes));
}

/**
 * Moves {@linkcode TRANSFER_BYTES} each way between a guest and the other end of its TAP, and compares.
 *
 * @returns How long it took each way, in milliseconds
 */
export async function assertTapTransfers(
  guest: Guest,
  peer: TapPeer,
): Promise<{ receiveMs: number; sendMs: number }> {
  const source = await peer.ask({
    ask: "source",
    lengthBytes: TRANSFER_BYTES,
  });
  const begin = performance.now();
  assertEquals(
    await guestReceives(guest, TAP_HOST, Number(source["port"])),
    source["sha256"],
  );
  const middle = performance.now();
  const { port } = await peer.ask({ ask: "sink" });
  const sent = await guestSends(guest, TAP_HOST, Number(port));
  const end = performance.now();
  assertEquals(await peer.ask({ ask: "sunk" }), {
    lengthBytes: TRANSFER_BYTES,
    sha256: sent,
  });
  return { receiveMs: middle - begin, sendMs: end - middle };
}
