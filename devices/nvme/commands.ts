/**
 * Run-time commands of a controller.
 *
 * @module
 */

import { parseSize } from "../../src/block/size.ts";
import type { DeviceCommand } from "../../src/pci/device.ts";
import type { Namespace, NamespaceSet } from "./namespace.ts";

function describe(ns: Namespace): string {
  const bytes = ns.blocks * 2 ** ns.lbaShift;
  return `namespace ${ns.nsid} has ${bytes} bytes, ${ns.backend.description}`;
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
      "resize [NSID] SIZE: change the size of a namespace; without a word, tell",
    run(args) {
      if (args.length === 0) return namespaces.all.map(describe).join("\n");
      if (args.length > 2 || (args.length === 1 && namespaces.all.length > 1)) {
        throw new Error(
          `Cannot resize ${
            args.join(" ")
          }: say resize NSID SIZE, such as resize 1 10G`,
        );
      }
      const ns = args.length === 2
        ? find(namespaces, args[0]!)
        : namespaces.all[0]!;
      const text = args.at(-1)!;
      const sizeBytes = parseSize(text);
      if (sizeBytes === null || sizeBytes % 2 ** ns.lbaShift !== 0) {
        throw new Error(
          `Cannot resize to ${text}: a size like 10G is wanted, in whole blocks of ${
            2 ** ns.lbaShift
          } bytes`,
        );
      }
      if (ns.backend.resize === undefined) {
        throw new Error(
          `Cannot resize namespace ${ns.nsid}: ${ns.backend.description} has a fixed size`,
        );
      }
      ns.backend.resize(sizeBytes);
      return describe(ns);
    },
  };
}
