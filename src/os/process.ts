/**
 * Child processes for a thread that blocks in an event loop: started, watched and reaped without a promise.
 *
 * @module
 */

import { setU64 } from "../core/bits.ts";
import { Errno } from "../core/errno.ts";
import { check, SyscallError } from "./errors.ts";
import { Fd, setNonblocking } from "./fd.ts";
import { NativeBuffer } from "./mapping.ts";
import { Poll, pollFd } from "./wait/poll.ts";
import { lastErrno, libc } from "./symbols.ts";

const SIGKILL = 9;
const SIGTERM = 15;
const WNOHANG = 1;
const SYS_PIDFD_SEND_SIGNAL = 424;
const SYS_PIDFD_OPEN = 434;
const POSIX_SPAWN_SETSIGDEF = 0x04;
const POSIX_SPAWN_SETSIGMASK = 0x08;
const POSIX_SPAWN_SETSID = 0x80;
const SIGSET_BYTES = 128;

// glibc's posix_spawnattr_t has 336 bytes, posix_spawn_file_actions_t 80.
const AT = { PID: 0, ATTRIBUTES: 64, ACTIONS: 512, TABLES: 1024 } as const;

/** SIGHUP's number. */
export const SIGHUP = 1;

/** True if this process ignores a signal, as one that nohup starts does SIGHUP. */
export function isIgnored(signal: number): boolean {
  // struct sigaction { void (*sa_handler)(int); … } of 152 bytes
  const action = new Uint8Array(152);
  const SIG_IGN = 1n;
  check(libc.sigaction(signal, null, action), "sigaction");
  return new DataView(action.buffer).getBigUint64(0, true) === SIG_IGN;
}

/** Program to start. */
export interface SpawnOptions {
  /** Path of the program. */
  readonly program: string;
  /** Arguments, the name of the program as the first. */
  readonly args: readonly string[];
  /** All of its environment. */
  readonly env: Readonly<Record<string, string>>;
  /** Descriptors that it inherits besides: `from` is ours, `to` the child's. They are made in this order. */
  readonly fds: readonly { readonly from: number; readonly to: number }[];
}

/** End of a process. */
export interface ExitStatus {
  /** Exit status; null when a signal ended it, or when nobody can tell. */
  readonly code: number | null;
  /** Number of the signal that ended it; null when it exited. */
  readonly signal: number | null;
}

/** For people: `exit status 1`, `signal 9`. */
export function formatExitStatus(status: ExitStatus): string {
  if (status.signal !== null) return `signal ${status.signal}`;
  return `exit status ${status.code ?? "unknown"}`;
}

/**
 * A pipe: first the end that is read, which never blocks, then the one that is written, which does as usual.
 *
 * @throws {SyscallError}
 */
export function createPipe(): [Fd, Fd] {
  const ends = new Int32Array(2);
  const O_CLOEXEC = 0o2000000;
  check(libc.pipe2(new Uint8Array(ends.buffer), O_CLOEXEC), "pipe2");
  const pair: [Fd, Fd] = [new Fd(ends[0]!), new Fd(ends[1]!)];
  setNonblocking(ends[0]!);
  return pair;
}

/** NUL-terminated strings and the table of pointers to them, as execve(2) takes them. */
function putStrings(
  buffer: NativeBuffer,
  at: number,
  strings: readonly Uint8Array[],
): number {
  let text = at + (strings.length + 1) * 8;
  strings.forEach((bytes, i) => {
    setU64(buffer.view, at + i * 8, buffer.hva + text);
    buffer.bytes.set(bytes, text);
    text += bytes.length + 1;
  });
  return (text + 7) & ~7;
}

/** posix_spawn(3) and its helpers return the error number. */
function checkSpawn(error: number, syscall: string, program: string): void {
  if (error !== 0) {
    throw new SyscallError(syscall, error, `Cannot start ${program}`);
  }
}

/**
 * Starts a process in a session of its own, so that Ctrl-C in our terminal is ours to pass on. It has the descriptors
 * it is given and no other of ours, since all those close on exec; signals are as the kernel has them by default.
 *
 * @throws {SyscallError} ENOENT, EACCES, ENOEXEC …
 */
