/**
 * From command-line words to what was asked for.
 *
 * @module
 */

import {
  type OptionTexts,
  parseOptionParts,
  splitAtCommas,
} from "../core/options.ts";
import { resolve } from "node:path";
import { parseArgs } from "node:util";
import {
  LOG_FORMATS,
  LOG_LEVELS,
  type LogFormat,
  type LogLevel,
} from "../runtime/logging/logging.ts";
import {
  type MetricsEndpoint,
  parseMetricsEndpoint,
} from "../runtime/metrics/endpoint.ts";
import { POLL_MAX_US_DEFAULT } from "../runtime/iothread/messages.ts";
import type { Endpoint } from "../runtime/sockets.ts";
import type { SocketPath } from "../os/socket/socket_file.ts";
import { UnknownNameError } from "../core/unknown_name.ts";
import {
  IOTHREADS_DEFAULT,
  type IOThreadsArgument,
  parseIOThreads,
} from "./iothreads.ts";
import { HELLO_TIMEOUT_MS } from "../transport/contract.ts";
import { UsageError } from "./usage_error.ts";

export { UsageError };

/** `MODEL,key=value,…` taken apart. */
export interface DeviceArgument {
  /** Name in the registry, or path or URL of a module. */
  readonly model: string;
  /** Options in the order given; a repeated key holds all its values. */
  readonly options: OptionTexts;
  /** Whether `help` was asked for: `MODEL,help`. */
  readonly help: boolean;
}

/** What the command line asks for. */
export type Command =
  | { readonly kind: "help" }
  | { readonly kind: "version" }
  | { readonly kind: "device-help"; readonly model: string | null }
  | {
    readonly kind: "run";
    readonly devices: readonly {
      readonly device: DeviceArgument;
      readonly endpoint: Endpoint;
    }[];
    readonly control: SocketPath | null;
    /** Whether to stop when whoever started this process ends. */
    readonly exitWithParent: boolean;
    readonly metrics: MetricsEndpoint | null;
    readonly iothreads: IOThreadsArgument;
    /** Longest polling before an IOThread sleeps, in microseconds; Infinity for always. */
    readonly pollMaxUs: number;
    /** How long a client may take until a version is agreed, in milliseconds. */
    readonly helloTimeoutMs: number;
    /** Whether guest memory is reserved when it is mapped. */
    readonly prealloc: boolean;
    readonly logLevel: LogLevel;
    readonly logFormat: LogFormat;
  };

/**
 * Takes `MODEL[,key=value…]` apart. A comma inside a value is written twice, as in QEMU; a key alone means `on`.
 *
 * @throws {UsageError}
 */
export function parseDeviceArgument(text: string): DeviceArgument {
  const parts = splitAtCommas(text);
  const model = parts.shift()!;
  if (model === "" || model.includes("=")) {
    throw new UsageError(
      `Cannot use --device ${text}: a model comes first, as in --device virtio-net,key=value; see --device help`,
    );
  }
  const stray = parts.find((part) => part === "" || part.startsWith("="));
  if (stray !== undefined) {
    throw new UsageError(
      `Cannot use --device ${text}: "${stray}" has no key; options are key=value (write a comma in a value twice)`,
    );
  }
  const options = parseOptionParts(parts.filter((part) => part !== "help"));
  return { model, options, help: parts.includes("help") };
}

function parseFd(text: string): Endpoint {
  const fd = Number(text);
  if (!/^\d+$/.test(text) || fd < 3) {
    throw new UsageError(
      `Cannot use --fd ${text}: give the number of a listening socket, 3 or more`,
    );
  }
  return { kind: "fd", fd };
}

/** `PATH[,mode=MODE][,group=GROUP]`. */
function parseSocketPath(option: string, text: string): SocketPath {
  const [path = "", ...rest] = splitAtCommas(text);
  if (path === "") {
    throw new UsageError(`Cannot use --${option} without a path`);
  }
  const place: { path: string; mode?: number; group?: string } = { path };
  for (const part of rest) {
    const [, key, value = ""] = /^(mode|group)=(.+)$/.exec(part) ?? [];
    if (key === undefined) {
      throw new UsageError(
        `Cannot use --${option} ${text}: after the path come mode= and group=, as in ${path},mode=0660,group=kvm (write a comma in a path twice)`,
      );
    }
    if (key in place) {
      throw new UsageError(
        `Cannot use --${option} ${text}: give ${key}= once`,
      );
    }
    if (key === "group") place.group = value;
    else place.mode = parseMode(option, text, value);
  }
  return place;
}

