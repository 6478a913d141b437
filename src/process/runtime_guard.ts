/**
 * Watches over what a device model must not use on an IOThread, which never returns to its runtime: what waits for that
 * would wait for ever.
 *
 * @module
 */

import v8 from "node:v8";
import { placeInModel } from "../model_fault.ts";

/** What is refused, and what to use. */
const INSTEAD = {
  setTimeout: "context.loop.timer",
  setInterval: "context.loop.timer",
  queueMicrotask: "context.loop.bottomHalf",
  fetch: "a Worker of your own, and an eventfd that context.loop watches",
} as const;
const WHY = "an IOThread never returns to its runtime";
/** Deep enough for an author's frame behind those of the runtime. */
const STACK_FRAMES = 50;
/** So many places are told; a model that is made of promises has said enough by then. */
const PLACES_MAX = 20;

let depth = 0;

/** Runs what may call device models: in there, what waits for the runtime is refused. */
export function withoutRuntime<T>(run: () => T): T {
  depth++;
  try {
    return run();
  } finally {
    depth--;
  }
}

/**
 * Installs the guard on this thread, once.
 *
 * @param report Told, in one line, where a model made a promise: that cannot be refused
 */
export function guardRuntime(report: (message: string) => void): void {
  const scope = globalThis as unknown as Record<
    string,
    (...args: unknown[]) => unknown
  >;
  for (const [name, instead] of Object.entries(INSTEAD)) {
    const original = scope[name]!;
    scope[name] = (...args) => {
      if (depth === 0) return original(...args);
      throw new Error(
        `Cannot use ${name}: ${WHY}, so that nothing would come of it; use ${instead}`,
      );
    };
  }
  const told = new Set<string>();
  v8.promiseHooks.onInit(() => {
    if (depth === 0 || told.size === PLACES_MAX) return;
    const place = placeOfCaller();
    if (place === null || told.has(place)) return;
    told.add(place);
    report(
      `${place}: Cannot wait for a promise (await, then, an async function): ${WHY}, so that it may never go on; use context.loop, or a Worker of your own and an eventfd that the loop watches`,
    );
  });
}

function placeOfCaller(): string | null {
  const limit = Error.stackTraceLimit;
  Error.stackTraceLimit = STACK_FRAMES;
  const place = placeInModel(new Error());
  Error.stackTraceLimit = limit;
  return place;
}
