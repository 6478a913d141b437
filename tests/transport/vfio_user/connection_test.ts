import { TimelessLoop } from "./rig.ts";
import { assert, assertEquals, assertThrows } from "@std/assert";
import { EventLoop } from "../../../src/loop/event_loop.ts";
import {
  closeFd,
  createEventFd,
  createMemfd,
  socketPair,
  SyscallError,
} from "../../../src/os/mod.ts";
import {
  BYTES_PER_TURN,
  Connection,
  type ConnectionHandler,
  Handled,
  MESSAGES_PER_TURN,
} from "../../../src/transport/vfio_user/connection.ts";
import { concat, message, RawClient, words } from "./raw_client.ts";
import { openFds } from "./rig.ts";

const MAX_MESSAGE_BYTES = 4096;

/** Answers each message with its first `replyBytes` bytes, or with nothing; notes what came. */
class Recorder implements ConnectionHandler {
  connection!: Connection;
  readonly messages: { id: number; size: number; fdCount: number }[] = [];
  readonly closed: string[] = [];
  replyBytes = 0;
  replyFds: readonly number[] = [];

  onMessage(at: number, sizeBytes: number): Handled {
    const { incoming, outgoing, fds, outAt } = this.connection;
    const id = incoming.getUint16(at, true);
    this.messages.push({ id, size: sizeBytes, fdCount: fds.count });
    if (this.replyBytes === 0) return Handled.DONE;
    outgoing.setUint16(outAt, id, true);
    outgoing.setUint32(outAt + 4, this.replyBytes, true);
    outgoing.setUint32(outAt + 8, 1, true);
    this.connection.send(this.replyBytes, this.replyFds);
    return Handled.DONE;
  }

  onClose(reason: string): void {
    this.closed.push(reason);
  }
}

class Pair {
  readonly loop = new TimelessLoop();
  readonly recorder = new Recorder();
  readonly connection: Connection;
  readonly client: RawClient;

  constructor(maxMessageBytes = MAX_MESSAGE_BYTES) {
    const [ours, theirs] = socketPair();
    this.client = new RawClient(theirs);
    this.connection = new Connection(
      this.loop,
      ours,
      maxMessageBytes,
      this.recorder,
    );
    this.recorder.connection = this.connection;
  }

  settle(): void {
    for (let i = 0; i < 1000 && this.loop.turn(0); i++);
  }

  get ids(): number[] {
    return this.recorder.messages.map(({ id }) => id);
  }

  get fdCounts(): number[] {
    return this.recorder.messages.map(({ fdCount }) => fdCount);
  }

  [Symbol.dispose](): void {
    this.connection.close("test over");
    this.client.close();
    this.loop.close();
  }
}

function numbered(id: number, payloadBytes = 8): Uint8Array {
  return message(13, new Uint8Array(payloadBytes), { id });
}

Deno.test("Connection puts messages together that arrive byte by byte", () => {
  using pair = new Pair();
  for (const byte of concat(numbered(1), numbered(2, 0), numbered(3, 40))) {
    pair.client.send(new Uint8Array([byte]));
    pair.loop.turn(0);
  }
  assertEquals(pair.recorder.messages, [
    { id: 1, size: 24, fdCount: 0 },
    { id: 2, size: 16, fdCount: 0 },
    { id: 3, size: 56, fdCount: 0 },
  ]);
});

Deno.test("Connection takes messages apart that arrive together, in order", () => {
  using pair = new Pair();
  pair.client.send(
    concat(...Array.from({ length: 20 }, (_, i) => numbered(i, i))),
  );
  pair.settle();
  assertEquals(pair.ids, Array.from({ length: 20 }, (_, i) => i));
});

Deno.test("Connection handles any split of a stream alike", () => {
  using pair = new Pair();
  const stream = concat(numbered(1, 3), numbered(2, 0), numbered(3, 11));
  let expected = 0;
  for (let cut = 1; cut < stream.length; cut++) {
    pair.client.send(stream.slice(0, cut));
    pair.loop.turn(0);
    pair.client.send(stream.slice(cut));
    pair.settle();
    expected += 3;
    assertEquals(pair.recorder.messages.length, expected, `cut at ${cut}`);
  }
});

Deno.test("Connection keeps its place over many buffers of large messages", () => {
  using pair = new Pair();
  const stream = concat(
    ...Array.from({ length: 60 }, (_, i) => numbered(i, 4000 - i)),
  );
  for (let at = 0; at < stream.length; at += 7001) {
    pair.client.send(stream.slice(at, at + 7001));
    pair.settle();
  }
  assertEquals(pair.ids, Array.from({ length: 60 }, (_, i) => i));
});

Deno.test("Connection handles a bounded number of messages a turn", () => {
  using pair = new Pair();
  const count = 5 * MESSAGES_PER_TURN;
  pair.client.send(
    concat(...Array.from({ length: count }, (_, i) => numbered(i, 0))),
  );
  let before = 0;
  while (pair.recorder.messages.length < count) {
    assert(pair.loop.turn(0));
    const now = pair.recorder.messages.length;
    // Once from the descriptor, once from the bottom half.
    assert(now - before <= 2 * MESSAGES_PER_TURN);
    before = now;
  }
  assertEquals(pair.ids, Array.from({ length: count }, (_, i) => i));
});

