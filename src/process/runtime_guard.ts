/**
 * Watches over what a device model must not use on an IOThread: that never returns to its runtime, so that what waits for
 * it would wait for ever, and it is not the model's to end.
 *
 * @module
 */

import process from "node:process";
import v8 from "node:v8";
import { placeInModel } from "../model_fault.ts";

const WHY = "an IOThread never returns to its runtime";
const WAITS = `${WHY}, so that nothing would come of it`;
const ENDS = "it would end every device of the process; throw an Error";

type AnyFunction = (...args: unknown[]) => unknown;

/** What is refused: what it is called, what holds it, and why and what to do. */
const REFUSED: readonly (readonly [string, object, string])[] = [
  ["setTimeout", globalThis, `${WAITS}; use context.loop.timer`],
  ["setInterval", globalThis, `${WAITS}; use context.loop.timer`],
  [
    "queueMicrotask",
    globalThis,
    `${WAITS}; use context.loop.bottomHalf(…), and schedule() of what it returns`,
  ],
  [
    "fetch",
    globalThis,
    `${WAITS}; use a Worker of your own, and an eventfd that context.loop watches`,
  ],
  ["close", globalThis, ENDS],
  ["Deno.exit", Deno, ENDS],
  ["process.exit", process, ENDS],
];
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
  for (const [called, owner, why] of REFUSED) {
    const name = called.split(".").at(-1)!;
    const functions = owner as Record<string, AnyFunction>;
    const original = functions[name]!;
    functions[name] = (...args) => {
      if (depth === 0) return original.apply(owner, args);
      throw new Error(`Cannot use ${called}: ${why}`);
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
