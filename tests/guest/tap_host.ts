/**
 * The host's side of the TAP tests, a program that runs in a network namespace of its own:
 * `tap_host.ts SOCKET CONTROL DEVICE_OPTIONS IP_COMMAND_JSON [ARGUMENT...]`. See `tap_peer.ts` for the side that asks.
 *
 * Serves a virtio-net card on a new TAP, whose host's end is 192.0.2.1/24, and prints a JSON line when that is done.
 * Then answers each JSON line of its standard input with one, and ends when its standard input does.
 *
 * @module
 */

import { startOutboard } from "../../src/testing/outboard_process.ts";
import {
  sha256,
  TcpEcho,
  TcpSink,
  TcpSource,
  testPattern,
} from "./tcp_peer.ts";
import { TftpServer } from "./tftp_server.ts";

/** Requests to the host. */
export type TapHostRequest =
  /** Offers bytes to one connection → `{ port, sha256 }`. */
  | { readonly ask: "source"; readonly lengthBytes: number }
  /** Takes the bytes of one connection → `{ port }`. */
  | { readonly ask: "sink" }
  /** Waits for the end of the last sink → `{ lengthBytes, sha256 }`. */
  | { readonly ask: "sunk" }
  /** Sends back what connections send → `{ port }`. */
  | { readonly ask: "echo" }
  /** Serves TFTP → `{ port, sha256 }` of what it offers. */
  | { readonly ask: "tftp"; readonly lengthBytes: number }
  /** Reply to a file that was put by TFTP → `{ sha256 }`. */
  | { readonly ask: "put" };

const ADDRESS = "192.0.2.1";
const [socket, control, options, ipCommand, ...more] = Deno.args;
const [command, ...prefix] = JSON.parse(ipCommand!) as string[];

async function ip(...args: string[]): Promise<void> {
  const { success, stderr } = await new Deno.Command(command!, {
    args: [...prefix, ...args],
  }).output();
  if (!success) throw new Error(new TextDecoder().decode(stderr));
}

await ip("link", "set", "lo", "up");
await using _outboard = await startOutboard([
  ...["--device", `virtio-net,net=tap,ifname=obtap0${options}`],
  ...["--socket", socket!, "--control", control!, ...more],
]);
await ip("addr", "add", `${ADDRESS}/24`, "dev", "obtap0");
await ip("link", "set", "obtap0", "up");
using open = new DisposableStack();
let sink: TcpSink | undefined;
let tftp: TftpServer | undefined;

async function answer(request: TapHostRequest): Promise<unknown> {
  switch (request.ask) {
    case "source": {
      const bytes = testPattern(request.lengthBytes);
      const { port } = open.use(new TcpSource(ADDRESS, bytes));
      return { port, sha256: await sha256(bytes) };
    }
    case "sink":
      sink = open.use(new TcpSink(ADDRESS));
      return { port: sink.port };
    case "sunk":
      return await sink!.received;
    case "echo":
      return { port: open.use(new TcpEcho(ADDRESS)).port };
    case "tftp": {
      const bytes = testPattern(request.lengthBytes);
      tftp = open.use(await TftpServer.listen(ADDRESS, bytes));
      return { port: tftp.port, sha256: await sha256(bytes) };
    }
    case "put":
      return { sha256: await sha256(tftp!.received) };
    default:
      throw new Error(
        `Cannot answer ${JSON.stringify(request satisfies never)}`,
      );
  }
}

console.log(JSON.stringify({ ready: true }));
let rest = "";
for await (
  const text of Deno.stdin.readable.pipeThrough(new TextDecoderStream())
) {
  const lines = (rest + text).split("\n");
  rest = lines.pop()!;
  for (const line of lines) {
    console.log(JSON.stringify(await answer(JSON.parse(line))));
  }
}
