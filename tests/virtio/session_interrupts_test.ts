import { countersFrom } from "../../src/core/counters.ts";
import { assertEquals } from "@std/assert";
import { SessionInterrupts } from "../../src/virtio/session/interrupts.ts";
import { SESSION_COUNTERS } from "../../src/virtio/session/counters.ts";

class Rig {
  readonly sent: (number | string)[] = [];
  readonly counters = countersFrom(SESSION_COUNTERS);
  readonly interrupts = new SessionInterrupts(
    {
      notifyUsed: (queue) => this.sent.push(queue),
      notifyConfig: () => this.sent.push("config"),
    },
    this.counters,
    4,
  );

  get counted(): number[] {
    return [this.counters.interrupts, this.counters.configInterrupts];
  }
}

Deno.test("SessionInterrupts sends and counts at once", () => {
  const { interrupts, sent, counters } = new Rig();
  interrupts.send(2);
  interrupts.sendConfig();
  interrupts.send(2);
  assertEquals(sent, [2, "config", 2]);
  assertEquals([counters.interrupts, counters.configInterrupts], [2, 1]);
});

Deno.test("SessionInterrupts pays once what it owes, and counts it then", () => {
  const rig = new Rig();
  const { interrupts } = rig;
  interrupts.owe(3);
  interrupts.owe(1);
  interrupts.owe(3);
  interrupts.oweConfig();
  assertEquals([rig.sent, rig.counted], [[], [0, 0]]);
  interrupts.pay(true);
  assertEquals([rig.sent, rig.counted], [[1, 3, "config"], [2, 1]]);
  interrupts.pay(true);
  assertEquals(rig.counted, [2, 1]);
});

Deno.test("SessionInterrupts tells a halted device's driver of the configuration alone", () => {
  const rig = new Rig();
  rig.interrupts.owe(0);
  rig.interrupts.oweConfig();
  rig.interrupts.pay(false);
  assertEquals(rig.sent, ["config"]);
  rig.interrupts.pay(true);
  assertEquals(rig.sent, ["config"], "what was not paid is not owed either");
});

Deno.test("SessionInterrupts forgets a queue, or everything", () => {
  const rig = new Rig();
  rig.interrupts.owe(0);
  rig.interrupts.owe(1);
  rig.interrupts.forget(0);
  rig.interrupts.pay(true);
  assertEquals(rig.sent, [1]);
  rig.interrupts.owe(2);
  rig.interrupts.oweConfig();
  rig.interrupts.forgetAll();
  rig.interrupts.pay(true);
  assertEquals(rig.sent, [1]);
});

Deno.test("SessionInterrupts owes what was owed when it was saved", () => {
  const from = new Rig();
  from.interrupts.owe(3);
  from.interrupts.owe(0);
  from.interrupts.oweConfig();
  const state = from.interrupts.save();
  assertEquals(state, { owedInterrupts: [0, 3], owesConfigInterrupt: true });
  const to = new Rig();
  to.interrupts.load(state);
  to.interrupts.pay(true);
  assertEquals([to.sent, from.sent], [[0, 3, "config"], []]);
});
