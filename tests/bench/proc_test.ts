import { assert, assertEquals } from "@std/assert";
import {
  allowedCpus,
  parseCpuList,
  residentMiB,
  threadTimes,
  threadTimesSince,
} from "../../bench/proc.ts";

Deno.test("threadTimesSince subtracts, counts new threads in full and sorts", () => {
  const before = new Map([[1, { name: "a", cpuMs: 5, runs: 2 }]]);
  const after = new Map([
    [1, { name: "a", cpuMs: 6, runs: 4 }],
    [2, { name: "b", cpuMs: 3, runs: 1 }],
  ]);
  assertEquals(threadTimesSince(before, after), [
    { name: "b", cpuMs: 3, runs: 1 },
    { name: "a", cpuMs: 1, runs: 2 },
  ]);
});

Deno.test("threadTimes and residentMiB see this process", () => {
  assert(threadTimes(Deno.pid).get(Deno.pid)!.cpuMs > 0);
  assert(residentMiB(Deno.pid) > 1);
});

Deno.test("parseCpuList reads single numbers and ranges", () => {
  assertEquals(parseCpuList("0-2,5"), [0, 1, 2, 5]);
  assertEquals(parseCpuList("7"), [7]);
});

Deno.test("allowedCpus are as many as the runtime knows of", () => {
  assertEquals(allowedCpus().length, navigator.hardwareConcurrency);
});
