/**
 * Outboard in a process of its own, for a bench to drive from this one.
 *
 * @module
 */

import {
  type OutboardOptions,
  type OutboardProcess,
  startOutboard,
} from "../src/testing/outboard_process.ts";
import {
  type ClientOptions,
  GuestRam,
  VfioUserClient,
} from "../src/transport/vfio_user/client/mod.ts";

/** A served device. */
export interface ServedDevice {
  readonly outboard: OutboardProcess;
  /** Path of the device's socket. */
  readonly socket: string;
  /** Says one line to the control socket. @returns The whole answer @throws {Error} When it is an error */
  control(line: string): Promise<string>;
  /** Counters of the device by name; asked for over the control socket. */
  counters(): Promise<ReadonlyMap<string, number>>;
}

/** A served device and a negotiated client on it. */
export interface Served extends ServedDevice {
  readonly client: VfioUserClient;
}

/** Asks a control socket one thing. */
async function ask(path: string, question: string): Promise<string> {
  using conn = await Deno.connect({ transport: "unix", path });
  await conn.write(new TextEncoder().encode(`${question}\n`));
  await conn.closeWrite();
  let answer = "";
  for await (
    const text of conn.readable.pipeThrough(new TextDecoderStream())
  ) answer += text;
  if (!answer.endsWith("ok\n")) throw new Error(answer.trimEnd());
  return answer;
}

/** Lines such as `virtio-blk0 reads 12` of the `counters` command. */
export function parseCounters(text: string): Map<string, number> {
  const counters = new Map<string, number>();
  for (const line of text.split("\n")) {
    const [, name, value] = line.split(" ");
    if (name !== undefined && value !== undefined) {
      counters.set(name, Number(value));
    }
  }
  return counters;
}

/** Makes a folder for sockets, and removes it with everything in it. */
export async function withFolder<T>(
  run: (folder: string) => Promise<T>,
): Promise<T> {
  const folder = Deno.makeTempDirSync({ prefix: "outboard-bench-" });
  try {
    return await run(folder);
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
}

/** Settings of the process and of the client. */
export interface ServingOptions extends OutboardOptions {
  readonly client?: ClientOptions;
}

/** Serves a device, runs the bench, and takes everything down. */
export function withServed<T>(
  device: string,
  run: (served: ServedDevice) => T | Promise<T>,
  args: readonly string[] = [],
  options: OutboardOptions = {},
): Promise<T> {
  return withFolder(async (folder) => {
    const socket = `${folder}/dev.sock`;
    const path = `${folder}/control.sock`;
    await using outboard = await startOutboard(
      ["--device", device, "--socket", socket, "--control", path, ...args],
      options,
    );
    const control = (line: string) => ask(path, line);
    const counters = async () => parseCounters(await control("counters"));
    return await run({ outboard, socket, control, counters });
  });
}

/** As {@linkcode withServed}, with a client that is connected. */
export function withDevice<T>(
  device: string,
  run: (served: Served) => T | Promise<T>,
  args: readonly string[] = [],
  options: ServingOptions = {},
): Promise<T> {
  return withServed(
    device,
    async (served) => {
      using client = new VfioUserClient(served.socket, options.client);
      client.negotiate();
      return await run({ ...served, client });
    },
    args,
    options,
  );
}

/** Shares guest memory with the server while the bench runs. */
export async function withRam<T>(
  client: VfioUserClient,
  lengthBytes: number,
  run: (ram: GuestRam) => T | Promise<T>,
): Promise<T> {
  using ram = new GuestRam(lengthBytes);
  ram.share(client);
  try {
    return await run(ram);
  } finally {
    ram.unshare(client);
  }
}
