/**
 * The host's end of a TCP transfer with a guest.
 *
 * @module
 */

/** SHA-256 of the bytes, as sha256sum(1) prints it. */
export async function sha256(bytes: Uint8Array<ArrayBuffer>): Promise<string> {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return [...digest].map((b) => b.toString(16).padStart(2, "0")).join("");
}

/** Bytes that compress badly and are the same in every run. */
export function testPattern(lengthBytes: number): Uint8Array<ArrayBuffer> {
  const words = new Uint32Array(lengthBytes / 4);
  let state = 0x2545f491;
  for (let i = 0; i < words.length; i++) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    words[i] = state;
  }
  return new Uint8Array(words.buffer);
}

/** Listens once and takes everything that the one connection sends. */
export class TcpSink implements Disposable {
  readonly #listener: Deno.TcpListener;
  /** Length and SHA-256 of what was received. */
  readonly received: Promise<{ lengthBytes: number; sha256: string }>;

  /** @param hostname Address to listen on */
  constructor(hostname: string) {
    this.#listener = Deno.listen({ hostname, port: 0 });
    this.received = this.#receive();
    this.received.catch(() => {}); // whoever waits for it is told
  }

  /** The port it listens on. */
  get port(): number {
    return this.#listener.addr.port;
  }

  async #receive(): Promise<{ lengthBytes: number; sha256: string }> {
    const conn = await this.#listener.accept();
    const bytes = new Uint8Array(
      await new Response(conn.readable).arrayBuffer(),
    );
    return { lengthBytes: bytes.length, sha256: await sha256(bytes) };
  }

  [Symbol.dispose](): void {
    this.#listener.close();
  }
}

/** Listens once and sends the bytes to the one connection. */
export class TcpSource implements Disposable {
  readonly #listener: Deno.TcpListener;
  /** Settles when everything was sent. */
  readonly sent: Promise<void>;

  /** @param hostname Address to listen on */
  constructor(hostname: string, bytes: Uint8Array<ArrayBuffer>) {
    this.#listener = Deno.listen({ hostname, port: 0 });
    this.sent = this.#send(bytes);
    this.sent.catch(() => {}); // whoever waits for it is told
  }

  /** The port it listens on. */
  get port(): number {
    return this.#listener.addr.port;
  }

  async #send(bytes: Uint8Array<ArrayBuffer>): Promise<void> {
    const conn = await this.#listener.accept();
    await new Response(bytes).body!.pipeTo(conn.writable);
  }

  [Symbol.dispose](): void {
    this.#listener.close();
  }
}

/** Sends back what each connection sends, until it ends. */
export class TcpEcho implements Disposable {
  readonly #listener: Deno.TcpListener;

  /** @param hostname Address to listen on */
  constructor(hostname: string) {
    this.#listener = Deno.listen({ hostname, port: 0 });
    void this.#serve();
  }

  /** The port it listens on. */
  get port(): number {
    return this.#listener.addr.port;
  }

  async #serve(): Promise<void> {
    try {
      for await (const conn of this.#listener) {
        // A connection that breaks is its own end's to report.
        conn.readable.pipeTo(conn.writable).catch(() => {});
      }
    } catch (error) {
      if (!(error instanceof Deno.errors.BadResource)) throw error;
    }
  }

  [Symbol.dispose](): void {
    this.#listener.close();
  }
}
