import { assertEquals } from "@std/assert";
import { Polling } from "../../src/loop/polling.ts";

function rig() {
  const errors: unknown[] = [];
  return { errors, polling: new Polling((error) => errors.push(error)) };
}

/** Hooks that write down what they are told. */
function hooks(seen: string[], name: string, late = false) {
  return {
    begin: () => void seen.push(`${name} begins`),
    end: () => {
      seen.push(`${name} ends`);
      return late;
    },
  };
}

Deno.test("Polling grows its budget while events come soon, and drops it when one does not", () => {
  const { polling } = rig();
  polling.setMax(50);
  const budgets = [10, 50, 1, 1, 1, 1, 51, 3].map((waitedUs) => {
    polling.adapt(waitedUs);
    return polling.budgetUs;
  });
  assertEquals(budgets, [4, 8, 16, 32, 50, 50, 0, 4]);
});

Deno.test("Polling has no budget at 0, and no end of it at Infinity", () => {
  const { polling } = rig();
  assertEquals([polling.budgetUs, polling.adaptive], [0, false]);
  polling.setMax(Infinity);
  assertEquals([polling.budgetUs, polling.adaptive], [Infinity, true]);
  polling.adapt(1e9);
  assertEquals(polling.budgetUs, Infinity);
  polling.setMax(50);
  assertEquals([polling.budgetUs, polling.adaptive], [0, true]);
});

Deno.test("Polling.round asks every handler, whatever the others say or throw", () => {
  const { polling, errors } = rig();
  const asked: string[] = [];
  const handler = (name: string, found: boolean) => () => {
    asked.push(name);
    return found;
  };
  assertEquals(polling.round(), false);
  polling.add(handler("idle", false));
  const busy = polling.add(handler("busy", true));
  polling.add(() => {
    throw new Error("mine");
  });
  polling.add(handler("last", false));
  assertEquals(polling.round(), true);
  assertEquals([asked.splice(0), errors.length], [["idle", "busy", "last"], 1]);
  busy.close();
  assertEquals([polling.round(), asked], [false, ["idle", "last"]]);
});

Deno.test("Polling tells of each stretch once, and newcomers of the one they come into", () => {
  const { polling } = rig();
  const seen: string[] = [];
  polling.add(() => false, hooks(seen, "a"));
  assertEquals(polling.end(), false);
  polling.begin();
  polling.begin();
  polling.add(() => false, hooks(seen, "b"));
  assertEquals(seen.splice(0), ["a begins", "b begins"]);
  assertEquals(polling.end(), false);
  assertEquals(polling.end(), false);
  assertEquals(seen, ["a ends", "b ends"]);
});

Deno.test("Polling.end says whether work came in late, and tells everyone all the same", () => {
  const { polling } = rig();
  const seen: string[] = [];
  const late = polling.add(() => false, hooks(seen, "late", true));
  polling.add(() => false, hooks(seen, "other"));
  polling.begin();
  assertEquals(polling.end(), true);
  assertEquals(seen.splice(0).slice(2), ["late ends", "other ends"]);
  polling.begin();
  late.close();
  seen.length = 0;
  assertEquals(polling.end(), false);
  assertEquals(seen, ["other ends"]);
});