Deno.test("Connection handles a bounded number of bytes a turn, replies included", () => {
  using pair = new Pair(BYTES_PER_TURN);
  pair.recorder.replyBytes = BYTES_PER_TURN / 4;
  const count = 9;
  pair.client.send(
    concat(...Array.from({ length: count }, (_, i) => numbered(i, 0))),
  );
  // Once from the descriptor, once from the bottom half.
  for (const handled of [8, 9]) {
    pair.loop.turn(0);
    assertEquals(pair.ids.length, handled);
  }
});

Deno.test("Connection gives descriptors to the message they came with", () => {
  using pair = new Pair();
  using fd = createEventFd();
  const n = fd.number;
  pair.client.send(numbered(1));
  pair.client.send(numbered(2), [n, n]);
  pair.client.send(numbered(3));
  pair.client.send(numbered(4), [n]);
  pair.settle();
  assertEquals(pair.ids, [1, 2, 3, 4]);
  assertEquals(pair.fdCounts, [0, 2, 0, 1]);
});

Deno.test("Connection gives descriptors to the message that starts last in what came at once", () => {
  using pair = new Pair();
  using fd = createEventFd();
  pair.client.send(concat(numbered(1), numbered(2), numbered(3)), [fd.number]);
  pair.settle();
  assertEquals(pair.fdCounts, [0, 0, 1]);
  // The last one is not even whole.
  pair.client.send(concat(numbered(4), numbered(5).slice(0, 5)), [fd.number]);
  pair.settle();
  pair.client.send(numbered(5).slice(5));
  pair.settle();
  assertEquals(pair.ids, [1, 2, 3, 4, 5]);
  assertEquals(pair.fdCounts, [0, 0, 1, 0, 1]);
});

Deno.test("Connection collects the descriptors of a message that comes in parts", () => {
  using pair = new Pair();
  using fd = createEventFd();
  const bytes = numbered(1, 30);
  pair.client.send(bytes.slice(0, 3), [fd.number]);
  pair.loop.turn(0);
  pair.client.send(bytes.slice(3, 20));
  pair.loop.turn(0);
  pair.client.send(bytes.slice(20), [fd.number, fd.number]);
  pair.settle();
  assertEquals(pair.fdCounts, [3]);
  // Parts that wait together come in separate receives, each with its own descriptors.
  pair.client.send(bytes.slice(0, 3), [fd.number]);
  pair.client.send(bytes.slice(3), [fd.number]);
  pair.client.send(numbered(2), [fd.number]);
  pair.settle();
  assertEquals(pair.fdCounts, [3, 2, 1]);
});

Deno.test("Connection closes descriptors that no handler takes", () => {
  using pair = new Pair();
  using fd = createEventFd();
  const before = openFds();
  for (let i = 0; i < 10; i++) {
    pair.client.send(numbered(i), [fd.number, fd.number, fd.number]);
    pair.settle();
  }
  pair.client.send(numbered(11).slice(0, 9), [fd.number]);
  pair.settle();
  assertEquals(openFds(), before + 1, "the unfinished message holds one");
  pair.connection.close("enough");
  assertEquals(openFds(), before - 1, "that one and the socket are gone");
});

Deno.test("Connection drops a client that sends more descriptors than a message may have", () => {
  using pair = new Pair();
  using fd = createEventFd();
  const many = new Array<number>(200).fill(fd.number);
  const before = openFds();
  pair.client.send(new Uint8Array(4), many);
  pair.settle();
  pair.client.send(new Uint8Array(4), many);
  pair.settle();
  assertEquals(pair.recorder.closed, ["it sent too many file descriptors"]);
  assertEquals(openFds(), before - 1);
});

Deno.test("Connection queues what a client does not read, stops reading from it, and loses nothing", () => {
  using pair = new Pair();
  pair.recorder.replyBytes = MAX_MESSAGE_BYTES;
  let sent = 0;
  // Its socket fills up, then our queue, then we stop reading, then its sends do not go through any more.
  while (pair.client.send(numbered(sent)) > 0) {
    sent++;
    pair.settle();
  }
  assert(pair.recorder.messages.length < sent, "it is not read from any more");
  assert(pair.connection.queuedBytes <= 2 * MAX_MESSAGE_BYTES);
  assert(!pair.loop.turn(0), "the loop sleeps");
  for (let id = 0; id < sent; id++) {
    const reply = pair.client.await(pair.loop);
    assertEquals(reply.id, id);
    assertEquals(reply.payload.byteLength, MAX_MESSAGE_BYTES - 16);
  }
  pair.settle();
  assertEquals(pair.connection.queuedBytes, 0);
  pair.recorder.replyBytes = 16;
  pair.client.send(numbered(sent));
  assertEquals(pair.client.await(pair.loop).id, sent);
});