function parseMode(option: string, text: string, mode: string): number {
  if (!/^0?[0-7]{3}$/.test(mode)) {
    throw new UsageError(
      `Cannot use --${option} ${text}: a mode has three octal digits, such as 0660 for owner and group`,
    );
  }
  return parseInt(mode, 8);
}

function parseMetrics(text: string): MetricsEndpoint {
  const endpoint = parseMetricsEndpoint(text);
  if (endpoint === null) {
    throw new UsageError(
      `Cannot use --metrics ${text}: give a port, such as 9100, a numeric address and a port, such as 127.0.0.1:9100, or a path with a slash, such as ./metrics.sock`,
    );
  }
  return endpoint.kind === "tcp"
    ? endpoint
    : { kind: "path", ...parseSocketPath("metrics", text) };
}

/** `off`, `always`, or the longest polling in nanoseconds. */
function parsePoll(text: string): number {
  if (text === "off") return 0;
  if (text === "always") return Infinity;
  if (!/^\d{1,9}$/.test(text)) {
    throw new UsageError(
      `Cannot use --poll ${text}: choose off, always, or the longest polling in nanoseconds, such as 50000`,
    );
  }
  return Number(text) / 1000;
}

/** Seconds, with a fraction or not, in milliseconds. */
function parseHelloTimeout(text: string): number {
  const seconds = Number(text);
  if (!/^\d{1,6}(\.\d{1,3})?$/.test(text) || seconds === 0) {
    throw new UsageError(
      `Cannot use --hello-timeout ${text}: give the seconds that a client may take to agree on a version, such as 5`,
    );
  }
  return seconds * 1000;
}

function oneOf<T extends string>(
  option: string,
  value: string,
  allowed: readonly T[],
): T {
  const found = allowed.find((candidate) => candidate === value);
  if (found === undefined) {
    throw new UsageError(
      `Cannot use --${option} ${value}: choose one of ${allowed.join(", ")}`,
    );
  }
  return found;
}

const OPTIONS = {
  "device": { type: "string" },
  "socket": { type: "string" },
  "socket-path": { type: "string" },
  "fd": { type: "string" },
  "control": { type: "string" },
  "metrics": { type: "string" },
  "iothreads": { type: "string" },
  "poll": { type: "string" },
  "hello-timeout": { type: "string" },
  "prealloc": { type: "boolean" },
  "exit-with-parent": { type: "boolean" },
  "log-level": { type: "string" },
  "log-format": { type: "string" },
  "help": { type: "boolean", short: "h" },
  "version": { type: "boolean", short: "V" },
} as const;

interface Seen {
  readonly devices: DeviceArgument[];
  readonly endpoints: Endpoint[];
  control: SocketPath | null;
  exitWithParent: boolean;
  metrics: MetricsEndpoint | null;
  iothreads: IOThreadsArgument;
  pollMaxUs: number;
  helloTimeoutMs: number;
  prealloc: boolean;
  logLevel: LogLevel;
  logFormat: LogFormat;
}

function tokenize(args: readonly string[]) {
  try {
    return parseArgs({
      args: [...args],
      options: OPTIONS,
      strict: true,
      tokens: true,
    }).tokens;
  } catch (error) {
    const { message } = error as Error;
    const reason = message.split(/\.\s/)[0];
    // A value that begins with a dash could be an option by itself.
    const remedy = /ambiguous/.test(message)
      ? "give its value, with = if it begins with a dash"
      : "see --help";
    throw new UsageError(
      `Cannot understand the command line: ${reason}; ${remedy}`,
      { cause: unknownOption(message) },
    );
  }
}

/** What the parser's complaint of an option that there is not holds for {@linkcode UnknownNameError}. */
function unknownOption(message: string): UnknownNameError | undefined {
  const [, given] = /^Unknown option '([^']+)'/.exec(message) ?? [];
  const known = Object.keys(OPTIONS).map((name) => `--${name}`);
  return given === undefined
    ? undefined
    : new UnknownNameError(message, given, known);
}

/** Options that are of one device each. */
const REPEATABLE = ["device", "socket", "socket-path", "fd"];

