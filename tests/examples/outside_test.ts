import { assertEquals, assertMatch } from "@std/assert";

const root = `${import.meta.dirname}/../..`;

Deno.test("a model outside the checkout is checked and tested as README says", async () => {
  const readme = Deno.readTextFileSync(`${root}/README.md`);
  const config = /```json\n(\{\n {2}"imports"[^]*?)```/.exec(readme)![1]!;
  const folder = Deno.makeTempDirSync();
  try {
    const write = (name: string, text: string) =>
      Deno.writeTextFileSync(`${folder}/${name}`, text);
    const read = (path: string) => Deno.readTextFileSync(`${root}/${path}`);
    write("deno.json", config.replaceAll("../outboard", root));
    write(
      "coffee.ts",
      read("examples/coffee.ts").replace("../mod.ts", "@outboard/outboard"),
    );
    write(
      "coffee_test.ts",
      read("tests/examples/coffee_test.ts")
        .replace("../../examples/coffee.ts", "./coffee.ts")
        .replace("../../src/testing/mod.ts", "@outboard/outboard/testing"),
    );
    // Which checks the types of both files, too.
    const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
      args: ["test"],
      cwd: folder,
      env: { NO_COLOR: "1" },
    }).output();
    const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
    assertEquals(code, 0, text(stdout) + text(stderr));
    assertMatch(text(stderr) + text(stdout), /^Check .*coffee_test\.ts$/m);
    assertMatch(text(stdout), /1 passed/);
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
});
