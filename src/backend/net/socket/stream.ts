/**
 * A card plugged into a stream socket, as QEMU's `-netdev stream`: to another card's, a switch or a user-mode network.
 *
 * @module
 */

import type { Fd } from "../../../os/mod.ts";
import type { ScatterGather } from "../../../memory/scatter_gather.ts";
import type { NetBackend, NetContext, NetPeer } from "../contract.ts";
import type { OpenNet } from "../driver.ts";
import { type Given, takeGiven } from "../given.ts";
import type { StreamNetOptions } from "./drivers.ts";
import { formatEndpoint } from "./endpoint.ts";
import {
  type Connector,
  createConnector,
  type GivenConnector,
} from "./stream_connector.ts";
import { type GivenPort, StreamPort } from "./stream_port.ts";

const KIND = "stream";

interface GivenStream extends Given {
  readonly port: GivenPort;
  readonly connector: GivenConnector;
}

/** Connects, or listens. */
export const openStream: OpenNet<StreamNetOptions> = (
  options,
  context,
  inherited,
) => new StreamBackend(options, context, inherited);

/** A frame stream over a UNIX or TCP socket. */
class StreamBackend implements NetBackend {
  readonly description: string;
  readonly hasVnetHeader = false;
  readonly #port: StreamPort;
  readonly #connector: Connector;

  /**
   * @param inherited What a predecessor gave, if there was one
   * @throws {ErrnoError} With the remedy: when a server's address cannot be had, or a client that is not to try again
   * is refused
   */
  constructor(
    options: StreamNetOptions,
    context: NetContext,
    inherited?: unknown,
  ) {
    const given = inherited === undefined
      ? null
      : takeGiven<GivenStream>(inherited, KIND);
    const { loop, log } = context;
    const where = formatEndpoint(options.endpoint);
    this.description = options.server
      ? `stream, server at ${where}`
      : `stream to ${where}`;
    this.#port = new StreamPort(loop, (reason) => {
      const next = options.server
        ? "waiting for another"
        : options.reconnectMs > 0
        ? "trying again"
        : "there will be no other";
      log.warn(
        `The connection at ${where} has ended: ${reason}; ${next}`,
      );
      this.#connector.begin();
    });
    const onConnected = (fd: Fd) => {
      this.#port.attach(fd);
      log.info(`Connected at ${where}`);
    };
    this.#connector = createConnector(
      { options, loop, log, onConnected },
      given?.connector ?? null,
    );
    try {
      if (given === null) this.#connector.begin();
      else this.#port.inherit(given.port);
    } catch (error) {
      // What was given stays the giver's.
      if (given !== null) this.#connector.handOver();
      this.close();
      throw error;
    }
  }

  get linkUp(): boolean {
    return this.#port.connected;
  }

  start(peer: NetPeer): void {
    this.#port.start(peer);
  }

  stop(): void {
    this.#port.stop();
  }

  send(frame: ScatterGather, _pair?: number, more?: boolean): number {
    return this.#port.send(frame, more);
  }

  flush(): number {
    return this.#port.flush();
  }

  receive(into: ScatterGather): number {
    return this.#port.receive(into);
  }

  setReceiving(on: boolean): void {
    this.#port.setReceiving(on);
  }

  counters(): Readonly<Record<string, number>> {
    return this.#port.counters();
  }

  handOver(): unknown {
    return {
      version: 1,
      kind: KIND,
      port: this.#port.handOver(),
      connector: this.#connector.handOver(),
    } satisfies GivenStream;
  }

  close(): void {
    this.#connector.close();
    this.#port.close();
  }
}