Deno.test("Connection sends the descriptors of a queued message with that message", () => {
  using pair = new Pair();
  using fd = createMemfd("test", 4096);
  const fds = new Map<number, number>();
  const before = openFds();
  pair.recorder.replyBytes = 3000;
  let sent = 0;
  for (; pair.connection.queuedBytes < 3000; sent++) {
    pair.client.send(numbered(sent));
    pair.settle();
  }
  pair.recorder.replyFds = [fd.number, fd.number];
  pair.client.send(numbered(sent));
  pair.settle();
  pair.recorder.replyFds = [];
  for (let id = 0; id <= sent; id++) {
    const reply = pair.client.await(pair.loop);
    assertEquals(reply.id, id);
    fds.set(id, reply.fds.length);
    reply.fds.forEach(closeFd);
  }
  assertEquals(fds.get(sent), 2);
  assertEquals([...fds.values()].reduce((sum, n) => sum + n), 2);
  assertEquals(openFds(), before);
});

Deno.test("Connection keeps large messages in order while they move forward in its queue", () => {
  const large = 1 << 20;
  using pair = new Pair(large);
  using fd = createMemfd("test", 4096);
  const answer = (id: number, replyBytes: number, fds: readonly number[]) => {
    pair.recorder.replyBytes = replyBytes;
    pair.recorder.replyFds = fds;
    pair.client.send(numbered(id));
    pair.settle();
  };
  // The first is sent in part, so the third only fits once what is left has moved to the front.
  answer(1, large, []);
  answer(2, 100, [fd.number]);
  answer(3, large, [fd.number, fd.number]);
  assert(pair.connection.queuedBytes > large);
  assertEquals(pair.ids, [1, 2, 3]);
  const counts = [1, 2, 3].map((id) => {
    const reply = pair.client.await(pair.loop);
    assertEquals(reply.id, id);
    reply.fds.forEach(closeFd);
    return reply.fds.length;
  });
  assertEquals(counts, [0, 1, 2]);
});

Deno.test("Connection sleeps while its queue stays full, though the client reads a little", () => {
  const large = 1 << 20;
  using pair = new Pair(large);
  pair.recorder.replyBytes = large;
  for (let id = 0; id < 4; id++) {
    pair.client.send(numbered(id));
    pair.settle();
  }
  assertEquals(pair.ids, [0, 1]);
  const before = pair.connection.queuedBytes;
  pair.client.receive();
  for (let i = 0; i < 10 && pair.loop.turn(0); i++);
  assert(pair.connection.queuedBytes < before, "some of it has left");
  assertEquals(pair.ids, [0, 1], "there is no room yet");
  assert(!pair.loop.turn(0));
  for (let id = 0; id < 4; id++) {
    assertEquals(pair.client.await(pair.loop).id, id);
  }
});

Deno.test("Connection ends when the client goes, also while it is not read from", () => {
  using pair = new Pair();
  pair.recorder.replyBytes = MAX_MESSAGE_BYTES;
  for (let i = 0; pair.client.send(numbered(i)) > 0; i++) pair.settle();
  pair.client.close();
  pair.settle();
  assertEquals(pair.recorder.closed.length, 1);
  pair.connection.close("again");
  assertEquals(pair.recorder.closed.length, 1);
  assert(!pair.loop.turn(0));
});

Deno.test("Connection that cannot watch its socket gives its buffers back", () => {
  const mappedPages = () =>
    Number(Deno.readTextFileSync("/proc/self/statm").split(" ")[0]);
  using loop = new EventLoop();
  // A file cannot be watched.
  using file = createMemfd("test-no-socket", 0);
  const maxMessageBytes = 1 << 30;
  const before = mappedPages();
  assertThrows(
    () => new Connection(loop, file, maxMessageBytes, new Recorder()),
    SyscallError,
    "EPERM",
  );
  assert(mappedPages() - before < maxMessageBytes / 4096);
  assert(file.number >= 0);
});

Deno.test("Connection may be closed by the handler of a message", () => {
  using pair = new Pair();
  const { recorder } = pair;
  recorder.onMessage = (at) => {
    recorder.connection.close("by the handler");
    // The buffers outlive the handler.
    assertEquals(recorder.connection.incoming.getUint16(at, true), 1);
    assertEquals(recorder.closed, []);
    return Handled.DONE;
  };
  pair.client.send(concat(numbered(1), numbered(2)));
  pair.settle();
  assertEquals(recorder.closed, ["by the handler"]);
});

Deno.test("Connection refuses a message above its limit and one shorter than a header", () => {
  for (
    const [size, errno] of [
      [MAX_MESSAGE_BYTES + 1, 90],
      [15, 22],
    ]
  ) {
    using pair = new Pair();
    pair.client.send(message(13, words(), { size: size! }));
    const reply = pair.client.await(pair.loop);
    assertEquals([reply.errno, reply.flags], [errno, 0x21]);
    assertEquals(pair.recorder.closed.length, 1);
    assertEquals(pair.recorder.messages, []);
  }
  using pair = new Pair();
  pair.client.send(numbered(1, MAX_MESSAGE_BYTES - 16));
  pair.settle();
  assertEquals(pair.ids, [1]);
});
