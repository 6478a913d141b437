/**
 * State of a server and its client, for a successor, while the client waits and notices nothing. Plain data; the
 * descriptors are in a resource bag.
 *
 * @module
 */

import type { StateReader } from "../../core/state_reader.ts";
import { SCM_MAX_FD } from "../../os/mod.ts";
import { VFIO_PCI_NUM_REGIONS } from "./defs.ts";
import { parseCounters } from "../../core/counters.ts";
import { CONNECTION_COUNTERS } from "./counters.ts";
import { type FdsState, parseFds } from "./fd_list.ts";
import type { Agreement } from "./version.ts";

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
  /** Number of bytes left of a message of which a part is sent; 0 when they begin with a whole one. */
  readonly sendLeft: number;
  /** Numbers of descriptors, `queued.i.j`, that go with the messages at these offsets of the unsent bytes. */
  readonly queuedFds: readonly {
    readonly at: number;
    readonly count: number;
  }[];
}

/** {@linkcode Irqs}; eventfds are `index.vector`, and `unmask` unmasks INTx. */
export interface IrqsState {
  /** For each index its masks, 1 for a masked vector. */
  readonly masked: readonly Uint8Array[];
}

/** {@linkcode Regions} in the middle of a command. */
export interface RegionProgress {
  /** Bytes of a region access, or writes of several, that are done. */
  readonly done: number;
  /** Bytes that were read. */
  readonly data: Uint8Array<ArrayBuffer> | null;
}

/** {@linkcode Doorbells} of one region that the client has asked for; eventfds are `region.doorbell`, but for the device's own. */
export interface BellsState {
  readonly region: number;
  readonly count: number;
}

/** Parts that exist once a version is agreed. */
export interface CommandsState {
  readonly agreement: Agreement;
  /** True if the client has shown whether its main memory is shared. */
  readonly sharedSeen: boolean;
  /** Progress of the region access at hand. */
  readonly progress: RegionProgress;
  readonly irqs: IrqsState;
  readonly doorbells: readonly BellsState[];
}

/** A {@linkcode Session}. */
export interface SessionState {
  readonly connection: ConnectionState;
  /** Null before a version is agreed. */
  readonly commands: CommandsState | null;
  /** True if the client was warned about already. */
  readonly warned: boolean;
  /** True if a part of the first message of the connection is done. */
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
    /** True if it was said that somebody else is waiting. */
    readonly othersTold: boolean;
  } | null;
  /** True if it was said that nobody can be accepted. */
  readonly acceptFailed: boolean;
}

const { MAX_SAFE_INTEGER } = Number;

function parseConnection(reader: StateReader): ConnectionState {
  const received = reader.bytes("received");
  const unsent = reader.bytes("unsent");
  return {
    received,
    fds: parseFds(reader.part("fds")),
    later: reader.partOrNull("later", (later) => ({
      ...parseFds(later),
      at: later.integer("at", received.length),
    })),
    unsent,
    sendLeft: reader.integer("sendLeft", unsent.length),
    queuedFds: reader.parts("queuedFds", (queued) => ({
      at: queued.integer("at", unsent.length),
      count: queued.integer("count", SCM_MAX_FD),
    })),
  };
}

function parseAgreement(reader: StateReader): Agreement {
  return {
    minor: reader.integer("minor", MAX_SAFE_INTEGER),
    clientMsgFds: reader.integer("clientMsgFds", MAX_SAFE_INTEGER),
    maxDataXferSize: reader.integer("maxDataXferSize", MAX_SAFE_INTEGER),
    maxDmaMaps: reader.integer("maxDmaMaps", MAX_SAFE_INTEGER),
    writeMultiple: reader.flag("writeMultiple"),
    silent: reader.flag("silent"),
  };
}

function parseCommands(reader: StateReader): CommandsState {
  const progress = reader.part("progress");
  return {
    agreement: parseAgreement(reader.part("agreement")),
    sharedSeen: reader.flag("sharedSeen"),
    progress: {
      done: progress.integer("done", MAX_SAFE_INTEGER),
      data: progress.value("data") === null ? null : progress.bytes("data"),
    },
    irqs: { masked: reader.part("irqs").byteArrays("masked") },
    doorbells: reader.parts("doorbells", (bells) => ({
      region: bells.integer("region", VFIO_PCI_NUM_REGIONS - 1),
      count: bells.integer("count", SCM_MAX_FD),
    })),
  };
}

function parseSession(reader: StateReader): SessionState {
  return {
    connection: parseConnection(reader.part("connection")),
    commands: reader.partOrNull("commands", parseCommands),
    warned: reader.flag("warned"),
    underway: reader.flag("underway"),
  };
}

/**
 * Checks the state of a server.
 *
 * @throws {import("../../core/errno.ts").ErrnoError} EINVAL when it cannot be
 */
export function parseServerState(reader: StateReader): ServerState {
  return {
    files: reader.integers("files", VFIO_PCI_NUM_REGIONS - 1),
    counters: parseCounters(CONNECTION_COUNTERS, reader.value("counters")),
    client: reader.partOrNull("client", (client) => ({
      pid: client.integer("pid", MAX_SAFE_INTEGER),
      session: parseSession(client.part("session")),
      othersTold: client.flag("othersTold"),
    })),
    acceptFailed: reader.flag("acceptFailed"),
  };
}
