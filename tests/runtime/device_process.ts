/**
 * Processes that devices move between: {@link ./fixtures/device_host.ts} in a process of its own.
 *
 * @module
 */

import { assertEquals } from "@std/assert";
import { decodePlainData, encodePlainData } from "../../src/core/plain_data.ts";
import type { OptionTexts } from "../../src/core/options.ts";
import {
  acceptUnix,
  type Fd,
  listenUnix,
  Poll,
  pollFd,
  receiveSaved,
  ResourceBag,
  type Saved,
  sendSaved,
} from "../../src/os/mod.ts";
import { PATIENCE_MS } from "../until.ts";

/** Request to such a process: to host a device; or, while it does, to give it away, whatever the request says. */
export interface Order {
  readonly model: string;
  readonly options: OptionTexts;
  /** State it goes on from; null to begin. Its descriptors are `device`, the listening socket is `listener`. */
  readonly state: Uint8Array<ArrayBuffer> | null;
}

/** Its answer. */
export interface Answer {
  readonly error?: string;
  readonly state?: Uint8Array<ArrayBuffer>;
}

const PROGRAM = new URL("./fixtures/device_host.ts", import.meta.url).href;

/** A process that hosts one device at a time. */
export class DeviceProcess implements AsyncDisposable {
  readonly #child: Deno.ChildProcess;
  readonly #socket: Fd;

  /**
   * @param folder Where a socket can be
   * @param ifname TAP that is to have the address 10.0.2.2, in a network namespace of the process
   */
  constructor(
    folder: string,
    env: Record<string, string> = {},
    ifname?: string,
  ) {
    const path = `${folder}/process`;
    using listener = listenUnix(path);
    this.#child = new Deno.Command(Deno.execPath(), {
      args: [
        ...["run", "-A", "--no-check", PROGRAM, path],
        ...(ifname === undefined ? [] : [ifname]),
      ],
      env: { NO_COLOR: "1", ...env },
      stdin: "null",
      stdout: "null",
      stderr: "inherit",
    }).spawn();
    pollFd(listener.number, Poll.IN, PATIENCE_MS);
    const socket = acceptUnix(listener.number);
    Deno.removeSync(path);
    if (socket === null) throw new Error("the process does not start");
    this.#socket = socket;
  }

  /** @throws {Error} When the device cannot be hosted there */
  host(order: Order, listener: Fd, device?: ResourceBag): void {
    using bag = ResourceBag.of();
    bag.put("listener", listener.number);
    for (const [name, fd] of device?.entries() ?? []) {
      bag.at("device").put(name, fd);
    }
    const { error } = this.#ask(order, bag).answer;
    if (error !== undefined) throw new Error(error);
  }

  /** Has the device leave. */
  give(): Saved<Uint8Array<ArrayBuffer>> {
    using nothing = ResourceBag.of();
    const order = { model: "", options: {}, state: null };
    const { answer, bag } = this.#ask(order, nothing);
    return { state: answer.state!, bag };
  }

  #ask(order: Order, bag: ResourceBag): { answer: Answer; bag: ResourceBag } {
    const state = encodePlainData(order);
    sendSaved(this.#socket.number, { state, bag }, PATIENCE_MS);
    const saved = receiveSaved(this.#socket.number, PATIENCE_MS);
    return { answer: decodePlainData(saved.state) as Answer, bag: saved.bag };
  }

  /** Ends it. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#socket.close();
    assertEquals((await this.#child.status).code, 0);
  }
}

/** A device that goes to and fro between two processes, whose client stays. */
export class Traveller implements Disposable {
  /** Number of times it went to the other process. */
  moves = 0;
  readonly #processes: readonly [DeviceProcess, DeviceProcess];
  readonly #model: string;
  readonly #options: OptionTexts;
  readonly #listener: Fd;

  /** @param path Of the socket that it is offered at */
  constructor(
    processes: readonly [DeviceProcess, DeviceProcess],
    model: string,
    options: OptionTexts,
    path: string,
  ) {
    this.#processes = processes;
    this.#model = model;
    this.#options = options;
    this.#listener = listenUnix(path);
    try {
      processes[0].host({ model, options, state: null }, this.#listener);
    } catch (error) {
      this.#listener.close();
      throw error;
    }
  }

  /** Has it go on in the other process; where that fails, in this one. */
  move(): void {
    const { state, bag } = this.#processes[this.moves % 2]!.give();
    using _bag = bag;
    const order = { model: this.#model, options: this.#options, state };
    const [from, to] = [this.moves % 2, (this.moves + 1) % 2];
    try {
      this.#processes[to]!.host(order, this.#listener, bag);
    } catch (error) {
      this.#processes[from]!.host(order, this.#listener, bag);
      throw error;
    }
    this.moves++;
  }

  /** Ends it. */
  [Symbol.dispose](): void {
    this.#processes[this.moves % 2]!.give().bag[Symbol.dispose]();
    this.#listener.close();
  }
}
