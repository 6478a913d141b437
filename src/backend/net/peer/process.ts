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
  type Saved,
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
/** How much of what it says is kept. */
const WORDS_MAX = 4096;

/** A program that was just started. */
export interface StartedPeer {
  readonly child: ChildProcess;
  /** What it says. */
  readonly stderr: Fd;
  /** Our end of its socket. */
  readonly socket: Fd;
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
export function startPeer(command: PeerCommand): StartedPeer {
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
  return { child, stderr, socket };
}

/**
 * A running program. It is to end by itself when its socket is closed, so that not even our own sudden end leaves one
 * behind.
 */
export class PeerProcess implements Disposable {
  readonly #child: ChildProcess;
  readonly #stderr: Fd;
  readonly #chunk = new NativeBuffer(WORDS_MAX);
  readonly #chunkPointer = this.#chunk.pointer();
  readonly #watches: FdWatch[] = [];
  readonly #onWords: (text: string) => void;
  #socket: Fd | null = null;
  #said = "";
  #closed = false;

  /**
   * @param peer Just started, and taken over; or what a predecessor was and had open
   * @param onExit Called once when it ends by itself; it is to be closed then
   * @param onWords Told of what it says, in pieces as they come
   * @throws {import("../../../core/errno.ts").ErrnoError}
   */
  constructor(
    peer: StartedPeer | Saved<StateReader>,
    loop: Loop,
    onExit: () => void,
    onWords: (text: string) => void = () => {},
  ) {
    this.#onWords = onWords;
    if ("bag" in peer) {
      const { state, bag } = peer;
      const pid = state.integer("pid", PID_MAX);
      this.#said = state.text("said");
      this.#stderr = bag.take(STDERR);
      try {
        this.#child = new ChildProcess(pid, bag.take(PIDFD));
      } catch (error) {
        this.#stderr.close();
        throw error;
      }
    } else {
      this.#child = peer.child;
      this.#stderr = peer.stderr;
      this.#socket = peer.socket;
    }
    try {
      this.#watches.push(
        loop.watch(this.#stderr.number, Epoll.IN, () => void this.#listen()),
      );
      this.#watches.push(
        loop.watch(this.#child.pidFd, Epoll.IN, () => {
          for (const watch of this.#watches) watch.close();
          onExit();
        }),
      );
    } catch (error) {
      if ("bag" in peer) this.leave();
      else this.close();
      throw error;
    }
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
   * @returns What matched; null when it has ended or did not say so in time
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

  /** Our end of its socket, which becomes the caller's. */
  takeSocket(): Fd {
    const socket = this.#socket!;
    this.#socket = null;
    return socket;
  }

  /** What a successor must know. */
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
   * @returns How it ended
   */
  end(): ExitStatus {
    for (const watch of this.#watches) watch.close();
    this.#socket?.close();
    const status = this.#child.end(END_GRACE_MS);
    if (!this.#closed) this.#listen();
    this.leave();
    return status;
  }

  /** Leaves it to another. */
  leave(): void {
    this.#closed = true;
    for (const watch of this.#watches) watch.close();
    this.#child.leave();
    this.#stderr.close();
    this.#chunk.close();
  }

  /** Ends it. */
  close(): void {
    if (!this.#closed) this.end();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  /**
   * Takes what it says: it would stop at a full pipe.
   *
   * @returns 0 when it says no more, something else when it may
   */
  #listen(): number {
    const { bytes, lengthBytes } = this.#chunk;
    const n = libc.read(this.#stderr.number, this.#chunkPointer, lengthBytes);
    if (n > 0) {
      const text = new TextDecoder().decode(bytes.subarray(0, n));
      this.#said = (this.#said + text).slice(-WORDS_MAX);
      this.#onWords(text);
    } else if (n === 0) this.#watches[0]?.close();
    return n;
  }
}
