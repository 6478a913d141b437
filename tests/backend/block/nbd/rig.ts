/**
 * An NBD client on a server in a Worker.
 *
 * @module
 */

import { assertEquals } from "@std/assert";
import { workersGone, workerThreads } from "../../../resources.ts";
import { PATIENCE_MS } from "../../../until.ts";
import type { NbdServerOptions, NbdServerRequest } from "./server.ts";
import type { NbdServerMessage } from "./server_worker.ts";
import { Controller, Folder, Host } from "../rig.ts";
import type { BlockOptions } from "../../../../src/backend/block/options.ts";

type NbdBlockOptions = Extract<BlockOptions, { kind: "nbd" }>;

/** Options that most tests want of a client. */
export const NBD: Omit<NbdBlockOptions, "uri"> = {
  kind: "nbd",
  readonly: false,
  logicalBlockBytes: 512,
  physicalBlockBytes: null,
  timeoutMs: PATIENCE_MS,
};

/** Length of the export. */
export const EXPORT_BYTES = 8 << 20;

/** A server in a Worker. */
export class ServerThread implements AsyncDisposable {
  readonly #others = workerThreads();
  readonly #worker = new Worker(
    new URL("./server_worker.ts", import.meta.url).href,
    { type: "module" },
  );
  port = 0;

  static async start(options: NbdServerOptions): Promise<ServerThread> {
    const thread = new ServerThread();
    thread.port = await thread.#ask({ start: options }) as number;
    return thread;
  }

  #ask(message: NbdServerMessage): Promise<unknown> {
    return new Promise((resolve) => {
      this.#worker.onmessage = ({ data }) => resolve(data);
      this.#worker.postMessage(message);
    });
  }

  async set(options: Partial<NbdServerOptions>): Promise<void> {
    await this.#ask({ set: options });
  }

  async requests(): Promise<NbdServerRequest[]> {
    return await this.#ask({ ask: "requests" }) as NbdServerRequest[];
  }

  async connections(): Promise<number> {
    return await this.#ask({ ask: "connections" }) as number;
  }

  async hangUp(): Promise<void> {
    await this.#ask({ hangUp: true });
  }

  /** Waits until nothing is left of the thread: the next test may count descriptors. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#worker.terminate();
    await workersGone(this.#others);
  }
}

/** The whole set-up. */
export class NbdRig implements AsyncDisposable {
  readonly folder: Folder;
  readonly host: Host;
  readonly file: string;
  readonly server: ServerThread;
  /** Options that the client was opened with. */
  readonly options: NbdBlockOptions;
  readonly client: Controller;

  private constructor(
    folder: Folder,
    file: string,
    server: ServerThread,
    options: Partial<NbdBlockOptions>,
  ) {
    this.folder = folder;
    this.file = file;
    this.server = server;
    this.host = new Host();
    this.options = { ...NBD, uri: `unix:${folder.path}/nbd.sock`, ...options };
    try {
      this.client = new Controller(this.host, this.options);
    } catch (error) {
      this.host[Symbol.dispose]();
      throw error;
    }
  }

  static async start(
    server: Partial<NbdServerOptions> = {},
    client: Partial<NbdBlockOptions> = {},
  ): Promise<NbdRig> {
    const folder = new Folder();
    const file = folder.image("disk", EXPORT_BYTES);
    const thread = await ServerThread.start({
      file,
      socket: `${folder.path}/nbd.sock`,
      ...server,
    });
    try {
      return new NbdRig(folder, file, thread, client);
    } catch (error) {
      await thread[Symbol.asyncDispose]();
      folder[Symbol.dispose]();
      throw error;
    }
  }

  /** Bytes of the server's file. */
  stored(offset: number, lengthBytes: number): Uint8Array {
    using file = Deno.openSync(this.file);
    file.seekSync(offset, Deno.SeekMode.Start);
    const bytes = new Uint8Array(lengthBytes);
    assertEquals(file.readSync(bytes), lengthBytes);
    return bytes;
  }

  /** Lets the client's loop turn, and the server's thread, until it is so. */
  async until(done: () => boolean | Promise<boolean>): Promise<void> {
    const deadline = performance.now() + PATIENCE_MS;
    while (!await done()) {
      if (performance.now() > deadline) throw new Error("it does not happen");
      this.host.loop.turn(5);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.client[Symbol.dispose]();
    this.host[Symbol.dispose]();
    await this.server[Symbol.asyncDispose]();
    this.folder[Symbol.dispose]();
  }
}
