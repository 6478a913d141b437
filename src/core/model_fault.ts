/**
 * Faults of device models that are not ours: which model, in which file and line.
 *
 * @module
 */

/** A model or a store does what its contract does not allow; the message names it. */
export class ModelError extends Error {
  override readonly name = "ModelError";
}

/** Modules of this package, whose frames in a stack are not an author's. */
const OWN = ["../", "../../devices/", "../../mod.ts"].map((path) =>
  new URL(path, import.meta.url).href
);
const AsyncFunction = (async () => {}).constructor as FunctionConstructor;
const FRAME = /^\s+at .*?\b((?:file|https?|blob|data):\S+?):(\d+):(\d+)\)?$/;

/** True if it is an `async` function. */
export function isAsync(value: unknown): boolean {
  return value instanceof AsyncFunction;
}

/**
 * Finds the fault in the shape of what an author's function has returned as a device.
 *
 * @param methods What it must have
 * @param optional What it may have
 * @returns null for nothing
 */
export function deviceShapeProblem(
  device: unknown,
  methods: readonly string[],
  optional: readonly string[],
): string | null {
  if (typeof device !== "object" || device === null) {
    return `\`create\` must return a device, not ${device}`;
  }
  if (device instanceof Promise) {
    return "`create` must not be async: an IOThread waits for no promise";
  }
  const fields = device as Record<string, unknown>;
  for (const method of methods) {
    if (typeof fields[method] !== "function") {
      return `the device has no \`${method}\`, which must be a function`;
    }
  }
  for (const method of optional) {
    if (fields[method] !== undefined && typeof fields[method] !== "function") {
      return `the device's \`${method}\` must be a function`;
    }
  }
  for (const method of [...methods, ...optional]) {
    if (isAsync(fields[method])) {
      return `the device's \`${method}\` must not be async: an IOThread waits for no promise`;
    }
  }
  return null;
}

/** Descriptions of what was loaded from files, such as `model coffee`, by the URL of the file. */
const models = new Map<string, string>();

/**
 * From here on faults in a file are those of this model.
 *
 * @param kind What it is a model of, if it is none of a device
 */
export function nameModelFile(url: string, name: string, kind = "model"): void {
  models.set(url, `${kind} ${name}`);
}

/** A model and its file, for people, such as `model coffee, /home/me/coffee.ts`; a built-in one has no file. */
export function describeModel(name: string): string {
  const model = `model ${name}`;
  for (const [url, known] of models) {
    if (known === model) return `${model}, ${pathOf(url)}`;
  }
  return model;
}

/**
 * The author's line that led to an error, for people, such as `model coffee, /home/me/coffee.ts:12:5`.
 *
 * @returns null when no model from a file was at work
 */
export function placeInModel(error: unknown): string | null {
  const [frame] = authorFrames(error);
  if (frame === undefined) return null;
  const [, url, row, column] = frame;
  const name = models.get(url!);
  const place = `${pathOf(url!)}:${row}:${column}`;
  return name === undefined ? place : `${name}, ${place}`;
}

/**
 * The author's function that was called by us, and led to an error: a name that is the same wherever in it that was.
 *
 * @returns null as {@linkcode placeInModel}
 */
export function entryInModel(error: unknown): string | null {
  const frame = authorFrames(error).at(-1);
  return frame === undefined ? null : frame[0].replace(/:\d+:\d+\)?$/, "");
}

/** Frames of a stack that are not ours, the innermost first. */
function authorFrames(error: unknown): RegExpExecArray[] {
  const stack = error instanceof Error ? error.stack ?? "" : "";
  return stack.split("\n").map((line) => FRAME.exec(line)).filter((frame) =>
    frame !== null &&
    !OWN.some((own) => frame[1]!.startsWith(own))
  ) as RegExpExecArray[];
}

/**
 * One line about an error that is an author's.
 *
 * @param model What was at work, for what is thrown without a place
 * @returns null when it is ours
 */
export function modelFault(
  error: unknown,
  model = "a device model",
): string | null {
  if (error instanceof ModelError) return error.message;
  if (!(error instanceof Error)) {
    const thrown = Deno.inspect(error).split("\n")[0];
    return `${model}: it throws ${thrown}, which is not an Error and so tells no line`;
  }
  const place = placeInModel(error);
  return place === null
    ? null
    : `${place}: ${String(error.message).split("\n")[0]}`;
}

function pathOf(url: string): string {
  return url.startsWith("file:") ? decodeURI(new URL(url).pathname) : url;
}
