/**
 * The control socket: run-time commands, one a line, as words for people and as JSON for programs.
 *
 * @module
 */

import { AcceptLoop, type Attendance, closeConnection } from "./accept_loop.ts";
import {
  type Controllable,
  execute,
  executeLine,
  UnknownCommandError,
} from "./commands.ts";
import {
  makeSocketFile,
  removeSocketFile,
  type SocketFile,
  type SocketPath,
} from "../../os/socket/socket_file.ts";
import { messageForPeople } from "./suggestion.ts";

export {
  CONTROL_WORDS,
  type Controllable,
  type IOThreadDescription,
} from "./commands.ts";

/** Something that happened, for programs. */
export interface ControlEvent {
  /** Such as `CLIENT_CONNECTED`. */
  readonly event: string;
  /** Plain data; the device's id is in `device`. */
  readonly data: Readonly<Record<string, unknown>>;
}

/** Number of people and scripts that are served at a time. */
const CONNECTIONS_MAX = 64;
/** Time people may be silent. */
const IDLE_MS = 600_000;
/** The longest line taken, in UTF-16 units. */
const LINE_MAX = 4096;
/** So many events wait for a program that does not read; the next ones are counted only. */
const EVENTS_MAX = 256;

/** Lines without their ends; of one that is too long the first {@linkcode LINE_MAX} + 1 units. */
async function* lines(conn: Deno.Conn): AsyncGenerator<string> {
  const decoder = new TextDecoder();
  const bytes = new Uint8Array(LINE_MAX);
  let rest = "";
  for (;;) {
    // Not conn.readable, which closes both directions at the end of this one: the last line is to be answered.
    const count = await conn.read(bytes);
    if (count === null) break;
    const parts = decoder.decode(bytes.subarray(0, count), { stream: true })
      .split("\n");
    for (const [i, part] of parts.entries()) {
      rest = (rest + part).slice(0, LINE_MAX + 1);
      if (i === parts.length - 1) break;
      yield rest;
      rest = "";
    }
  }
  if (rest !== "") yield rest;
}

/** A request of a program: as in the QEMU Machine Protocol. */
interface JsonRequest {
  readonly execute: string;
  readonly arguments: Readonly<Record<string, unknown>>;
}

function isObject(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function checkRequest(request: unknown): JsonRequest {
  const { execute, arguments: args = {}, id: _, ...rest } = request as Readonly<
    Record<string, unknown>
  >;
  const [stray] = Object.keys(rest);
  if (typeof execute !== "string" || !isObject(args) || stray !== undefined) {
    throw new Error(
      'Cannot understand the request: {"execute": "NAME", "arguments": {…}, "id": …} is wanted, the last two as you like',
    );
  }
  return { execute, arguments: args };
}

/** One who is connected. */
class Connection {
  readonly #target: Controllable;
  readonly #conn: Deno.Conn;
  readonly #attendance: Attendance;
  readonly #writer: WritableStreamDefaultWriter<Uint8Array<ArrayBuffer>>;
  /** True if it has spoken JSON: then it is told of events too. */
  #isProgram = false;
  #waiting = 0;
  #lost = 0;

  constructor(
    target: Controllable,
    conn: Deno.Conn,
    attendance: Attendance,
  ) {
    this.#target = target;
    this.#conn = conn;
    this.#attendance = attendance;
    this.#writer = conn.writable.getWriter();
  }

  async serve(): Promise<void> {
    try {
      for await (const line of lines(this.#conn)) {
        if (line.trim() === "") continue;
        const answering = () => this.#answer(line);
        await this.#write(await this.#attendance.attend(answering));
      }
      await this.#writer.close();
    } catch {
      // The person hung up; there is nobody to tell.
    } finally {
      closeConnection(this.#conn);
    }
  }

  tell(event: ControlEvent): void {
    if (!this.#isProgram) return;
    if (this.#waiting >= EVENTS_MAX) {
      this.#lost++;
      return;
    }
    this.#waiting++;
    const now = Date.now();
    const timestamp = {
      seconds: Math.floor(now / 1000),
      microseconds: now % 1000 * 1000,
    };
    this.#write(JSON.stringify({ ...event, timestamp })).then(
      () => this.#told(),
      // Whoever hung up is found out about by reading.
      () => {},
    );
  }

  #told(): void {
    this.#waiting--;
    if (this.#waiting > 0 || this.#lost === 0) return;
    const count = this.#lost;
    this.#lost = 0;
    this.tell({ event: "EVENTS_LOST", data: { count } });
  }

  #write(text: string): Promise<void> {
    return this.#writer.write(new TextEncoder().encode(`${text}\n`));
  }

  async #answer(line: string): Promise<string> {
    const isJson = line.trimStart().startsWith("{");
    if (isJson) {
      this.#isProgram = true;
      this.#attendance.listens();
    }
    if (line.length > LINE_MAX) {
      const error =
        `Cannot take a line of more than ${LINE_MAX} characters: say less at a time`;
      return this.#isProgram ? failure(error) : `error: ${error}`;
    }
    if (isJson) return await this.#answerJson(line);
    try {
      const { text } = await executeLine(this.#target, line);
      return text === "" ? "ok" : `${text}\nok`;
    } catch (error) {
      return `error: ${await messageForPeople(error)}`;
    }
  }

  async #answerJson(line: string): Promise<string> {
    let request: unknown;
    try {
      request = JSON.parse(line);
    } catch (error) {
      return failure(`Cannot understand the line: ${(error as Error).message}`);
    }
    // Whatever it is, JSON has no undefined: an id that was not given is not answered.
    const { id } = request as { readonly id?: unknown };
    try {
      const { execute: name, arguments: args } = checkRequest(request);
      const { data } = await execute(this.#target, name, args);
      return JSON.stringify({ return: data, id });
    } catch (error) {
      return failure(
        await messageForPeople(error),
        id,
        error instanceof UnknownCommandError ? "CommandNotFound" : undefined,
      );
    }
  }
}

function failure(desc: string, id?: unknown, kind = "GenericError"): string {
  return JSON.stringify({ error: { class: kind, desc }, id });
}

/**
 * A listening control socket.
 *
 * Each line of words is answered by lines of text and a last line `ok` or `error: …`. A line that begins with a brace is
 * a JSON object `{"execute", "arguments", "id"}` and answered by one, `{"return", "id"}` or `{"error", "id"}`; whoever
 * has sent one is sent events too, `{"event", "data", "timestamp"}`.
 */
export class ControlSocket {
  readonly #connections: AcceptLoop;
  readonly #open = new Set<Connection>();
  readonly #file: SocketFile;

  /**
   * @param place Where to listen
   * @throws {Error} With the remedy
   */
  constructor(place: SocketPath, target: Controllable) {
    const { made: listener, file } = makeSocketFile(
      place,
      (path) => Deno.listen({ transport: "unix", path }),
    );
    this.#file = file;
    this.#connections = new AcceptLoop(listener, {
      most: CONNECTIONS_MAX,
      idleMs: IDLE_MS,
      serve: async (conn, attendance) => {
        const connection = new Connection(target, conn, attendance);
        this.#open.add(connection);
        await connection.serve();
        this.#open.delete(connection);
      },
    });
  }

  /** Tells all programs that are connected. */
  tell(event: ControlEvent): void {
    for (const connection of this.#open) connection.tell(event);
  }

  /** Stops listening, hangs up, and removes the socket file. */
  close(): void {
    this.#connections.close();
    removeSocketFile(this.#file);
  }
}
