/**
 * Outboard as a child process, for tests and benches from outside.
 *
 * @module
 */

/** Settings of the process. */
export interface OutboardOptions {
  /** Environment variables besides those of this process. */
  readonly env?: Readonly<Record<string, string>>;
  /** Folders where the process looks for shared libraries first (LD_LIBRARY_PATH). */
  readonly libraryPath?: string;
  /** The longest to wait for whatever it is to do: to listen, to say something, to end; 60 s unless told. */
  readonly timeoutMs?: number;
  /** The program; this package's mod.ts unless told. */
  readonly program?: string;
  /** Permissions of the runtime, as flags; everything unless told. */
  readonly permissions?: readonly string[];
  /** Flags of V8, such as `--trace-gc`; what it traces is on standard output. */
  readonly v8Flags?: readonly string[];
}

/** Starting takes a second, and many where a few cores have much to do. */
const DEFAULT_TIMEOUT_MS = 60_000;

/** A running Outboard; disposing of it stops it. */
export class OutboardProcess implements AsyncDisposable {
  readonly #child: Deno.ChildProcess;
  readonly #sockets: readonly string[];
  readonly #timeoutMs: number;
  readonly #drained: Promise<unknown>;
  readonly #waiting = new Set<() => void>();
  #stdout = "";
  #stderr = "";
  #status: Deno.CommandStatus | null = null;
  /** True if it has ended and all that it said is here. */
  #over = false;
  #stopped: Promise<void> | null = null;

