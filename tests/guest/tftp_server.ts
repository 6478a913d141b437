/**
 * Files over UDP (RFC 1350, RFC 2348), one at a time, for guests whose only UDP program is a TFTP client.
 *
 * @module
 */

import { createSocket } from "node:dgram";

const OP = { RRQ: 1, WRQ: 2, DATA: 3, ACK: 4, OACK: 6 } as const;
const HEADER_BYTES = 4;

interface Peer {
  readonly address: string;
  readonly port: number;
}

/** Gives one content under any name, and keeps what it is given. */
export class TftpServer implements Disposable {
  readonly #socket = createSocket("udp4");
  readonly #offered: Uint8Array<ArrayBuffer>;
  #blockBytes = 512;
  #parts: Uint8Array<ArrayBuffer>[] = [];

  private constructor(offered: Uint8Array<ArrayBuffer>) {
    this.#offered = offered;
    this.#socket.on(
      "message",
      (message: Uint8Array, peer: Peer) => this.#handle(message, peer),
    );
  }

  /** @param offered Content of every file that is asked for */
  static listen(
    hostname: string,
    offered: Uint8Array<ArrayBuffer>,
  ): Promise<TftpServer> {
    const { promise, resolve } = Promise.withResolvers<TftpServer>();
    const server = new TftpServer(offered);
    server.#socket.bind(0, hostname, () => resolve(server));
    return promise;
  }

  /** The port it listens on. */
  get port(): number {
    return this.#socket.address().port;
  }

  /** File that was put last. */
  get received(): Uint8Array<ArrayBuffer> {
    const length = this.#parts.reduce((sum, part) => sum + part.length, 0);
    const bytes = new Uint8Array(length);
    let at = 0;
    for (const part of this.#parts) {
      bytes.set(part, at);
      at += part.length;
    }
    return bytes;
  }

  #handle(message: Uint8Array, peer: Peer): void {
    const view = new DataView(message.buffer, message.byteOffset);
    const block = view.getUint16(2);
    switch (view.getUint16(0)) {
      case OP.WRQ:
        this.#parts = [];
        return this.#agree(message, peer);
      case OP.RRQ:
        return this.#agree(message, peer);
      case OP.ACK:
        return this.#sendBlock(block + 1, peer);
      case OP.DATA:
        this.#parts[block - 1] = message.slice(HEADER_BYTES);
        return this.#send(OP.ACK, block, new Uint8Array(0), peer);
    }
  }

  /** Answers a request: whatever block size it wants. */
  #agree(request: Uint8Array, peer: Peer): void {
    const words = new TextDecoder().decode(request.subarray(2)).split("\0");
    this.#blockBytes = Number(words[words.indexOf("blksize") + 1]);
    const text = `blksize\0${this.#blockBytes}\0`;
    const reply = new Uint8Array([
      0,
      OP.OACK,
      ...new TextEncoder().encode(text),
    ]);
    this.#socket.send(reply, peer.port, peer.address);
  }

  #sendBlock(block: number, peer: Peer): void {
    const from = (block - 1) * this.#blockBytes;
    if (from > this.#offered.length) return; // the last, short block was acknowledged
    const data = this.#offered.slice(from, from + this.#blockBytes);
    this.#send(OP.DATA, block, data, peer);
  }

  #send(op: number, block: number, data: Uint8Array, peer: Peer): void {
    const packet = new Uint8Array(HEADER_BYTES + data.length);
    new DataView(packet.buffer).setUint16(0, op);
    new DataView(packet.buffer).setUint16(2, block);
    packet.set(data, HEADER_BYTES);
    this.#socket.send(packet, peer.port, peer.address);
  }

  [Symbol.dispose](): void {
    this.#socket.close();
  }
}
