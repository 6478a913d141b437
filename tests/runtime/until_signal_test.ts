import { assertEquals } from "@std/assert";
import { StopSignal } from "../../src/runtime/until_signal.ts";

/** Statuses that the process would have ended with, when these signals came at these times. */
function forced(...signals: [atMs: number, signal: Deno.Signal][]): number[] {
  const statuses: number[] = [];
  let now = 0;
  using stop = new StopSignal({
    nowMs: () => now,
    end: (status) => statuses.push(status),
  });
  for (const [atMs, signal] of signals) {
    now = atMs;
    stop.raise(signal);
    assertEquals(stop.received, true);
  }
  return statuses;
}

Deno.test("StopSignal takes signals within half a second for one", () => {
  assertEquals(forced([7, "SIGINT"], [7, "SIGINT"]), []);
  assertEquals(forced([7, "SIGINT"], [17, "SIGTERM"], [506, "SIGINT"]), []);
});

Deno.test("StopSignal ends the process at a later signal, with its number", () => {
  assertEquals(forced([7, "SIGTERM"], [507, "SIGINT"]), [130]);
  assertEquals(forced([7, "SIGINT"], [9, "SIGINT"], [600, "SIGTERM"]), [143]);
});

Deno.test("StopSignal never ends the process at once for SIGHUP", () => {
  assertEquals(forced([7, "SIGHUP"], [900, "SIGHUP"]), []);
  assertEquals(forced([7, "SIGHUP"], [900, "SIGINT"]), [130]);
});
