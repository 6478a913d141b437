/**
 * Requests on memory that is not in reach at one access or another, with something happening before the access is made
 * again.
 *
 * @module
 */

import { assert } from "@std/assert";
import type { MappableMemory } from "../../src/memory/array_memory.ts";
import type { DriverMemory } from "../../src/testing/driver_memory.ts";
import type { StrictMemory } from "../../src/testing/strict_memory.ts";

/** A device with its driver, on memory under test that is strict. */
export interface Walked extends Disposable {
  readonly memory: MappableMemory;
  readonly ram: DriverMemory;
}

/** Event that may come before an access is made again. */
export interface Meanwhile<R> {
  readonly name: string;
  /** Lets it happen. */
  readonly happen: (rig: R) => void;
  /** True if requests are lost by it: the driver then begins anew, by this. */
  readonly recover?: (rig: R) => void;
}

/**
 * Makes each access of some requests pending in turn, and then all of them.
 *
 * @param serve Does whole requests; whether their data was right. Nothing is expected of it when requests are lost
 */
export function walkPending<R extends Walked>(
  make: () => R,
  serve: (rig: R) => boolean,
  meanwhile: Meanwhile<R>,
): void {
  for (let n = 0;; n++) {
    using rig = make();
    const memory = rig.memory as StrictMemory;
    const first = memory.accesses;
    let found = false;
    let happened = false;
    memory.pends = (access) => {
      found ||= access === first + n;
      return access === first + n;
    };
    const reach = memory.reach.bind(memory);
    memory.reach = () => {
      if (found && !happened) {
        happened = true;
        meanwhile.happen(rig);
      }
      return reach();
    };
    const isRight = serve(rig);
    if (!found) {
      assert(isRight && n > 0, "nothing can be pending");
      break;
    }
    const where = `${meanwhile.name} at access ${n}`;
    assert(isRight || meanwhile.recover !== undefined, where);
    meanwhile.recover?.(rig);
    if (meanwhile.recover !== undefined) assert(serve(rig), `after ${where}`);
  }
}

/** All of guest memory goes away and comes back. */
export function unmapAndMap({ memory, ram }: Walked): void {
  memory.unmapAll();
  const { iova, lengthBytes, bytes } = ram;
  memory.map({ iova, lengthBytes, buffer: bytes.buffer });
}
