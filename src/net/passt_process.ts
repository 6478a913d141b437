/**
 * passt as a child process: how it is found, started, listened to and ended.
 *
 * @module
 */

import { Errno, ErrnoError } from "../errno.ts";
import type { FdWatch, Loop } from "../event_loop.ts";
import {
  ChildProcess,
  closeFd,
  createPipe,
  Epoll,
  type ExitStatus,
  Fd,
  NativeBuffer,
  openFd,
  setBlocking,
  socketPair,
  spawnProcess,
} from "../libc/mod.ts";
import { libc } from "../libc/symbols.ts";
import type { PasstNetOptions } from "./option_table.ts";

/** The environment variable that names the passt to start, where the option does not. */
export const PASST_VARIABLE = "OUTBOARD_PASST";

/** Its end of the socket pair. */
const SOCKET_FD = 3;
const END_GRACE_MS = 500;
/** How much of what it says is kept. */
const WORDS_MAX = 4096;
/** What it says of itself whatever happens: no news, and no reason for its end. */
const USUAL = [
  /^Don't run as root/,
  /^Started as root/,
  /^Can't run AVX2 build/,
  /^Failed to send \d+ bytes to syslog/,
  /^No IPv[46] nameserver/,
];

function isProgram(path: string): boolean {
  try {
    const { isFile, mode } = Deno.statSync(path);
    return isFile && ((mode ?? 0) & 0o111) !== 0;
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) throw error;
    return false;
  }
}

/**
 * Finds the program: a path as it is, a name in PATH.
 *
 * @throws {ErrnoError} ENOENT, with the remedy
 */
export function findPasst(program: string | null): string {
  const name = program ?? Deno.env.get(PASST_VARIABLE) ?? "passt";
  const candidates = name.includes("/")
    ? [name]
    : (Deno.env.get("PATH") ?? "/usr/local/bin:/usr/bin:/bin").split(":")
      .map((folder) => `${folder === "" ? "." : folder}/${name}`);
  const found = candidates.find(isProgram);
  if (found !== undefined) return found;
  throw new ErrnoError(
    Errno.ENOENT,
    name === "passt"
      ? "Cannot use net=passt: passt is not installed, install it (apt install passt, or dnf install passt) " +
        `or name it with passt=PATH or ${PASST_VARIABLE}`
      : `Cannot use net=passt: ${name} is no program, name the one to start with passt=PATH or ${PASST_VARIABLE}`,
  );
}

/** Its command line, for a card with that MTU. */
export function passtArguments(
  options: PasstNetOptions,
  mtu: number,
): string[] {
  return [
    "passt",
    // It then stays our child, and ends with the connection.
    ...["--foreground", "--quiet", "--one-off"],
    ...["--fd", `${SOCKET_FD}`],
    ...["--mtu", `${mtu}`],
    ...options.tcpPorts.flatMap((spec) => ["--tcp-ports", spec]),
    ...options.udpPorts.flatMap((spec) => ["--udp-ports", spec]),
  ];
}

/** A passt that was just started. */
export interface StartedPasst {
  readonly child: ChildProcess;
  /** What it says. */
  readonly stderr: Fd;
  /** Our end of its socket. */
  readonly socket: Fd;
}

/**
 * A {@linkcode PasstProcess} on its way to another thread. It is a child of the process, not of a thread: whichever
 * thread has it may wait for it and end it.
 */
export interface GivenPasstProcess {
  /** Nobody else's as long as it was not waited for, even when it has ended. */
  readonly pid: number;
  readonly stderr: number;
  readonly said: string;
}

/**
 * Starts passt.
 *
 * @throws {import("../libc/mod.ts").SyscallError}
 */
export function startPasst(
  program: string,
  args: readonly string[],
): StartedPasst {
  using undo = new DisposableStack();
  using passed = new DisposableStack();
  const O_RDWR = 2;
  const [socket, theirs] = socketPair();
  undo.use(socket);
  passed.use(theirs);
  const [stderr, writer] = createPipe();
  undo.use(stderr);
  passed.use(writer);
  // passt sends the end of a frame that did not fit as a blocking write.
  setBlocking(theirs.number);
  const nothing = passed.use(openFd("/dev/null", O_RDWR));
  const child = spawnProcess({
    program,
    args,
    env: environment(),
    fds: [
      { from: nothing.number, to: 0 },
      { from: nothing.number, to: 1 },
      { from: writer.number, to: 2 },
      { from: theirs.number, to: SOCKET_FD },
    ],
  });
  undo.move();
  return { child, stderr, socket };
}

