/**
 * Logs for people and for machines, on standard error.
 *
 * @module
 */

import {
  configureSync,
  getLogger,
  type LogRecord,
  resetSync,
} from "@logtape/logtape";
import type { Log } from "../../core/log.ts";
import { modelFault } from "../../core/model_fault.ts";

/** Levels of `--log-level`, least to most severe. */
export const LOG_LEVELS = ["debug", "info", "warn", "error"] as const;

/** A level of {@linkcode LOG_LEVELS}. */
export type LogLevel = typeof LOG_LEVELS[number];

/** Formats of `--log-format`. */
export const LOG_FORMATS = ["text", "json"] as const;

/** A format of {@linkcode LOG_FORMATS}. */
export type LogFormat = typeof LOG_FORMATS[number];

/** Receiver of finished lines; they end in a newline. */
export type LineSink = (line: string) => void;

const encoder = new TextEncoder();

/** Writes to standard error; a closed standard error is no reason to stop serving. */
export function stderrSink(line: string): void {
  try {
    Deno.stderr.writeSync(encoder.encode(line));
  } catch {
    // Nobody reads the log any more.
  }
}

const LABEL: Record<string, string> = {
  debug: "debug: ",
  info: "",
  warning: "warning: ",
  error: "error: ",
};

function text(record: LogRecord): string {
  return record.message.map((part) => String(part)).join("");
}

/** A text in one line: whoever gave a part of it must not make lines of its own, nor speak to a terminal. */
export function oneLine(text: string): string {
  return text.replaceAll("\n", "\\n").replace(
    /\p{Cc}/gu,
    (c) => `\\x${c.charCodeAt(0).toString(16).padStart(2, "0")}`,
  );
}

/** Words of an error, with the place where it is a model's. */
function errorText(error: Error): string {
  return modelFault(error) ?? error.message;
}

/** Cause of a message, for the author of a device: of the other properties the message says all that people need. */
function cause({ stack, error }: Readonly<Record<string, unknown>>): string {
  if (typeof stack === "string") {
    return stack.split("\n").map((line) => `\n  ${oneLine(line)}`).join("");
  }
  return error instanceof Error ? oneLine(`: ${errorText(error)}`) : "";
}

function formatText(record: LogRecord): string {
  const source = record.category.slice(1).join(" ");
  const label = LABEL[record.level] ?? `${record.level}: `;
  return `${source ? `${source}: ` : ""}${label}${oneLine(text(record))}${
    cause(record.properties)
  }\n`;
}

/** An error has no properties that JSON would show. */
function plain(_key: string, value: unknown): unknown {
  return value instanceof Error ? errorText(value) : value;
}

function formatJson(record: LogRecord): string {
  return JSON.stringify({
    time: new Date(record.timestamp).toISOString(),
    level: record.level === "warning" ? "warn" : record.level,
    ...(record.category[1] === undefined ? {} : { device: record.category[1] }),
    message: text(record),
    ...record.properties,
  }, plain) + "\n";
}

/** Sets up logging for this thread; called once by the command line. */
export function configureLogging(
  level: LogLevel,
  format: LogFormat,
  sink: LineSink = stderrSink,
): void {
  resetSync();
  const render = format === "json" ? formatJson : formatText;
  configureSync({
    sinks: { out: (record) => sink(render(record)) },
    loggers: [
      {
        category: "outboard",
        lowestLevel: level === "warn" ? "warning" : level,
        sinks: ["out"],
      },
      { category: ["logtape", "meta"], lowestLevel: "error", sinks: ["out"] },
    ],
  });
}

/** Braces in a message are text, not placeholders. */
function literal(message: string): string {
  return message.replaceAll("{", "{{").replaceAll("}", "}}");
}

/**
 * The logger of one device, or of the process itself.
 *
 * @param device The device's id; the process without it
 */
export function createLog(device?: string): Log {
  const logger = getLogger(
    device === undefined ? ["outboard"] : ["outboard", device],
  );
  return {
    debug: (message, properties) => logger.debug(literal(message), properties),
    info: (message, properties) => logger.info(literal(message), properties),
    warn: (message, properties) => logger.warn(literal(message), properties),
    error: (message, properties) => logger.error(literal(message), properties),
    get debugEnabled() {
      return logger.isEnabledFor("debug");
    },
  };
}
