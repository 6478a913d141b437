/**
 * Run-time commands of a controller.
 *
 * @module
 */

import { resizeStorage, SHRINK } from "../../src/block/resize.ts";
import type { CommandAnswer, DeviceCommand } from "../../src/pci/device.ts";
import type { Namespace, NamespaceSet } from "./namespace.ts";

function describe(namespaces: readonly Namespace[]): CommandAnswer {
  const data = namespaces.map(({ nsid, blocks, lbaShift, backend }) => ({
    nsid,
    sizeBytes: blocks * 2 ** lbaShift,
    storage: backend.description,
  }));
  const lines = data.map(({ nsid, sizeBytes, storage }) =>
    `namespace ${nsid} has ${sizeBytes} bytes, ${storage}`
  );
  return { text: lines.join("\n"), data: { namespaces: data } };
}

function find(namespaces: NamespaceSet, text: string): Namespace {
  const ns = /^\d+$/.test(text) ? namespaces.get(Number(text)) : null;
  if (ns === null) {
    const known = namespaces.all.map(({ nsid }) => nsid).join(", ");
    throw new Error(`Cannot resize namespace ${text}: there is ${known}`);
  }
  return ns;
}

/** The `resize` command: changes the size of a namespace's storage, or tells the sizes. */
export function resizeCommand(namespaces: NamespaceSet): DeviceCommand {
  return {
    help:
      "resize [NSID] SIZE [--shrink]: change the size of a namespace; without a word, tell",
    run(args) {
      if (args.length === 0) return describe(namespaces.all);
      const words = args.filter((word) => word !== SHRINK);
      if (
        words.length > 2 || (words.length === 1 && namespaces.all.length > 1)
      ) {
        throw new Error(
          `Cannot resize ${
            args.join(" ")
          }: say resize NSID SIZE, such as resize 1 10G`,
        );
      }
      const ns = words.length === 2
        ? find(namespaces, words[0]!)
        : namespaces.all[0]!;
      const [size = ""] = words.slice(-1);
      resizeStorage(ns.backend, [
        size,
        ...args.filter((word) => word === SHRINK),
      ]);
      return describe([ns]);
    },
  };
}
