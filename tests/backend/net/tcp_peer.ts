/**
 * A TCP end in the guest: enough of RFC 9293 for one connection over a wire that keeps the order.
 *
 * @module
 */

import type { Card } from "./card.ts";
import {
  ACK,
  ethernet,
  FIN,
  parseTcp,
  PSH,
  RST,
  SYN,
  tcp,
  type TcpFields,
} from "./frames.ts";

const MSS = 1460;

/** One connection between the guest and an address of the network. */
export class TcpPeer {
  #card: Card;
  readonly #gatewayMac: Uint8Array;
  readonly #address: string;
  readonly #port: number;
  #remote = "";
  #remotePort = 0;
  #next = 1000;
  #expected = 0;
  /** Chunks in the order in which they came. */
  readonly chunks: Uint8Array[] = [];
  receivedBytes = 0;
  established = false;
  finReceived = false;
  reset = false;
  /** The oldest byte of ours that is not acknowledged. */
  acknowledged = 1000;

  constructor(
    card: Card,
    gatewayMac: Uint8Array,
    address: string,
    port: number,
  ) {
    this.#card = card;
    this.#gatewayMac = gatewayMac;
    this.#address = address;
    this.#port = port;
  }

  /** Its frames go by another card from here on. */
  moveTo(card: Card): void {
    this.#card = card;
  }

  /** Opens a connection from the guest. */
  connect(remote: string, remotePort: number): void {
    this.#remote = remote;
    this.#remotePort = remotePort;
    this.#send(SYN);
    this.#next++;
  }

  /** Number of bytes of ours are under way. */
  get inFlight(): number {
    return this.#next - this.acknowledged;
  }

  write(data: Uint8Array): void {
    for (let at = 0; at < data.length; at += MSS) {
      const part = data.subarray(at, at + MSS);
      this.#send(ACK | PSH, part, 2);
      this.#next += part.length;
    }
  }

  finish(): void {
    this.#send(ACK | FIN);
    this.#next++;
  }

  /** Handles a frame; true when it was this connection's. */
  onFrame(frame: Uint8Array): boolean {
    const segment = parseTcp(frame);
    if (segment === null || segment.dstPort !== this.#port) return false;
    if (segment.flags & RST) this.reset = true;
    else if (segment.flags & SYN) this.#onSyn(segment, frame);
    else this.#onData(segment);
    return true;
  }

  #onSyn(segment: TcpFields, frame: Uint8Array): void {
    this.#expected = segment.seq + 1;
    if (segment.flags & ACK) {
      this.acknowledged = segment.ack;
      this.established = true;
      this.#send(ACK);
      return;
    }
    this.#remote = frame.slice(26, 30).join(".");
    this.#remotePort = segment.srcPort;
    // A SYN may come again; its answer is the same.
    this.#next = this.acknowledged;
    this.#send(SYN | ACK);
    this.#next++;
  }

  #onData(segment: TcpFields): void {
    this.acknowledged = Math.max(this.acknowledged, segment.ack);
    this.established ||= this.acknowledged > 1000;
    const data = segment.data!;
    if (data.length === 0 && !(segment.flags & FIN)) return;
    if (segment.seq === this.#expected) {
      if (data.length > 0) {
        this.chunks.push(data);
        this.receivedBytes += data.length;
      }
      this.#expected += data.length;
      if (segment.flags & FIN) {
        this.#expected++;
        this.finReceived = true;
      }
    }
    this.#send(ACK);
  }

  #send(flags: number, data?: Uint8Array, parts = 1): void {
    const packet = tcp(this.#address, this.#remote, {
      srcPort: this.#port,
      dstPort: this.#remotePort,
      seq: this.#next,
      ack: this.#expected,
      flags,
      ...(data === undefined ? {} : { data }),
    });
    this.#card.send(ethernet(this.#gatewayMac, 0x0800, packet), parts);
  }
}
