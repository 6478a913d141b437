/**
 * The VERSION message as a client writes and reads it.
 *
 * @module
 */

import { Errno, ErrnoError } from "../../../core/errno.ts";
import { VERSION, VERSION_DEFAULTS } from "../defs.ts";

/** The capabilities of the protocol; a client may add others. */
export interface Capabilities {
  /** The most descriptors the sender takes in one message. */
  readonly max_msg_fds?: number;
  /** The most data the sender takes in one message, in bytes. */
  readonly max_data_xfer_size?: number;
  /** The most DMA ranges that can be mapped. */
  readonly max_dma_maps?: number;
  /** Page sizes for DMA, or-ed together. */
  readonly pgsizes?: number;
  /** A second socket for commands of the server. */
  readonly twin_socket?: {
    readonly supported?: boolean;
    readonly fd_index?: number;
  };
  /** True if REGION_WRITE_MULTI may be sent. */
  readonly write_multiple?: boolean;
  /** Capabilities that the protocol does not know. */
  readonly [name: string]: unknown;
}

/** Proposal of a client. */
export interface Proposal {
  /** Major version; 0 unless told. */
  readonly major?: number;
  /** Minor version; 0, as QEMU, unless told. */
  readonly minor?: number;
  /** Capabilities; those of QEMU unless told, and no JSON at all for null (as SPDK). */
  readonly capabilities?: Capabilities | null;
  /** Bytes in place of the JSON text and its NUL, to misbehave. */
  readonly data?: Uint8Array;
}

/** Agreement of client and server. */
export interface Agreement {
  /** Major version. */
  readonly major: number;
  /** Minor version. */
  readonly minor: number;
  /** The server's capabilities as it sent them; empty when it sent none. */
  readonly capabilities: Capabilities;
  /** The most descriptors the server takes in one message. */
  readonly maxMessageFds: number;
  /** The most data the server takes in one message, in bytes. */
  readonly maxTransferBytes: number;
}

/** Capabilities that QEMU proposes. */
export const QEMU_CAPABILITIES: Capabilities = {
  max_msg_fds: 8,
  max_data_xfer_size: 1_048_576,
  pgsizes: 4096,
  max_dma_maps: 65_535,
  write_multiple: true,
};

/** The payload of a VERSION request. */
export function versionPayload(proposal: Proposal): Uint8Array<ArrayBuffer> {
  const capabilities = proposal.capabilities === undefined
    ? QEMU_CAPABILITIES
    : proposal.capabilities;
  const data = proposal.data ??
    (capabilities === null
      ? new Uint8Array(0)
      : new TextEncoder().encode(`${JSON.stringify({ capabilities })}\0`));
  const payload = new Uint8Array(VERSION.SIZE + data.length);
  const view = new DataView(payload.buffer);
  view.setUint16(VERSION.MAJOR, proposal.major ?? 0, true);
  view.setUint16(VERSION.MINOR, proposal.minor ?? 0, true);
  payload.set(data, VERSION.DATA);
  return payload;
}

function broken(why: string): ErrnoError {
  return new ErrnoError(Errno.EPROTO, `Cannot agree on a version: ${why}`);
}

function parseCapabilities(data: Uint8Array): Capabilities {
  if (data.length === 0) return {};
  if (data[data.length - 1] !== 0) {
    throw broken("the server's capabilities do not end in NUL");
  }
  let json: unknown;
  try {
    json = JSON.parse(
      new TextDecoder("utf-8", { fatal: true }).decode(data.subarray(0, -1)),
    );
  } catch (cause) {
    throw new ErrnoError(
      Errno.EPROTO,
      "Cannot agree on a version: the server's capabilities are not JSON",
      { cause },
    );
  }
  if (typeof json !== "object" || json === null || Array.isArray(json)) {
    throw broken("the server's capabilities are not an object");
  }
  const capabilities: unknown = "capabilities" in json ? json.capabilities : {};
  if (typeof capabilities !== "object" || capabilities === null) {
    throw broken("the server's capabilities are not an object");
  }
  return capabilities as Capabilities;
}

function limit(
  capabilities: Capabilities,
  name: "max_msg_fds" | "max_data_xfer_size",
  most: number,
): number {
  const value = capabilities[name] ?? VERSION_DEFAULTS[name];
  if (!Number.isInteger(value) || value < 0 || value > most) {
    throw broken(`${name} is ${value}, a number up to ${most} is expected`);
  }
  return value;
}

/**
 * Reads the VERSION reply with the checks of QEMU: same major, no higher minor, NUL at the end, at most 16
 * descriptors and 64 MiB.
 *
 * @throws {ErrnoError} EPROTO
 */
export function parseAgreement(
  payload: Uint8Array<ArrayBuffer>,
  proposal: Proposal,
): Agreement {
  if (payload.length < VERSION.SIZE) {
    throw broken(`the reply has ${payload.length} bytes`);
  }
  const view = new DataView(payload.buffer, payload.byteOffset);
  const major = view.getUint16(VERSION.MAJOR, true);
  const minor = view.getUint16(VERSION.MINOR, true);
  if (major !== (proposal.major ?? 0) || minor > (proposal.minor ?? 0)) {
    throw broken(`the server answered ${major}.${minor}`);
  }
  const capabilities = parseCapabilities(payload.subarray(VERSION.DATA));
  return {
    major,
    minor,
    capabilities,
    maxMessageFds: limit(capabilities, "max_msg_fds", 16),
    maxTransferBytes: limit(capabilities, "max_data_xfer_size", 64 << 20),
  };
}