function checkOnce(names: readonly string[]): void {
  for (const name of new Set(names)) {
    const times = names.filter((other) => other === name).length;
    if (times > 1 && !REPEATABLE.includes(name)) {
      throw new UsageError(`Cannot use --${name} ${times} times: give it once`);
    }
  }
}

function take(seen: Seen, name: string, value: string): void {
  switch (name) {
    case "device":
      seen.devices.push(parseDeviceArgument(value));
      return;
    case "socket":
    case "socket-path":
      seen.endpoints.push({ kind: "path", ...parseSocketPath(name, value) });
      return;
    case "fd":
      seen.endpoints.push(parseFd(value));
      return;
    case "control":
      seen.control = parseSocketPath(name, value);
      return;
    case "metrics":
      seen.metrics = parseMetrics(value);
      return;
    case "iothreads":
      seen.iothreads = parseIOThreads(value);
      return;
    case "poll":
      seen.pollMaxUs = parsePoll(value);
      return;
    case "hello-timeout":
      seen.helloTimeoutMs = parseHelloTimeout(value);
      return;
    case "prealloc":
      seen.prealloc = true;
      return;
    case "exit-with-parent":
      seen.exitWithParent = true;
      return;
    case "log-level":
      seen.logLevel = oneOf(name, value, LOG_LEVELS);
      return;
    case "log-format":
      seen.logFormat = oneOf(name, value, LOG_FORMATS);
      return;
  }
}

function checkPairs(seen: Seen): void {
  const { devices, endpoints } = seen;
  if (devices.length === 0) {
    throw new UsageError(
      "Cannot start without a device: try --device virtio-net --socket /tmp/dev.sock, or --help",
    );
  }
  if (devices.length !== endpoints.length) {
    throw new UsageError(
      `Cannot pair ${devices.length} --device with ${endpoints.length} --socket or --fd: give one for each, in the same order`,
    );
  }
  checkPlaces(seen);
}

/** Two of our own in one place would each take the other for another process. */
function checkPlaces({ endpoints, control, metrics }: Seen): void {
  const taken = new Map<string, string>();
  for (const endpoint of endpoints) {
    const key = endpoint.kind === "path"
      ? resolve(endpoint.path)
      : `fd ${endpoint.fd}`;
    if (taken.has(key)) {
      throw new UsageError(
        `Cannot serve two devices on ${key}: each needs a socket of its own`,
      );
    }
    taken.set(key, "--socket");
  }
  const others = [
    ["--control", control?.path ?? null],
    ["--metrics", metrics?.kind === "path" ? metrics.path : null],
  ] as const;
  for (const [option, path] of others) {
    if (path === null) continue;
    const key = resolve(path);
    const before = taken.get(key);
    if (before !== undefined) {
      throw new UsageError(
        `Cannot use ${key} for ${before} and ${option}: each needs a path of its own`,
      );
    }
    taken.set(key, option);
  }
}

/**
 * Parses the command line.
 *
 * @throws {UsageError}
 */
export function parseCommandLine(args: readonly string[]): Command {
  const seen: Seen = {
    devices: [],
    endpoints: [],
    control: null,
    exitWithParent: false,
    metrics: null,
    iothreads: IOTHREADS_DEFAULT,
    pollMaxUs: POLL_MAX_US_DEFAULT,
    helloTimeoutMs: HELLO_TIMEOUT_MS,
    prealloc: false,
    logLevel: "info",
    logFormat: "text",
  };
  const options = tokenize(args).filter((token) => token.kind === "option");
  for (const token of options) {
    if (token.name === "help") return { kind: "help" };
    if (token.name === "version") return { kind: "version" };
    if (token.name === "device" && token.value === "help") {
      return { kind: "device-help", model: null };
    }
    take(seen, token.name, token.value ?? "");
  }
  checkOnce(options.map(({ name }) => name));
  const asked = seen.devices.find((device) => device.help);
  if (asked !== undefined) return { kind: "device-help", model: asked.model };
  checkPairs(seen);
  return {
    kind: "run",
    devices: seen.devices.map((device, i) => ({
      device,
      endpoint: seen.endpoints[i]!,
    })),
    control: seen.control,
    exitWithParent: seen.exitWithParent,
    metrics: seen.metrics,
    iothreads: seen.iothreads,
    pollMaxUs: seen.pollMaxUs,
    helloTimeoutMs: seen.helloTimeoutMs,
    prealloc: seen.prealloc,
    logLevel: seen.logLevel,
    logFormat: seen.logFormat,
  };
}
