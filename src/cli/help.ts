/**
 * Texts for people: help, the version, and what to do next.
 *
 * @module
 */

import { option, type OptionRow, options } from "../core/options.ts";
import { builtinModels, type ModelText } from "../../devices/registry.ts";
import { IOTHREAD_OPTION } from "./iothreads.ts";

/** Options that every device has, whatever its model. */
export const COMMON_DEVICE_OPTIONS = options({
  id: option("id", {
    syntax: "NAME",
    help: "name in logs and on the control socket",
    otherwise: "MODEL and a number",
  }, (text, refuse) =>
    /^[A-Za-z][\w.-]*$/.test(text) ? text : refuse(
      'a name of letters, digits, ".", "_" and "-" is wanted, starting with a letter',
    )),
  iothreads: IOTHREAD_OPTION,
});

/** The text of `--help`. */
export const HELP = `\
Outboard emulates PCI devices outside the VMM, over vfio-user.

Usage: outboard --device MODEL[,key=value...] --socket PATH [...]

Devices (repeat the pair for more devices in one process):
  --device MODEL[,key=value...]  a device; "--device help" lists models,
                                 "--device MODEL,help" its options;
                                 a path such as ./my_device.ts loads a model
  --socket PATH[,mode=MODE][,group=GROUP]
                                 UNIX socket that the VMM connects to; its owner
                                 only, unless mode= (0660) or group= say who else
  --socket-path PATH             the same
  --fd N                         a listening socket that was handed over

Running:
  --control PATH                 UNIX socket for commands, such as
                                 "virtio-net0 link down"; say "help" to it;
                                 takes mode= and group= as --socket does
  --iothreads N[,cpus=SET:...]   threads that devices are spread over (default 1),
                                 and the CPUs of each, 3, 0-3 or 0+2, or
                                 one set for all
  --metrics PORT|ADDR:PORT|PATH  HTTP for Prometheus at /metrics, on 127.0.0.1
                                 unless told, or on a UNIX socket (a path with
                                 a slash), with mode= and group= likewise
  --poll off|always|NANOSECONDS  poll for work before sleeping, up to that long
                                 where it pays (default 50000); "always" burns
                                 a core
  --hello-timeout SECONDS        how long a client may take until a version is
                                 agreed (default 5): others wait meanwhile
  --prealloc                     have all of a guest's memory there when it is
                                 mapped, so that it cannot run out in use
  --exit-with-parent             stop when the process that started it ends;
                                 npx and its shell count as one with theirs;
                                 one that ended before Outboard ran is known by
                                 its session, so not where that is ours or init's
  --log-level LEVEL              debug, info (default), warn or error
  --log-format FORMAT            text (default) or json
  -h, --help                     this text
  -V, --version                  the version

In values a comma is written twice (file=a,,b.img), and sizes are bytes or
like 64M and 10G: K, M, G, T and P are powers of 1024.

Example:
  outboard --device virtio-net,hostfwd=tcp:127.0.0.1:2222-:22 --socket /tmp/dev.sock

Environment:
  OUTBOARD_LIBSLIRP=FILE         libslirp to use; "none" for the built-in gateway
  OUTBOARD_PASST=FILE            passt to start for net=passt
  OUTBOARD_POISON=1              memory that a client took back is no longer
                                 there, so that a late access ends the process:
                                 for finding faults, not for use

It may be run with fewer permissions than -A; the README lists them.

SIGINT, SIGTERM and SIGHUP stop it cleanly.
`;

function optionLines(options: readonly OptionRow[]): string[] {
  const heads = options.map((option) => `${option.name}=${option.syntax}`);
  const width = Math.min(34, Math.max(...heads.map((head) => head.length)));
  return options.map((option, i) => {
    const notes = [
      option.allowed ?? "",
      option.default === undefined ? "" : `default ${option.default}`,
      option.repeatable ? "repeatable" : "",
    ].filter((note) => note !== "").join(", ");
    const help = option.help + (notes === "" ? "" : ` (${notes})`);
    const head = heads[i]!;
    const gap = head.length > width
      ? `\n  ${" ".repeat(width)}`
      : " ".repeat(width - head.length);
    return `  ${head}${gap}  ${help}`;
  });
}

/** The text of `--device help`. */
export function deviceList(): string {
  const width = Math.max(...[...builtinModels.keys()].map((n) => n.length));
  return [
    "Device models:",
    ...[...builtinModels.values()].map((model) =>
      `  ${model.name.padEnd(width)}  ${model.help}`
    ),
    "",
    "Options of a model: --device MODEL,help",
    "A model of your own: --device ./path/to/model.ts",
    "",
  ].join("\n");
}

/** The text of `--device MODEL,help`. */
export function deviceHelp(model: ModelText): string {
  return [
    `${model.name}: ${model.help}`,
    "",
    "Options:",
    ...optionLines([
      ...COMMON_DEVICE_OPTIONS.rows,
      ...model.options?.rows ?? [],
    ]),
    "",
    "A comma in a value is written twice; sizes are bytes or like 64M and 10G (powers of 1024).",
    "",
  ].join("\n");
}
