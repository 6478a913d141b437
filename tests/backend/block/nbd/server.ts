/**
 * An NBD server on a file, written from the protocol's description and not from the client: it takes its numbers from
 * nowhere in src/. It misbehaves where a test asks for it. Runs in a Worker, or as a program that can be killed.
 *
 * @module
 */

/** Behaviour of a server; can be changed while it runs, but for the place. */
export interface NbdServerOptions {
  /** Path of the socket to listen on; a TCP port of localhost without it. */
  readonly socket?: string;
  /** The file that holds the blocks; it must exist. */
  readonly file: string;
  readonly exportName?: string;
  /** Transmission flags; everything by default. */
  readonly flags?: number;
  readonly structured?: boolean;
  /** True if it knows NBD_OPT_GO. */
  readonly go?: boolean;
  /** True if it speaks fixed newstyle, and offers NO_ZEROES. */
  readonly fixed?: boolean;
  /** Minimum, preferred and maximum block. */
  readonly blocks?: readonly [number, number, number];
  /** Answers nothing until it is turned off. */
  readonly hold?: boolean;
  /** Stops reading requests until it is turned off. */
  readonly deaf?: boolean;
  /** Sends so many bytes of each reply, and the rest when it is raised. */
  readonly stall?: number;
  /** Waits for that many requests and answers them in reverse. */
  readonly reorder?: number;
  /** Cuts reads into chunks of that many bytes, the last one first; chunks of zeroes are holes. */
  readonly chunkBytes?: number;
  /** Errors by command. */
  readonly errors?: Readonly<Record<number, number>>;
  /** Misbehaviour. */
  readonly fault?: string;
  /** Requests after which it misbehaves. */
  readonly faultAfter?: number;
}

/** A request that a server was sent. */
export interface NbdServerRequest {
  readonly command: number;
  readonly flags: number;
  readonly offset: number;
  readonly length: number;
}

interface Held extends NbdServerRequest {
  readonly cookie: bigint;
  readonly data: Uint8Array;
}

const FLAGS_ALL = 0b110_1101;
const NO_ZEROES = 2;
const FIXED = 1;

class Reader {
  readonly #conn: Deno.Conn;
  #bytes = new Uint8Array(0);

  constructor(conn: Deno.Conn) {
    this.#conn = conn;
  }

  async take(count: number): Promise<DataView<ArrayBuffer>> {
    const out = new Uint8Array(count);
    let at = 0;
    while (at < count) {
      if (this.#bytes.length === 0) {
        const chunk = new Uint8Array(65536);
        const got = await this.#conn.read(chunk);
        if (got === null) throw new Error("end of stream");
        this.#bytes = chunk.subarray(0, got);
      }
      const part = this.#bytes.subarray(0, count - at);
      out.set(part, at);
      at += part.length;
      this.#bytes = this.#bytes.subarray(part.length);
    }
    return new DataView(out.buffer);
  }
}

function pack(
  ...fields: readonly (readonly [8 | 16 | 32 | 64, number | bigint])[]
): Uint8Array {
  const size = fields.reduce((sum, [bits]) => sum + bits / 8, 0);
  const view = new DataView(new ArrayBuffer(size));
  let at = 0;
  for (const [bits, value] of fields) {
    if (bits === 64) view.setBigUint64(at, BigInt(value));
    else if (bits === 32) view.setUint32(at, Number(value));
    else if (bits === 16) view.setUint16(at, Number(value));
    else view.setUint8(at, Number(value));
    at += bits / 8;
  }
  return new Uint8Array(view.buffer);
}

