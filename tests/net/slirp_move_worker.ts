/**
 * The body of a Worker that has a card on libslirp for a while.
 *
 * @module
 */

/// <reference lib="deno.worker" />

import { parseNetOptions } from "../../src/net/options.ts";
import type { UserNetOptions } from "../../src/net/option_table.ts";
import { openNetBackend } from "../../src/net/open.ts";
import { SlirpBackend } from "../../src/net/slirp.ts";
import { openLibslirp } from "../../src/net/slirp_symbols.ts";
import { PATIENCE_MS } from "../until.ts";
import { Card, Host } from "./card.ts";
import { arpRequest } from "./frames.ts";
import { TcpPeer, type TcpPeerState } from "./tcp_peer.ts";

const GATEWAY_MAC = Uint8Array.of(0x52, 0x55, 10, 0, 2, 2);
const GUEST = "10.0.2.15";
const PORT = 80;
/** ICMPv6 type of a router advertisement, which libslirp sends by a timer. */
const ROUTER_ADVERTISEMENT = 134;
const TURN_MS = 20;

/** What is given from one thread to the other. */
export interface GivenCard {
  readonly net: { timers: { timers: { expireMs: number | null }[] } };
  readonly port: number;
  readonly peer: TcpPeerState;
}

/** What can be asked. */
export type MoveRequest =
  /** Loads the library once. */
  | { readonly ask: "prepare"; readonly library: string }
  /** Opens a network that forwards a port of the host to the guest. */
  | { readonly ask: "open"; readonly library: string; readonly port: number }
  /** Takes a card over. */
  | {
    readonly ask: "take" | "take in vain";
    readonly library: string;
    readonly given: unknown;
  }
  /** Echoes until so many bytes have come to the guest, or until it has the acknowledgement of all its own. */
  | { readonly ask: "run"; readonly bytes: number; readonly flush?: boolean }
  /** Gives the card away. */
  | { readonly ask: "give" }
  /** Closes what is left of it. */
  | { readonly ask: "close" };

/** What is answered. */
export interface MoveReply {
  readonly given?: unknown;
  readonly error?: string;
  readonly established?: boolean;
  readonly receivedBytes?: number;
  /** How many router advertisements came on this thread. */
  readonly advertisements?: number;
}

/** What lives on this thread while it has the card. */
class Home {
  readonly host = new Host();
  readonly card: Card;
  readonly port: number;
  readonly peer: TcpPeer;
  advertisements = 0;

  constructor(port: number, library: string, given: GivenCard | null) {
    this.port = port;
    const options = parseNetOptions({
      hostfwd: `tcp:127.0.0.1:${port}-:${PORT}`,
    }) as UserNetOptions;
    const { context } = this.host;
    try {
      const backend = given === null
        ? openSlirp(options, this.host, library)
        : openNetBackend(options, context, given.net);
      this.card = new Card(this.host, backend);
    } catch (error) {
      this.host[Symbol.dispose]();
      throw error;
    }
    this.peer = new TcpPeer(
      this.card,
      GATEWAY_MAC,
      GUEST,
      PORT,
      given?.peer ?? null,
    );
    this.card.onFrame = (frame) => {
      if (frame[12] === 0x86 && frame[54] === ROUTER_ADVERTISEMENT) {
        this.advertisements++;
      }
      return this.peer.onFrame(frame);
    };
    if (given === null) this.card.send(arpRequest(GUEST, "10.0.2.2"));
  }

  run(bytes: number, flush: boolean): MoveReply {
    const { peer } = this;
    const deadline = performance.now() + PATIENCE_MS;
    for (;;) {
      this.#echo();
      const { established, receivedBytes } = peer;
      const flushed = peer.chunks.length === 0 && peer.inFlight === 0;
      if (receivedBytes >= bytes && (flushed || !flush)) {
        const { advertisements } = this;
        return { established, receivedBytes, advertisements };
      }
      if (performance.now() > deadline) {
        throw new Error(`${receivedBytes} of ${bytes} bytes have come`);
      }
      this.host.loop.turn(TURN_MS);
    }
  }

  give(): GivenCard {
    return {
      net: this.card.backend.handOver!() as GivenCard["net"],
      port: this.port,
      peer: this.peer.state(),
    };
  }

  close(): void {
    this.card.backend.close();
    this.host[Symbol.dispose]();
  }

  /** Sends back what came; below libslirp's receive buffer, which takes nothing out of order. */
  #echo(): void {
    const { peer } = this;
    while (peer.chunks.length > 0 && peer.inFlight < 10_000) {
      peer.write(peer.chunks.shift()!);
    }
  }
}

function openSlirp(options: UserNetOptions, host: Host, name: string) {
  const library = openLibslirp(name);
  if ("reason" in library) throw new Error(library.reason);
  return new SlirpBackend(options, host.context, library);
}

let home: Home | null = null;
let away: Home | null = null;

function answer(request: MoveRequest): MoveReply {
  switch (request.ask) {
    case "prepare": {
      const library = openLibslirp(request.library);
      if (!("reason" in library)) library.close();
      // libffi opens the executable for its trampolines when the first callback is made, and keeps it open.
      new Deno.UnsafeCallback({ parameters: [], result: "void" }, () => {})
        .close();
      return {};
    }
    case "open":
      home = new Home(request.port, request.library, null);
      return {};
    case "take":
      home = new Home(
        (request.given as GivenCard).port,
        request.library,
        request.given as GivenCard,
      );
      return {};
    case "take in vain": {
      const given = request.given as GivenCard & { net: object };
      // A frame longer than any is noticed after the timers and callbacks were made.
      const net = { ...given.net, frames: [new Uint8Array(70_000)] };
      try {
        new Home(given.port, request.library, { ...given, net });
        return {};
      } catch (error) {
        return { error: String(error) };
      }
    }
    case "run":
      return home!.run(request.bytes, request.flush ?? false);
    case "give":
      away = home;
      home = null;
      return { given: away!.give() };
    case "close":
      (away ?? home)?.close();
      away = null;
      return {};
    default:
      throw new Error(`Cannot do ${request satisfies never}`);
  }
}

self.onmessage = ({ data }: MessageEvent<MoveRequest>) => {
  self.postMessage(answer(data));
};
