import { assert, assertEquals } from "@std/assert";
import fc from "fast-check";
import { BF, header, pattern, Rig, S, T } from "./harness.ts";

/** Sectors that the driver of these tests uses. */
const SECTORS = 8;

/** Knowledge of a driver about a sector: seeds of writes. */
interface Knowledge {
  /** Every write that was ever submitted, acknowledged or not. */
  readonly submitted: Set<number>;
  /** The last one that a flush has covered; 0 for none. */
  safe: number;
  /** The last one that was acknowledged; 0 for none. */
  acknowledged: number;
}

type Step =
  | { readonly kind: "write"; readonly sector: number }
  | { readonly kind: "flush" }
  | { readonly kind: "finish"; readonly pick: number };

const STEP: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 4,
    arbitrary: fc.record({
      kind: fc.constant("write" as const),
      sector: fc.nat(SECTORS - 1),
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({ kind: fc.constant("flush" as const) }),
  },
  {
    weight: 4,
    arbitrary: fc.record({
      kind: fc.constant("finish" as const),
      pick: fc.nat(1000),
    }),
  },
);

function seedOf(sector: Uint8Array, known: Knowledge): number {
  if (sector.every((byte) => byte === 0)) return 0;
  for (const seed of known.submitted) {
    if (pattern(512, seed).every((byte, i) => byte === sector[i])) return seed;
  }
  throw new Error("a sector holds what nobody wrote");
}

/** Runs steps, fails the power, and looks at what is left. */
function powerFail(steps: readonly Step[], writeCache: boolean): void {
  using rig = new Rig({ disk: { writeCache }, features: [BF.FLUSH] });
  const known: Knowledge[] = Array.from({ length: SECTORS }, () => ({
    submitted: new Set<number>(),
    safe: 0,
    acknowledged: 0,
  }));
  const answered = new Map<number, () => void>();
  let seed = 0;
  const settle = () => {
    rig.loop.settle();
    for (const head of rig.takeHeads()) {
      answered.get(head)!();
      answered.delete(head);
    }
  };
  for (const step of steps) {
    if (step.kind === "write") {
      const at = known[step.sector]!;
      // As file systems do: one write of a sector at a time.
      if ([...answered.values()].some((it) => it.name === `${step.sector}`)) {
        continue;
      }
      const mine = ++seed;
      at.submitted.add(mine);
      const { head } = rig.queueWrite(step.sector, pattern(512, mine));
      const done = () => {
        at.acknowledged = mine;
        if (!writeCache) at.safe = mine;
      };
      Object.defineProperty(done, "name", { value: `${step.sector}` });
      answered.set(head, done);
      rig.flush();
    } else if (step.kind === "flush") {
      const { head } = rig.queue(header(T.FLUSH), 1);
      const covered = known.map((at) => at.acknowledged);
      answered.set(head, () => {
        for (const [i, at] of known.entries()) {
          at.safe = Math.max(at.safe, covered[i]!);
        }
      });
      rig.flush();
    } else if (rig.backend.committed > 0) {
      rig.backend.finish(step.pick % rig.backend.committed);
    }
    settle();
  }
  rig.backend.powerCycle();
  for (const [i, at] of known.entries()) {
    const left = seedOf(rig.backend.bytes.slice(i * 512, i * 512 + 512), at);
    assert(
      left >= at.safe,
      `sector ${i} has write ${left}, but ${at.safe} was made durable`,
    );
  }
}

for (const writeCache of [true, false]) {
  Deno.test(`VirtioBlk loses nothing that was made durable when the power fails (write cache ${writeCache ? "on" : "off"})`, () => {
    fc.assert(
      fc.property(fc.array(STEP, { maxLength: 60 }), (steps) => {
        powerFail(steps, writeCache);
      }),
      { numRuns: 200 },
    );
  });
}

Deno.test("VirtioBlk answers a flush after the back end has, and not before", () => {
  using rig = new Rig();
  const write = rig.queueWrite(0, pattern(512));
  rig.flush();
  rig.backend.finish();
  rig.loop.settle();
  assertEquals(rig.take(write).status, S.OK);
  const flush = rig.queue(header(T.FLUSH), 1);
  rig.flush();
  assertEquals(rig.takeHeads(), []);
  rig.backend.powerCycle();
  assertEquals(rig.backend.bytes[1], 0);
  rig.backend.bytes.set(pattern(512));
  rig.backend.finish();
  rig.loop.settle();
  assertEquals(rig.take(flush).status, S.OK);
  rig.backend.powerCycle();
  assertEquals(rig.backend.bytes.slice(0, 512), pattern(512));
});
