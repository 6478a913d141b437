import { assertEquals } from "@std/assert";
import denoJson from "../deno.json" with { type: "json" };

Deno.test("the documentation of every entry point is checked", {
  permissions: "none",
}, () => {
  const entries = Object.values(denoJson.exports).map((path) => path.slice(2));
  assertEquals(
    denoJson.tasks.doc.command,
    `deno doc --lint ${entries.join(" ")}`,
  );
});
