/**
 * Watches over what a device model must not use on an IOThread: that never returns to its runtime, so that what waits for
 * it would wait for ever, and it is not the model's to end.
 *
 * @module
 */

import process from "node:process";
import v8 from "node:v8";
import {
  entryInModel,
  modelFault,
  placeInModel,
} from "../../core/model_fault.ts";

const WHY = "an IOThread never returns to its runtime";
const WAITS = `${WHY}, so that nothing would come of it`;
const ENDS = "it would end every device of the process; throw an Error";

type AnyFunction = (...args: unknown[]) => unknown;

/** Refused functions: name, owner, and why and what to do. */
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
/** Those of {@linkcode REFUSED} that are of no use at the top level of a model's file either. */
const TIMERS = ["setTimeout", "setInterval"];
/** Deep enough for an author's frame behind those of the runtime. */
const STACK_FRAMES = 50;
/** So many functions are told of; a model that is made of promises has said enough by then. */
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
 * Installs the guard on this thread, once. A promise of a model's that is rejected, or a timer that throws, ends nothing.
 *
 * @param report Told, in one line, where a model made a promise, or a timer at the top level of its file: that cannot be
 * refused, as it may be waited for there
 */
export function guardRuntime(report: (message: string) => void): void {
  for (const [called, owner, why] of REFUSED) {
    const name = called.split(".").at(-1)!;
    const functions = owner as Record<string, AnyFunction>;
    const original = functions[name]!;
    functions[name] = (...args) => {
      if (depth > 0) throw new Error(`Cannot use ${called}: ${why}`);
      if (TIMERS.includes(name)) {
        tell(
          `Cannot rely on ${called} at the top level of a file: ${WHY} while it serves; use context.loop.timer`,
        );
      }
      return original.apply(owner, args);
    };
  }
  const told = new Set<string>();
  /** Once for each function that was called by us: what it calls may make many promises of one. */
  function tell(what: string): void {
    if (told.size === PLACES_MAX) return;
    const trace = traceOfCaller();
    const entry = entryInModel(trace);
    if (entry === null || told.has(entry)) return;
    told.add(entry);
    report(`${placeInModel(trace)}: ${what}`);
  }
  v8.promiseHooks.onInit(() => {
    // Otherwise a promise may be waited for.
    if (depth === 0) return;
    tell(
      `Cannot wait for a promise (await, then, an async function): ${WHY}, so that it may never go on; use context.loop, or a Worker of your own and an eventfd that the loop watches`,
    );
  });
  addEventListener("error", (event) => {
    // What a device reports at work is meant to end the thread.
    const fault = depth > 0 ? null : modelFault(event.error);
    if (fault === null) return;
    event.preventDefault();
    report(fault);
  });
  addEventListener("unhandledrejection", (event) => {
    const fault = modelFault(event.reason);
    if (fault === null) return;
    event.preventDefault();
    report(`a promise was rejected in ${fault}`);
  });
}

function traceOfCaller(): Error {
  const limit = Error.stackTraceLimit;
  Error.stackTraceLimit = STACK_FRAMES;
  const trace = new Error();
  Error.stackTraceLimit = limit;
  return trace;
}
