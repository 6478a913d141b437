import { assertEquals } from "@std/assert";
import { TextSink } from "./text_sink.ts";

Deno.test("TextSink matches whole lines only", async () => {
  const { readable, writable } = new TransformStream<
    Uint8Array<ArrayBuffer>,
    Uint8Array<ArrayBuffer>
  >();
  const sink = new TextSink();
  const drained = sink.drain(readable);
  const match = sink.match(/word (\w+)/, 0);
  const writer = writable.getWriter();
  for (const piece of ["word hal", "f\nword ", "two\n"]) {
    await writer.write(new TextEncoder().encode(piece));
  }
  await writer.close();
  await drained;
  assertEquals((await match)[1], "half");
  assertEquals((await sink.match(/word (\w+)/, 10))[1], "two");
});
