/**
 * A vfio-user client that packs bytes by hand and knows nothing of `src/vfio_user`, so that a mistake there
 * cannot hide in here.
 */

import type { EventLoop } from "../../../src/loop/event_loop.ts";
import {
  closeFd,
  connectUnix,
  type Fd,
  MessageHeader,
  NativeBuffer,
} from "../../../src/os/mod.ts";

const BUFFER_BYTES = 2 << 20;

/** A received message. */
export interface Reply {
  readonly id: number;
  readonly command: number;
  readonly flags: number;
  readonly errno: number;
  readonly payload: DataView;
  readonly fds: readonly number[];
}

/** Little-endian words of 4 bytes; a bigint takes 8. */
export function words(...values: readonly (number | bigint)[]): Uint8Array {
  const bytes: number[] = [];
  for (const value of values) {
    const count = typeof value === "bigint" ? 8 : 4;
    for (let i = 0; i < count; i++) {
      bytes.push(Number((BigInt(value) >> BigInt(8 * i)) & 0xffn));
    }
  }
  return new Uint8Array(bytes);
}

/** All bytes in one array. */
export function concat(...parts: readonly Uint8Array[]): Uint8Array {
  const whole = new Uint8Array(parts.reduce((sum, it) => sum + it.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

/** A message: header and payload. */
export function message(
  command: number,
  payload: Uint8Array = new Uint8Array(0),
  options: { id?: number; flags?: number; size?: number } = {},
): Uint8Array {
  const header = new Uint8Array(16);
  const view = new DataView(header.buffer);
  view.setUint16(0, options.id ?? 0x1234, true);
  view.setUint16(2, command, true);
  view.setUint32(4, options.size ?? 16 + payload.length, true);
  view.setUint32(8, options.flags ?? 0, true);
  return concat(header, payload);
}

/** VERSION with JSON text, or without any. */
export function versionMessage(
  json: string | null = '{"capabilities":{"max_msg_fds":16}}',
  major = 0,
  minor = 1,
): Uint8Array {
  const data = json === null
    ? new Uint8Array(0)
    : new TextEncoder().encode(`${json}\0`);
  return message(1, concat(new Uint8Array([major, 0, minor, 0]), data));
}

export class RawClient {
  readonly #fd: Fd;
  readonly #out = new NativeBuffer(BUFFER_BYTES);
  readonly #in = new NativeBuffer(BUFFER_BYTES);
  readonly #header = new MessageHeader();
  readonly #fds: number[] = [];
  /** Size of the message under way, 0 for none. */
  #wanted = 0;
  #received = 0;
  /** True if the server has closed the connection. */
  ended = false;

  constructor(fd: Fd) {
    this.#fd = fd;
  }

  static connect(path: string): RawClient {
    return new RawClient(connectUnix(path));
  }

  /** Sends once. @returns Bytes sent, or −errno */
  send(bytes: Uint8Array, fds: readonly number[] = []): number {
    this.#out.bytes.set(bytes);
    return this.#header.send(this.#fd.number, this.#out, 0, bytes.length, fds);
  }

  /**
   * Receives a message as QEMU does: exactly a header, which must come whole and with the descriptors, then the rest.
   *
   * @returns The next whole message, null when there is none yet
   */
  receive(): Reply | null {
    if (this.#wanted === 0) {
      const n = this.#receiveTo(0, 16);
      if (n <= 0) return null;
      if (n < 16) throw new Error(`short read of a header: ${n} bytes`);
      for (let i = 0; i < this.#header.fdCount; i++) {
        this.#fds.push(this.#header.fds[i]!);
      }
      this.#wanted = this.#in.view.getUint32(4, true);
      this.#received = 16;
    }
    while (this.#received < this.#wanted) {
      const left = this.#wanted - this.#received;
      const n = this.#receiveTo(this.#received, left);
      if (n <= 0) return null;
      if (this.#header.fdCount > 0) throw new Error("descriptors came late");
      this.#received += n;
    }
    return this.#take();
  }

  #receiveTo(at: number, lengthBytes: number): number {
    const n = this.#header.receive(
      this.#fd.number,
      this.#in,
      at,
      lengthBytes,
    );
    if (n === 0) this.ended = true;
    return n;
  }

  #take(): Reply {
    const view = this.#in.view;
    const payload = this.#in.bytes.slice(16, this.#wanted);
    this.#wanted = 0;
    return {
      id: view.getUint16(0, true),
      command: view.getUint16(2, true),
      flags: view.getUint32(8, true),
      errno: view.getUint32(12, true),
      payload: new DataView(payload.buffer),
      fds: this.#fds.splice(0),
    };
  }

  /** Sends a command and turns the loop until its reply is there. Descriptors are closed unless asked for. */
  request(
    loop: EventLoop,
    bytes: Uint8Array,
    fds: readonly number[] = [],
  ): Reply {
    const sent = this.send(bytes, fds);
    if (sent !== bytes.length) throw new Error(`sent ${sent} bytes`);
    return this.await(loop);
  }

  /** Turns the loop until a message is there. */
  await(loop: EventLoop): Reply {
    for (let i = 0; i < 100; i++) {
      loop.turn(0);
      const reply = this.receive();
      if (reply !== null) return reply;
    }
    throw new Error("no reply in 100 turns");
  }

  close(): void {
    for (const fd of this.#fds.splice(0)) closeFd(fd);
    this.#fd.close();
    this.#out.close();
    this.#in.close();
    this.#header.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
