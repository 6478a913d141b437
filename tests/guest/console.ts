/**
 * Runs shell commands in a guest over a serial port.
 *
 * The guest's side is a shell script that reads requests and answers with frames; nothing is echoed and nothing is
 * typed at a prompt, so output of any size and content comes back as it was written:
 *
 *     host → guest   run <id> <base64 of the command>\n      cancel <id>\n
 *     guest → host   \x1e ready\n      \x1e done <id> <status> <length>\n <length bytes>
 *
 * A command's output goes to a file first. What a process that it left behind writes later is therefore never taken
 * for the output of the next command.
 *
 * @module
 */

/** Result of a command: stdout and stderr as one, and the shell's status (128 + n for signal n). */
export interface CommandResult {
  readonly output: string;
  readonly status: number;
}

/** The guest's end of the console: a program for busybox's shell, on the serial port. */
export const CONSOLE_SERVER = `#!/bin/busybox sh
stty raw -echo 115200
printf '\\036ready\\n'
while read -r verb id text; do
  case $verb in
    run)
      printf %s "$text" | base64 -d > "/run/$id.sh"
      # Left to init: a child that ends during \`read\` makes this shell lose what it has read of the line.
      ( /sbin/console_job "$id" < /dev/null & )
      ;;
    cancel)
      # The command leads a session of its own, so that this reaches what it has started as well.
      [ -s "/run/$id.pid" ] && kill -KILL "-$(cat "/run/$id.pid")"
      ;;
  esac
done
`;

/** Runs one command and answers for it; it outlives the command whatever becomes of that. */
export const CONSOLE_JOB = `#!/bin/busybox sh
id=$1
cd /root
setsid /bin/sh "/run/$id.sh" > "/run/$id.out" 2>&1 &
echo $! > "/run/$id.pid"
wait $! 2> /dev/null
status=$?
length=$(stat -c %s "/run/$id.out")
printf '\\036done %s %s %s\\n' "$id" "$status" "$length"
head -c "$length" "/run/$id.out"
rm -f "/run/$id.sh" "/run/$id.out" "/run/$id.pid"
`;

/** Time a command that was cancelled may take to hand over what it has written. */
const CANCEL_GRACE_MS = 60_000;

const RECORD_SEPARATOR = 0x1e;
const NEWLINE = 0x0a;

interface Pending {
  readonly id: string;
  readonly resolve: (result: CommandResult) => void;
  readonly reject: (error: Error) => void;
}

/** The host's end of the console. */
export class Console {
  readonly #conn: Deno.Conn;
  readonly #describe: () => string;
  readonly #done: Promise<void>;
  #pending: Pending | undefined;
  #readyWaiters: PromiseWithResolvers<void>[] = [];
  #queue: Promise<unknown> = Promise.resolve();
  #failed: Error | undefined;
  #nextId = 1;

  /** Takes over a connection to the serial port; `describe` tells the guest's state for error messages. */
  constructor(conn: Deno.Conn, describe: () => string) {
    this.#conn = conn;
    this.#describe = describe;
    this.#done = this.#receive();
  }

  /** Resolves the next time the guest's end comes up: after boot, and after each reboot. */
  nextReady(): Promise<void> {
    if (this.#failed !== undefined) return Promise.reject(this.#failed);
    const waiter = Promise.withResolvers<void>();
    this.#readyWaiters.push(waiter);
    return waiter.promise;
  }

  /** Runs a command when those before it have ended. Background processes must redirect what they have to say. */
  run(command: string, timeoutMs: number): Promise<CommandResult> {
    const result = this.#queue.then(() => this.#run(command, timeoutMs));
    this.#queue = result.catch(() => {});
    return result;
  }

  /** Starts a command of which no end is expected. */
  async start(command: string): Promise<void> {
    await this.#send(`run ${this.#id()} ${encodeBase64(command)}\n`);
  }

  /** Rejects what is waited for, now and from now on. */
  fail(error: Error): void {
    this.#failed ??= error;
    this.#interrupt(error);
    const waiters = this.#readyWaiters;
    this.#readyWaiters = [];
    for (const waiter of waiters) waiter.reject(error);
  }

  /** Closes the connection; resolves when nothing of it is left. */
  async close(): Promise<void> {
    this.fail(new Error("the guest's console was closed"));
    this.#conn.close();
    await this.#done;
  }

  async #run(command: string, timeoutMs: number): Promise<CommandResult> {
    if (this.#failed !== undefined) throw this.#failed;
    const id = this.#id();
    const { promise, resolve, reject } = Promise.withResolvers<CommandResult>();
    promise.catch(() => {});
    this.#pending = { id, resolve, reject };
    await this.#send(`run ${id} ${encodeBase64(command)}\n`);
    const result = await within(promise, timeoutMs);
    if (result !== undefined) return result;

    await this.#send(`cancel ${id}\n`);
    const partial = await within(promise, CANCEL_GRACE_MS);
    this.#pending = undefined;
    const output = partial === undefined
      ? "(the guest did not hand it over)"
      : partial.output;
    throw new Error(
      `Cannot finish a command in the guest: no end after ${timeoutMs} ms\n` +
        `command: ${command}\noutput so far: ${output}\n${this.#describe()}`,
    );
  }

  #id(): string {
    // Random, so that no output can be taken for an answer.
    return `${this.#nextId++}.${crypto.randomUUID()}`;
  }

