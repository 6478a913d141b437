import { assert, assertEquals, assertThrows } from "@std/assert";
import { Errno, ErrnoError } from "../../src/core/errno.ts";
import { StateForm } from "../../src/core/state_form.ts";

interface Third {
  readonly heightMm: number;
  readonly colour: string;
}

const FIRST = new StateForm<{ height: number }>("lamp", "the lamp");
const THIRD = new StateForm<Third>("lamp", "the lamp", [
  // Centimetres became millimetres, then there were colours.
  ({ height }) => ({ heightMm: height as number * 10 }),
  (body) => ({ ...body, colour: "white" }),
]);

Deno.test("StateForm.read reads what it wrote, and what every older version wrote", () => {
  const written = THIRD.write({ heightMm: 4, colour: "red" });
  assertEquals([written.kind, written.version], ["lamp", 3]);
  assertEquals(THIRD.read(written).fields, written.body);
  const old = FIRST.write({ height: 7 });
  assertEquals(old.version, 1);
  assertEquals(THIRD.read(old).fields, { heightMm: 70, colour: "white" });
  const second = { kind: "lamp", version: 2, body: { heightMm: 9 } };
  assertEquals(THIRD.read(second).text("colour"), "white");
  assertEquals(old, { kind: "lamp", version: 1, body: { height: 7 } });
});

Deno.test("StateForm.read refuses other kinds, versions to come, and what is no state", () => {
  const cases: [unknown, string][] = [
    [null, "Cannot load the lamp: it is no saved state"],
    [[], "it is no saved state"],
    [{}, "its state has no kind"],
    [{ kind: "chair", version: 1, body: {} }, "of chair, not of lamp"],
    [{ kind: "lamp" }, "its state has no version"],
    [{ kind: "lamp", version: 0, body: {} }, "version 0, 1 to 3 can be read"],
    [{ kind: "lamp", version: 4, body: {} }, "version 4, 1 to 3 can be read"],
    [{ kind: "lamp", version: 1.5, body: {} }, "its version cannot be"],
    [{ kind: "lamp", version: 3 }, "its state has no body"],
    [{ kind: "lamp", version: 3, body: 7 }, "it is no saved state"],
    [{ kind: "lamp", version: 1, body: null }, "it is no saved state"],
  ];
  for (const [state, message] of cases) {
    const error = assertThrows(() => THIRD.read(state), ErrnoError, message);
    assertEquals(error.errno, Errno.EINVAL);
  }
  assertThrows(
    () => FIRST.read({ kind: "lamp", version: 2, body: {} }),
    ErrnoError,
    "version 2, 1 can be read",
  );
});

Deno.test("StateForm.matches tells a kind, whatever its version", () => {
  assert(FIRST.matches({ kind: "lamp", version: 99 }));
  for (const other of [null, 1, {}, { kind: "chair" }]) {
    assert(!FIRST.matches(other));
  }
});
