/**
 * Version and capabilities: what the client proposes and what holds for the connection.
 *
 * @module
 */

import { Errno, ErrnoError } from "../../core/errno.ts";
import {
  VERSION,
  VERSION_DEFAULTS,
  VFIO_USER_MAJOR,
  VFIO_USER_MINOR,
} from "./defs.ts";
import { invalid } from "./request.ts";

/** Most that this server takes. */
export interface ServerLimits {
  /** The most bytes one region access moves. */
  readonly maxDataXferSize: number;
  /** The most ranges mapped at a time. */
  readonly maxDmaMaps: number;
  /** The most descriptors a client is to send with one message. */
  readonly maxMsgFds: number;
}

/** Agreement with a client. */
export interface Agreement {
  /** Minor version. */
  readonly minor: number;
  /** The most descriptors the client takes with one message. */
  readonly clientMsgFds: number;
  /** The most bytes one region access moves. */
  readonly maxDataXferSize: number;
  /** The most ranges mapped at a time. */
  readonly maxDmaMaps: number;
  /** True if the client may send REGION_WRITE_MULTI. */
  readonly writeMultiple: boolean;
  /**
   * True if the client said nothing of capabilities. SPDK's host library is such a client: it wants one descriptor
   * a mappable area, whatever max_msg_fds says.
   */
  readonly silent: boolean;
}

type Json = Readonly<Record<string, unknown>>;

function asObject(value: unknown, name: string): Json {
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw invalid(`Cannot agree on a version: ${name} is not an object`);
  }
  return value as Json;
}

/** An optional capability that is an integer of at least `least`. */
function integer(object: Json, name: string, least: number): number | null {
  const value = object[name];
  if (value === undefined) return null;
  if (typeof value !== "number" || !Number.isInteger(value) || value < least) {
    throw invalid(
      `Cannot agree on a version: ${name} is not an integer of at least ${least}`,
    );
  }
  return value;
}

/** An optional capability that is true or false. */
function flag(object: Json, name: string): boolean {
  const value = object[name];
  if (value !== undefined && typeof value !== "boolean") {
    throw invalid(
      `Cannot agree on a version: ${name} is neither true nor false`,
    );
  }
  return value ?? false;
}

function parseCapabilities(data: Uint8Array): Json {
  if (data[data.length - 1] !== 0) {
    throw invalid("Cannot agree on a version: the JSON does not end in NUL");
  }
  let value: unknown;
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(
      data.subarray(0, -1),
    );
    value = JSON.parse(text);
  } catch (cause) {
    throw new ErrnoError(
      Errno.EINVAL,
      "Cannot agree on a version: the capabilities are not JSON",
      { cause },
    );
  }
  const { capabilities } = asObject(value, "the version data");
  return capabilities === undefined
    ? {}
    : asObject(capabilities, "capabilities");
}

/**
 * True if the client looks like QEMU, by a capability that no other client proposes.
 *
 * QEMU 10.1 and 10.2 take `write_multiple: true` for a licence to queue every single message behind a bottom half,
 * and the proposals of all its versions are the same, so the good ones cannot be told from the bad ones. Writing
 * several registers at once only helps a client whose queue is full; without it QEMU merely sends the writes one
 * by one. So QEMU is not offered it, and other clients are.
 */
function looksLikeQemu(migration: Json | null): boolean {
  return migration !== null && migration.max_bitmap_size !== undefined;
}

/** Checks capabilities that are not offered, so that a client with a mistake in them hears of it. */
function checkUnused(capabilities: Json): Json | null {
  const { migration, twin_socket } = capabilities;
  if (twin_socket !== undefined) {
    flag(asObject(twin_socket, "twin_socket"), "supported");
  }
  if (migration === undefined) return null;
  const object = asObject(migration, "migration");
  integer(object, "pgsize", 1);
  integer(object, "max_bitmap_size", 0);
  return object;
}

