/**
 * What a server knows of its client, for its successor, while the client waits and notices nothing. Plain data; the
 * descriptors are in a resource bag.
 *
 * @module
 */

import type { Agreement } from "./version.ts";

/** Descriptors received that no command has used yet. */
export interface FdsState {
  /** How many came; those taken since are not in the bag. */
  readonly count: number;
  /** See {@linkcode FdList.truncated}. */
  readonly truncated: boolean;
}

/** A {@linkcode Connection} between two messages, or in the middle of one. Its socket is `socket`. */
export interface ConnectionState {
  /** Bytes received and not handled; the first is the first of a message. */
  readonly received: Uint8Array;
  /** Descriptors of the first message in {@linkcode ConnectionState.received}, `first`. */
  readonly fds: FdsState;
  /** Descriptors of a later one, `later`, and its offset there; null for none. */
  readonly later: FdsState & { readonly at: number } | null;
  /** Bytes not sent yet. */
  readonly unsent: Uint8Array;
  /** How many of them are left of a message of which a part is sent; 0 when they begin with a whole one. */
  readonly sendLeft: number;
  /** How many descriptors, `queued.i.j`, are to go with the messages at these offsets of the unsent bytes. */
  readonly queuedFds: readonly {
    readonly at: number;
    readonly count: number;
  }[];
}

/** {@linkcode Irqs}; eventfds are `index.vector`, and `unmask` unmasks INTx. */
export interface IrqsState {
  /** For each index its masks, 1 for a masked vector. */
  readonly masked: readonly (readonly number[])[];
}

/** {@linkcode Regions} in the middle of a command. */
export interface RegionProgress {
  /** Bytes of a region access, or writes of several, that are done. */
  readonly done: number;
  /** What was read. */
  readonly data: Uint8Array<ArrayBuffer> | null;
}

/** {@linkcode Doorbells} of one region that the client has asked for; eventfds are `region.doorbell`, but for the device's own. */
export interface BellsState {
  readonly region: number;
  readonly count: number;
}

/** What exists once a version is agreed. */
export interface CommandsState {
  readonly agreement: Agreement;
  /** Whether the client has shown whether its main memory is shared. */
  readonly sharedSeen: boolean;
  /** How far the region access at hand has come. */
  readonly progress: RegionProgress;
  readonly irqs: IrqsState;
  readonly doorbells: readonly BellsState[];
}

/** A {@linkcode Session}. */
export interface SessionState {
  readonly connection: ConnectionState;
  /** Null before a version is agreed. */
  readonly commands: CommandsState | null;
  /** Whether the client was warned about already. */
  readonly warned: boolean;
  /** Whether a part of the first message of the connection is done. */
  readonly underway: boolean;
}

/** A {@linkcode VfioUserServer}. */
export interface ServerState {
  /** Numbers of the BARs with files. */
  readonly files: readonly number[];
  readonly counters: Readonly<Record<string, number>>;
  /** The client, if there is one. */
  readonly client: {
    readonly pid: number;
    readonly session: SessionState;
    /** Whether it was said that somebody else is waiting. */
    readonly othersTold: boolean;
  } | null;
  /** Whether it was said that nobody can be accepted. */
  readonly acceptFailed: boolean;
}
