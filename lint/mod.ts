/**
 * Rules of the house that the linter can hold.
 *
 * @module
 */

import { docsBeginWithThing } from "./doc_comments.ts";
import { importsPointDown } from "./layers.ts";

/** The plugin, for deno.json. */
const plugin: Deno.lint.Plugin = {
  name: "outboard",
  rules: {
    "imports-point-down": importsPointDown,
    "docs-begin-with-thing": docsBeginWithThing,
  },
};

export default plugin;
