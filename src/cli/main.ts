/**
 * The command: from words on the command line to an exit status.
 *
 * @module
 */

import {
  isModelPath,
  loadModel,
  loadModelText,
  parseModelOptions,
} from "../../devices/registry.ts";
import type { DeviceModel } from "../../devices/model.ts";
import denoJson from "../../deno.json" with { type: "json" };
import {
  configureLogging,
  createLog,
  type LogFormat,
  oneLine,
} from "../runtime/logging/logging.ts";
import type { Outboard, RunDevice } from "../runtime/run.ts";
import { messageForPeople } from "../runtime/control/suggestion.ts";
import { loadStores } from "../backend/block/async/load.ts";
import { moduleUrl } from "../core/author_module.ts";
import { ModelError } from "../core/model_fault.ts";
import { UnknownNameError } from "../core/unknown_name.ts";
import {
  type Command,
  type DeviceArgument,
  parseCommandLine,
  UsageError,
} from "./arguments.ts";
import { UncaughtErrors } from "./uncaught.ts";
import { COMMON_DEVICE_OPTIONS, deviceHelp, deviceList, HELP } from "./help.ts";

/** As early as may be: it can end at any time. */
const PARENT = Deno.ppid;

/** The version of this program. */
export const VERSION: string = denoJson.version;

/** Exit statuses. */
const Exit = { OK: 0, FAILED: 1, USAGE: 2 } as const;

function print(text: string): void {
  const bytes = new TextEncoder().encode(text);
  for (let at = 0; at < bytes.length;) {
    at += Deno.stdout.writeSync(bytes.subarray(at));
  }
}

/** Turns each error into one of the command line. */
async function asUsage<T>(act: () => T | Promise<T>): Promise<T> {
  try {
    return await act();
  } catch (error) {
    throw new UsageError((error as Error).message, { cause: error });
  }
}

type RunCommand = Extract<Command, { kind: "run" }>;

/** Error in a device's options. */
function optionError(model: string, error: Error): UsageError {
  const hint = error instanceof UnknownNameError
    ? " (write a comma in a value twice)"
    : "";
  const message = `--device ${model}: ${error.message}${hint}`;
  return new UsageError(message, { cause: error });
}

/** A device's options, checked. */
function parseOptions(model: DeviceModel, argument: DeviceArgument) {
  try {
    return parseModelOptions(
      model,
      argument.model,
      argument.options,
      COMMON_DEVICE_OPTIONS,
    );
  } catch (error) {
    throw optionError(argument.model, error as Error);
  }
}

async function devicesOf(command: RunCommand): Promise<RunDevice[]> {
  const { CONTROL_WORDS } = await import("../runtime/control/commands.ts");
  const devices: RunDevice[] = [];
  const counts = new Map<string, number>();
  for (const { device, endpoint } of command.devices) {
    const model = await asUsage(() => loadModel(device.model));
    const { common, own } = parseOptions(model, device);
    const iothreads = common.iothreads ?? [];
    const count = counts.get(model.name) ?? 0;
    counts.set(model.name, count + 1);
    const id = common.id ?? `${model.name}${count}`;
    if (CONTROL_WORDS.includes(id)) {
      throw new UsageError(
        `Cannot use id=${id}: it is none of ${CONTROL_WORDS.join(", ")}`,
      );
    }
    if (devices.some((other) => other.id === id)) {
      throw new UsageError(
        `Cannot use id=${id} twice: give each device a name of its own`,
      );
    }
    try {
      await model.check?.(own);
    } catch (error) {
      throw optionError(device.model, error as Error);
    }
    // The IOThread need not share our working folder's meaning of a path.
    const reference = isModelPath(device.model)
      ? moduleUrl(device.model)
      : device.model;
    devices.push({
      id,
      model: reference,
      options: own,
      endpoint,
      iothreads,
    });
  }
  return devices;
}

async function helpOn({ model, options }: DeviceArgument): Promise<string> {
  return deviceHelp(await loadModelText(model), await loadStores(options));
}

