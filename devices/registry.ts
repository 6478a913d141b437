/**
 * Finds device models: built-in ones by name, others by path or URL.
 *
 * @module
 */

import { UnknownNameError } from "../src/core/unknown_name.ts";
import { importModule, moduleUrl } from "../src/core/author_module.ts";
import { isAsync, nameModelFile } from "../src/core/model_fault.ts";
import { encodePlainData } from "../src/core/plain_data.ts";
import {
  type Options,
  options,
  type OptionTexts,
} from "../src/core/options.ts";
import type { DeviceModel } from "./model.ts";

/** Description of a model. */
export type ModelText = Pick<DeviceModel, "name" | "help" | "options">;

/** A built-in model that has not been loaded. */
export interface ModelEntry {
  /** The name in `--device NAME`. */
  readonly name: string;
  /** One line on what it is; the same as the model's own. */
  readonly help: string;
  /** Loads its options alone, which takes no permission. */
  loadOptions(): Promise<Options<unknown>>;
  /** Loads it. */
  load(): Promise<DeviceModel>;
}

/** The models that come with Outboard, by name; none is loaded until it is asked for. */
export const builtinModels: ReadonlyMap<string, ModelEntry> = new Map(
  ([
    {
      name: "virtio-net",
      help: "virtio network card",
      loadOptions: async () =>
        (await import("./virtio_net/config.ts")).VIRTIO_NET_OPTIONS,
      load: async () =>
        (await import("./virtio_net/mod.ts")).virtioNetModel as DeviceModel,
    },
    {
      name: "virtio-blk",
      help: "virtio disk",
      loadOptions: async () =>
        (await import("./virtio_blk/config.ts")).VIRTIO_BLK_OPTIONS,
      load: async () =>
        (await import("./virtio_blk/mod.ts")).virtioBlkModel as DeviceModel,
    },
    {
      name: "nvme",
      help: "NVM Express controller",
      loadOptions: async () => (await import("./nvme/options.ts")).NVME_OPTIONS,
      load: async () =>
        (await import("./nvme/mod.ts")).nvmeModel as DeviceModel,
    },
  ] as readonly ModelEntry[]).map((entry) => [entry.name, entry]),
);

/** True if the word names a file or URL and not a built-in model. */
export function isModelPath(reference: string): boolean {
  return reference.includes("/") || /\.[mc]?[jt]s$/.test(reference) ||
    /^[a-z][a-z0-9+.-]*:/i.test(reference);
}

function describe(value: unknown): string {
  return value === null
    ? "null"
    : Array.isArray(value)
    ? "array"
    : typeof value;
}

function optionsProblem(options: unknown): string | null {
  if (options === undefined) return null;
  const { rows, has, parse } = (options ?? {}) as Partial<Options<unknown>>;
  if (
    !Array.isArray(rows) || typeof has !== "function" ||
    typeof parse !== "function"
  ) {
    return `its \`options\` must be what \`options({…})\` makes, not ${
      describe(options)
    }`;
  }
  for (const { name, help } of rows) {
    if (typeof help === "string" && help !== "") continue;
    return `its option \`${name}\` must have a \`help\` that is a string, not ${
      describe(help)
    }`;
  }
  return null;
}

function modelProblem(model: object): string | null {
  const candidate = model as Record<string, unknown>;
  for (const field of ["name", "help"]) {
    const value = candidate[field];
    if (typeof value !== "string" || value === "") {
      return `its \`${field}\` must be a non-empty string, not ${
        value === "" ? "an empty one" : describe(value)
      }`;
    }
  }
  const { create } = candidate;
  if (typeof create !== "function") {
    return `its \`create\` must be a function, not ${describe(create)}`;
  }
  if (isAsync(create)) {
    return "its `create` must not be async: it is to return what it makes, not a promise";
  }
  return optionsProblem(candidate.options);
}

/**
 * The device model that a module exports as `model` or as its default.
 *
 * @param module What `import()` gave
 * @param reference How the person called it, for messages
 * @throws {Error} When it has none, or one of the wrong shape
 */
export function modelOfModule(
  module: Readonly<Record<string, unknown>>,
  reference: string,
): DeviceModel {
  const model = module.model ?? module.default;
  if (model === undefined) {
    throw new Error(
      `Cannot use ${reference} as a device model: it exports neither \`model\` nor a default`,
    );
  }
  if (typeof model !== "object" || model === null) {
    throw new Error(
      `Cannot use ${reference} as a device model: its export must be an object, not ${
        describe(model)
      }`,
    );
  }
  const problem = modelProblem(model);
  if (problem !== null) {
    throw new Error(`Cannot use ${reference} as a device model: ${problem}`);
  }
  return model as DeviceModel;
}

/**
 * Checks and converts the options of a model, and those that it shares with all others.
 *
 * @param reference How the person called it
 * @param common Those of all models
 * @throws {Error} With one line that says what is wrong: with the options, or with what the model makes of them
 */
export function parseModelOptions<C>(
  model: DeviceModel,
  reference: string,
  texts: OptionTexts,
  common: Options<C>,
): { readonly common: C; readonly own: unknown } {
  const own = model.options ?? options({});
  const parsed = options({ common, own }).parse(texts, model.name);
  try {
    encodePlainData(parsed.own);
  } catch (error) {
    throw new Error(
      `Cannot use ${reference} as a device model: its options must become plain data, which travels to another thread: ${
        (error as Error).message
      }`,
      { cause: error },
    );
  }
  return parsed;
}

/**
 * Loads a device model.
 *
 * @param reference Name of a built-in model, or path (from the working folder) or URL of a module
 * @param timeoutMs How long that module may take
 * @throws {Error} With one line that says what is wrong, and what would be right
 */
export async function loadModel(
  reference: string,
  timeoutMs?: number,
): Promise<DeviceModel> {
  const builtin = builtinModels.get(reference);
  if (builtin !== undefined) return await builtin.load();
  if (!isModelPath(reference)) {
    const known = [...builtinModels.keys()];
    throw new UnknownNameError(
      `Cannot find device model "${reference}": the built-in ones are ${
        known.join(", ")
      }; a file is given as ./${reference}.ts`,
      reference,
      known,
    );
  }
  const url = moduleUrl(reference);
  const model = modelOfModule(
    await importModule(reference, url, "device model", timeoutMs),
    reference,
  );
  nameModelFile(url, model.name);
  return model;
}

/**
 * Loads what there is to say of a device model; of a built-in one without any permission.
 *
 * @param reference As for {@linkcode loadModel}
 * @throws {Error} Likewise
 */
export async function loadModelText(reference: string): Promise<ModelText> {
  const builtin = builtinModels.get(reference);
  if (builtin === undefined) return await loadModel(reference);
  const { name, help } = builtin;
  return { name, help, options: await builtin.loadOptions() };
}
