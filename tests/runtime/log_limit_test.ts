import { assert, assertEquals } from "@std/assert";
import { LogLimit } from "../../src/runtime/logging/log_limit.ts";
import type { LogNotice } from "../../src/runtime/iothread/messages.ts";
import { ManualLoop } from "../../src/testing/manual_loop.ts";

class Rig {
  readonly loop = new ManualLoop();
  readonly #said: LogNotice[] = [];
  readonly limit = new LogLimit(this.loop, (line) => this.#said.push(line));

  log(
    message: string,
    options: Partial<LogNotice> = {},
  ): void {
    const line = { level: "info", device: "a", message, properties: {} };
    this.limit.add({ ...line, ...options } as LogNotice);
  }

  /** Lines that were said since it was asked last. */
  lines(): LogNotice[] {
    return this.#said.splice(0);
  }

  messages(): string[] {
    return this.lines().map(({ message }) => message);
  }
}

Deno.test("LogLimit says a few lines of a cause, and the last of a second with the count of the others", () => {
  const rig = new Rig();
  for (let i = 0; i < 37_478; i++) {
    rig.log(`client connected (pid ${i})`, {
      properties: { pid: i, event: "CLIENT_CONNECTED" },
    });
  }
  assertEquals(
    rig.messages(),
    [0, 1, 2, 3, 4].map((i) => `client connected (pid ${i})`),
  );
  rig.loop.advance(999);
  assertEquals(rig.lines(), []);
  rig.loop.advance(1);
  assertEquals(rig.lines(), [{
    level: "info",
    device: "a",
    message: "client connected (pid 37477) (left out 37472 more like it)",
    properties: { pid: 37_477, event: "CLIENT_CONNECTED", leftOut: 37_472 },
  }]);
  rig.loop.advance(1000);
  assertEquals(rig.lines(), []);
  assertEquals(rig.loop.timerCount, 0, "nothing is left to wait for");
});

Deno.test("LogLimit says one line a second as long as a cause goes on, and all again after a second of silence", () => {
  const rig = new Rig();
  const burst = () => {
    for (let i = 0; i < 7; i++) rig.log(`refused 0x${i.toString(16)}`);
  };
  burst();
  rig.loop.advance(1000);
  assertEquals(rig.messages().length, 6);
  for (let second = 0; second < 3; second++) {
    burst();
    rig.loop.advance(1000);
    assertEquals(rig.messages(), ["refused 0x6 (left out 6 more like it)"]);
  }
  rig.loop.advance(1000);
  for (let i = 0; i < 6; i++) rig.log(`refused ${i}`);
  rig.loop.advance(1000);
  assertEquals(
    rig.messages(),
    [0, 1, 2, 3, 4, 5].map((i) => `refused ${i}`),
    "with one line held back nothing is left out",
  );
});

Deno.test("LogLimit keeps devices, levels and messages apart, and tells what was held back in its order", () => {
  const rig = new Rig();
  for (let i = 0; i < 20; i++) {
    rig.log("connected");
    rig.log("gone");
  }
  rig.log("connected", { device: "b" });
  rig.log("connected", { level: "warn" });
  const said = rig.lines();
  assertEquals(said.length, 12);
  assertEquals(said.at(-2)!.device, "b");
  assertEquals(said.at(-1)!.level, "warn");
  rig.log("connected");
  rig.limit.flush();
  assertEquals(rig.messages(), [
    "gone (left out 14 more like it)",
    "connected (left out 15 more like it)",
  ]);
});

Deno.test("LogLimit holds so many causes and no more, and no device silences another", () => {
  const rig = new Rig();
  let said = 0;
  for (let second = 0; second < 3; second++) {
    for (let i = 0; i < 10_000; i++) {
      const letters = [...`${i}`].map((digit) => "abcdefghij"[Number(digit)]);
      rig.log(`cannot ${letters.join("")}`);
    }
    said = rig.lines().length;
    assert(said <= 40, `${said} lines in a second`);
    rig.log("the other is served", { device: "b" });
    assertEquals(rig.messages(), ["the other is served"]);
    rig.loop.advance(1000);
    said = rig.lines().length;
    assert(said <= 33, `${said} lines when a second is over`);
  }
});

Deno.test("LogLimit leaves more to whoever debugs, and not everything", () => {
  const rig = new Rig();
  for (let i = 0; i < 1000; i++) rig.log(`read ${i}`, { level: "debug" });
  assertEquals(rig.lines().length, 100);
});
