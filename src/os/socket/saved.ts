/**
 * A saved state and its descriptors on a UNIX stream socket, from one process to another.
 *
 * ```text
 *   message = length in bytes (u32, little-endian), then so many: plain data { names: text[], state: bytes }
 * ```
 * The descriptors go along (SCM_RIGHTS), in the order of their names, with any of the bytes.
 *
 * @module
 */

import { Errno, ErrnoError } from "../../core/errno.ts";
import { decodePlainData, encodePlainData } from "../../core/plain_data.ts";
import { StateReader } from "../../core/state_reader.ts";
import { SyscallError } from "../errors.ts";
import { Fd } from "../fd.ts";
import { NativeBuffer } from "../mapping.ts";
import { ResourceBag, type Saved } from "../resource_bag.ts";
import { Poll, pollFd } from "../wait/poll.ts";
import { MessageHeader, SCM_MAX_FD } from "./socket.ts";

/** The longest message; states of devices with thousands of mappings have a tenth of it. */
const MESSAGE_MAX_BYTES = 64 * 1024 * 1024;
/** The most descriptors that are taken. */
const FDS_MAX = 65_536;
const LENGTH_BYTES = 4;
const BUFFER_BYTES = 64 * 1024;

/** Calls that wait for a socket, until a time that all of them have together. */
class Transfer implements Disposable {
  readonly buffer = new NativeBuffer(BUFFER_BYTES);
  readonly header = new MessageHeader();
  readonly #fd: number;
  readonly #until: number;

  constructor(fd: number, timeoutMs: number) {
    this.#fd = fd;
    this.#until = performance.now() + timeoutMs;
  }

  /** @returns Bytes sent, of the first of the buffer */
  send(lengthBytes: number, fds: readonly number[]): number {
    return this.#wait(
      Poll.OUT,
      "sendmsg",
      () => this.header.send(this.#fd, this.buffer, 0, lengthBytes, fds),
    );
  }

  /** @returns Bytes received into the buffer, 0 at the end of the stream */
  receive(lengthBytes: number): number {
    return this.#wait(
      Poll.IN,
      "recvmsg",
      () => this.header.receive(this.#fd, this.buffer, 0, lengthBytes),
    );
  }

  #wait(events: number, syscall: string, attempt: () => number): number {
    for (;;) {
      const result = attempt();
      if (result >= 0) return result;
      if (result !== -Errno.EAGAIN) throw new SyscallError(syscall, -result);
      const leftMs = this.#until - performance.now();
      if (leftMs <= 0 || pollFd(this.#fd, events, leftMs) === 0) {
        throw new SyscallError(syscall, Errno.ETIMEDOUT);
      }
    }
  }

  [Symbol.dispose](): void {
    this.buffer.close();
    this.header.close();
  }
}

/**
 * Sends a state with its descriptors, blocking. Nothing is given away: the bag is to be kept until whoever received it
 * goes on with it.
 *
 * @param fd A connected UNIX stream socket
 * @param timeoutMs For all of it
 * @throws {SyscallError} EPIPE, ETIMEDOUT and the like; the stream is of no use then
 */
export function sendSaved(
  fd: number,
  { state, bag }: Saved<Uint8Array>,
  timeoutMs: number,
): void {
  const entries = bag.entries();
  const names = entries.map(([name]) => name);
  const payload = encodePlainData({ names, state });
  const bytes = new Uint8Array(LENGTH_BYTES + payload.length);
  new DataView(bytes.buffer).setUint32(0, payload.length, true);
  bytes.set(payload, LENGTH_BYTES);
  using transfer = new Transfer(fd, timeoutMs);
  const left = entries.map(([, fd]) => fd);
  for (let at = 0; at < bytes.length;) {
    const fds = left.splice(0, SCM_MAX_FD);
    // Every message with descriptors takes a byte at least, and names have more than that.
    const end = left.length > 0 ? at + 1 : bytes.length;
    const part = bytes.subarray(at, Math.min(end, at + BUFFER_BYTES));
    transfer.buffer.bytes.set(part);
    at += transfer.send(part.length, fds);
  }
}

/**
 * Receives what {@linkcode sendSaved} sent, blocking. The bag is the caller's.
 *
 * @param fd A connected UNIX stream socket
 * @param timeoutMs For all of it
 * @throws {ErrnoError} EINVAL when it is something else, EMFILE when this process cannot have all descriptors, ETIMEDOUT,
 * ECONNRESET when the stream ends before; no descriptor is left open then, and the stream is of no use
 */
export function receiveSaved(
  fd: number,
  timeoutMs: number,
): Saved<Uint8Array<ArrayBuffer>> {
  using transfer = new Transfer(fd, timeoutMs);
  const fds: Fd[] = [];
  try {
    const length = readBytes(transfer, LENGTH_BYTES, fds);
    const lengthBytes = new DataView(length.buffer).getUint32(0, true);
    if (lengthBytes > MESSAGE_MAX_BYTES) {
      throw refused(`it has ${lengthBytes} bytes`);
    }
    const reader = new StateReader(
      decode(readBytes(transfer, lengthBytes, fds)),
      "what was received",
    );
    const names = reader.texts("names");
    if (names.length !== fds.length || new Set(names).size !== names.length) {
      throw reader.refused(
        `it has ${names.length} names for ${fds.length} descriptors`,
      );
    }
    const state = reader.bytes("state");
    const numbers = names.map((name, i) => [name, fds[i]!.release()]);
    return { state, bag: ResourceBag.of(Object.fromEntries(numbers)) };
  } catch (error) {
    for (const each of fds) each.close();
    throw error;
  }
}

function refused(reason: string): ErrnoError {
  return new ErrnoError(Errno.EINVAL, `Cannot take a state over: ${reason}`);
}

function decode(bytes: Uint8Array): unknown {
  try {
    return decodePlainData(bytes);
  } catch (error) {
    throw refused((error as Error).message);
  }
}

/** @returns So many bytes; descriptors that come with them are added to the list */
function readBytes(
  transfer: Transfer,
  lengthBytes: number,
  fds: Fd[],
): Uint8Array<ArrayBuffer> {
  const { buffer, header } = transfer;
  // Grows as bytes come: a length costs who sends it nothing.
  const parts: Uint8Array[] = [];
  for (let at = 0; at < lengthBytes;) {
    const count = transfer.receive(Math.min(lengthBytes - at, BUFFER_BYTES));
    for (let i = 0; i < header.fdCount; i++) fds.push(new Fd(header.fds[i]!));
    if (header.fdsTruncated) {
      throw new ErrnoError(
        Errno.EMFILE,
        "Cannot take a state over: there is no room for its descriptors",
      );
    }
    if (fds.length > FDS_MAX) throw refused(`it has ${fds.length} descriptors`);
    if (count === 0) {
      throw new ErrnoError(
        Errno.ECONNRESET,
        "Cannot take a state over: it ends too early",
      );
    }
    parts.push(buffer.bytes.slice(0, count));
    at += count;
  }
  const bytes = new Uint8Array(lengthBytes);
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}
