import {
  assert,
  assertEquals,
  assertRejects,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import {
  builtinModels,
  isModelPath,
  loadModel,
  modelOfModule,
  parseModelOptions,
} from "../../devices/registry.ts";
import type { DeviceModel } from "../../devices/model.ts";
import {
  integer,
  list,
  options,
  type OptionTexts,
  text,
} from "../../src/core/options.ts";
import { UnknownNameError } from "../../src/core/unknown_name.ts";
import { model } from "./fixtures/by_name.ts";

const FIXTURES = new URL("./fixtures/", import.meta.url);

Deno.test("builtinModels agree with what they load", async () => {
  assert(builtinModels.size > 0);
  for (const [name, entry] of builtinModels) {
    const loaded = await entry.load();
    assertEquals([entry.name, loaded.name], [name, name]);
    assertEquals(entry.help, loaded.help);
    assertEquals(await entry.loadOptions(), loaded.options!);
    assertEquals(modelOfModule({ model: loaded }, name), loaded);
    assertEquals(await loadModel(name), loaded);
  }
});

Deno.test("loadModel says which models there are", async () => {
  const error = await assertRejects(() => loadModel("virtio-nte"), Error);
  assertStringIncludes(error.message, "virtio-net");
  assertStringIncludes(error.message, "./virtio-nte.ts");
});

Deno.test("loadModel takes a path or a URL, and either kind of export", async () => {
  const byName = new URL("by_name.ts", FIXTURES);
  assertEquals((await loadModel(byName.pathname)).name, "by-name");
  assertEquals((await loadModel(byName.href)).name, "by-name");
  const byDefault = new URL("by_default.ts", FIXTURES);
  assertEquals((await loadModel(byDefault.pathname)).name, "by-default");
});

Deno.test("loadModel explains what it cannot load", async () => {
  const at = (name: string) => new URL(name, FIXTURES).pathname;
  await assertRejects(
    () => loadModel(at("missing.ts")),
    Error,
    "missing.ts: there is no such file",
  );
  await assertRejects(
    () => loadModel(at("throws.ts")),
    Error,
    `throws.ts: ${at("throws.ts")}:5:9: the fixture fails`,
  );
  const broken = Deno.makeTempFileSync({ suffix: ".ts" });
  try {
    Deno.writeTextFileSync(
      broken,
      `export const model = {\n  name: "a" help\n};`,
    );
    const error = await assertRejects(() => loadModel(broken), Error);
    assertStringIncludes(error.message, `${broken}:2:`);
    assertEquals(error.message.includes("\n"), false);
  } finally {
    Deno.removeSync(broken);
  }
  const nested = await assertRejects(
    () => loadModel(at("imports_missing.ts")),
    Error,
  );
  assertStringIncludes(nested.message, "there_is_no_such_file.ts");
  assertEquals(nested.message.includes("\n"), false);
});

Deno.test("loadModel gives up on a file that waits for ever", async () => {
  const file = Deno.makeTempFileSync({ suffix: ".ts" });
  const { promise, resolve } = Promise.withResolvers<void>();
  Reflect.set(globalThis, "gate", promise);
  try {
    Deno.writeTextFileSync(file, "await globalThis.gate;\nexport {};");
    await assertRejects(
      () => loadModel(file, 0),
      Error,
      `Cannot load device model ${file}: it is not done within 0 s; does an \`await\` at its top level`,
    );
    // What waits for ever would end the tests.
    resolve();
    await import(file);
  } finally {
    Reflect.deleteProperty(globalThis, "gate");
    Deno.removeSync(file);
  }
});

Deno.test("isModelPath tells names from paths and URLs", () => {
  for (
    const path of [
      "./a.ts",
      "../a",
      "/a",
      "dir/a",
      "a.ts",
      "a.mjs",
      "file:///a",
      "https://host/a.ts",
    ]
  ) {
    assertEquals(isModelPath(path), true, path);
  }
  for (const name of ["virtio-net", "nvme", "a.b"]) {
    assertEquals(isModelPath(name), false, name);
  }
});

Deno.test("parseModelOptions gives a model from a file what it declares, and nothing else", () => {
  const file = {
    ...model,
    options: options({
      colour: text("colour", { help: "its looks" }),
      ports: list(integer("port", { help: "its ports", min: 1, max: 9 })),
    }),
  };
  const common = options({ id: text("id", { help: "its name" }) });
  const parse = (of: DeviceModel, texts: OptionTexts) =>
    parseModelOptions(of, "./a.ts", texts, common);
  const given = { colour: "red", port: ["1", "2"] };
  assertEquals(parse(file, { ...given, id: "x" }), {
    common: { id: "x" },
    own: { colour: "red", ports: [1, 2] },
  });
  const error = assertThrows(
    () => parse(file, { color: "red" }),
    UnknownNameError,
    "Cannot use option color: by-name has id, colour, port",
  );
  assertEquals([error.given, error.known], ["color", ["id", "colour", "port"]]);
  assertThrows(
    () => parse(file, { colour: ["red", "blue"] }),
    Error,
    "Cannot use colour 2 times: give it once",
  );
  const { options: _, ...bare } = file;
  assertEquals(parse(bare, {}), { common: { id: null }, own: {} });
  assertThrows(
    () => parseModelOptions(bare, "./a.ts", given, options({})),
    UnknownNameError,
    "Cannot use option colour: by-name has no options",
  );
});

Deno.test("parseModelOptions says what is wrong with what a model makes of its options", () => {
  for (const made of [Promise.resolve({}), () => {}]) {
    assertThrows(
      () =>
        parseModelOptions(
          { ...model, options: options({}, () => made) },
          "./a.ts",
          {},
          options({}),
        ),
      Error,
      "Cannot use ./a.ts as a device model: its options must become plain data",
    );
  }
  const id = options({ id: text("id", { help: "another" }) });
  assertThrows(
    () => parseModelOptions({ ...model, options: id }, "./a.ts", {}, id),
    Error,
    "Cannot declare option id twice",
  );
});

Deno.test("modelOfModule refuses what is no device model", () => {
  const cases: [Record<string, unknown>, string][] = [
    [{}, "neither `model` nor a default"],
    [{ model: () => {} }, "must be an object, not function"],
    [{ default: null }, "must be an object, not null"],
    [{ model: { ...model, name: "" } }, "`name` must be a non-empty string"],
    [{ model: { ...model, help: 7 } }, "`help` must be a non-empty string"],
    [
      { model: { ...model, options: [] } },
      "`options` must be what `options({…})` makes, not array",
    ],
    [{ model: { ...model, options: null } }, "makes, not null"],
    [
      { model: { ...model, options: text("a", {} as { help: string }) } },
      "its option `a` must have a `help` that is a string, not undefined",
    ],
    [{ model: { ...model, create: [] } }, "must be a function, not array"],
    [{ model: { ...model, create: async () => {} } }, "must not be async"],
  ];
  for (const [module, message] of cases) {
    assertThrows(
      () => modelOfModule(module, "./x.ts"),
      Error,
      message,
    );
    assertThrows(() => modelOfModule(module, "./x.ts"), Error, "./x.ts");
  }
});
