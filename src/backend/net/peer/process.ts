/**
 * A program at the other end of a card's wire, as a child process: how it is started, listened to and ended.
 *
 * @module
 */

import { environmentVariable } from "../../../core/environment.ts";
import type { StateReader } from "../../../core/state_reader.ts";
import type { FdWatch, Loop } from "../../../loop/event_loop.ts";
import {
  ChildProcess,
  createPipe,
  Epoll,
  type ExitStatus,
  type Fd,
  NativeBuffer,
  openFd,
  Poll,
  pollFd,
  type ResourceBag,
  setBlocking,
  socketPair,
  spawnProcess,
} from "../../../os/mod.ts";
import { libc } from "../../../os/symbols.ts";

/** Its end of the socket pair. */
export const PEER_SOCKET_FD = 3;
/** The first of the descriptors that it is given besides. */
export const PEER_EXTRA_FD = 4;
const END_GRACE_MS = 500;
/** Most that is kept of what it says, in UTF-16 units. */
const WORDS_MAX = 4096;

/** A program that runs, on its way to its owner. */
export interface RunningPeer {
  readonly child: ChildProcess;
  /** Its words. */
  readonly stderr: Fd;
  /** The last that it said to a predecessor. */
  readonly said: string;
  /** Our end of its socket, where it was just started. */
  readonly socket: Fd | null;
}

/** PID_MAX_LIMIT of Linux on 64 bits. */
const PID_MAX = 4 * 1024 * 1024;
/** Names of its descriptors. */
const STDERR = "stderr";
const PIDFD = "pidfd";

/**
 * Picks what may be the reason of a program's end out of what it said.
 *
 * @param usual Lines that it says whatever happens
 * @returns One line, fit for a log; empty when there is none
 */
export function lastWords(said: string, usual: readonly RegExp[]): string {
  return said.split("\n")
    // deno-lint-ignore no-control-regex
    .map((line) => line.replaceAll(/[\x00-\x1f\x7f-\x9f]+/g, " ").trim())
    .filter((line) => line !== "" && !usual.some((usual) => usual.test(line)))
    .slice(-3).join("; ");
}

/** Program to start. */
export interface PeerCommand {
  readonly program: string;
  /** Arguments, the name of the program as the first. */
  readonly args: readonly string[];
  /** Those of our environment variables that it has: what else is there is none of its business. */
  readonly variables: readonly string[];
  /** Descriptors of ours that it gets too, from {@linkcode PEER_EXTRA_FD} on; they stay ours. */
  readonly fds?: readonly number[];
}

/**
 * Starts a program with a socket to it.
 *
 * @throws {import("../../../os/mod.ts").SyscallError}
 */
export function startPeer(command: PeerCommand): RunningPeer {
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
  const env: Record<string, string> = { NO_COLOR: "1" };
  for (const name of command.variables) {
    const value = environmentVariable(name);
    if (value !== undefined) env[name] = value;
  }
  const { program, args } = command;
  const child = spawnProcess({
    program,
    args,
    env,
    fds: [
      { from: nothing.number, to: 0 },
      { from: nothing.number, to: 1 },
      { from: writer.number, to: 2 },
      { from: theirs.number, to: PEER_SOCKET_FD },
      ...(command.fds ?? []).map((from, i) => ({
        from,
        to: PEER_EXTRA_FD + i,
      })),
    ],
  });
  undo.move();
  return { child, stderr, said: "", socket };
}

/**
 * Takes over a program from what {@linkcode PeerProcess.save} and {@linkcode PeerProcess.handOver} gave.
 *
 * @throws {import("../../../core/errno.ts").ErrnoError}
 */
export function takePeer(state: StateReader, bag: ResourceBag): RunningPeer {
  using undo = new DisposableStack();
  const said = state.text("said");
  const pid = state.integer("pid", PID_MAX);
  const stderr = undo.use(bag.take(STDERR));
  const child = new ChildProcess(pid, bag.take(PIDFD));
  undo.move();
  return { child, stderr, said, socket: null };
}

/**
 * A running program. It is to end by itself when its socket is closed, so that not even our own sudden end leaves one
 * behind.
 */
export class PeerProcess {
  readonly #child: ChildProcess;
  readonly #stderr: Fd;
  readonly #watches: FdWatch[] = [];
  readonly #onWords: (text: string) => void;
  #said: string;

  /**
   * @param peer Taken over, unless this throws
   * @param onExit Called once when it ends by itself; it is to be ended then
   * @param onWords Told of what it says, in pieces as they come
   * @throws {import("../../../os/mod.ts").SyscallError}
   */
  constructor(
    { child, stderr, said }: RunningPeer,
    loop: Loop,
    onExit: () => void,
    onWords: (text: string) => void,
  ) {
    this.#child = child;
    this.#stderr = stderr;
    this.#said = said;
    this.#onWords = onWords;
    const { number } = stderr;
    using undo = new DisposableStack();
    this.#watches.push(
      undo.use(loop.watch(number, Epoll.IN, () => void this.#listen())),
      undo.use(loop.watch(child.pidFd, Epoll.IN, () => {
        this.#stopWatching();
        onExit();
      })),
    );
    undo.move();
  }

  /** Its process id. */
  get pid(): number {
    return this.#child.pid;
  }

  /** The last it said; not all of it when that was much. */
  get said(): string {
    return this.#said;
  }

  /**
   * Waits until it says something, blocking.
   *
   * @returns The match; null when it has ended or did not say so in time
   */
  waitForWords(pattern: RegExp, timeoutMs: number): RegExpExecArray | null {
    const until = performance.now() + timeoutMs;
    for (;;) {
      const found = pattern.exec(this.#said);
      if (found !== null) return found;
      const left = until - performance.now();
      if (left <= 0 || !pollFd(this.#stderr.number, Poll.IN, left)) return null;
      if (this.#listen() === 0) return null;
    }
  }

  /** Waits for its end, blocking. @returns null when it runs still */
  waitForExit(timeoutMs: number): ExitStatus | null {
    const status = this.#child.reap(timeoutMs);
    if (status !== null) this.#listen();
    return status;
  }

  /** State for a successor; plain data. */
  save(): unknown {
    return { pid: this.pid, said: this.#said };
  }

  /** Puts its descriptors into a bag; {@linkcode leave} is to follow. */
  handOver(bag: ResourceBag): void {
    bag.put(STDERR, this.#stderr.number);
    bag.put(PIDFD, this.#child.pidFd);
  }

  /**
   * Ends it, by force if it hesitates, and leaves neither a process nor a descriptor.
   *
   * @returns Its exit status
   */
  end(): ExitStatus {
    this.#stopWatching();
    const status = this.#child.end(END_GRACE_MS);
    this.#listen();
    this.leave();
    return status;
  }

  /** Leaves it to another. */
  leave(): void {
    this.#stopWatching();
    this.#child.leave();
    this.#stderr.close();
  }

  #stopWatching(): void {
    for (const watch of this.#watches) watch.close();
  }

  /**
   * Takes what it says: it would stop at a full pipe.
   *
   * @returns 0 when it says no more, something else when it may
   */
  #listen(): number {
    using chunk = new NativeBuffer(WORDS_MAX);
    const n = libc.read(this.#stderr.number, chunk.pointer(), WORDS_MAX);
    if (n > 0) {
      const text = new TextDecoder().decode(chunk.bytes.subarray(0, n));
      this.#said = (this.#said + text).slice(-WORDS_MAX);
      this.#onWords(text);
    } else if (n === 0) this.#watches[0]?.close();
    return n;
  }
}
