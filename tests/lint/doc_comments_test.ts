import { assertEquals } from "@std/assert";
import { vagueBeginning } from "../../lint/doc_comments.ts";
import plugin from "../../lint/mod.ts";

Deno.test("vagueBeginning finds interrogatives at the beginning of documentation only", () => {
  for (
    const [comment, word] of [
      ["* What is counted. ", "What"],
      ["*\n   * Whether it is open.\n   ", "Whether"],
      ["* How many queues there are. ", "How"],
      ["* Whoever waits goes on. ", "Whoever"],
      ["* Counters, and what they mean. ", null],
      ["* Whole pages. ", null],
      [" What a comment for readers of the code says. ", null],
    ] as const
  ) assertEquals(vagueBeginning(comment), word, comment);
});

Deno.test("the linter reports documentation that begins with an interrogative", () => {
  const source = "/** What is counted. */\nconst a = 1;\n// What else\nfoo(a);";
  const found = Deno.lint.runPlugin(plugin, "/fixture.ts", source);
  assertEquals(found.map(({ id }) => id), ["outboard/docs-begin-with-thing"]);
});
