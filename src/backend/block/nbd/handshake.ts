/**
 * The client's side of NBD's negotiation (bytes in, bytes out, and no socket), and what its outcome means for a controller.
 *
 * @module
 */

import { bit } from "../../../core/bits.ts";
import { Errno, ErrnoError } from "../../../core/errno.ts";
import type { Log } from "../../../core/log.ts";
import type { BlockInfo } from "../contract.ts";
import type { CommonBlockOptions } from "../driver.ts";
import {
  NBD_CLISERV_MAGIC,
  NBD_DEFAULT_MAX_PAYLOAD,
  NBD_EXPORT,
  NBD_FLAG,
  NBD_FLAG_EXPORT,
  NBD_GREETING,
  NBD_INFO,
  NBD_INFO_BLOCK_SIZE,
  NBD_INFO_EXPORT,
  NBD_MAGIC,
  NBD_OPT,
  NBD_OPTION,
  NBD_OPTION_REPLY,
  NBD_OPTS_MAGIC,
  NBD_REP,
  NBD_REP_MAGIC,
} from "./protocol.ts";

/** Properties of an export, as its server says. */
export interface NbdExport {
  /** Length in bytes. */
  readonly sizeBytes: number;
  /** NBD_FLAG_EXPORT bits. */
  readonly flags: number;
  /** True when reads are answered in chunks. */
  readonly structuredReplies: boolean;
  /** Unit of addressing in bytes, a power of two. */
  readonly minimumBlockBytes: number;
  /** Unit of efficient access in bytes; 0 where the server does not say. */
  readonly preferredBlockBytes: number;
  /** Longest READ and WRITE in bytes. */
  readonly maximumPayloadBytes: number;
}

/** Longer replies to options are nothing that a server has reason for. */
const REPLY_MAX_BYTES = 65536;
/** More replies to one option neither. */
const REPLIES_MAX = 64;

/** Steps of the negotiation: each asks for as many bytes as it says, and gets them. */
type Steps<T> = Generator<number, T, DataView<ArrayBuffer>>;

interface OptionReply {
  readonly type: number;
  readonly data: DataView<ArrayBuffer>;
}

function refuse(why: string, errno: number = Errno.EPROTO): never {
  throw new ErrnoError(errno, `Cannot use the NBD server: ${why}`);
}

/**
 * One negotiation.
 *
 * ```text
 *   feed(bytes from the server) … takeOutput() to the server … until `result` is there
 * ```
 * Fixed newstyle with NBD_OPT_GO, and NBD_OPT_EXPORT_NAME with servers that know nothing better.
 */
export class NbdHandshake {
  /** Export that was agreed upon; null until then. */
  result: NbdExport | null = null;
  readonly #exportName: Uint8Array;
  readonly #steps: Steps<NbdExport>;
  #input = new Uint8Array(0);
  #output: number[] = [];
  #wanted: number;

  /** @param exportName At most 4096 bytes; empty for the server's default */
  constructor(exportName: string) {
    this.#exportName = new TextEncoder().encode(exportName);
    this.#steps = this.#negotiate();
    this.#wanted = this.#steps.next().value as number;
  }

