/**
 * The control socket: run-time commands, one a line, for people and scripts.
 *
 * @module
 */

import { formatCpus } from "../libc/mod.ts";
import { AcceptLoop, closeConnection } from "./accept_loop.ts";
import type { PlacedDescription } from "./messages.ts";
import { makeSocketFile, type SocketPath } from "./sockets.ts";

/** What the control socket acts on. */
export interface Controllable {
  /** All devices of the process. */
  describe(): Promise<readonly PlacedDescription[]>;
  /** All IOThreads of the process. */
  describeIOThreads(): Promise<readonly IOThreadDescription[]>;
  /** Runs a device's command and returns what to tell. */
  command(
    device: string,
    name: string,
    args: readonly string[],
  ): Promise<string>;
  /** Moves a device to another IOThread and returns what to tell. */
  move(device: string, iothread: number): Promise<string>;
}

/** An IOThread as seen from outside. */
export interface IOThreadDescription {
  /** Its number, from 0. */
  readonly iothread: number;
  /** Its id in the kernel, for tools such as taskset and top. */
  readonly threadId: number;
  /** The CPUs it may run on. */
  readonly cpus: readonly number[];
  /** Ids of the devices that live on it. */
  readonly devices: readonly string[];
}

/** Words that begin a request and so cannot be the id of a device. */
export const CONTROL_WORDS: readonly string[] = [
  "help",
  "list",
  "counters",
  "iothreads",
  "move",
];

const HELP = [
  "help                      this text",
  "list                      devices, their clients and their commands",
  "counters [DEVICE]         counters, one a line",
  "iothreads                 IOThreads: thread ids, CPUs and devices",
  "move DEVICE IOTHREAD      move a device to another IOThread, with its client; IOThreads count from 0",
  "DEVICE COMMAND [ARG...]   run a command of a device, such as: virtio-net0 link down",
];

function placeOf({ iothreads }: PlacedDescription): string {
  return iothreads.length === 1
    ? `IOThread ${iothreads[0]}`
    : `IOThreads ${iothreads.join(":")}`;
}

function list(devices: readonly PlacedDescription[]): string[] {
  return devices.flatMap((device) => [
    `${device.id} (${device.model}) on ${placeOf(device)}, ${
      device.clientPid === null ? "no client" : `client pid ${device.clientPid}`
    }`,
    ...Object.entries(device.commands).map(([name, help]) =>
      `  ${name}: ${help}`
    ),
  ]);
}

function listIOThreads(iothreads: readonly IOThreadDescription[]): string[] {
  return iothreads.map(({ iothread, threadId, cpus, devices }) =>
    `IOThread ${iothread}: thread ${threadId}, CPUs ${formatCpus(cpus)}, ${
      devices.join(" ") || "no devices"
    }`
  );
}

function listCounters(
  devices: readonly PlacedDescription[],
  id: string | undefined,
): string[] {
  const wanted = devices.filter((device) =>
    id === undefined || device.id === id
  );
  if (id !== undefined && wanted.length === 0) {
    throw new Error(
      `Cannot find device ${id}: known are ${
        devices.map((device) => device.id).join(", ")
      }`,
    );
  }
  // Devices count interrupts and errors of their own.
  return wanted.flatMap(({ id, connection, counters }) => [
    ...Object.entries(connection).map(([name, value]) =>
      `${id} connection.${name} ${value}`
    ),
    ...Object.entries(counters).map(([name, value]) =>
      `${id} ${name} ${value}`
    ),
  ]);
}

async function move(
  target: Controllable,
  device = "",
  words: readonly string[],
): Promise<string> {
  const [iothread = ""] = words;
  if (words.length !== 1 || !/^\d+$/.test(iothread)) {
    throw new Error(
      'Cannot understand "move": say which device and which IOThread, such as: move virtio-net0 1',
    );
  }
  return await target.move(device, Number(iothread));
}

async function answer(line: string, target: Controllable): Promise<string[]> {
  const [first, second, ...rest] = line.trim().split(/\s+/);
  switch (first) {
    case "help":
      return HELP;
    case "list":
      return list(await target.describe());
    case "iothreads":
      return listIOThreads(await target.describeIOThreads());
    case "move":
      return [await move(target, second, rest)];
    case "counters":
      return listCounters(await target.describe(), second);
    default:
      if (second === undefined) {
        throw new Error(`Cannot understand "${line.trim()}": try help`);
      }
      return (await target.command(first!, second, rest)).split("\n")
        .filter((text) => text !== "");
  }
}

/** How many people and scripts are served at a time. */
const CONNECTIONS_MAX = 64;
/** The longest line taken; a longer one closes the connection. */
const MAX_LINE = 4096;

async function* lines(stream: ReadableStream<Uint8Array>) {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const bytes of stream) {
    rest += decoder.decode(bytes, { stream: true });
    const parts = rest.split("\n");
    rest = parts.pop()!;
    if (rest.length > MAX_LINE) return;
    yield* parts;
  }
  if (rest !== "") yield rest;
}

async function serve(conn: Deno.Conn, target: Controllable): Promise<void> {
  const encoder = new TextEncoder();
  const writer = conn.writable.getWriter();
  try {
    for await (const line of lines(conn.readable)) {
      if (line.trim() === "") continue;
      let reply: string[];
      try {
        reply = [...await answer(line, target), "ok"];
      } catch (error) {
        reply = [`error: ${error instanceof Error ? error.message : error}`];
      }
      await writer.write(encoder.encode(reply.join("\n") + "\n"));
    }
    await writer.close();
  } catch {
    // The person hung up; there is nobody to tell.
  } finally {
    closeConnection(conn);
  }
}

/** A listening control socket. Each request line is answered by lines of text and a last line `ok` or `error: …`. */
export class ControlSocket {
  readonly #connections: AcceptLoop;
  readonly #remove: () => void;

  /**
   * @param place Where to listen
   * @throws {Error} With the remedy
   */
  constructor(place: SocketPath, target: Controllable) {
    const { made: listener, remove } = makeSocketFile(
      place,
      (path) => Deno.listen({ transport: "unix", path }),
    );
    this.#remove = remove;
    this.#connections = new AcceptLoop(listener, {
      most: CONNECTIONS_MAX,
      serve: (conn) => serve(conn, target),
    });
  }

  /** Stops listening, hangs up, and removes the socket file. */
  close(): void {
    this.#connections.close();
    this.#remove();
  }
}
