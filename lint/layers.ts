/**
 * The order of the rooms, held by the linter: imports point downwards.
 *
 * @module
 */

import { fileURLToPath } from "node:url";
import { posix } from "node:path";

/** Rooms from the lowest to the highest; a file belongs to the longest one that its path begins with. */
export const LAYERS: readonly string[] = [
  "deno.json",
  "src/core/",
  "src/os/",
  "src/loop/",
  "src/memory/",
  "src/pci/",
  "src/virtio/",
  "src/backend/",
  "devices/",
  "src/testing/",
  "src/transport/virtio_pci/",
  "src/transport/",
  "src/runtime/",
  "src/cli/",
  "mod.ts",
];

/** Rooms side by side in a layer, which do not know of each other. */
const SIBLINGS = [
  "src/backend/block/",
  "src/backend/net/",
  "src/transport/vfio_user/",
  "devices/nvme/",
  "devices/virtio_blk/",
  "devices/virtio_net/",
];

/** The checkout, with a slash at its end. */
const ROOT = fileURLToPath(new URL("../", import.meta.url));

const layerOf = (path: string) =>
  LAYERS.findIndex((layer) => path.startsWith(layer));
const siblingOf = (path: string) =>
  SIBLINGS.findIndex((sibling) => path.startsWith(sibling));

/**
 * Finds the fault of an import.
 *
 * @param from Path of the importing file in the checkout
 * @param specifier As written there
 * @returns One line; null for nothing, and for files that belong to no room
 */
export function importProblem(from: string, specifier: string): string | null {
  if (!specifier.startsWith(".")) return null;
  const to = posix.join(posix.dirname(from), specifier);
  const [ours, theirs] = [layerOf(from), layerOf(to)];
  if (ours < 0) return null;
  if (theirs < 0) return `Cannot import ${to} from ${from}: it is in no room`;
  if (theirs > ours) {
    return `Cannot import ${to} from ${from}: ${LAYERS[theirs]} is above ${
      LAYERS[ours]
    }`;
  }
  const [here, there] = [siblingOf(from), siblingOf(to)];
  if (here < 0 || there < 0 || here === there) return null;
  if (layerOf(SIBLINGS[here]!) !== layerOf(SIBLINGS[there]!)) return null;
  return `Cannot import ${to} from ${from}: ${SIBLINGS[there]} stands beside ${
    SIBLINGS[here]
  }`;
}

/** Reports imports that do not point downwards. */
export const importsPointDown: Deno.lint.Rule = {
  create(context) {
    if (!context.filename.startsWith(ROOT)) return {};
    const from = context.filename.slice(ROOT.length);
    const check = (source: Deno.lint.Node | null) => {
      if (source?.type !== "Literal" || typeof source.value !== "string") {
        return;
      }
      const message = importProblem(from, source.value);
      if (message === null) return;
      context.report({
        node: source,
        message,
        hint:
          "Move what is wanted down to a room that both may know, or hand it in from above",
      });
    };
    return {
      ImportDeclaration: (node) => check(node.source),
      ExportNamedDeclaration: (node) => check(node.source),
      ExportAllDeclaration: (node) => check(node.source),
      ImportExpression: (node) => check(node.source),
    };
  },
};