  /** The bytes to send now; they are then taken away. */
  takeOutput(): Uint8Array<ArrayBuffer> {
    const output = Uint8Array.from(this.#output);
    this.#output = [];
    return output;
  }

  /**
   * Takes bytes from the server.
   *
   * @throws {ErrnoError} EPROTO when it does not speak the protocol, and with what it says: ENOENT, EACCES …
   */
  feed(bytes: Uint8Array): void {
    const input = new Uint8Array(this.#input.length + bytes.length);
    input.set(this.#input);
    input.set(bytes, this.#input.length);
    let at = 0;
    while (this.result === null && input.length - at >= this.#wanted) {
      const view = new DataView(input.slice(at, at + this.#wanted).buffer);
      at += this.#wanted;
      const next = this.#steps.next(view);
      if (next.done) this.result = next.value;
      else this.#wanted = next.value;
    }
    this.#input = input.slice(at);
    if (this.result !== null && this.#input.length > 0) {
      refuse("it speaks out of turn");
    }
  }

  *#negotiate(): Steps<NbdExport> {
    const greeting = yield NBD_GREETING.SIZE;
    if (greeting.getBigUint64(NBD_GREETING.MAGIC) !== NBD_MAGIC) {
      refuse("it is something else");
    }
    if (greeting.getBigUint64(NBD_GREETING.STYLE) === NBD_CLISERV_MAGIC) {
      refuse("it speaks the oldstyle negotiation only, take one of after 2011");
    }
    if (greeting.getBigUint64(NBD_GREETING.STYLE) !== NBD_OPTS_MAGIC) {
      refuse("its greeting is unknown");
    }
    const flags = greeting.getUint16(NBD_GREETING.FLAGS);
    const fixed = bit(flags, NBD_FLAG.FIXED_NEWSTYLE);
    const noZeroes = bit(flags, NBD_FLAG.NO_ZEROES);
    const known = (1 << NBD_FLAG.FIXED_NEWSTYLE) | (1 << NBD_FLAG.NO_ZEROES);
    this.#put32(flags & known);
    if (!fixed) return yield* this.#exportByName(noZeroes, false);
    this.#putOption(NBD_OPT.STRUCTURED_REPLY, new Uint8Array(0));
    const reply = yield* this.#readReply(NBD_OPT.STRUCTURED_REPLY);
    const structured = reply.type === NBD_REP.ACK;
    if (!structured && reply.type < NBD_REP.ERR_UNSUP) {
      refuse(`reply ${reply.type}`);
    }
    return (yield* this.#go(structured)) ??
      (yield* this.#exportByName(noZeroes, structured));
  }

  /** @returns null when the server does not know NBD_OPT_GO */
  *#go(structuredReplies: boolean): Steps<NbdExport | null> {
    const name = this.#exportName;
    const data = new Uint8Array(4 + name.length + 4);
    const view = new DataView(data.buffer);
    view.setUint32(0, name.length);
    data.set(name, 4);
    view.setUint16(4 + name.length, 1);
    view.setUint16(4 + name.length + 2, NBD_INFO.BLOCK_SIZE);
    this.#putOption(NBD_OPT.GO, data);
    let found = {
      structuredReplies,
      sizeBytes: -1,
      flags: 0,
      minimumBlockBytes: 1,
      preferredBlockBytes: 0,
      maximumPayloadBytes: NBD_DEFAULT_MAX_PAYLOAD,
    };
    for (let i = 0; i < REPLIES_MAX; i++) {
      const { type, data } = yield* this.#readReply(NBD_OPT.GO);
      switch (type) {
        case NBD_REP.INFO:
          found = { ...found, ...parseInfo(data) };
          break;
        case NBD_REP.ACK:
          if (found.sizeBytes >= 0) return found;
          return refuse("it does not tell the size of the export");
        case NBD_REP.ERR_UNSUP:
          return null;
        default:
          this.#refused(type, data);
      }
    }
    return refuse("it goes on and on");
  }

  *#exportByName(
    noZeroes: boolean,
    structuredReplies: boolean,
  ): Steps<NbdExport> {
    this.#putOption(NBD_OPT.EXPORT_NAME, this.#exportName);
    const reply = yield NBD_EXPORT.SIZE;
    if (!noZeroes) yield NBD_EXPORT.ZEROES;
    return {
      structuredReplies,
      sizeBytes: Number(reply.getBigUint64(NBD_EXPORT.EXPORT_SIZE)),
      flags: exportFlags(reply.getUint16(NBD_EXPORT.FLAGS)),
      minimumBlockBytes: 1,
      preferredBlockBytes: 0,
      maximumPayloadBytes: NBD_DEFAULT_MAX_PAYLOAD,
    };
  }

  *#readReply(option: number): Steps<OptionReply> {
    const head = yield NBD_OPTION_REPLY.SIZE;
    const length = head.getUint32(NBD_OPTION_REPLY.LENGTH);
    if (
      head.getBigUint64(NBD_OPTION_REPLY.MAGIC) !== NBD_REP_MAGIC ||
      head.getUint32(NBD_OPTION_REPLY.OPTION) !== option ||
      length > REPLY_MAX_BYTES
    ) {
      refuse("its reply is malformed");
    }
    const type = head.getUint32(NBD_OPTION_REPLY.TYPE);
    const data = yield length;
    return { type, data };
  }

  #refused(type: number, data: DataView<ArrayBuffer>): never {
    const name = new TextDecoder().decode(this.#exportName);
    const which = name === "" ? "a default export" : `an export "${name}"`;
    // deno-lint-ignore no-control-regex
    const said = new TextDecoder().decode(data).replace(/[\0-\x1f\x7f]/g, " ");
    const words = said === "" ? "" : ` ("${said.slice(0, 200)}")`;
    switch (type) {
      case NBD_REP.ERR_UNKNOWN:
        return refuse(
          `it has no such thing as ${which}${words}, see "nbdinfo --list" for what it has`,
          Errno.ENOENT,
        );
      case NBD_REP.ERR_TLS_REQD:
        return refuse(
          "it wants TLS, which is not spoken here; go through a tunnel (ssh -L, stunnel)",
          Errno.EACCES,
        );
      case NBD_REP.ERR_POLICY:
        return refuse(`it does not permit us ${which}${words}`, Errno.EACCES);
      case NBD_REP.ERR_SHUTDOWN:
        return refuse("it is shutting down", Errno.ECONNREFUSED);
      default:
        return refuse(`it answers ${which} with ${type}${words}`);
    }
  }

  #put32(value: number): void {
    for (let shift = 24; shift >= 0; shift -= 8) {
      this.#output.push((value >>> shift) & 0xff);
    }
  }

  #putOption(option: number, data: Uint8Array): void {
    const head = new DataView(new ArrayBuffer(NBD_OPTION.SIZE));
    head.setBigUint64(NBD_OPTION.MAGIC, NBD_OPTS_MAGIC);
    head.setUint32(NBD_OPTION.OPTION, option);
    head.setUint32(NBD_OPTION.LENGTH, data.length);
    this.#output.push(...new Uint8Array(head.buffer), ...data);
  }
}

/** Without HAS_FLAGS the others mean nothing. */
function exportFlags(flags: number): number {
  return bit(flags, NBD_FLAG_EXPORT.HAS_FLAGS) ? flags : 0;
}

function parseInfo(data: DataView): Partial<NbdExport> {
  const type = data.byteLength >= 2 ? data.getUint16(0) : -1;
  if (type === NBD_INFO.EXPORT && data.byteLength === NBD_INFO_EXPORT.SIZE) {
    return {
      sizeBytes: Number(data.getBigUint64(NBD_INFO_EXPORT.EXPORT_SIZE)),
      flags: exportFlags(data.getUint16(NBD_INFO_EXPORT.FLAGS)),
    };
  }
  if (
    type === NBD_INFO.BLOCK_SIZE && data.byteLength === NBD_INFO_BLOCK_SIZE.SIZE
  ) return parseBlockSizes(data);
  if (type === NBD_INFO.EXPORT || type === NBD_INFO.BLOCK_SIZE || type < 0) {
    refuse("what it tells of the export is malformed");
  }
  return {};
}

function parseBlockSizes(data: DataView): Partial<NbdExport> {
  const minimum = data.getUint32(NBD_INFO_BLOCK_SIZE.MINIMUM);
  const preferred = data.getUint32(NBD_INFO_BLOCK_SIZE.PREFERRED);
  const maximum = data.getUint32(NBD_INFO_BLOCK_SIZE.MAXIMUM);
  const power = (value: number) => value > 0 && (value & (value - 1)) === 0;
  if (
    !power(minimum) || minimum > 65536 || !power(preferred) ||
    preferred < minimum || maximum < minimum
  ) {
    refuse(
      `blocks of ${minimum}, ${preferred} and ${maximum} bytes make no sense`,
    );
  }
  return {
    minimumBlockBytes: minimum,
    preferredBlockBytes: preferred,
    maximumPayloadBytes: maximum,
  };
}

/** Largest physical block that a guest expects. */
const PHYSICAL_MAX_BYTES = 4096;

/**
 * The properties of storage on an export.
 *
 * @throws {ErrnoError} When a controller cannot use it, with the remedy
 */
export function nbdInfo(
  found: NbdExport,
  options: CommonBlockOptions,
  log: Log,
): BlockInfo {
  const { logicalBlockBytes } = options;
  const { minimumBlockBytes, preferredBlockBytes, flags } = found;
  if (minimumBlockBytes > logicalBlockBytes) {
    const remedy = minimumBlockBytes > PHYSICAL_MAX_BYTES
      ? `${PHYSICAL_MAX_BYTES} are the most`
      : `give block-size=${minimumBlockBytes}`;
    refuse(
      `its blocks have ${minimumBlockBytes} bytes, ${remedy}`,
      Errno.EINVAL,
    );
  }
  const excess = found.sizeBytes % logicalBlockBytes;
  const sizeBytes = found.sizeBytes - excess;
  if (!Number.isSafeInteger(found.sizeBytes)) {
    refuse("its export has 2^53 bytes or more", Errno.EFBIG);
  }
  if (sizeBytes === 0) {
    refuse(
      `its export has ${found.sizeBytes} bytes, that is no block`,
      Errno.EINVAL,
    );
  }
  if (excess > 0) {
    log.warn(
      `The last ${excess} bytes of the NBD export are no whole block and cannot be used`,
    );
  }
  const readonly = options.readonly || bit(flags, NBD_FLAG_EXPORT.READ_ONLY);
  const physical = Math.min(
    Math.max(preferredBlockBytes, logicalBlockBytes),
    PHYSICAL_MAX_BYTES,
  );
  const payload = Math.min(found.maximumPayloadBytes, NBD_DEFAULT_MAX_PAYLOAD);
  return {
    sizeBytes,
    logicalBlockBytes,
    physicalBlockBytes: options.physicalBlockBytes ?? physical,
    optimalBytes: preferredBlockBytes > physical ? preferredBlockBytes : 0,
    readonly,
    volatileCache: bit(flags, NBD_FLAG_EXPORT.SEND_FLUSH),
    discardGranularityBytes: bit(flags, NBD_FLAG_EXPORT.SEND_TRIM) && !readonly
      ? physical
      : 0,
    maxTransferBytes: payload - payload % logicalBlockBytes,
  };
}