/** Tells people or machines that clients may connect, and how. */
async function announce(
  outboard: Outboard,
  format: LogFormat,
): Promise<void> {
  const { qemuArgument, readyText } = await import("./ready.ts");
  if (format === "text") {
    try {
      print(readyText(outboard.devices));
    } catch (error) {
      // Clients may come all the same, so this is no reason to stop.
      createLog().warn(
        `cannot say on standard output that clients may connect: ${
          (error as Error).message
        }`,
      );
    }
    return;
  }
  const log = createLog();
  for (const { id, path, fd, iothread } of outboard.devices) {
    log.info(`${id} listens on ${path ?? `fd ${fd}`}`, {
      id,
      iothread,
      ...(path === null ? { fd } : {
        socket: path,
        qemu: qemuArgument(path),
      }),
    });
  }
}

async function serve(outboard: Outboard, command: RunCommand): Promise<void> {
  const devices = await devicesOf(command);
  const { placeDevices } = await import("../runtime/iothread/placement.ts");
  await asUsage(() => placeDevices(devices, command.iothreads.count));
  await outboard.serve({
    devices,
    pollMaxUs: command.pollMaxUs,
    helloTimeoutMs: command.helloTimeoutMs,
    prealloc: command.prealloc,
    ...(command.control === null ? {} : { control: command.control }),
    ...(command.metrics === null ? {} : { metrics: command.metrics }),
  });
}

async function run(
  command: RunCommand,
  uncaught: UncaughtErrors,
): Promise<number> {
  configureLogging(command.logLevel, command.logFormat);
  // Only here: questions are answered without any permission.
  const [{ Outboard }, { runUntilSignal, StopSignal }, { parentEnded }] =
    await Promise.all([
      import("../runtime/run.ts"),
      import("../runtime/until_signal.ts"),
      import("../runtime/parents.ts"),
    ]);
  const { count, cpus } = command.iothreads;
  const outboard = new Outboard({
    iothreads: count,
    ...(cpus === null ? {} : { cpus }),
  });
  // Before the first socket is made, so that no signal leaves one behind.
  using signal = new StopSignal({
    end: (status) => {
      outboard.removeSockets();
      Deno.exit(status);
    },
  });
  if (command.exitWithParent) {
    parentEnded(Deno.args, PARENT).then(() => {
      createLog().info("whoever started this process has ended");
      signal.raise("SIGHUP");
    });
  }
  try {
    await Promise.race([
      serve(outboard, command),
      signal.heard,
      uncaught.failed,
    ]);
    uncaught.serving = true;
    if (!signal.received) announce(outboard, command.logFormat);
  } catch (error) {
    await outboard.stop();
    throw error;
  }
  try {
    return await runUntilSignal(outboard, signal, uncaught.failed);
  } catch (error) {
    createLog().error(error instanceof Error ? error.message : String(error));
    return Exit.FAILED;
  }
}

/** Says why there is nothing to serve, in the format of the log, which a wrong command line asks for too. */
function complain(message: string, args: readonly string[]): void {
  const isJson = args.some((arg, i) =>
    arg === "--log-format=json" ||
    arg === "json" && args[i - 1] === "--log-format"
  );
  if (!isJson) {
    return console.error(`outboard: ${oneLine(message)}`);
  }
  configureLogging("error", "json");
  createLog().error(message);
}

/**
 * Runs the command line.
 *
 * @returns The exit status: 0 done or stopped by a signal, 2 a command line that cannot work, 1 anything else that
 * failed, which may work when tried again
 */
export async function main(args: readonly string[]): Promise<number> {
  using uncaught = new UncaughtErrors();
  try {
    const command = parseCommandLine(args);
    switch (command.kind) {
      case "help":
        print(HELP);
        return Exit.OK;
      case "version":
        print(`outboard ${VERSION}\n`);
        return Exit.OK;
      case "device-help":
        print(
          command.device === null ? deviceList() : await Promise.race([
            asUsage(() => helpOn(command.device!)),
            uncaught.failed,
          ]),
        );
        return Exit.OK;
      case "run":
        return await run(command, uncaught);
      default:
        return command satisfies never;
    }
  } catch (error) {
    complain(await messageForPeople(error), args);
    // A file that breaks its contract does so each time.
    return error instanceof UsageError || error instanceof ModelError
      ? Exit.USAGE
      : Exit.FAILED;
  }
}
