/**
 * What a controller at home has its twins on other threads do.
 *
 * @module
 */

import type { BlockOptions } from "../../src/backend/block/options.ts";
import type { FeaturesState } from "./admin/features.ts";
import type { SharedStorage } from "./state.ts";
import type { RingSpec } from "./queue/queue.ts";

/** One call; each is answered when it is done. Plain data. */
export type TwinMessage =
  /** Commands may be fetched: the driver has enabled the controller. */
  | { readonly op: "enable"; readonly pageShift: number }
  /** The driver has asked for a reset: nothing of its is touched any more but by what is in flight. */
  | { readonly op: "halt" }
  /** Everything as after a controller reset. */
  | { readonly op: "reset" }
  /** Nothing that was fetched is with the storage any more. */
  | { readonly op: "drain" }
  | {
    readonly op: "createCq";
    readonly ring: RingSpec;
    readonly vector: number;
    readonly interrupts: boolean;
  }
  | { readonly op: "createSq"; readonly ring: RingSpec; readonly cqid: number }
  | { readonly op: "deleteCq"; readonly qid: number }
  /** Answered with whether it is gone; if not, that is shown when it is. */
  | { readonly op: "deleteSq"; readonly qid: number }
  /** Answered with whether the command was ended. */
  | { readonly op: "abort"; readonly sqid: number; readonly cid: number }
  /** A completion queue's head has moved: whether the line stays up is to be known at once. */
  | { readonly op: "head"; readonly cqid: number }
  /** INTMS. */
  | { readonly op: "mask"; readonly mask: number }
  | { readonly op: "features"; readonly state: FeaturesState }
  /** Doorbell Buffer Config. Answered with whether the buffers can be reached. */
  | {
    readonly op: "buffers";
    readonly shadowIova: number;
    readonly eventIova: number;
  }
  /** Answered with a {@linkcode TwinLogs}. */
  | { readonly op: "logs" }
  /** There is a namespace more; `given` is the share of this twin in its storage. */
  | {
    readonly op: "addNamespace";
    readonly nsid: number;
    readonly block: BlockOptions;
    readonly given: SharedStorage;
  };

/** What log pages are made of, of one thread. */
export interface TwinLogs {
  /** Entries of the error log, in no order; 0 where there is none. */
  readonly errors: Uint8Array;
  /** By NvmeCounter. */
  readonly counters: readonly number[];
}