/** A running passt. It ends by itself when its socket is closed, so not even our own sudden end leaves one behind. */
export class PasstProcess implements Disposable {
  readonly #child: ChildProcess;
  readonly #stderr: Fd;
  readonly #chunk = new NativeBuffer(WORDS_MAX);
  readonly #chunkPointer = this.#chunk.pointer();
  readonly #watches: FdWatch[] = [];
  #socket: Fd | null = null;
  #said = "";
  #closed = false;

  /**
   * @param passt Just started, or what a predecessor gave; taken over
   * @param onExit Called once when it ends by itself; it is to be closed then
   * @throws {import("../libc/mod.ts").SyscallError} What a predecessor gave is untouched then
   */
  constructor(
    passt: StartedPasst | GivenPasstProcess,
    loop: Loop,
    onExit: () => void,
  ) {
    if ("pid" in passt) {
      this.#child = new ChildProcess(passt.pid);
      this.#stderr = new Fd(passt.stderr);
      this.#said = passt.said;
    } else {
      this.#child = passt.child;
      this.#stderr = passt.stderr;
      this.#socket = passt.socket;
    }
    try {
      this.#watches.push(
        loop.watch(this.#stderr.number, Epoll.IN, () => this.#listen()),
      );
      this.#watches.push(
        loop.watch(this.#child.pidFd, Epoll.IN, () => {
          for (const watch of this.#watches) watch.close();
          onExit();
        }),
      );
    } catch (error) {
      if ("pid" in passt) this.handOver();
      else this.close();
      throw error;
    }
  }

  /** Its process id. */
  get pid(): number {
    return this.#child.pid;
  }

  /** The last it said that may be a reason, in one line; empty when there is none. */
  get lastWords(): string {
    const lines = this.#said.split("\n").map((line) => line.trim());
    const telling = lines.filter((line) =>
      line !== "" && !USUAL.some((pattern) => pattern.test(line))
    );
    return telling.slice(-3).join("; ");
  }

  /** Waits for its end, blocking. @returns null when it runs still */
  waitForExit(timeoutMs: number): ExitStatus | null {
    const status = this.#child.reap(timeoutMs);
    if (status !== null) this.#listen();
    return status;
  }

  /** Our end of its socket, which becomes the caller's. */
  takeSocket(): Fd {
    const socket = this.#socket!;
    this.#socket = null;
    return socket;
  }

  /** Gives it away; nothing may follow. */
  handOver(): GivenPasstProcess {
    for (const watch of this.#watches) watch.close();
    this.#closed = true;
    this.#chunk.close();
    // The custody of this thread ends, not the process.
    closeFd(this.#child.pidFd);
    return {
      pid: this.pid,
      stderr: this.#stderr.release(),
      said: this.#said,
    };
  }

  /**
   * Ends it, by force if it hesitates, and leaves neither a process nor a descriptor.
   *
   * @returns How it ended
   */
  end(): ExitStatus {
    for (const watch of this.#watches) watch.close();
    this.#socket?.close();
    const status = this.#child.end(END_GRACE_MS);
    if (!this.#closed) {
      this.#closed = true;
      this.#listen();
      this.#stderr.close();
      this.#chunk.close();
    }
    return status;
  }

  /** Ends it. */
  close(): void {
    if (!this.#closed) this.end();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  /** Takes what it says: it would stop at a full pipe. */
  #listen(): void {
    const { bytes, lengthBytes } = this.#chunk;
    const n = libc.read(this.#stderr.number, this.#chunkPointer, lengthBytes);
    if (n > 0) {
      const text = new TextDecoder().decode(bytes.subarray(0, n));
      this.#said = (this.#said + text).slice(-WORDS_MAX);
    } else if (n === 0) this.#watches[0]?.close();
  }
}

/** Nothing of ours that is none of its business. */
function environment(): Record<string, string> {
  const env: Record<string, string> = {};
  for (const name of ["PATH", "LD_LIBRARY_PATH"]) {
    const value = Deno.env.get(name);
    if (value !== undefined) env[name] = value;
  }
  return env;
}