function checkPageSizes(capabilities: Json): void {
  const pgsizes = integer(capabilities, "pgsizes", 1);
  if (pgsizes !== null && pgsizes % VERSION_DEFAULTS.pgsizes !== 0) {
    throw invalid(
      "Cannot agree on a version: pgsizes has sizes below 4096 bytes",
    );
  }
}

function agree(
  minor: number,
  capabilities: Json | null,
  limits: ServerLimits,
): Agreement {
  const proposed = capabilities ?? {};
  checkPageSizes(proposed);
  const migration = checkUnused(proposed);
  const writeMultiple = flag(proposed, "write_multiple");
  const defaults = VERSION_DEFAULTS;
  return {
    minor: Math.min(minor, VFIO_USER_MINOR),
    clientMsgFds: integer(proposed, "max_msg_fds", 0) ?? defaults.max_msg_fds,
    maxDataXferSize: Math.min(
      integer(proposed, "max_data_xfer_size", 1) ?? defaults.max_data_xfer_size,
      limits.maxDataXferSize,
    ),
    maxDmaMaps: Math.min(
      integer(proposed, "max_dma_maps", 1) ?? defaults.max_dma_maps,
      limits.maxDmaMaps,
    ),
    writeMultiple: writeMultiple && !looksLikeQemu(migration),
    silent: capabilities === null,
  };
}

/** Tells a client the agreement: for each limit the lower of both sides. */
function describe(
  agreement: Agreement,
  limits: ServerLimits,
  fdsProposed: boolean,
): string {
  return JSON.stringify({
    capabilities: {
      max_msg_fds: fdsProposed
        ? Math.min(agreement.clientMsgFds, limits.maxMsgFds)
        : limits.maxMsgFds,
      max_data_xfer_size: agreement.maxDataXferSize,
      max_dma_maps: agreement.maxDmaMaps,
      pgsizes: VERSION_DEFAULTS.pgsizes,
      ...(agreement.writeMultiple ? { write_multiple: true } : {}),
    },
  });
}

/** Result of a VERSION message. */
export interface Negotiation {
  /** Agreement from now on. */
  readonly agreement: Agreement;
  /** Payload of the reply. */
  readonly reply: Uint8Array;
}

/**
 * Answers a VERSION message.
 *
 * Migration and a second socket are not offered.
 *
 * @param payload The message without its header
 * @throws {ErrnoError} EINVAL: too short, another major version, or capabilities that are not what they should be
 */
export function negotiate(
  payload: Uint8Array,
  limits: ServerLimits,
): Negotiation {
  if (payload.length < VERSION.SIZE) {
    throw invalid(
      `Cannot agree on a version: the payload has ${payload.length} bytes, ${VERSION.SIZE} are needed`,
    );
  }
  const view = new DataView(payload.buffer, payload.byteOffset, VERSION.SIZE);
  const major = view.getUint16(VERSION.MAJOR, true);
  if (major !== VFIO_USER_MAJOR) {
    throw invalid(
      `Cannot agree on a version: the client speaks ${major}, this server ${VFIO_USER_MAJOR}`,
    );
  }
  const capabilities = payload.length > VERSION.SIZE
    ? parseCapabilities(payload.subarray(VERSION.DATA))
    : null;
  const minor = view.getUint16(VERSION.MINOR, true);
  const agreement = agree(minor, capabilities, limits);
  const fdsProposed = capabilities?.max_msg_fds !== undefined;
  const json = new TextEncoder().encode(
    `${describe(agreement, limits, fdsProposed)}\0`,
  );
  const reply = new Uint8Array(VERSION.SIZE + json.length);
  const out = new DataView(reply.buffer);
  out.setUint16(VERSION.MAJOR, VFIO_USER_MAJOR, true);
  out.setUint16(VERSION.MINOR, agreement.minor, true);
  reply.set(json, VERSION.DATA);
  return { agreement, reply };
}
