/**
 * From an author's file to a store that a disk can be made of.
 *
 * @module
 */

import { importModule, moduleUrl } from "../../../core/author_module.ts";
import { nameModelFile } from "../../../core/model_fault.ts";
import { options, type OptionTexts } from "../../../core/options.ts";
import type { StoreModel } from "./store.ts";

function isFunction(value: unknown): boolean {
  return typeof value === "function";
}

/**
 * Loads the store that a module exports as `store` or as its default.
 *
 * @param reference Its path, from the working folder, or its URL
 * @throws {Error} With one line that says what is wrong, and what would be right
 */
export async function loadStore(reference: string): Promise<StoreModel> {
  const url = moduleUrl(reference);
  const module = await importModule(reference, url, "store");
  const model = (module.store ?? module.default) as StoreModel | undefined;
  const refuse = (why: string): never => {
    throw new Error(`Cannot use ${reference} as a store: ${why}`);
  };
  if (typeof model !== "object" || model === null) {
    return refuse(
      "it exports no object, neither as `store` nor as its default",
    );
  }
  if (typeof model.name !== "string" || !/^[!-~]{1,40}$/.test(model.name)) {
    refuse("its `name` must be a word of up to 40 characters");
  }
  if (!isFunction(model.open)) refuse("its `open` must be a function");
  if (model.options !== undefined && !isFunction(model.options.parse)) {
    refuse("its `options` must be what `options({…})` gives");
  }
  nameModelFile(url, model.name, "store");
  return model;
}

/**
 * A store's own options, checked and converted.
 *
 * @param texts As written
 * @throws {Error} With what is wrong and what would be right
 */
export function parseStoreOptions(
  model: StoreModel,
  texts: OptionTexts,
): unknown {
  return (model.options ?? options({})).parse(texts, `store ${model.name}`);
}

/** Loads the stores that the options of a disk name, of all its namespaces. @throws {Error} As {@linkcode loadStore} */
export async function loadStores(texts: OptionTexts): Promise<StoreModel[]> {
  const keys = Object.keys(texts)
    .filter((key) => /^(ns\d+\.)?backend$/.test(key));
  return await Promise.all(
    keys.flatMap((key) => texts[key]!).map((file) => loadStore(file)),
  );
}
