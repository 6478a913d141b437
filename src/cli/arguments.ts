/**
 * From command-line words to what was asked for.
 *
 * @module
 */

import {
  flag,
  type Infer,
  list,
  oneOf,
  option,
  OptionError,
  options,
  type OptionTexts,
  parseOptionParts,
  type Refuse,
  splitAtCommas,
  text as textOption,
} from "../core/options.ts";
import { resolve } from "node:path";
import { parseArgs } from "node:util";
import { LOG_FORMATS, LOG_LEVELS } from "../runtime/logging/logging.ts";
import {
  type MetricsEndpoint,
  parseMetricsEndpoint,
} from "../runtime/metrics/endpoint.ts";
import { POLL_MAX_US_DEFAULT } from "../runtime/iothread/messages.ts";
import type { Endpoint } from "../runtime/sockets.ts";
import type { SocketPath } from "../os/socket/socket_file.ts";
import { UnknownNameError } from "../core/unknown_name.ts";
import { IOTHREADS_OPTION } from "./iothreads.ts";
import { HELLO_TIMEOUT_MS } from "../transport/contract.ts";
import { UsageError } from "./usage_error.ts";

export { UsageError };

/** `MODEL,key=value,…` taken apart. */
export interface DeviceArgument {
  /** Name in the registry, or path or URL of a module. */
  readonly model: string;
  /** Options in the order given; a repeated key holds all its values. */
  readonly options: OptionTexts;
  /** True if `help` was asked for: `MODEL,help`. */
  readonly help: boolean;
}

/** A comma inside a value is written twice, as in QEMU; a key alone means `on`. */
function parseDevice(text: string, refuse: Refuse): DeviceArgument {
  const parts = splitAtCommas(text);
  const model = parts.shift()!;
  if (model === "" || model.includes("=")) {
    refuse(
      "a model comes first, as in --device virtio-net,key=value; see --device help",
    );
  }
  const stray = parts.find((part) => part === "" || part.startsWith("="));
  if (stray !== undefined) {
    refuse(
      `"${stray}" has no key; options are key=value (write a comma in a value twice)`,
    );
  }
  const options = parseOptionParts(parts.filter((part) => part !== "help"));
  return { model, options, help: parts.includes("help") };
}

/** `--device MODEL[,key=value…]`. */
export const DEVICE_OPTION = list(option("--device", {
  syntax: "MODEL[,key=value...]",
  help:
    'a device; "--device help" lists models, "--device MODEL,help" its options; ' +
    "a path such as ./my_device.ts loads a model",
}, parseDevice));

/** Options after the path of a socket. */
const ACCESS = options({
  mode: option(
    "mode",
    { help: "permissions" },
    (text, refuse) =>
      /^0?[0-7]{3}$/.test(text) ? parseInt(text, 8) : refuse(
        "a mode has three octal digits, such as 0660 for owner and group",
      ),
  ),
  group: textOption("group", { help: "whose it is" }),
}, ({ mode, group }) => ({
  ...(mode === null ? {} : { mode }),
  ...(group === null ? {} : { group }),
}));

/** `PATH[,mode=MODE][,group=GROUP]`. */
function parseSocketPath(text: string, refuse: Refuse): SocketPath {
  const [path = "", ...parts] = splitAtCommas(text);
  if (path === "") refuse("give a path");
  const after = "what follows a path (write a comma in a path twice)";
  return { path, ...ACCESS.parse(parseOptionParts(parts), after) };
}

function parseEndpoint(text: string, refuse: Refuse): Endpoint {
  return { kind: "path", ...parseSocketPath(text, refuse) };
}

