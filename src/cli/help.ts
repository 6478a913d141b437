/**
 * Texts for people: help, the version, and what to do next.
 *
 * @module
 */

import { option, type OptionRow, options } from "../core/options.ts";
import { builtinModels, type ModelText } from "../../devices/registry.ts";
import { DEVICE_OPTION, ENDPOINT_OPTIONS, RUN_OPTIONS } from "./arguments.ts";
import type { StoreModel } from "../backend/block/async/store.ts";
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

/** Words in lines of so many columns. */
function wrap(text: string, columns: number): string[] {
  const lines: string[] = [];
  for (const word of text.split(" ")) {
    const line = `${lines.at(-1) ?? ""} ${word}`;
    if (lines.length === 0 || line.length > columns) lines.push(word);
    else lines[lines.length - 1] = line;
  }
  return lines;
}

/** Two columns: an option with its syntax, and what there is to say of it. */
function optionLines(
  options: readonly OptionRow[],
  separator: "=" | " ",
  widthMax: number,
  columns = Infinity,
): string[] {
  const heads = options.map(({ name, syntax }) =>
    syntax === "" ? name : `${name}${separator}${syntax}`
  );
  const widths = heads.map(({ length }) => length);
  const width = Math.min(widthMax, Math.max(...widths));
  const margin = `\n${" ".repeat(width + 4)}`;
  return options.map((option, i) => {
    const notes = [
      option.allowed ?? "",
      option.default === undefined ? "" : `default ${option.default}`,
      option.repeatable ? "repeatable" : "",
    ].filter((note) => note !== "").join(", ");
    const help = option.help + (notes === "" ? "" : ` (${notes})`);
    const head = heads[i]!;
    const gap = head.length > width
      ? margin
      : " ".repeat(width + 2 - head.length);
    return `  ${head}${gap}${wrap(help, columns - width - 4).join(margin)}`;
  });
}

function flagLines(...groups: { readonly rows: readonly OptionRow[] }[]) {
  const rows = groups.flatMap(({ rows }) => rows)
    .map(({ repeatable: _, ...row }) => row);
  return optionLines(rows, " ", 29, 80).join("\n");
}

/** The text of `--help`. */
export const HELP = `\
Outboard emulates PCI devices outside the VMM, over vfio-user.

Usage: outboard --device MODEL[,key=value...] --socket PATH [...]

Devices (repeat the pair for more devices in one process):
${flagLines(DEVICE_OPTION, ENDPOINT_OPTIONS)}

Running:
${flagLines(RUN_OPTIONS)}
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

/**
 * The text of `--device MODEL,help`.
 *
 * @param stores Those that were named beside it
 */
export function deviceHelp(
  model: ModelText,
  stores: readonly StoreModel[] = [],
): string {
  return [
    `${model.name}: ${model.help}`,
    "",
    "Options:",
    ...optionLines(
      [...COMMON_DEVICE_OPTIONS.rows, ...model.options?.rows ?? []],
      "=",
      34,
    ),
    ...stores.flatMap(({ name, help, options }) => [
      "",
      `Options of store ${name}${help === undefined ? "" : `, ${help}`}:`,
      ...optionLines(options?.rows ?? [], "=", 34),
    ]),
    "",
    "A comma in a value is written twice; sizes are bytes or like 64M and 10G (powers of 1024).",
    "",
  ].join("\n");
}
