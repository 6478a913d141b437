/**
 * The far end of a client's socket, by hand: it looks at what the client sent, byte by byte, and says what it is told.
 * Replies may be written before they are asked for: they wait in the socket, so no second thread is needed.
 */

import { assert, assertEquals } from "@std/assert";
import {
  createMemfd,
  Fd,
  MessageHeader,
  NativeBuffer,
  socketPair,
} from "../../../src/os/mod.ts";
import {
  type ClientOptions,
  VfioUserClient,
} from "../../../src/transport/vfio_user/client/mod.ts";
import { openFds } from "../../resources.ts";

/** A message that the client sent. */
export interface Seen {
  id: number;
  command: number;
  flags: number;
  errno: number;
  payload: Uint8Array;
  fds: Fd[];
}

/** Little-endian 32-bit words as bytes. */
export function words(...values: number[]): Uint8Array {
  const bytes = new Uint8Array(values.length * 4);
  const view = new DataView(bytes.buffer);
  values.forEach((value, i) => view.setUint32(i * 4, value, true));
  return bytes;
}

/** Bytes one after the other. */
export function join(...parts: Uint8Array[]): Uint8Array {
  return Uint8Array.from(parts.flatMap((part) => [...part]));
}

export class ScriptedPeer implements Disposable {
  readonly #fd: Fd;
  readonly #header = new MessageHeader();
  readonly #buffer = new NativeBuffer(1 << 20);

  constructor(fd: Fd) {
    this.#fd = fd;
  }

  send(bytes: Uint8Array, fds: number[] = []): void {
    this.#buffer.bytes.set(bytes);
    const n = this.#header.send(
      this.#fd.number,
      this.#buffer,
      0,
      bytes.length,
      fds,
    );
    assertEquals(n, bytes.length);
  }

  message(
    id: number,
    command: number,
    flags: number,
    errno: number,
    payload: Uint8Array,
  ): Uint8Array {
    const head = words(0, 16 + payload.length, flags, errno);
    const view = new DataView(head.buffer);
    view.setUint16(0, id, true);
    view.setUint16(2, command, true);
    return join(head, payload);
  }

  reply(
    id: number,
    command: number,
    payload: Uint8Array = new Uint8Array(0),
    fds: number[] = [],
  ): void {
    this.send(this.message(id, command, 1, 0, payload), fds);
  }

  refuse(id: number, command: number, errno: number): void {
    this.send(this.message(id, command, 0x21, errno, new Uint8Array(0)));
  }

  ask(id: number, command: number, payload: Uint8Array, flags = 0): void {
    this.send(this.message(id, command, flags, 0, payload));
  }

  /** Everything the client sent since the last look; descriptors belong to the message they came with. */
  seen(): Seen[] {
    const messages: Seen[] = [];
    for (;;) {
      const fds: Fd[] = [];
      if (!this.#receive(0, 16, fds)) return messages;
      const view = this.#buffer.view;
      const size = view.getUint32(4, true);
      if (size > 16) assert(this.#receive(16, size, fds));
      messages.push({
        id: view.getUint16(0, true),
        command: view.getUint16(2, true),
        flags: view.getUint32(8, true),
        errno: view.getUint32(12, true),
        payload: this.#buffer.bytes.slice(16, size),
        fds,
      });
    }
  }

  #receive(from: number, to: number, fds: Fd[]): boolean {
    for (let at = from; at < to;) {
      const n = this.#header.receive(
        this.#fd.number,
        this.#buffer,
        at,
        to - at,
      );
      if (n <= 0) return false;
      at += n;
      for (let i = 0; i < this.#header.fdCount; i++) {
        fds.push(new Fd(this.#header.fds[i]!));
      }
    }
    return true;
  }

  /** Hangs up. */
  close(): void {
    this.#fd.close();
    this.#header.close();
    this.#buffer.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** Runs a test on a client and its peer, and sees that no descriptor is left behind. */
export function withPeer(
  test: (client: VfioUserClient, peer: ScriptedPeer) => void,
  options: ClientOptions = {},
): void {
  const before = openFds();
  {
    const [ours, theirs] = socketPair();
    using peer = new ScriptedPeer(theirs);
    using client = new VfioUserClient(ours, { timeoutMs: 2000, ...options });
    test(client, peer);
  }
  assertEquals(openFds(), before);
}

/** A memfd with a byte in it. */
export function memfd(lengthBytes: number): Fd {
  return createMemfd("test", lengthBytes);
}
