/**
 * Outboard as a child process on sockets of its own, for guests to use.
 *
 * @module
 */

import {
  type OutboardProcess,
  startOutboard,
} from "../../src/testing/outboard_process.ts";
import { controlLine, countersOf } from "./control_line.ts";
import { hostLibslirp, isSkip } from "./provision.ts";

/** Devices to serve. */
export interface ServeOptions {
  /** The argument of one `--device` each. */
  readonly devices: readonly string[];
  /** User-mode network that `net=user` gets; the gateway unless told, which every host has. */
  readonly user?: "libslirp" | "gateway";
  /** More arguments for Outboard. */
  readonly args?: readonly string[];
}

/** Devices that are being served. */
export class Serving {
  readonly outboard: OutboardProcess;
  /** The socket of each device. */
  readonly sockets: readonly string[];
  readonly #folder: string;

  private constructor(
    outboard: OutboardProcess,
    sockets: readonly string[],
    folder: string,
  ) {
    this.outboard = outboard;
    this.sockets = sockets;
    this.#folder = folder;
  }

  /** Starts Outboard and waits until it listens. */
  static async start(options: ServeOptions): Promise<Serving> {
    const folder = await Deno.makeTempDir({ prefix: "outboard-test-" });
    try {
      const sockets = options.devices.map((_, i) => `${folder}/${i}.sock`);
      const args = options.devices.flatMap((device, i) => [
        ...["--device", device, "--socket", sockets[i]!],
      ]);
      const outboard = await startOutboard(
        [...args, ...options.args ?? [], "--control", `${folder}/control`],
        await environment(options.user ?? "gateway"),
      );
      return new Serving(outboard, sockets, folder);
    } catch (error) {
      await Deno.remove(folder, { recursive: true });
      throw error;
    }
  }

  /**
   * Says one line to the control socket.
   *
   * @returns The lines of the answer
   * @throws {Error} When the answer is an error
   */
  async control(line: string): Promise<string[]> {
    return await controlLine(`${this.#folder}/control`, line);
  }

  /** The counters of a device, by name. */
  async counters(device: string): Promise<Record<string, number>> {
    return countersOf(await this.control(`counters ${device}`));
  }

  /** Waits for the next whole line of the log, after the text so far, that matches. */
  async waitForLog(pattern: RegExp, from = 0): Promise<void> {
    await this.outboard.waitFor(`log ${pattern}`, () => {
      const { stderr } = this.outboard;
      return pattern.test(stderr.slice(from, stderr.lastIndexOf("\n") + 1));
    });
  }

  /** Open descriptors and file mappings of the process. */
  async resources(): Promise<{ fds: number; mappings: number }> {
    const proc = `/proc/${this.outboard.pid}`;
    let fds = 0;
    for await (const _ of Deno.readDir(`${proc}/fd`)) fds++;
    const maps = await Deno.readTextFile(`${proc}/maps`);
    const mappings = maps.split("\n")
      .filter((line) => /^\S+ ..?.s /.test(line)).length;
    return { fds, mappings };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      await this.outboard.stop();
      const left = [...Deno.readDirSync(this.#folder)].map((e) => e.name);
      if (left.length > 0) throw new Error(`left behind: ${left.join(", ")}`);
    } finally {
      await Deno.remove(this.#folder, { recursive: true });
    }
  }
}

async function environment(
  user: "libslirp" | "gateway",
): Promise<{ env: Record<string, string>; libraryPath?: string }> {
  if (user === "gateway") return { env: { OUTBOARD_LIBSLIRP: "none" } };
  const library = await hostLibslirp();
  if (isSkip(library)) throw new Error(library.skip);
  return {
    env: {},
    ...(library.libraryDir === undefined
      ? {}
      : { libraryPath: library.libraryDir }),
  };
}