export function spawnProcess(options: SpawnOptions): ChildProcess {
  const { program, args, env, fds } = options;
  const encode = (text: string) => new TextEncoder().encode(text);
  const path = encode(program);
  const argv = args.map(encode);
  const envp = Object.entries(env).map(([key, value]) =>
    encode(`${key}=${value}`)
  );
  const size = [path, ...argv, ...envp].reduce((n, s) => n + s.length + 1, 0);
  using memory = new NativeBuffer(
    AT.TABLES + size + (argv.length + envp.length + 8) * 8,
  );
  const actions = memory.pointer(AT.ACTIONS);
  const attributes = memory.pointer(AT.ATTRIBUTES);
  checkSpawn(
    libc.posix_spawn_file_actions_init(actions),
    "posix_spawn_file_actions_init",
    program,
  );
  libc.posix_spawnattr_init(attributes);
  try {
    for (const { from, to } of fds) {
      checkSpawn(
        libc.posix_spawn_file_actions_adddup2(actions, from, to),
        "posix_spawn_file_actions_adddup2",
        program,
      );
    }
    const all = new Uint8Array(SIGSET_BYTES).fill(0xff);
    libc.posix_spawnattr_setsigdefault(attributes, all);
    libc.posix_spawnattr_setsigmask(attributes, new Uint8Array(SIGSET_BYTES));
    libc.posix_spawnattr_setflags(
      attributes,
      POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSID,
    );
    const environment = putStrings(memory, AT.TABLES, argv);
    const name = putStrings(memory, environment, envp);
    memory.bytes.set(path, name);
    // SAFETY: everything the call reads is in `memory`, which outlives it; the child has replaced its image by then.
    const error = libc.posix_spawn(
      memory.pointer(AT.PID),
      memory.pointer(name),
      actions,
      attributes,
      memory.pointer(AT.TABLES),
      memory.pointer(environment),
    );
    checkSpawn(error, "posix_spawn", program);
    return new ChildProcess(memory.view.getInt32(AT.PID, true));
  } finally {
    libc.posix_spawn_file_actions_destroy(actions);
    libc.posix_spawnattr_destroy(attributes);
  }
}

/**
 * A child process with one owner, in this process or in one that was given its descriptor.
 *
 * ```text
 *   running --exits--> ended, pidFd readable --reap--> reaped
 * ```
 */
export class ChildProcess implements Disposable {
  /** Process id. */
  readonly pid: number;
  readonly #pidFd: Fd;
  #status: ExitStatus | null = null;

  /**
   * Takes a process into custody.
   *
   * @param pidFd Of another's custody, taken over; opened when absent
   */
  constructor(pid: number, pidFd?: Fd) {
    this.pid = pid;
    this.#pidFd = pidFd ?? new Fd(
      check(libc.pidfd_open(SYS_PIDFD_OPEN, pid, 0), "pidfd_open"),
    );
  }

  /** Readable once the process has ended. */
  get pidFd(): number {
    return this.#pidFd.number;
  }

  /**
   * Takes the process's status off the kernel, so that no zombie is left.
   *
   * @param timeoutMs How long to wait for its end, blocking; 0 only looks
   * @returns null while it runs
   */
  reap(timeoutMs = 0): ExitStatus | null {
    if (this.#status !== null) return this.#status;
    if (timeoutMs !== 0) pollFd(this.pidFd, Poll.IN, timeoutMs);
    const word = new Int32Array(1);
    const bytes = new Uint8Array(word.buffer);
    let result: number;
    do result = libc.waitpid(this.pid, bytes, WNOHANG); while (
      result < 0 && lastErrno() === Errno.EINTR
    );
    if (result === 0) return null;
    if (result < 0) {
      // It is another process's child, which alone is told how it ended.
      if (!pollFd(this.pidFd, Poll.IN, 0)) return null;
      return this.#status = { code: null, signal: null };
    }
    const status = word[0]!;
    const signal = status & 0x7f;
    this.#status = signal === 0
      ? { code: status >>> 8 & 0xff, signal: null }
      : { code: null, signal };
    return this.#status;
  }

  /** Asks it to end. */
  terminate(): void {
    if (this.#status === null) this.#signal(SIGTERM);
  }

  /**
   * Ends the process, by force if it does not within `graceMs`, and leaves nothing of it.
   *
   * @returns How it ended
   */
  end(graceMs: number): ExitStatus {
    this.terminate();
    let status = this.reap(graceMs);
    while (status === null) {
      this.#signal(SIGKILL);
      status = this.reap(-1);
    }
    this.#pidFd.close();
    return status;
  }

  /** By descriptor: the number of a child of another process may be somebody else's by now. */
  #signal(signal: number): void {
    libc.pidfd_send_signal(SYS_PIDFD_SEND_SIGNAL, this.pidFd, signal, null, 0);
  }

  /** Leaves the process to another's custody. */
  leave(): void {
    this.#pidFd.close();
  }

  /** Kills the process if it runs still. */
  close(): void {
    if (this.pidFd >= 0) this.end(0);
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** Limits that {@linkcode limitResource} sets. */
export const Resource = { FSIZE: 1, CORE: 4, NOFILE: 7 } as const;

/**
 * Lowers a limit of this process for good; one that is lower already stays.
 *
 * @throws {SyscallError}
 */
export function limitResource(
  resource: typeof Resource[keyof typeof Resource],
  limit: number,
): void {
  // struct rlimit { rlim_t rlim_cur; rlim_t rlim_max; }
  const limits = new BigUint64Array(2);
  const bytes = new Uint8Array(limits.buffer);
  check(libc.getrlimit(resource, bytes), "getrlimit");
  const most = BigInt(limit);
  limits.forEach((now, i) => limits[i] = now < most ? now : most);
  check(libc.setrlimit(resource, bytes), "setrlimit");
}
