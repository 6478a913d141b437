/**
 * Taking connections that anybody may make, without becoming the prey of whoever makes too many.
 *
 * @module
 */

/** Source of connections; a `Deno.Listener` is one. */
export interface Acceptor {
  accept(): Promise<Deno.Conn>;
  close(): void;
}

/** Means by which whoever serves a connection tells the loop of it. */
export interface Attendance {
  /** Does what was asked for: meanwhile the connection is not idle. */
  attend<T>(work: () => Promise<T>): Promise<T>;
  /** From now on it may be silent for ever, for it listens. It makes room for others all the same. */
  listens(): void;
}

/** Settings of an accept loop. */
export interface AcceptOptions {
  /** Number of connections that are served at a time. For one more, an idle one is hung up on. */
  readonly most: number;
  /** Time one may be idle; for ever unless told. */
  readonly idleMs?: number;
  /** Serves one, and closes it; must not reject. */
  serve(conn: Deno.Conn, attendance: Attendance): Promise<void>;
}

/** Time to leave those who wait alone after accepting one has failed. */
const RETRY_MS = 100;

/** One that is served. */
class Served implements Attendance {
  readonly peer: string;
  readonly #conn: Deno.Conn;
  readonly #idleMs: number;
  readonly #onIdle: (served: Served) => void;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #listens = false;
  #closed = false;
  #busy = 0;
  /** True if it has asked for anything yet. */
  heard = false;

  constructor(
    conn: Deno.Conn,
    idleMs: number,
    onIdle: (served: Served) => void,
  ) {
    this.peer = peerOf(conn);
    this.#conn = conn;
    this.#idleMs = idleMs;
    this.#onIdle = onIdle;
    this.#wait();
  }

  get isIdle(): boolean {
    return this.#busy === 0;
  }

  async attend<T>(work: () => Promise<T>): Promise<T> {
    this.#busy++;
    this.heard = true;
    clearTimeout(this.#timer);
    try {
      return await work();
    } finally {
      this.#busy--;
      this.#wait();
      if (!this.#closed && this.isIdle) this.#onIdle(this);
    }
  }

  listens(): void {
    this.#listens = true;
    clearTimeout(this.#timer);
  }

  close(): void {
    this.end();
    closeConnection(this.#conn);
  }

  /** It has gone: nothing is waited for any more. */
  end(): void {
    this.#closed = true;
    clearTimeout(this.#timer);
  }

  #wait(): void {
    if (this.#closed || this.#listens || this.#idleMs === Infinity) return;
    this.#timer = setTimeout(() => this.close(), this.#idleMs);
  }
}

/**
 * Address of a peer. On a UNIX socket all are one, for its file says who they are, and the runtime gives no
 * descriptor to ask for more.
 */
function peerOf({ remoteAddr }: Deno.Conn): string {
  return remoteAddr.transport === "tcp" ? remoteAddr.hostname : "";
}

/**
 * Takes connections until it is closed. One that cannot be accepted, for lack of descriptors, is tried again.
 *
 * Whoever comes is served, as long as anybody is idle: of the peer with the most connections the one goes that has never
 * asked for anything, or else has been idle for longest.
 */
export class AcceptLoop {
  readonly #acceptor: Acceptor;
  readonly #options: AcceptOptions;
  /** Those that have been idle for longest first. */
  readonly #served = new Set<Served>();
  /** Goes on when somebody has gone or become idle, or with the end. */
  #moved = Promise.withResolvers<void>();
  #closed = false;

  constructor(acceptor: Acceptor, options: AcceptOptions) {
    this.#acceptor = acceptor;
    this.#options = options;
    this.#run();
  }

  /** Stops listening and hangs up. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#acceptor.close();
    for (const served of this.#served) served.close();
    this.#moved.resolve();
  }

  async #run(): Promise<void> {
    while (!this.#closed) {
      let conn: Deno.Conn;
      try {
        conn = await this.#acceptor.accept();
      } catch {
        if (!this.#closed) await this.#rest();
        continue;
      }
      while (!this.#closed && !this.#makeRoom(peerOf(conn))) {
        await this.#moved.promise;
        this.#moved = Promise.withResolvers();
      }
      this.#serve(conn);
    }
  }

  /** @returns Whether one more, of that peer, can be served */
  #makeRoom(peer: string): boolean {
    if (this.#served.size < this.#options.most) return true;
    const counts = new Map([[peer, 1]]);
    for (const { peer } of this.#served) {
      counts.set(peer, (counts.get(peer) ?? 0) + 1);
    }
    let last: Served | null = null;
    for (const served of this.#served) {
      if (!served.isIdle) continue;
      const more = last === null
        ? 1
        : counts.get(served.peer)! - counts.get(last.peer)!;
      if (more > 0 || more === 0 && last!.heard && !served.heard) last = served;
    }
    if (last === null) return false;
    this.#served.delete(last);
    last.close();
    return true;
  }

  #serve(conn: Deno.Conn): void {
    if (this.#closed) return closeConnection(conn);
    const served = new Served(
      conn,
      this.#options.idleMs ?? Infinity,
      (it) => this.#onIdle(it),
    );
    this.#served.add(served);
    this.#options.serve(conn, served).finally(() => {
      served.end();
      this.#served.delete(served);
      this.#moved.resolve();
    });
  }

  #onIdle(served: Served): void {
    // Behind all who have been idle for longer; it may have made room meanwhile.
    if (this.#served.delete(served)) this.#served.add(served);
    this.#moved.resolve();
  }

  async #rest(): Promise<void> {
    const timer = setTimeout(() => this.#moved.resolve(), RETRY_MS);
    await this.#moved.promise;
    this.#moved = Promise.withResolvers();
    clearTimeout(timer);
  }
}

/** Closes a connection, which its streams may have done already. */
export function closeConnection(conn: Deno.Conn): void {
  try {
    conn.close();
  } catch {
    // Closed already.
  }
}
