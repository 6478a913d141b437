/**
 * A virtio-net card on a TAP in a network namespace of its own, and the host at its other end.
 *
 * @module
 */

import { runProgram, type Skip } from "./apt.ts";
import { controlLine, countersOf } from "./control_line.ts";
import { treeCommand } from "./provision.ts";
import type { Kit } from "./provision.ts";
import type { TapHostRequest } from "./tap_host.ts";

/** Namespaces in which a TAP can be made without being root, as arguments of unshare(1). */
const NAMESPACES = ["--net", "--map-root-user"];

/** True if TAPs can be made here; or what the kernel says to it. */
export async function hostTap(): Promise<object | Skip> {
  const ran = await runProgram("unshare", [
    ...[...NAMESPACES, "--", "sh", "-c", "exec 3<> /dev/net/tun"],
  ]);
  return ran.success ? {} : { skip: `no TAP: ${ran.stderr.trim()}` };
}

/** Lines of a child's output, one at a time. */
async function* linesOf(stream: ReadableStream<Uint8Array<ArrayBuffer>>) {
  let rest = "";
  for await (const text of stream.pipeThrough(new TextDecoderStream())) {
    const parts = (rest + text).split("\n");
    rest = parts.pop()!;
    yield* parts;
  }
}

/** The host's end; 192.0.2.1 to the guest. */
export class TapPeer implements AsyncDisposable {
  /** Socket of the card. */
  readonly socket: string;
  readonly #folder: string;
  readonly #child: Deno.ChildProcess;
  readonly #lines: AsyncGenerator<string>;
  readonly #input: WritableStreamDefaultWriter<Uint8Array<ArrayBuffer>>;

  private constructor(folder: string, child: Deno.ChildProcess) {
    this.#folder = folder;
    this.socket = `${folder}/dev.sock`;
    this.#child = child;
    this.#lines = linesOf(child.stdout);
    this.#input = child.stdin.getWriter();
  }

  /**
   * Starts Outboard and waits until the card is served.
   *
   * @param options More options of the device, each behind a comma
   * @param args More arguments for Outboard
   */
  static async start(
    kit: Kit,
    options = "",
    args: readonly string[] = [],
  ): Promise<TapPeer> {
    const folder = await Deno.makeTempDir({ prefix: "outboard-tap-" });
    const ip = treeCommand(kit.guestTree.root, "usr/bin/ip");
    // The TAP lives in a network namespace of its own, which ends with the processes in it: nothing is left on the host.
    const child = new Deno.Command("unshare", {
      args: [
        ...[...NAMESPACES, "--kill-child=KILL", "--fork", "--"],
        ...[Deno.execPath(), "run", "-A"],
        ...[import.meta.resolve("./tap_host.ts"), `${folder}/dev.sock`],
        ...[`${folder}/control`, options],
        JSON.stringify([ip.command, ...ip.args]),
        ...args,
      ],
      env: { ...ip.env },
      stdin: "piped",
      stdout: "piped",
      stderr: "inherit",
    }).spawn();
    const peer = new TapPeer(folder, child);
    try {
      await peer.#next();
      return peer;
    } catch (error) {
      await peer[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Asks the host something. */
  async ask(request: TapHostRequest): Promise<Record<string, unknown>> {
    await this.#input.write(
      new TextEncoder().encode(`${JSON.stringify(request)}\n`),
    );
    return await this.#next();
  }

  /** Says one line to Outboard's control socket. */
  async control(line: string): Promise<string[]> {
    return await controlLine(`${this.#folder}/control`, line);
  }

  /** The counters of the card. */
  async counters(): Promise<Record<string, number>> {
    return countersOf(await this.control("counters virtio-net0"));
  }

  async #next(): Promise<Record<string, unknown>> {
    const { value } = await this.#lines.next();
    if (value === undefined) throw new Error("the host side has ended");
    return JSON.parse(value);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#input.close().catch(() => {}); // it has ended already
    await this.#child.status;
    await this.#lines.return(undefined);
    await Deno.remove(this.#folder, { recursive: true });
  }
}