  async #send(text: string): Promise<void> {
    const bytes = new TextEncoder().encode(text);
    try {
      for (let sent = 0; sent < bytes.length;) {
        sent += await this.#conn.write(bytes.subarray(sent));
      }
    } catch (error) {
      throw this.#failed ?? error;
    }
  }

  #interrupt(error: Error): void {
    this.#pending?.reject(error);
    this.#pending = undefined;
  }

  async #receive(): Promise<void> {
    const parser = new FrameParser((header, body) => {
      this.#onFrame(header, body);
    });
    const buffer = new Uint8Array(65536);
    try {
      for (;;) {
        const length = await this.#conn.read(buffer);
        if (length === null) break;
        parser.push(buffer.slice(0, length));
      }
    } catch {
      // Closed by us, or QEMU has gone.
    }
    // What is waited for is rejected by whoever knows why this has ended: `fail` is called when QEMU has.
  }

  #onFrame(header: readonly string[], body: Uint8Array): void {
    const [verb, id, status] = header;
    if (verb === "ready") {
      this.#interrupt(
        new Error(
          `the guest has rebooted under a command\n${this.#describe()}`,
        ),
      );
      const waiters = this.#readyWaiters;
      this.#readyWaiters = [];
      for (const waiter of waiters) waiter.resolve();
    } else if (verb === "done" && id === this.#pending?.id) {
      const output = new TextDecoder().decode(body);
      this.#pending?.resolve({ output, status: Number(status) });
      this.#pending = undefined;
    }
  }
}

/** Cuts the guest's bytes into frames; passes over whatever is between them. */
class FrameParser {
  readonly #onFrame: (header: readonly string[], body: Uint8Array) => void;
  #chunks: Uint8Array[] = [];
  #length = 0;
  /** Bytes that must be there before it is worth looking again. */
  #needed = 0;

  constructor(
    onFrame: (header: readonly string[], body: Uint8Array) => void,
  ) {
    this.#onFrame = onFrame;
  }

  push(chunk: Uint8Array): void {
    this.#chunks.push(chunk);
    this.#length += chunk.length;
    while (this.#length > 0 && this.#length >= this.#needed) {
      if (!this.#parse(this.#joined())) break;
    }
  }

  #joined(): Uint8Array {
    const joined = new Uint8Array(this.#length);
    let offset = 0;
    for (const chunk of this.#chunks) {
      joined.set(chunk, offset);
      offset += chunk.length;
    }
    return joined;
  }

  /** Takes one frame off the front; false when more bytes are needed for one. */
  #parse(bytes: Uint8Array): boolean {
    const start = bytes.indexOf(RECORD_SEPARATOR);
    if (start < 0) {
      this.#keep(new Uint8Array(), 0);
      return false;
    }
    const end = bytes.indexOf(NEWLINE, start);
    if (end < 0) {
      this.#keep(bytes.subarray(start), 0);
      return false;
    }
    const line = new TextDecoder().decode(bytes.subarray(start + 1, end));
    const header = line.trim().split(" ");
    const length = header[0] === "done" ? Number(header[3]) : 0;
    if (!Number.isSafeInteger(length)) {
      this.#keep(bytes.subarray(start + 1), 0);
      return true;
    }
    const bodyEnd = end + 1 + length;
    if (bytes.length < bodyEnd) {
      this.#keep(bytes.subarray(start), bodyEnd - start);
      return false;
    }
    this.#keep(bytes.subarray(bodyEnd), 0);
    this.#onFrame(header, bytes.subarray(end + 1, bodyEnd));
    return true;
  }

  #keep(rest: Uint8Array, needed: number): void {
    this.#chunks = rest.length === 0 ? [] : [rest];
    this.#length = rest.length;
    this.#needed = needed;
  }
}

function encodeBase64(text: string): string {
  return new TextEncoder().encode(text).toBase64();
}

/** Waits for a promise, but not for longer than that: then the result is `undefined`. */
export async function within<T>(
  promise: Promise<T>,
  timeoutMs: number,
): Promise<T | undefined> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<undefined>((resolve) => {
    timer = setTimeout(() => resolve(undefined), timeoutMs);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}
