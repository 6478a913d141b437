/**
 * The commands of the control socket: one table, for people who type words and for programs that send JSON.
 *
 * @module
 */

import { formatCpus } from "../../os/mod.ts";
import type { CommandAnswer } from "../../pci/device.ts";
import { UnknownNameError } from "../../core/unknown_name.ts";
import type { PlacedDescription } from "../iothread/messages.ts";

/** Target of the control socket's commands. */
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
  ): Promise<CommandAnswer>;
  /** Moves a device, or one of its queues (`ID.QUEUE`), to another IOThread and returns what to tell. */
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

/** An argument: text, a number from 0, or all words that are left. */
interface Parameter {
  readonly name: string;
  readonly kind: "text" | "number" | "words";
  readonly optional?: boolean;
}

/** Arguments that were checked against a command's parameters. */
interface Arguments {
  readonly device?: string;
  readonly iothread?: number;
  readonly command?: string;
  readonly arguments?: readonly string[];
}

interface ControlCommand {
  /** The word that begins it, and what programs execute. */
  readonly name: string;
  /** In the order of the words. */
  readonly parameters: readonly (Parameter & { name: keyof Arguments })[];
  readonly help: string;
  run(target: Controllable, args: Arguments): Promise<CommandAnswer>;
}

const DEVICE = { name: "device", kind: "text" } as const;

/** Command that is run when the first word is none of the table, but a device. */
const RUN = "run";

const COMMANDS: readonly ControlCommand[] = [
  {
    name: "help",
    parameters: [],
    help: "this text",
    run: () =>
      Promise.resolve({
        text: COMMANDS.map((command) =>
          `${usageOf(command).padEnd(34)}  ${command.help}`
        ).join("\n"),
        data: COMMANDS.map(({ name, parameters, help }) => ({
          name,
          parameters,
          help,
        })),
      }),
  },
  {
    name: "list",
    parameters: [],
    help: "devices, their clients and their commands",
    run: async (target) => {
      const devices = await target.describe();
      return {
        text: devices.flatMap(describeDevice).join("\n"),
        data: devices.map(({ counters: _, connection: __, ...rest }) => rest),
      };
    },
  },
  {
    name: "counters",
    parameters: [{ ...DEVICE, optional: true }],
    help: "counters, one a line",
    run: async (target, { device }) => {
      const devices = chosen(await target.describe(), device);
      return {
        text: devices.flatMap(listCounters).join("\n"),
        data: devices.map(({ id, connection, counters, silent }) => ({
          id,
          connection,
          counters,
          ...(silent ? { silent } : {}),
        })),
      };
    },
  },
  {
    name: "iothreads",
    parameters: [],
    help: "IOThreads: thread ids, CPUs and devices",
    run: async (target) => {
      const iothreads = await target.describeIOThreads();
      return {
        text: iothreads.map(describeIOThread).join("\n"),
        data: iothreads,
      };
    },
  },
  {
    name: "move",
    parameters: [DEVICE, { name: "iothread", kind: "number" }],
    help:
      "move a device, or one queue (virtio-blk0.2), to another IOThread, from 0",
    run: async (target, { device, iothread }) => ({
      text: await target.move(device!, iothread!),
      data: { device, iothread },
    }),
  },
  {
    name: RUN,
    parameters: [
      DEVICE,
      { name: "command", kind: "text" },
      { name: "arguments", kind: "words", optional: true },
    ],
    help:
      'run a command of a device; "run" may be left out: virtio-net0 link down',
    run: (target, args) =>
      target.command(args.device!, args.command!, args.arguments ?? []),
  },
];

/** Words that begin a request and so cannot be the id of a device. */
export const CONTROL_WORDS: readonly string[] = COMMANDS.map(({ name }) =>
  name
);

function usageOf({ name, parameters }: ControlCommand): string {
  const words = parameters.map(({ name, kind, optional }) => {
    const word = kind === "words" ? "ARG..." : name.toUpperCase();
    return optional ? `[${word}]` : word;
  });
  return [name, ...words].join(" ");
}

function describeDevice(device: PlacedDescription): string[] {
  const { id, model, iothreads, clientPid, commands, silent } = device;
  const place = iothreads.length === 1
    ? `IOThread ${iothreads[0]}`
    : `IOThreads ${iothreads.join(":")}`;
  if (silent) return [`${id} (${model}) on ${place}: ${silence(device)}`];
  const client = clientPid === null ? "no client" : `client pid ${clientPid}`;
  return [
    `${id} (${model}) on ${place}, ${client}`,
    ...Object.entries(commands).map(([name, help]) => `  ${name}: ${help}`),
  ];
}

