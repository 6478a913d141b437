import { assertEquals, assertMatch } from "@std/assert";
import { leftOut, median, ratioAtMost, table } from "../../bench/report.ts";

Deno.test("median is the middle value and leaves its input as it was", () => {
  const values = [3, 1, 2];
  assertEquals(median(values), 2);
  assertEquals(median([4, 1, 3, 2]), 3);
  assertEquals(values, [3, 1, 2]);
});

Deno.test("ratioAtMost judges the ratio, not the value", () => {
  const figure = { name: "ours", value: 11, unit: "µs" };
  const baseline = { name: "C", value: 10 };
  assertEquals(ratioAtMost(figure, baseline, 1.1).target?.met, true);
  assertEquals(ratioAtMost(figure, baseline, 1).target?.met, false);
});

Deno.test("table says why a figure was left out", () => {
  assertMatch(
    table("suite", [leftOut("round trip", "there is no cc")]),
    /round trip +– +left out: there is no cc/,
  );
});

Deno.test("table writes figures without powers of ten", () => {
  const shown = (value: number) =>
    table("t", [{ name: "n", value, unit: "µs" }]).split("\n")[1]!.trim();
  assertEquals(
    [0, 0.1234, 999.4, 999.5, 999.96, 1000, 1234567.8].map(shown),
    ["0", "0.123", "999", "1,000", "1,000", "1,000", "1,234,568"]
      .map((text) => `n  ${text}  µs`),
  );
});