/** Places where devices are served: one for each device, in the same order. */
export const ENDPOINT_OPTIONS = options({
  socket: list(option("--socket", {
    syntax: "PATH[,mode=MODE][,group=GROUP]",
    help:
      "UNIX socket that the VMM connects to; its owner only, unless mode= (0660) or group= say who else",
  }, parseEndpoint)),
  socketPath: list(
    option(
      "--socket-path",
      { syntax: "PATH", help: "the same" },
      parseEndpoint,
    ),
  ),
  fd: list(option("--fd", {
    syntax: "N",
    help: "a listening socket that was handed over",
  }, (text, refuse): Endpoint => {
    const fd = Number(text);
    return /^\d+$/.test(text) && fd >= 3
      ? { kind: "fd", fd }
      : refuse("give the number of a listening socket, 3 or more");
  })),
}, ({ socket, socketPath, fd }) => [...socket, ...socketPath, ...fd]);

/** Options of the process. */
export const RUN_OPTIONS = options({
  control: option("--control", {
    syntax: "PATH",
    help:
      'UNIX socket for commands, such as "virtio-net0 link down"; say "help" to it; takes mode= and group= as --socket does',
  }, parseSocketPath),
  iothreads: IOTHREADS_OPTION,
  metrics: option("--metrics", {
    syntax: "PORT|ADDR:PORT|PATH",
    help:
      "HTTP for Prometheus at /metrics, on 127.0.0.1 unless told, or on a UNIX socket (a path with a slash), with mode= and group= likewise",
  }, (text, refuse): MetricsEndpoint => {
    const endpoint = parseMetricsEndpoint(text) ?? refuse(
      "give a port, such as 9100, a numeric address and a port, such as 127.0.0.1:9100, or a path with a slash, such as ./metrics.sock",
    );
    return endpoint.kind === "tcp"
      ? endpoint
      : { kind: "path", ...parseSocketPath(text, refuse) };
  }),
  /** Longest polling before an IOThread sleeps, in microseconds; Infinity for always. */
  pollMaxUs: option("--poll", {
    syntax: "off|always|NANOSECONDS",
    help:
      'poll for work before sleeping, up to that long where it pays; "always" burns a core',
    default: `${POLL_MAX_US_DEFAULT * 1000}`,
  }, (text, refuse) => {
    if (text === "off") return 0;
    if (text === "always") return Infinity;
    return /^\d{1,9}$/.test(text) ? Number(text) / 1000 : refuse(
      "choose off, always, or the longest polling in nanoseconds, such as 50000",
    );
  }),
  helloTimeoutMs: option("--hello-timeout", {
    syntax: "SECONDS",
    help:
      "how long a client may take until a version is agreed: others wait meanwhile",
    default: `${HELLO_TIMEOUT_MS / 1000}`,
  }, (text, refuse) => {
    const seconds = Number(text);
    return /^\d{1,6}(\.\d{1,3})?$/.test(text) && seconds > 0
      ? seconds * 1000
      : refuse(
        "give the seconds that a client may take to agree on a version, such as 5",
      );
  }),
  prealloc: flag("--prealloc", {
    help:
      "have all of a guest's memory there when it is mapped, so that it cannot run out in use",
  }),
  exitWithParent: flag("--exit-with-parent", {
    help:
      "stop when the process that started it ends; npx and its shell count as one with theirs; one that ended before Outboard ran is known by its session, so not where that is ours or init's",
  }),
  logLevel: oneOf("--log-level", LOG_LEVELS, {
    help: "from which level on lines are told",
    default: "info",
  }),
  logFormat: oneOf("--log-format", LOG_FORMATS, {
    help: "how a line of the log looks",
    default: "text",
  }),
});

const ALL = options({
  devices: DEVICE_OPTION,
  endpoints: ENDPOINT_OPTIONS,
  run: RUN_OPTIONS,
});

/** Result of parsing the command line. */
export type Command =
  | { readonly kind: "help" }
  | { readonly kind: "version" }
  | { readonly kind: "device-help"; readonly device: DeviceArgument | null }
  | {
    readonly kind: "run";
    readonly devices: readonly {
      readonly device: DeviceArgument;
      readonly endpoint: Endpoint;
    }[];
  } & Infer<typeof RUN_OPTIONS>;

