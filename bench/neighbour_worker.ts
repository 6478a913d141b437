/**
 * A client on a thread of its own, which does the worst it can until it is told to stop.
 *
 * @module
 */

import { LOADS } from "./neighbour_loads.ts";

/** Order to the client. */
export interface LoadOrder {
  /** Index in {@linkcode LOADS}. */
  readonly index: number;
  readonly socket: string;
  /** Not 0 stops it. */
  readonly stop: Int32Array<SharedArrayBuffer>;
}

/** Notice of the client: that it goes on and on from now, how often it went, or why it cannot. */
export type LoadNotice =
  | { readonly kind: "running" }
  | { readonly kind: "done"; readonly rounds: number }
  | { readonly kind: "failed"; readonly message: string };

const scope = globalThis as unknown as {
  postMessage(notice: LoadNotice): void;
  onmessage: (event: MessageEvent<LoadOrder>) => void;
};

function run({ index, socket, stop }: LoadOrder): number {
  using owned = new DisposableStack();
  const round = LOADS[index]!.start(socket, owned);
  // What is compiled is what is measured.
  round();
  scope.postMessage({ kind: "running" });
  let rounds = 0;
  for (; Atomics.load(stop, 0) === 0; rounds++) round();
  return rounds;
}

scope.onmessage = (event) => {
  try {
    scope.postMessage({ kind: "done", rounds: run(event.data) });
  } catch (error) {
    scope.postMessage({ kind: "failed", message: (error as Error).message });
  }
};
