/**
 * Run-time commands of a controller.
 *
 * @module
 */

import {
  BLOCK_OPTIONS,
  type BlockOptions,
} from "../../src/backend/block/options.ts";
import { resizeStorage, SHRINK } from "../../src/backend/block/resize.ts";
import { formatSize } from "../../src/core/size.ts";
import type { CommandAnswer, DeviceCommand } from "../../src/pci/device.ts";
import { parseOptionParts, splitAtCommas } from "../../src/core/options.ts";
import { type Namespace, type NamespaceSet, NSID_MAX } from "./io/namespace.ts";

/** Side of the controller that the commands see. */
export interface NamespaceHost {
  readonly namespaces: NamespaceSet;
  /**
   * Opens storage as a namespace and tells the driver.
   *
   * @param tell Told of the outcome, at once or when it is open
   * @throws {Error} With the reason, when that is known at once
   */
  readonly add: (
    nsid: number,
    block: BlockOptions,
    tell: (outcome: Namespace | Error) => void,
  ) => void;
  /** Does something that no other thread may see the middle of. */
  readonly whilePaused: <T>(action: () => T) => T;
  /** Takes a namespace away and tells the driver. */
  readonly remove: (ns: Namespace) => void;
}

function describe(namespaces: readonly Namespace[]): CommandAnswer {
  const data = namespaces.map(({ nsid, sizeBytes, backend }) => ({
    nsid,
    sizeBytes,
    storage: backend.description,
  }));
  const lines = data.map(({ nsid, sizeBytes, storage }) =>
    `namespace ${nsid} has ${formatSize(sizeBytes)}, on ${storage}`
  );
  return { text: lines.join("\n"), data: { namespaces: data } };
}

/** The commands of a controller about its namespaces. */
export function namespaceCommands(
  { namespaces, whilePaused, add, remove }: NamespaceHost,
): Record<string, DeviceCommand> {
  const find = (action: string, text: string): Namespace => {
    const ns = /^\d+$/.test(text) ? namespaces.get(Number(text)) : null;
    if (ns !== null) return ns;
    const known = namespaces.all.map(({ nsid }) => nsid).join(", ");
    throw new Error(
      `Cannot ${action} namespace ${text}: there is ${
        known === "" ? "none" : `none of that number, only ${known}`
      }`,
    );
  };
  return {
    resize: {
      help:
        "resize [NSID] SIZE [--shrink]: change the size of a namespace; without a word, tell",
      run(args) {
        if (args.length === 0) return describe(namespaces.all);
        const words = args.filter((word) => word !== SHRINK);
        const isOnly = namespaces.all.length === 1;
        if (words.length > 2 || (words.length < 2 && !isOnly)) {
          throw new Error(
            `Cannot resize ${
              args.join(" ")
            }: say resize NSID SIZE, such as resize 1 10G`,
          );
        }
        const ns = words.length === 2
          ? find("resize", words[0]!)
          : namespaces.all[0]!;
        const [size = ""] = words.slice(-1);
        const shrink = args.filter((word) => word === SHRINK);
        whilePaused(() => resizeStorage(ns.backend, [size, ...shrink]));
        return describe([ns]);
      },
    },
    add: {
      help:
        "add NSID OPTION=VALUE...: add a namespace, with storage options as at the start, such as: add 2 file=b.img,create=10G",
      run([text = "", ...words]) {
        // As on the command line, or a word each.
        const parts = words.flatMap(splitAtCommas);
        const nsid = Number(text);
        if (!/^\d+$/.test(text) || nsid < 1 || nsid > NSID_MAX) {
          throw new Error(
            `Cannot add ${
              text === "" ? "a namespace" : `namespace ${text}`
            }: say add NSID OPTION=VALUE..., with a number from 1 to ${NSID_MAX}`,
          );
        }
        if (namespaces.get(nsid) !== null) {
          throw new Error(
            `Cannot add namespace ${nsid}: there is one, remove it first`,
          );
        }
        const block = BLOCK_OPTIONS.parse(parseOptionParts(parts));
        return (tell) =>
          add(
            nsid,
            block,
            (outcome) =>
              tell(outcome instanceof Error ? outcome : describe([outcome])),
          );
      },
    },
    remove: {
      help:
        "remove NSID: take a namespace away; what the driver has not flushed there may be lost",
      run(args) {
        if (args.length !== 1) {
          throw new Error(
            `Cannot remove ${
              args.join(" ")
            }: say remove NSID, such as remove 2`,
          );
        }
        const ns = find("remove", args[0]!);
        whilePaused(() => remove(ns));
        return `namespace ${ns.nsid} is gone`;
      },
    },
  };
}
