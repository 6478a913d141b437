/**
 * A program at the other end of a card's wire, as a child process: how it is started, listened to and ended.
 *
 * @module
 */

import { environmentVariable } from "../../../core/environment.ts";
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

/**
 * A {@linkcode PeerProcess} on its way to another thread. It is a child of the process, not of a thread: whichever
 * thread has it may wait for it and end it.
 */
export interface PeerProcessState {
  /** Nobody else's as long as it was not waited for, even when it has ended. */
  readonly pid: number;
  readonly said: string;
}

/** Names of its descriptors. */
const STDERR = "stderr";
const PIDFD = "pidfd";

/** Those of our environment variables that a program is to have, and nothing of ours that is none of its business. */
export function peerEnvironment(
  names: readonly string[],
): Record<string, string> {
  const env: Record<string, string> = {};
  for (const name of names) {
    const value = environmentVariable(name);
    if (value !== undefined) env[name] = value;
  }
  return env;
}

/** What to start. */
export interface PeerCommand {
  readonly program: string;
  /** Arguments, the name of the program as the first. */
  readonly args: readonly string[];
  readonly env: Readonly<Record<string, string>>;
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
  const child = spawnProcess({
    program: command.program,
    args: command.args,
    env: command.env,
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
   * @throws {import("../../../os/mod.ts").SyscallError}
   */
  constructor(
    peer: StartedPeer | Saved<PeerProcessState>,
    loop: Loop,
    onExit: () => void,
    onWords: (text: string) => void = () => {},
  ) {
    this.#onWords = onWords;
    if ("bag" in peer) {
      const { state, bag } = peer;
      this.#said = state.said;
      this.#stderr = bag.take(STDERR);
      try {
        this.#child = new ChildProcess(state.pid, bag.take(PIDFD));
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
  save(): PeerProcessState {
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
