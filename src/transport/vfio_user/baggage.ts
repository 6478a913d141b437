/**
 * What a server hands to its successor on another thread of this process, while its client waits and notices nothing.
 *
 * All of it is plain data that survives a structured clone. Descriptors are numbers: they stay open, and belong to whoever
 * was made with the baggage; when that fails they still belong to the baggage.
 *
 * @module
 */

import { closeFd } from "../../os/mod.ts";
import type { Agreement } from "./version.ts";

/** Descriptors received that no command has used yet. */
export interface FdsBaggage {
  readonly fds: readonly number[];
  /** See {@linkcode FdList.truncated}. */
  readonly truncated: boolean;
}

/** A {@linkcode Connection} between two messages, or in the middle of one. */
export interface ConnectionBaggage {
  /** The socket. */
  readonly fd: number;
  /** Bytes received and not handled; the first is the first of a message. */
  readonly received: Uint8Array;
  /** Descriptors of the first message in {@linkcode ConnectionBaggage.received}. */
  readonly fds: FdsBaggage;
  /** Descriptors of a later one, and its offset there; null for none. */
  readonly later: FdsBaggage & { readonly at: number } | null;
  /** Bytes not sent yet. */
  readonly unsent: Uint8Array;
  /** How many of them are left of a message of which a part is sent; 0 when they begin with a whole one. */
  readonly sendLeft: number;
  /** Descriptors to go with the messages at these offsets of the unsent bytes; they belong to whoever answers. */
  readonly queuedFds: readonly {
    readonly at: number;
    readonly fds: readonly number[];
  }[];
}

/** {@linkcode Irqs}. */
export interface IrqsBaggage {
  /** For each index its eventfds, −1 for none, and its masks, 1 for a masked vector. */
  readonly lines: readonly {
    readonly fds: readonly number[];
    readonly masked: readonly number[];
  }[];
  /** The eventfd that unmasks INTx, −1 for none. */
  readonly unmaskFd: number;
}

/** {@linkcode Regions} in the middle of a command. */
export interface RegionProgress {
  /** Bytes of a region access, or writes of several, that are done. */
  readonly done: number;
  /** What was read. */
  readonly data: Uint8Array<ArrayBuffer> | null;
}

/** {@linkcode Doorbells} of one region that the client has asked for. */
export interface BellsBaggage {
  readonly region: number;
  /** An eventfd for each; −1 for one that the device itself watches. */
  readonly fds: readonly number[];
}

/** What exists once a version is agreed. */
export interface CommandsBaggage {
  readonly agreement: Agreement;
  /** Whether the client has shown whether its main memory is shared. */
  readonly sharedSeen: boolean;
  /** How far the region access at hand has come. */
  readonly progress: RegionProgress;
  readonly irqs: IrqsBaggage;
  readonly doorbells: readonly BellsBaggage[];
}

/** A {@linkcode Session}. */
export interface SessionBaggage {
  readonly connection: ConnectionBaggage;
  /** Null before a version is agreed. */
  readonly commands: CommandsBaggage | null;
  /** Whether the client was warned about already. */
  readonly warned: boolean;
  /** Whether a part of the first message of the connection is done. */
  readonly underway: boolean;
}

/** The file behind the mappable parts of a BAR. */
export interface RegionFileBaggage {
  readonly bar: number;
  readonly fd: number;
}

/** A {@linkcode VfioUserServer}. */
export interface ServerBaggage {
  readonly files: readonly RegionFileBaggage[];
  readonly counters: Readonly<Record<string, number>>;
  /** The client, if there is one. */
  readonly client: {
    readonly pid: number;
    readonly session: SessionBaggage;
    /** Whether it was said that somebody else is waiting. */
    readonly othersTold: boolean;
  } | null;
  /** Whether it was said that nobody can be accepted. */
  readonly acceptFailed: boolean;
}

function closeFds(fds: readonly number[]): void {
  for (const fd of fds) if (fd >= 0) closeFd(fd);
}

/** Closes everything that nobody will take over any more: the client sees its connection end. */
export function discardServer({ files, client }: ServerBaggage): void {
  for (const { fd } of files) closeFd(fd);
  if (client === null) return;
  const { connection, commands } = client.session;
  closeFd(connection.fd);
  closeFds(connection.fds.fds);
  closeFds(connection.later?.fds ?? []);
  for (const { fds } of commands?.irqs.lines ?? []) closeFds(fds);
  closeFds([commands?.irqs.unmaskFd ?? -1]);
  for (const { fds } of commands?.doorbells ?? []) closeFds(fds);
}
