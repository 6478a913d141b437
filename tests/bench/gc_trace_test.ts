import { assertEquals } from "@std/assert";
import { parseGcTrace } from "../../bench/gc_trace.ts";

Deno.test("parseGcTrace reads a scavenge, a full collection and nothing else", () => {
  const output = [
    "virtio-net0 listens on /tmp/dev.sock",
    "[18181:0x55fb8149a000]       15 ms: Scavenge 3.4 (4.4) -> 3.0 (5.2) MB, pooled: 0.0 MB, 1.45 / 0.00 ms (average mu = 1.000, current mu = 1.000) allocation failure; ",
    "[18181:0x7f01]      146 ms: Incremental Mark-Compact 115.0 (131.9) -> 14.4 (30.9) MB, pooled: 59.8 MB, 10.80 / 0.00 ms (+ 0.0 ms in 1 steps since start of marking, biggest step 0.0 ms, walltime since start of marking 14 ms) (average mu = 0.925, current mu = 0.925) finalize incremental marking via stack guard; GC in old space requested",
    "[18181:0x7f01]      150 ms: Mark-Compact (reduce) 5.0 (6.0) -> 4.0 (6.0) MB, 2.50 / 0.00 ms (average mu = 1.000) finalize incremental marking via task; ",
    "",
  ].join("\n");
  assertEquals(
    parseGcTrace(output).map(({ line: _, ...rest }) => rest),
    [
      {
        isolate: "0x55fb8149a000",
        atMs: 15,
        kind: "Scavenge",
        heapMB: 3,
        pauseMs: 1.45,
        byTask: false,
      },
      {
        isolate: "0x7f01",
        atMs: 146,
        kind: "Incremental Mark-Compact",
        heapMB: 14.4,
        pauseMs: 10.8,
        byTask: false,
      },
      {
        isolate: "0x7f01",
        atMs: 150,
        kind: "Mark-Compact (reduce)",
        heapMB: 4,
        pauseMs: 2.5,
        byTask: true,
      },
    ],
  );
});

Deno.test("parseGcTrace takes the longest step of a collection for its pause", () => {
  const [collection] = parseGcTrace(
    "[22611:0x7f02]      662 ms: Incremental Mark-Compact 127.4 (142.0) -> 112.2 (123.9) MB, pooled: 0.0 MB, 3.88 / 0.00 ms (+ 57.9 ms in 193 steps since start of marking, biggest step 23.8 ms, walltime since start of marking 314 ms) (average mu = 0.816, current mu = 0.816) finalize incremental marking via stack guard; GC in old space requested",
  );
  assertEquals(collection!.pauseMs, 23.8);
});

Deno.test("parseGcTrace reads what this V8 prints", async () => {
  const { stdout } = await new Deno.Command(Deno.execPath(), {
    args: ["eval", "--v8-flags=--trace-gc,--expose-gc", "globalThis.gc()"],
  }).output();
  const collections = parseGcTrace(new TextDecoder().decode(stdout));
  assertEquals(collections.some(({ kind }) => kind === "Mark-Compact"), true);
});
