/**
 * Taking connections that anybody may make, without becoming the prey of whoever makes too many.
 *
 * @module
 */

/** What takes connections; a `Deno.Listener` is one. */
export interface Acceptor {
  accept(): Promise<Deno.Conn>;
  close(): void;
}

/** How connections are taken. */
export interface AcceptOptions {
  /** How many are served at a time; the others wait in the backlog of the socket. */
  readonly most: number;
  /** Serves one, and closes it; must not reject. */
  serve(conn: Deno.Conn): Promise<void>;
}

/** How long to leave those who wait alone after accepting one has failed. */
const RETRY_MS = 100;

/** Takes connections until it is closed. One that cannot be accepted, for lack of descriptors, is tried again. */
export class AcceptLoop {
  readonly #acceptor: Acceptor;
  readonly #options: AcceptOptions;
  readonly #connections = new Set<Deno.Conn>();
  /** Goes on when somebody has gone, or with the end. */
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
    for (const conn of this.#connections) closeConnection(conn);
    this.#moved.resolve();
  }

  async #run(): Promise<void> {
    while (!this.#closed) {
      if (this.#connections.size >= this.#options.most) {
        await this.#moved.promise;
        this.#moved = Promise.withResolvers();
        continue;
      }
      let conn: Deno.Conn;
      try {
        conn = await this.#acceptor.accept();
      } catch {
        if (!this.#closed) await this.#rest();
        continue;
      }
      this.#serve(conn);
    }
  }

  #serve(conn: Deno.Conn): void {
    if (this.#closed) return closeConnection(conn);
    this.#connections.add(conn);
    this.#options.serve(conn).finally(() => {
      this.#connections.delete(conn);
      this.#moved.resolve();
    });
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
