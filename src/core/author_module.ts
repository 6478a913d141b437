/**
 * Loading modules that are not ours: device models and stores of people's own.
 *
 * @module
 */

import { stripVTControlCharacters } from "node:util";
import { placeInModel } from "./model_fault.ts";

/**
 * The URL of a module, which means the same on every thread.
 *
 * @param reference Path or URL
 * @param base Folder that relative paths start from; absolute
 */
export function moduleUrl(
  reference: string,
  base: string = Deno.cwd(),
): string {
  if (/^[a-z][a-z0-9+.-]+:/i.test(reference)) return reference;
  // Percent signs, question marks and hashes of a path are not syntax.
  const encoded = reference.split("/").map(encodeURIComponent).join("/");
  const folder = base.split("/").map(encodeURIComponent).join("/");
  return new URL(encoded, `file://${folder}/`).href;
}

/** Time a file may take to load, downloads included. */
const LOAD_TIMEOUT_MS = 30_000;

/**
 * Waits for what an author's code does.
 *
 * @param what It is, for the message
 * @param advice What to look for when it takes too long
 * @throws {Error} When it does
 */
export async function inTime<T>(
  work: Promise<T> | T,
  timeoutMs: number,
  what: string,
  advice: string,
): Promise<T> {
  const { promise: late, reject } = Promise.withResolvers<never>();
  const timer = setTimeout(() => {
    const seconds = timeoutMs / 1000;
    reject(new Error(`${what} is not done within ${seconds} s; ${advice}`));
  }, timeoutMs);
  try {
    return await Promise.race([work, late]);
  } finally {
    clearTimeout(timer);
  }
}

/**
 * Imports a module.
 *
 * @param reference How the person called it
 * @param url From {@linkcode moduleUrl}
 * @param what It is to be, such as `device model`
 * @param timeoutMs How long it may take
 * @throws {Error} With one line that says what is wrong
 */
export async function importModule(
  reference: string,
  url: string,
  what: string,
  timeoutMs: number = LOAD_TIMEOUT_MS,
): Promise<Record<string, unknown>> {
  try {
    return await inTime(
      import(url),
      timeoutMs,
      "it",
      "does an `await` at its top level, or of what it imports, wait for ever?",
    );
  } catch (error) {
    // Deno colours its messages where it thinks that a person reads them.
    const text = stripVTControlCharacters(
      error instanceof Error ? error.message : String(error),
    );
    // Another file may be missing too: one that this one imports.
    const missing = text.startsWith("Module not found") && text.includes(url) &&
      !text.includes("\n    at file:");
    const place = placeInModel(error);
    throw new Error(
      `Cannot load ${what} ${reference}: ${
        missing
          ? "there is no such file"
          : `${place === null ? "" : `${place}: `}${text.split("\n")[0]}`
      }`,
      { cause: error },
    );
  }
}