  /**
   * Begins to read what a process says.
   *
   * @param child With both outputs piped
   * @param sockets The paths it was told to listen on
   */
  constructor(
    child: Deno.ChildProcess,
    sockets: readonly string[],
    timeoutMs: number,
  ) {
    this.#child = child;
    this.#sockets = sockets;
    this.#timeoutMs = timeoutMs;
    this.#drained = Promise.all([
      this.#drain(child.stdout, (text) => this.#stdout += text),
      this.#drain(child.stderr, (text) => this.#stderr += text),
      child.status.then((status) => {
        this.#status = status;
      }),
    ]).then(() => {
      this.#over = true;
      this.#wake();
    });
  }

  /** Its process id. */
  get pid(): number {
    return this.#child.pid;
  }

  /** Output so far. */
  get stdout(): string {
    return this.#stdout;
  }

  /** Complaints so far. */
  get stderr(): string {
    return this.#stderr;
  }

  /** End of the process; null while it runs. */
  get status(): Deno.CommandStatus | null {
    return this.#status;
  }

  /**
   * Waits until a condition on the output holds.
   *
   * @param what For the message, such as `"listen"`
   * @throws {Error} When the process ends first or the time is up; the output is in the message
   */
  async waitFor(what: string, condition: () => boolean): Promise<void> {
    const deadline = performance.now() + this.#timeoutMs;
    while (!condition()) {
      // Its end may be known before its last words are.
      if (this.#over) {
        throw this.#failure(`it ended with code ${this.#status!.code}`, what);
      }
      const left = deadline - performance.now();
      if (left <= 0) {
        throw this.#failure(`${this.#timeoutMs} ms are over`, what);
      }
      await this.#nextEvent(left);
    }
  }

  /** Waits until it says of every socket that it is there. */
  waitUntilListening(): Promise<void> {
    return this.waitFor("listen", () => {
      const lines = this.#stdout.split("\n").slice(0, -1);
      return this.#sockets.every((path) =>
        lines.some((line) => line.endsWith(` ${path}`))
      );
    });
  }

  /** Sends a signal. */
  signal(name: Deno.Signal): void {
    this.#child.kill(name);
  }

  /**
   * Waits for its end and gives its exit code.
   *
   * @throws {Error} When the time is up
   */
  async exitCode(): Promise<number> {
    await this.waitFor("end", () => this.#over);
    return this.#status!.code;
  }

  /**
   * Stops it as a service manager would, with SIGTERM.
   *
   * @throws {Error} When it does not end in time, its exit code is not 0, or a socket file is left behind
   */
  stop(): Promise<void> {
    return this.#stopped ??= this.#stop();
  }

  /** Ends it at once, as a crash would. */
  async kill(): Promise<void> {
    if (this.#status === null) this.#child.kill("SIGKILL");
    await this.#drained;
    this.#stopped ??= Promise.resolve();
  }

  /** Stops it. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }

  async #stop(): Promise<void> {
    if (this.#status === null) this.#child.kill("SIGTERM");
    const timer = setTimeout(
      () => this.#child.kill("SIGKILL"),
      this.#timeoutMs,
    );
    try {
      await this.#drained;
    } finally {
      clearTimeout(timer);
    }
    const { code, signal } = this.#status!;
    if (code !== 0) {
      throw this.#failure(
        signal === null
          ? `it ended with code ${code}`
          : `it ended by ${signal}`,
        "stop cleanly",
      );
    }
    for (const path of this.#sockets) {
      if (exists(path)) throw this.#failure(`${path} is left`, "stop cleanly");
    }
  }

  async #drain(
    stream: ReadableStream<Uint8Array<ArrayBuffer>>,
    append: (text: string) => void,
  ): Promise<void> {
    for await (const text of stream.pipeThrough(new TextDecoderStream())) {
      append(text);
      this.#wake();
    }
  }

  #wake(): void {
    for (const wake of this.#waiting) wake();
    this.#waiting.clear();
  }

  async #nextEvent(timeoutMs: number): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    const timer = setTimeout(resolve, timeoutMs);
    this.#waiting.add(resolve);
    await promise;
    this.#waiting.delete(resolve);
    clearTimeout(timer);
  }

  #failure(why: string, what: string): Error {
    return new Error(
      `Cannot ${what}: ${why}\n--- stdout\n${this.#stdout}--- stderr\n${this.#stderr}`,
    );
  }
}

function exists(path: string): boolean {
  try {
    Deno.lstatSync(path);
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}

/** The values of `--socket PATH` and `--socket=PATH`. */
function socketPaths(args: readonly string[]): string[] {
  const paths: string[] = [];
  args.forEach((arg, i) => {
    if (arg === "--socket" && i + 1 < args.length) paths.push(args[i + 1]!);
    if (arg.startsWith("--socket=")) paths.push(arg.slice(9));
  });
  return paths;
}

/**
 * Starts Outboard and waits until it listens on every `--socket` of its arguments.
 *
 * ```ts ignore
 * await using outboard = await startOutboard(["--device", "virtio-net", "--socket", path]);
 * ```
 *
 * @param args Command line arguments
 * @throws {Error} When it ends, or does not listen in time; its output is in the message
 */
export async function startOutboard(
  args: readonly string[],
  options: OutboardOptions = {},
): Promise<OutboardProcess> {
  const program = options.program ??
    new URL("../../mod.ts", import.meta.url).href;
  const env: Record<string, string> = { ...options.env };
  if (options.libraryPath !== undefined) {
    env["LD_LIBRARY_PATH"] = options.libraryPath;
  }
  const { permissions = ["-A"], v8Flags = [] } = options;
  const runtime = v8Flags.length === 0
    ? []
    : [`--v8-flags=${v8Flags.join(",")}`];
  const child = new Deno.Command(Deno.execPath(), {
    // What the runtime says of its own work, such as downloads, is not what the program says.
    args: ["run", "--quiet", ...permissions, ...runtime, program, ...args],
    env,
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const outboard = new OutboardProcess(
    child,
    socketPaths(args),
    options.timeoutMs ?? DEFAULT_TIMEOUT_MS,
  );
  try {
    await outboard.waitUntilListening();
  } catch (error) {
    await outboard.kill();
    throw error;
  }
  return outboard;
}