/** Options in order: the names with their dashes, and `on` for a flag. */
function tokenize(args: readonly string[]): [name: string, text: string][] {
  const known = Object.fromEntries(ALL.rows.map(({ name, syntax }) => [
    name.slice(2),
    { type: syntax === "" ? "boolean" as const : "string" as const },
  ]));
  try {
    const { tokens } = parseArgs({
      args: [...args],
      options: {
        ...known,
        help: { type: "boolean", short: "h" },
        version: { type: "boolean", short: "V" },
      },
      strict: true,
      tokens: true,
    });
    return tokens.filter((token) => token.kind === "option")
      .map(({ name, value }) => [`--${name}`, value ?? "on"]);
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

/** Finds the option that there is not in the parser's complaint, for {@linkcode UnknownNameError}. */
function unknownOption(message: string): UnknownNameError | undefined {
  const [, given] = /^Unknown option '([^']+)'/.exec(message) ?? [];
  const known = ALL.rows.map(({ name }) => name);
  return given === undefined
    ? undefined
    : new UnknownNameError(message, given, [...known, "--help", "--version"]);
}

function checkPairs(
  devices: readonly DeviceArgument[],
  endpoints: readonly Endpoint[],
): void {
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
}

/** Two of our own in one place would each take the other for another process. */
function checkPlaces(
  endpoints: readonly Endpoint[],
  { control, metrics }: Infer<typeof RUN_OPTIONS>,
): void {
  const places = endpoints.map((endpoint) => [
    "--socket",
    endpoint.kind === "path" ? resolve(endpoint.path) : `fd ${endpoint.fd}`,
  ]);
  if (control !== null) places.push(["--control", resolve(control.path)]);
  if (metrics?.kind === "path") {
    places.push(["--metrics", resolve(metrics.path)]);
  }
  for (const [i, [option, place]] of places.entries()) {
    const before = places.findIndex((other) => other[1] === place);
    if (before === i) continue;
    throw new UsageError(
      option === "--socket"
        ? `Cannot serve two devices on ${place}: each needs a socket of its own`
        : `Cannot use ${place} for ${
          places[before]![0]
        } and ${option}: each needs a path of its own`,
    );
  }
}

/** The texts of each name, in order. */
function textsOf(tokens: readonly [string, string][]): OptionTexts {
  const names = new Set(tokens.map(([name]) => name));
  return Object.fromEntries(
    [...names].map((name) => [
      name,
      tokens.filter((token) => token[0] === name).map(([, text]) => text),
    ]),
  );
}

/**
 * Parses the command line.
 *
 * @throws {UsageError}
 */
export function parseCommandLine(args: readonly string[]): Command {
  const tokens = tokenize(args);
  for (const [name, text] of tokens) {
    if (name === "--help") return { kind: "help" };
    if (name === "--version") return { kind: "version" };
    if (name === "--device" && text === "help") {
      return { kind: "device-help", device: null };
    }
  }
  try {
    const { devices, run } = ALL.parse(textsOf(tokens));
    const asked = devices.find((device) => device.help);
    if (asked !== undefined) return { kind: "device-help", device: asked };
    // One by one: their order is that of the devices, whichever option each is.
    const endpoints = tokens.filter(([name]) => ENDPOINT_OPTIONS.has(name))
      .flatMap(([name, text]) => ENDPOINT_OPTIONS.parse({ [name]: text }));
    checkPairs(devices, endpoints);
    checkPlaces(endpoints, run);
    return {
      kind: "run",
      devices: devices.map((device, i) => ({
        device,
        endpoint: endpoints[i]!,
      })),
      ...run,
    };
  } catch (error) {
    if (error instanceof OptionError || error instanceof UnknownNameError) {
      throw new UsageError(error.message, { cause: error });
    }
    throw error;
  }
}