function join(...parts: readonly Uint8Array[]): Uint8Array {
  const out = new Uint8Array(parts.reduce((sum, it) => sum + it.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

/** One server with any number of connections. */
export class NbdServer {
  options: NbdServerOptions;
  readonly requests: NbdServerRequest[] = [];
  connections = 0;
  readonly #file: Deno.FsFile;
  readonly #listener: Deno.Listener;
  readonly #open = new Set<Connection>();

  constructor(options: NbdServerOptions) {
    this.options = options;
    this.#file = Deno.openSync(options.file, { read: true, write: true });
    this.#listener = options.socket === undefined
      ? Deno.listen({ hostname: "127.0.0.1", port: 0 })
      : Deno.listen({ transport: "unix", path: options.socket });
    this.#accept();
  }

  get port(): number {
    const { addr } = this.#listener;
    return addr.transport === "tcp" ? addr.port : 0;
  }

  get size(): number {
    return this.#file.statSync().size;
  }

  async #accept() {
    for await (const conn of this.#listener) {
      this.connections++;
      const connection = new Connection(this, conn);
      this.#open.add(connection);
      connection.run().catch(() => {}).finally(() => {
        this.#open.delete(connection);
        try {
          conn.close();
        } catch {
          // The fault was to close it.
        }
      });
    }
  }

  set(options: Partial<NbdServerOptions>): void {
    this.options = { ...this.options, ...options };
    for (const connection of this.#open) connection.wake();
  }

  read(offset: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    this.#file.seekSync(offset, Deno.SeekMode.Start);
    for (let at = 0; at < length;) {
      const got = this.#file.readSync(bytes.subarray(at));
      if (got === null) break;
      at += got;
    }
    return bytes;
  }

  write(offset: number, bytes: Uint8Array): void {
    this.#file.seekSync(offset, Deno.SeekMode.Start);
    for (let at = 0; at < bytes.length;) {
      at += this.#file.writeSync(bytes.subarray(at));
    }
  }

  sync(): void {
    this.#file.syncDataSync();
  }

  /** Ends every connection; new ones are taken. */
  hangUp(): void {
    for (const connection of this.#open) connection.close();
  }
}

class Connection {
  readonly #server: NbdServer;
  readonly #conn: Deno.Conn;
  readonly #reader: Reader;
  #structured = false;
  #held: Held[] = [];
  #seen = 0;
  #wakeUp: (() => void) | null = null;
  #goOn: (() => void) | null = null;
  #sending: Promise<void> = Promise.resolve();

  constructor(server: NbdServer, conn: Deno.Conn) {
    this.#server = server;
    this.#conn = conn;
    this.#reader = new Reader(conn);
  }

  get #options(): NbdServerOptions {
    return this.#server.options;
  }

  close(): void {
    this.#conn.close();
  }

  wake(): void {
    this.#wakeUp?.();
    this.#wakeUp = null;
    this.#goOn?.();
    this.#goOn = null;
    this.#answerHeld();
  }

  #send(...parts: readonly Uint8Array[]): void {
    const bytes = join(...parts);
    this.#sending = this.#sending.then(async () => {
      for (let at = 0; at < bytes.length;) {
        const { stall = Infinity } = this.#options;
        if (at < stall) {
          at += await this.#conn.write(bytes.subarray(at, stall));
        } else await new Promise<void>((resolve) => this.#goOn = resolve);
      }
    }).catch(() => {});
  }

  async run(): Promise<void> {
    if (await this.#negotiate()) await this.#transmit();
    await this.#sending;
  }

  async #negotiate(): Promise<boolean> {
    const { fault } = this.#options;
    if (fault === "http") {
      this.#send(new TextEncoder().encode("HTTP/1.1 400 Bad Request\r\n\r\n"));
      return false;
    }
    if (fault === "mute") {
      await new Promise<void>((resolve) => this.#wakeUp = resolve);
      return false;
    }
    const style = fault === "oldstyle"
      ? 0x0000_4202_8186_1253n
      : 0x49484156454F5054n;
    const fixed = this.#options.fixed ?? true;
    this.#send(
      pack([64, 0x4e42444d41474943n], [64, style], [
        16,
        fixed ? FIXED | NO_ZEROES : 0,
      ]),
    );
    const answer = (await this.#reader.take(4)).getUint32(0);
    if (answer !== (fixed ? FIXED | NO_ZEROES : 0)) return false;
    for (;;) {
      const head = await this.#reader.take(16);
      if (head.getBigUint64(0) !== 0x49484156454F5054n) return false;
      const option = head.getUint32(8);
      const data = await this.#reader.take(head.getUint32(12));
      const done = this.#option(option, data, fixed);
      if (done !== null) return done;
    }
  }

  #reply(option: number, type: number, data: Uint8Array = new Uint8Array()) {
    this.#send(
      pack([64, 0x0003e889045565a9n], [32, option], [32, type], [
        32,
        data.length,
      ]),
      data,
    );
  }

  /** null to go on, else whether transmission begins. */
  #option(
    option: number,
    data: DataView<ArrayBuffer>,
    fixed: boolean,
  ): boolean | null {
    const { fault, exportName = "", structured = true, go = true, blocks } =
      this.#options;
    const size = this.#server.size;
    const flags = this.#options.flags ?? FLAGS_ALL;
    const text = (from: number, length: number) =>
      new TextDecoder().decode(new Uint8Array(data.buffer, from, length));
    const UNSUP = 0x8000_0001;
    if (option === 8) {
      if (fault === "hugeOption") {
        this.#send(
          pack([64, 0x0003e889045565a9n], [32, 8], [32, 1], [32, 0x7fffffff]),
        );
        return null;
      }
      this.#structured = structured;
      this.#reply(option, structured ? 1 : UNSUP);
      return null;
    }
    if (option === 1) {
      if (text(0, data.byteLength) !== exportName) return false;
      this.#send(
        pack([64, size], [16, flags]),
        new Uint8Array(fixed ? 0 : 124),
      );
      return true;
    }
    if (option !== 7 || !go) {
      this.#reply(option, UNSUP);
      return null;
    }
    if (fault === "tls") {
      this.#reply(7, 0x8000_0005);
      return null;
    }
    if (text(4, data.getUint32(0)) !== exportName) {
      this.#reply(
        7,
        0x8000_0006,
        new TextEncoder().encode("no\x07 such thing"),
      );
      return null;
    }
    if (fault !== "noInfo") {
      this.#reply(7, 3, pack([16, 0], [64, size], [16, flags]));
    }
    this.#reply(7, 3, pack([16, 77], [32, 5]));
    if (blocks !== undefined) {
      const [least, best, most] = blocks;
      this.#reply(7, 3, pack([16, 3], [32, least], [32, best], [32, most]));
    }
    this.#reply(7, 1);
    return true;
  }

  async #transmit(): Promise<void> {
    for (;;) {
      while (this.#options.deaf) {
        await new Promise<void>((resolve) => this.#wakeUp = resolve);
      }
      const head = await this.#reader.take(28);
      if (head.getUint32(0) !== 0x25609513) throw new Error("bad request");
      const request = {
        flags: head.getUint16(4),
        command: head.getUint16(6),
        cookie: head.getBigUint64(8),
        offset: Number(head.getBigUint64(16)),
        length: head.getUint32(24),
      };
      const data = request.command === 1
        ? new Uint8Array((await this.#reader.take(request.length)).buffer)
        : new Uint8Array(0);
      const { flags, command, offset, length } = request;
      this.#server.requests.push({ command, flags, offset, length });
      if (command === 2) return;
      this.#held.push({ ...request, data });
      if (this.#held.length >= (this.#options.reorder ?? 1)) {
        this.#answerHeld();
      }
    }
  }

  #answerHeld(): void {
    if (this.#options.hold) return;
    const held = this.#held;
    this.#held = [];
    if (this.#options.reorder !== undefined) held.reverse();
    for (const request of held) {
      const { fault, faultAfter = 0 } = this.#options;
      if (fault !== undefined && this.#seen++ >= faultAfter) {
        this.#misbehave(fault, request);
      } else this.#answer(request);
    }
  }

  #simple(error: number, cookie: bigint): Uint8Array {
    return pack([32, 0x67446698], [32, error], [64, cookie]);
  }

  #chunk(
    flags: number,
    type: number,
    cookie: bigint,
    data: Uint8Array,
  ): Uint8Array {
    return join(
      pack([32, 0x668e33ef], [16, flags], [16, type], [64, cookie], [
        32,
        data.length,
      ]),
      data,
    );
  }

  #answer(request: Held): void {
    const { command, flags, offset, length, cookie, data } = request;
    const error = this.#options.errors?.[command] ?? 0;
    if (error !== 0) {
      const message = new TextEncoder().encode("it cannot be done");
      this.#send(
        this.#structured
          ? this.#chunk(
            1,
            0x8001,
            cookie,
            join(pack([32, error], [16, message.length]), message),
          )
          : this.#simple(error, cookie),
      );
      return;
    }
    const server = this.#server;
    if (command === 0) return this.#answerRead(request);
    if (command === 1) server.write(offset, data);
    if (command === 3 || (flags & 1) !== 0) server.sync();
    if (command === 4) server.write(offset, new Uint8Array(length).fill(0xdd));
    if (command === 6) server.write(offset, new Uint8Array(length));
    // Either form is allowed where there is no data.
    const structured = this.#structured && (offset / 512) % 2 === 1;
    this.#send(
      structured
        ? this.#chunk(1, 0, cookie, new Uint8Array(0))
        : this.#simple(0, cookie),
    );
  }

  #answerRead({ offset, length, cookie }: Held): void {
    const bytes = this.#server.read(offset, length);
    if (!this.#structured) {
      return this.#send(this.#simple(0, cookie), bytes);
    }
    const step = this.#options.chunkBytes ?? length;
    const last = Math.floor((length - 1) / step) * step;
    for (let at = last; at >= 0; at -= step) {
      const part = bytes.subarray(at, Math.min(at + step, length));
      const hole = part.every((byte) => byte === 0);
      this.#send(this.#chunk(
        0,
        hole ? 2 : 1,
        cookie,
        hole
          ? pack([64, offset + at], [32, part.length])
          : join(pack([64, offset + at]), part),
      ));
    }
    this.#send(this.#chunk(1, 0, cookie, new Uint8Array(0)));
  }

  #misbehave(fault: string, request: Held): void {
    const { offset, length, cookie } = request;
    const data = (at: number, count: number) =>
      join(pack([64, at]), new Uint8Array(count).fill(0xbb));
    // Only once, so that the next connection can do better.
    this.#server.set({ fault: undefined! });
    switch (fault) {
      case "hangUp":
        return this.#conn.close();
      case "halfReply":
        this.#send(this.#simple(0, cookie).subarray(0, 9));
        this.#sending.then(() => this.#conn.close());
        return;
      case "badMagic":
        return this.#send(pack([32, 0xdeadbeef], [32, 0], [64, cookie]));
      case "otherCookie":
        return this.#send(this.#simple(5, cookie + 1n));
      case "oldCookie":
        return this.#send(this.#simple(5, cookie - (1n << 32n)));
      case "twice":
        return this.#send(this.#simple(5, cookie), this.#simple(5, cookie));
      case "simpleRead":
        return this.#send(this.#simple(0, cookie), new Uint8Array(length));
      case "shutdown":
        return this.#send(this.#simple(108, cookie));
      case "before":
        return this.#send(this.#chunk(1, 1, cookie, data(offset - 1, 512)));
      case "behind":
        return this.#send(
          this.#chunk(1, 1, cookie, data(offset + length - 511, 512)),
        );
      case "far":
        return this.#send(this.#chunk(1, 1, cookie, data(2 ** 53, 512)));
      case "huge":
        return this.#send(
          pack([32, 0x668e33ef], [16, 1], [16, 1], [64, cookie], [
            32,
            0xffffffff,
          ]),
          data(offset, 512),
        );
      case "again":
        return this.#send(
          this.#chunk(0, 1, cookie, data(offset, length)),
          this.#chunk(1, 1, cookie, data(offset, 512)),
        );
      case "short":
        return this.#send(
          this.#chunk(1, 1, cookie, data(offset, length - 512)),
        );
      case "nothing":
        return this.#send(this.#chunk(1, 0, cookie, new Uint8Array(0)));
      case "emptyHole":
        return this.#send(
          this.#chunk(1, 2, cookie, pack([64, offset], [32, 0])),
        );
      case "wideHole":
        return this.#send(
          this.#chunk(1, 2, cookie, pack([64, offset], [32, 0xffffffff])),
        );
      case "unknownType":
        return this.#send(this.#chunk(1, 99, cookie, new Uint8Array(12)));
      case "longMessage":
        return this.#send(
          this.#chunk(1, 0x8001, cookie, pack([32, 5], [16, 9])),
        );
      case "hugeError":
        return this.#send(
          pack([32, 0x668e33ef], [16, 1], [16, 0x8001], [64, cookie], [
            32,
            0x10000000,
          ]),
        );
      default:
        throw new Error(`There is no fault ${fault}`);
    }
  }
}

if (import.meta.main) {
  const server = new NbdServer(JSON.parse(Deno.args[0]!));
  console.log(`listening ${server.port}`);
}
