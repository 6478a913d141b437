/**
 * A client of QEMU's monitor protocol (QEMU, docs/interop/qmp-spec.rst).
 *
 * @module
 */

/** An event that QEMU has sent. */
export interface QmpEvent {
  readonly event: string;
  readonly data?: Readonly<Record<string, unknown>>;
}

interface Waiter {
  readonly matches: (event: QmpEvent) => boolean;
  readonly result: PromiseWithResolvers<QmpEvent>;
}

/** One connection to a monitor. */
export class Qmp {
  readonly #conn: Deno.Conn;
  readonly #done: Promise<void>;
  readonly #commands = new Map<number, PromiseWithResolvers<unknown>>();
  #waiters: Waiter[] = [];
  #failed: Error | undefined;
  #nextId = 1;

  /** Takes over a connection. */
  constructor(conn: Deno.Conn) {
    this.#conn = conn;
    this.#done = this.#receive();
  }

  /** Leaves the monitor's negotiation mode; to be done first. */
  async negotiate(): Promise<void> {
    await this.execute("qmp_capabilities");
  }

  /** Executes a command and gives what it returns. */
  async execute(
    command: string,
    args: Readonly<Record<string, unknown>> = {},
  ): Promise<unknown> {
    if (this.#failed !== undefined) throw this.#failed;
    const id = this.#nextId++;
    const result = Promise.withResolvers<unknown>();
    this.#commands.set(id, result);
    const line = JSON.stringify({ execute: command, arguments: args, id });
    const bytes = new TextEncoder().encode(`${line}\n`);
    for (let sent = 0; sent < bytes.length;) {
      sent += await this.#conn.write(bytes.subarray(sent));
    }
    return await result.promise;
  }

  /** Resolves with the next event of that name; call it before what causes the event. */
  nextEvent(
    name: string,
    matches: (event: QmpEvent) => boolean = () => true,
  ): Promise<QmpEvent> {
    if (this.#failed !== undefined) return Promise.reject(this.#failed);
    const result = Promise.withResolvers<QmpEvent>();
    result.promise.catch(() => {}); // the caller may have gone by then
    this.#waiters.push({
      matches: (event) => event.event === name && matches(event),
      result,
    });
    return result.promise;
  }

  /** Closes the connection; resolves when nothing of it is left. */
  async close(): Promise<void> {
    this.#fail(new Error("the monitor was closed"));
    this.#conn.close();
    await this.#done;
  }

  #fail(error: Error): void {
    this.#failed ??= error;
    for (const command of this.#commands.values()) command.reject(error);
    this.#commands.clear();
    for (const waiter of this.#waiters) waiter.result.reject(error);
    this.#waiters = [];
  }

  async #receive(): Promise<void> {
    const decoder = new TextDecoder();
    const buffer = new Uint8Array(65536);
    let text = "";
    try {
      for (;;) {
        const length = await this.#conn.read(buffer);
        if (length === null) break;
        text += decoder.decode(buffer.subarray(0, length), { stream: true });
        const lines = text.split("\n");
        text = lines.pop() ?? "";
        for (const line of lines) this.#onMessage(JSON.parse(line));
      }
    } catch (error) {
      // A connection that was closed, by either side, is the usual end.
      if (error instanceof SyntaxError) this.#fail(error);
    }
    this.#fail(new Error("the monitor has closed"));
  }

  #onMessage(message: Record<string, unknown>): void {
    if (typeof message["event"] === "string") {
      const event = message as unknown as QmpEvent;
      const matching = this.#waiters.filter((w) => w.matches(event));
      this.#waiters = this.#waiters.filter((w) => !matching.includes(w));
      for (const waiter of matching) waiter.result.resolve(event);
      return;
    }
    const id = message["id"];
    if (typeof id !== "number") return; // the greeting
    const command = this.#commands.get(id);
    this.#commands.delete(id);
    const error = message["error"] as { desc?: string } | undefined;
    if (error === undefined) command?.resolve(message["return"]);
    else command?.reject(new Error(`QEMU refuses: ${error.desc}`));
  }
}