function silence({ iothreads }: PlacedDescription): string {
  return `IOThread ${iothreads[0]} does not answer`;
}

function describeIOThread(
  { iothread, threadId, cpus, devices }: IOThreadDescription,
): string {
  return `IOThread ${iothread}: thread ${threadId}, CPUs ${formatCpus(cpus)}, ${
    devices.join(" ") || "no devices"
  }`;
}

function chosen(
  devices: readonly PlacedDescription[],
  id: string | undefined,
): readonly PlacedDescription[] {
  const wanted = devices.filter((device) =>
    id === undefined || device.id === id
  );
  if (id !== undefined && wanted.length === 0) {
    const known = devices.map((device) => device.id);
    throw new UnknownNameError(
      `Cannot find device ${id}: known are ${known.join(", ")}`,
      id,
      known,
    );
  }
  return wanted;
}

/** Devices count interrupts and errors of their own, beside those of the connection. */
function listCounters(device: PlacedDescription): string[] {
  const { id, connection, counters } = device;
  if (device.silent) return [`${id}: ${silence(device)}`];
  return [
    ...Object.entries(connection).map(([name, value]) =>
      `${id} connection.${name} ${value}`
    ),
    ...Object.entries(counters).map(([name, value]) =>
      `${id} ${name} ${value}`
    ),
  ];
}

/** A command that there is not. */
export class UnknownCommandError extends UnknownNameError {}

function find(name: string): ControlCommand {
  const command = COMMANDS.find((each) => each.name === name);
  if (command !== undefined) return command;
  throw new UnknownCommandError(
    `Cannot understand "${name}": try help`,
    name,
    CONTROL_WORDS,
  );
}

/** The value of an argument, or undefined when it is none of its kind. */
function checked(kind: Parameter["kind"], value: unknown): unknown {
  switch (kind) {
    case "text":
      return typeof value === "string" ? value : undefined;
    case "number":
      return Number.isSafeInteger(value) && (value as number) >= 0
        ? value
        : undefined;
    case "words":
      return Array.isArray(value) &&
          value.every((word) => typeof word === "string")
        ? value
        : undefined;
    default:
      return kind satisfies never;
  }
}

function check(
  command: ControlCommand,
  given: Readonly<Record<string, unknown>>,
): Arguments {
  const { name, parameters } = command;
  const args: Record<string, unknown> = {};
  for (const parameter of parameters) {
    if (!Object.hasOwn(given, parameter.name)) {
      if (parameter.optional) continue;
      throw new Error(
        `Cannot understand "${name}": its ${parameter.name} is missing; say ${
          usageOf(command)
        }`,
      );
    }
    const value = checked(parameter.kind, given[parameter.name]);
    if (value === undefined) {
      const wanted = parameter.kind === "words"
        ? "a list of texts"
        : `a ${parameter.kind}`;
      throw new Error(
        `Cannot understand "${name}": its ${parameter.name} must be ${wanted}; say ${
          usageOf(command)
        }`,
      );
    }
    args[parameter.name] = value;
  }
  const known: string[] = parameters.map((parameter) => parameter.name);
  const stray = Object.keys(given).find((key) => !known.includes(key));
  if (stray !== undefined) {
    throw new UnknownNameError(
      `Cannot understand "${name}": it has no ${stray}; say ${
        usageOf(command)
      }`,
      stray,
      known,
    );
  }
  return args;
}

/**
 * Runs what a program asks for.
 *
 * @throws {Error} With a message for people
 */
export function execute(
  target: Controllable,
  name: string,
  args: Readonly<Record<string, unknown>>,
): Promise<CommandAnswer> {
  const command = find(name);
  return command.run(target, check(command, args));
}

/**
 * Runs what a person has typed.
 *
 * @param line Some words
 * @throws {Error} With a message for people
 */
export function executeLine(
  target: Controllable,
  line: string,
): Promise<CommandAnswer> {
  const words = line.trim().split(/\s+/);
  const isDevice = !CONTROL_WORDS.includes(words[0]!) && words.length > 1;
  const { name, parameters } = find(isDevice ? RUN : words.shift()!);
  const args: Record<string, unknown> = {};
  for (const { name, kind } of parameters) {
    if (words.length === 0) break;
    if (kind === "words") args[name] = words.splice(0);
    else {
      const word = words.shift()!;
      args[name] = kind === "number" && /^\d+$/.test(word)
        ? Number(word)
        : word;
    }
  }
  if (words.length > 0) args[words[0]!] = words[0];
  return execute(target, name, args);
}
