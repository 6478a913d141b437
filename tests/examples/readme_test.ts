import { assert } from "@std/assert";

const root = `${import.meta.dirname}/../..`;

Deno.test("README shows the examples as they are", () => {
  const readme = Deno.readTextFileSync(`${root}/README.md`);
  for (const file of ["examples/coffee.ts", "tests/examples/coffee_test.ts"]) {
    const text = Deno.readTextFileSync(`${root}/${file}`);
    assert(readme.includes(text), `${file} differs from README.md`);
  }
});
