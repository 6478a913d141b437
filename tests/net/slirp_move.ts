/**
 * A program that moves a card on libslirp between two threads while a TCP connection goes through it, and prints what
 * came of it as JSON. In the end the first thread is gone, and with it every callback that it ever made.
 *
 * It is a process of its own because a runtime keeps descriptors of its Workers for a while, which other tests count.
 *
 * @module
 */

import { openFds } from "../resources.ts";
import { testLibslirp } from "./libslirp.ts";
import type { GivenCard, MoveReply, MoveRequest } from "./slirp_move_worker.ts";
import { MOVES } from "./traveller.ts";
import { HostSocket, STREAM } from "./sockets.ts";

const STEP_BYTES = 100_000;

const found = await testLibslirp();
if ("skip" in found) throw new Error(found.skip);
const { library } = found;

/** A thread that answers one request after the other. */
class Thread {
  readonly #worker = new Worker(
    new URL("slirp_move_worker.ts", import.meta.url),
    { type: "module" },
  );

  ask(request: MoveRequest): Promise<MoveReply> {
    return new Promise((resolve, reject) => {
      this.#worker.onmessage = ({ data }) => resolve(data);
      this.#worker.onerror = (event) => {
        event.preventDefault();
        reject(new Error(event.message));
      };
      this.#worker.postMessage(request);
    });
  }

  end(): void {
    this.#worker.terminate();
  }
}

/** Runs while a thread is at work: the host's end of the connection is this thread's. */
async function meanwhile<T>(work: Promise<T>, step: () => void): Promise<T> {
  let done = false;
  const finished = work.finally(() => done = true);
  // Nobody tells when the socket has room: the thread at the other end of it is at work.
  while (!done) {
    step();
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
  return await finished;
}

/** Whether libslirp is mapped. */
function isLoaded(): boolean {
  return /libslirp/.test(Deno.readTextFileSync("/proc/self/maps"));
}

const threads = [new Thread(), new Thread()] as const;
// The code of both is loaded, and what runtimes open for it.
for (const thread of threads) await thread.ask({ ask: "prepare", library });
const port = HostSocket.freePort(STREAM);
await threads[0].ask({ ask: "open", library, port });
const client = HostSocket.connect(STREAM, port);
let sentBytes = 0;
let sentSum = 0;
let gotBytes = 0;
let gotSum = 0;
const chunk = new Uint8Array(30_000);

/** A sum in which the place of each byte counts. */
function add(sum: number, at: number, bytes: Uint8Array): number {
  for (const byte of bytes) sum = (sum + (byte + 1) * (at++ % 65_521)) | 0;
  return sum;
}

function exchange(upTo: number): void {
  if (sentBytes < upTo) {
    const part = chunk.subarray(0, Math.min(chunk.length, upTo - sentBytes));
    for (let i = 0; i < part.length; i++) part[i] = (sentBytes + i) * 7 >>> 3;
    const n = client.write(part);
    sentSum = add(sentSum, sentBytes, part.subarray(0, n));
    sentBytes += n;
  }
  const came = client.read();
  if (came === null) return;
  gotSum = add(gotSum, gotBytes, came);
  gotBytes += came.length;
}

const fds: number[] = [];
let given: GivenCard;
for (let i = 0; i < MOVES; i++) {
  const thread = threads[i % 2]!;
  const next = threads[(i + 1) % 2]!;
  const bytes = (i + 1) * STEP_BYTES;
  // It moves while bytes are under way both ways.
  const reply = await meanwhile(
    thread.ask({ ask: "run", bytes: bytes - STEP_BYTES / 4 }),
    () => exchange(bytes),
  );
  if (!reply.established) throw new Error("no connection");
  fds.push(openFds());
  given = (await thread.ask({ ask: "give" })).given as GivenCard;
  // Closed before or after: at first nothing but the pin holds the library then.
  const early = i % 3 === 0;
  if (early) await thread.ask({ ask: "close" });
  if (!isLoaded()) throw new Error("the library is gone");
  if (i % 5 === 0) {
    const { error } = await next.ask({ ask: "take in vain", library, given });
    if (error === undefined) throw new Error("a state that cannot be passes");
  }
  await next.ask({ ask: "take", library, given });
  if (!early) await thread.ask({ ask: "close" });
}
// The card is with the first thread, which ends after one more move.
given = (await threads[0].ask({ ask: "give" })).given as GivenCard;
await threads[0].ask({ ask: "close" });
threads[0].end();
// Minutes pass until libslirp's timer is due.
for (const timer of given.net.timers.timers) timer.expireMs = 1;
await threads[1].ask({ ask: "take", library, given });
const total = (MOVES + 1) * STEP_BYTES;
const last = await meanwhile(
  threads[1].ask({ ask: "run", bytes: total, flush: true }),
  () => exchange(total),
);
for (let had = -1; had !== gotBytes;) {
  had = gotBytes;
  exchange(total);
}
client.close();
await threads[1].ask({ ask: "close" });
threads[1].end();
console.log(JSON.stringify({
  sentBytes,
  gotBytes,
  same: sentSum === gotSum,
  guestBytes: last.receivedBytes,
  advertisements: last.advertisements,
  fdsGained: fds.at(-1)! - fds[0]!,
  // The port is not forwarded any more.
  free: Deno.listen({ hostname: "127.0.0.1", port }).addr !== null,
}));
Deno.exit(0);
