/**
 * The Worker of a store: an ordinary one, which returns to its runtime all the time.
 *
 * While there is work it looks for more in each turn of its event loop, and for a short while after where that has paid;
 * then it waits for an eventfd, on a thread of the runtime's.
 *
 * @module
 */

import process from "node:process";
import { setImmediate } from "node:timers";
import { inTime } from "../../../core/author_module.ts";
import { modelFault, placeInModel } from "../../../core/model_fault.ts";
import type { Log } from "../../../core/log.ts";
import {
  drainEventFd,
  Poll,
  PollSet,
  setThreadCpus,
  setThreadName,
  threadCpus,
  threadId,
} from "../../../os/mod.ts";
import type { StoreOpened, StoreStart } from "./async.ts";
import { type StoreLine, StoreLink, StoreState } from "./link.ts";
import { storeInfo } from "./info.ts";
import { loadStore, parseStoreOptions } from "./load.ts";
import { StoreServer } from "./server.ts";
import type { Store } from "./store.ts";

const scope = globalThis as unknown as {
  onmessage: ((event: MessageEvent<StoreStart>) => void) | null;
  close(): void;
};
const close = scope.close.bind(scope);

/** Turns without work, 3 µs each, before it sleeps, where that has turned out to be a short sleep. */
const IDLE_TURNS_MIN = 4;
const IDLE_TURNS_MAX = 64;
/** Three times what falling asleep and being woken takes. */
const SHORT_WAIT_MS = 0.06;
/** Time opening may take. */
const OPEN_TIMEOUT_MS = 10_000;
/** So many places are told of. */
const PLACES_MAX = 20;
/** Lines that wait for room; more are lost. */
const LINES_MAX = 100;

let link: StoreLink | null = null;
/** Name by which people know the store. */
let known = "the store";
const lines: StoreLine[] = [];

/** Ends the store, and this thread. */
function end(reason: string): void {
  link?.end(reason);
  close();
}

/** One line, with what lies behind it: fetch tells only there what has failed. */
function textOf(error: unknown): string {
  const text = modelFault(error, known) ??
    `${known}: ${(error as Error).message.split("\n")[0]}`;
  const { cause } = (error ?? {}) as Error;
  return cause instanceof Error ? `${text}: ${cause.message}` : text;
}

globalThis.addEventListener("error", (event) => {
  event.preventDefault();
  end(textOf(event.error));
});
globalThis.addEventListener("unhandledrejection", (event) => {
  event.preventDefault();
  end(`${textOf(event.reason)}, in a promise that nobody waits for`);
});
for (
  const [name, owner] of [
    ["close", globalThis],
    ["exit", Deno],
    ["exit", process],
  ] as const
) {
  Object.defineProperty(owner, name, {
    value: () => {
      end(`it has called ${name}()`);
      // Nothing of what would follow is to run.
      throw new Error(`Cannot go on after ${name}()`);
    },
  });
}

/** @param message With the store's name */
function say(level: StoreLine["level"], message: string): void {
  if (lines.length < LINES_MAX) lines.push({ level, message });
  sayLines();
}

function sayLines(): void {
  while (lines.length > 0 && link!.tryLog(lines[0]!)) lines.shift();
}

const sayer = (level: StoreLine["level"]) => (message: string) =>
  say(level, `${known}: ${message}`);
const log: Log = {
  debug: sayer("debug"),
  info: sayer("info"),
  warn: sayer("warn"),
  error: sayer("error"),
  debugEnabled: false,
};

/** Tells of an error that carries no error number, once for each place. */
function reporter(): (error: unknown, action: string) => void {
  const told = new Set<string>();
  return (error, action) => {
    const text = `${
      textOf(error)
    } (in ${action}; the guest is told of an I/O error)`;
    // The same line may say another number each time.
    const place = placeInModel(error) ?? text;
    if (told.has(place) || told.size === PLACES_MAX) return;
    told.add(place);
    say("error", text);
  };
}

async function serve({ linkHva, options }: StoreStart): Promise<void> {
  const shared = link = new StoreLink(linkHva);
  shared.begin(threadId());
  setThreadName("store");
  // Not where the IOThread is kept that has made this one.
  setThreadCpus(threadCpus(Deno.pid));
  try {
    const model = await loadStore(options.reference);
    known = `store ${model.name}`;
    const own = parseStoreOptions(model, options.own);
    const context = { log, readonly: options.readonly };
    const store = await inTime(
      model.open(own, context),
      OPEN_TIMEOUT_MS,
      "its open()",
      "does it wait for something that is not there?",
    );
    const opened: StoreOpened = {
      description: known,
      info: storeInfo(store, options, log),
    };
    shared.opened(opened);
    await serveUntilClosed(shared, new StoreServer(shared, store, reporter()));
    await closeStore(store);
  } catch (error) {
    return end(modelFault(error, known) ?? (error as Error).message);
  }
  close();
}

async function closeStore(store: Store): Promise<void> {
  try {
    await store.close?.();
  } catch (error) {
    say("error", `${textOf(error)} (in close)`);
  }
}

async function serveUntilClosed(
  shared: StoreLink,
  server: StoreServer,
): Promise<void> {
  using work = new PollSet([shared.workFd], Poll.IN);
  let idleTurns = 0;
  for (let idle = 0; shared.state === StoreState.OPEN; idle++) {
    if (server.look()) idle = 0;
    sayLines();
    if (idle < idleTurns) {
      await new Promise((resolve) => setImmediate(resolve));
      continue;
    }
    const since = performance.now();
    shared.asleep = true;
    // What came before that was seen by its sender is seen now.
    if (!server.look() && shared.state === StoreState.OPEN) {
      await work.ready();
      drainEventFd(shared.workFd);
    }
    shared.asleep = false;
    idle = 0;
    idleTurns = performance.now() - since < SHORT_WAIT_MS
      ? Math.min(Math.max(2 * idleTurns, IDLE_TURNS_MIN), IDLE_TURNS_MAX)
      : idleTurns >> 1;
  }
}

scope.onmessage = ({ data }) => {
  scope.onmessage = null;
  serve(data);
};
