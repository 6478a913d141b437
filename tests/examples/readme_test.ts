import { assert } from "@std/assert";

const root = `${import.meta.dirname}/../..`;

Deno.test("README shows the examples as they are", () => {
  const readme = Deno.readTextFileSync(`${root}/README.md`);
  const files = [
    "examples/coffee.ts",
    "examples/http_disk.ts",
    "tests/examples/coffee_test.ts",
  ];
  for (const file of files) {
    const text = Deno.readTextFileSync(`${root}/${file}`);
    assert(readme.includes(text), `${file} differs from README.md`);
  }
});
