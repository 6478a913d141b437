import { posix } from "node:path";
import { assert, assertEquals } from "@std/assert";
import { importProblem, LAYERS } from "../../lint/layers.ts";
import plugin from "../../lint/mod.ts";

Deno.test("importProblem lets imports point downwards and to the side", () => {
  for (
    const [from, specifier] of [
      ["src/pci/function.ts", "../core/bits.ts"],
      ["src/pci/function.ts", "./device.ts"],
      ["devices/nvme/mod.ts", "../../src/backend/block/open.ts"],
      ["src/runtime/run.ts", "../../devices/registry.ts"],
      ["mod.ts", "./src/cli/main.ts"],
      ["src/core/log.ts", "node:util"],
      ["tests/until.ts", "../src/runtime/run.ts"],
    ] as const
  ) assertEquals(importProblem(from, specifier), null, `${from} ${specifier}`);
});

Deno.test("importProblem refuses imports that point upwards, to a sibling or out of the rooms", () => {
  for (
    const [from, specifier, reason] of [
      ["src/core/bits.ts", "../os/mod.ts", "src/os/ is above src/core/"],
      ["src/virtio/device.ts", "../transport/vfio_user/mod.ts", "is above"],
      ["devices/registry.ts", "../src/runtime/run.ts", "is above"],
      ["src/backend/net/open.ts", "../block/open.ts", "stands beside"],
      ["src/core/bits.ts", "../../tests/until.ts", "is in no room"],
    ] as const
  ) {
    const problem = importProblem(from, specifier);
    assert(problem?.includes(reason), `${from} ${specifier}: ${problem}`);
  }
});

Deno.test("every folder of src and devices belongs to a room", () => {
  const root = `${import.meta.dirname}/../..`;
  for (const { name } of Deno.readDirSync(`${root}/src`)) {
    assert(LAYERS.includes(`src/${name}/`), name);
  }
});

Deno.test("the linter reports an import that points upwards, of every form", () => {
  const root = `${import.meta.dirname}/../..`;
  const file = `${Deno.realPathSync(root)}/src/core/fixture.ts`;
  for (
    const source of [
      `import { Fd } from "../os/mod.ts";`,
      `export { Fd } from "../os/mod.ts";`,
      `export * from "../os/mod.ts";`,
      `import type { Fd } from "../os/mod.ts";`,
      `await import("../os/mod.ts");`,
    ]
  ) {
    const found = Deno.lint.runPlugin(plugin, file, source);
    assertEquals(found.map(({ id }) => id), ["outboard/imports-point-down"]);
  }
});

Deno.test("imports go in no circle, types included", () => {
  const root = `${import.meta.dirname}/../..`;
  const imports = new Map<string, string[]>();
  for (const path of sourcesOf(root)) {
    const text = Deno.readTextFileSync(`${root}/${path}`);
    const found = text.matchAll(
      /^(?:import|export|\}) [^;"]*?from "(\.[^"]+)"/gm,
    );
    imports.set(
      path,
      [...found].map(([, to]) => posix.join(posix.dirname(path), to!)),
    );
  }
  assert(imports.size > 200);
  const done = new Set<string>();
  const visit = (path: string, trail: readonly string[]) => {
    assert(!trail.includes(path), [...trail, path].join(" → "));
    if (done.has(path)) return;
    for (const to of imports.get(path) ?? []) visit(to, [...trail, path]);
    done.add(path);
  };
  for (const path of imports.keys()) visit(path, []);
});

/** Sources of the product, as paths in the checkout. */
function* sourcesOf(root: string, folder?: string): Generator<string> {
  if (folder === undefined) {
    yield* sourcesOf(root, "src");
    yield* sourcesOf(root, "devices");
    return yield "mod.ts";
  }
  for (const { name, isDirectory } of Deno.readDirSync(`${root}/${folder}`)) {
    const path = `${folder}/${name}`;
    if (isDirectory) yield* sourcesOf(root, path);
    else if (name.endsWith(".ts")) yield path;
  }
}
