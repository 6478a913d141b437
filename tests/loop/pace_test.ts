import { assert, assertEquals } from "@std/assert";
import { Pace } from "../../src/loop/polling.ts";

/** Rounds until it is time to look, each of so long; at most 100,000. */
function roundsUntilLook(
  pace: Pace,
  handlers: number,
  worked: boolean,
): number {
  for (let i = 1; i < 100_000; i++) if (pace.round(handlers, worked)) return i;
  throw new Error("it never looks");
}

/** Looks in vain so often, while rounds take so long, and returns how long the last stretch was. */
function settle(pace: Pace, roundMs: number, worked: boolean): number {
  let nowMs = 1000;
  let stretchMs = 0;
  for (let i = 0; i < 20; i++) {
    stretchMs = roundsUntilLook(pace, 1, worked) * roundMs;
    nowMs += stretchMs;
    pace.looked(false, nowMs);
  }
  return stretchMs;
}

Deno.test("Pace looks ever less often while looks find nothing, up to an interval", () => {
  for (const roundMs of [0.00005, 0.0001, 0.0005, 0.001]) {
    for (const worked of [false, true]) {
      const stretchMs = settle(new Pace(), roundMs, worked);
      assert(stretchMs <= 0.064, `${roundMs} ${worked} ${stretchMs}`);
      assert(stretchMs >= 0.008, `${roundMs} ${worked} ${stretchMs}`);
    }
  }
});

Deno.test("Pace looks soon again after a look that found something", () => {
  const pace = new Pace();
  const before = roundsUntilLook(pace, 1, false);
  assertEquals(before, 32);
  pace.looked(true, 0);
  settle(pace, 0.0001, false);
  assert(roundsUntilLook(pace, 1, false) > before);
  pace.looked(true, 5000);
  assertEquals(roundsUntilLook(pace, 1, false), before);
});

Deno.test("Pace looks more often as rounds come to take longer", () => {
  const pace = new Pace();
  settle(pace, 0.0001, false);
  const stretchMs = settle(pace, 0.025, true);
  assert(stretchMs <= 8 * 0.025, `${stretchMs}`);
});

Deno.test("Pace has bounded patience where the clock stands still", () => {
  const pace = new Pace();
  for (let i = 0; i < 100; i++) pace.looked(false, 0);
  assertEquals(roundsUntilLook(pace, 1, false), 2048);
});
