/**
 * The host's side of the TAP test, a program that runs in a network namespace of its own:
 * `tap_host.ts SOCKET IP_COMMAND_JSON BYTES`.
 *
 * Serves a virtio-net card on a new TAP, gives the host's end 192.0.2.1/24, and prints JSON lines: where it listens for the
 * TCP transfers, then what it received. Ends when its standard input does.
 *
 * @module
 */

import { startOutboard } from "../../src/testing/outboard_process.ts";
import { sha256, TcpSink, TcpSource, testPattern } from "./tcp_peer.ts";

const [socket, ipCommand, lengthBytes] = Deno.args;
const [command, ...prefix] = JSON.parse(ipCommand!) as string[];

async function ip(...args: string[]): Promise<void> {
  const { success, stderr } = await new Deno.Command(command!, {
    args: [...prefix, ...args],
  }).output();
  if (!success) throw new Error(new TextDecoder().decode(stderr));
}

await ip("link", "set", "lo", "up");
await using _outboard = await startOutboard([
  ...["--device", "virtio-net,net=tap,ifname=obtap0"],
  ...["--socket", socket!],
]);
await ip("addr", "add", "192.0.2.1/24", "dev", "obtap0");
await ip("link", "set", "obtap0", "up");
const bytes = testPattern(Number(lengthBytes));
using sink = new TcpSink("192.0.2.1");
using source = new TcpSource("192.0.2.1", bytes);
console.log(JSON.stringify({
  sinkPort: sink.port,
  sourcePort: source.port,
  sha256: await sha256(bytes),
}));
sink.received.then((received) => console.log(JSON.stringify(received)));
for await (const _ of Deno.stdin.readable) {
  // Nothing is said to us but the end.
}
