/**
 * A card plugged into a stream socket, as QEMU's `-netdev stream`: to another card's, a switch or a user-mode network.
 *
 * @module
 */

import type { Fd, ResourceBag, Saved } from "../../../os/mod.ts";
import type { ScatterGather } from "../../../memory/scatter_gather.ts";
import type { NetBackend, NetContext, NetPeer } from "../contract.ts";
import type { OpenNet } from "../driver.ts";
import { Ownership } from "../ownership.ts";
import { type NetBackendState, takeState } from "../state.ts";
import type { StreamNetOptions } from "./drivers.ts";
import { formatEndpoint } from "./endpoint.ts";
import {
  type Connector,
  type ConnectorState,
  createConnector,
} from "./stream_connector.ts";
import { type PortState, StreamPort } from "./stream_port.ts";

const KIND = "stream";

interface StreamState extends NetBackendState {
  readonly port: PortState;
  readonly connector: ConnectorState;
}

/** Connects, or listens. */
export const openStream: OpenNet<StreamNetOptions> = (
  options,
  context,
  saved,
) => new StreamBackend(options, context, saved);

/** A frame stream over a UNIX or TCP socket. */
class StreamBackend implements NetBackend {
  readonly description: string;
  readonly hasVnetHeader = false;
  readonly #port: StreamPort;
  readonly #connector: Connector;
  readonly #ownership: Ownership;

  /**
   * @param saved What a predecessor was and had open, if there was one
   * @throws {ErrnoError} With the remedy: when a server's address cannot be had, or a client that is not to try again
   * is refused
   */
  constructor(
    options: StreamNetOptions,
    context: NetContext,
    saved?: Saved<unknown>,
  ) {
    const state = saved && takeState<StreamState>(saved.state, KIND);
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
    const ownership = new Ownership(loop, saved === undefined);
    this.#ownership = ownership;
    this.#connector = createConnector(
      { options, loop, log, ownership, onConnected },
      state && { state: state.connector, bag: saved!.bag.at("connector") },
    );
    try {
      if (state === undefined) this.#connector.begin();
      else this.#port.load({ state: state.port, bag: saved!.bag.at("port") });
    } catch (error) {
      this.close();
      throw error;
    }
  }

  get linkUp(): boolean {
    return this.#port.connected;
  }

  start(peer: NetPeer): void {
    this.#ownership.take();
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

  save(): StreamState {
    return {
      version: 1,
      kind: KIND,
      port: this.#port.save(),
      connector: this.#connector.save(),
    };
  }

  handOver(bag: ResourceBag): void {
    this.#port.handOver(bag.at("port"));
    this.#connector.handOver(bag.at("connector"));
    this.#ownership.giveAway();
  }

  close(): void {
    this.#connector.close();
    this.#port.close();
  }
}
