import { assert, assertEquals } from "@std/assert";
import { EventLoop } from "../../../src/loop/event_loop.ts";
import {
  closeFd,
  createEventFd,
  createMemfd,
  ResourceBag,
  socketPair,
} from "../../../src/os/mod.ts";
import {
  Connection,
  type ConnectionHandler,
  Handled,
} from "../../../src/transport/vfio_user/connection.ts";
import { openFds } from "../../resources.ts";
import { concat, message, RawClient } from "./raw_client.ts";

const MAX_MESSAGE_BYTES = 4096;

/** Notes what comes and answers each message with its first `replyBytes` bytes. */
class Recorder implements ConnectionHandler {
  connection!: Connection;
  readonly messages: { id: number; size: number; fdCount: number }[] = [];
  readonly closed: string[] = [];
  replyBytes: (id: number) => number = () => 0;
  replyFds: readonly number[] = [];

  onMessage(at: number, sizeBytes: number): Handled {
    const { incoming, outgoing, fds, outAt } = this.connection;
    const id = incoming.getUint16(at, true);
    this.messages.push({ id, size: sizeBytes, fdCount: fds.count });
    const replyBytes = this.replyBytes(id);
    if (replyBytes === 0) return Handled.DONE;
    outgoing.setUint16(outAt, id, true);
    outgoing.setUint32(outAt + 4, replyBytes, true);
    outgoing.setUint32(outAt + 8, 1, true);
    for (let i = 16; i < replyBytes; i++) {
      outgoing.setUint8(outAt + i, id + i);
    }
    this.connection.send(replyBytes, this.replyFds);
    return Handled.DONE;
  }

  onClose(reason: string): void {
    this.closed.push(reason);
  }
}

/** A connection that moves between two loops. */
class Mover {
  readonly loops = [new EventLoop(), new EventLoop()] as const;
  readonly recorder = new Recorder();
  readonly client: RawClient;
  readonly #maxMessageBytes: number;
  at: 0 | 1 = 0;

  constructor(maxMessageBytes = MAX_MESSAGE_BYTES) {
    this.#maxMessageBytes = maxMessageBytes;
    const [ours, theirs] = socketPair();
    this.client = new RawClient(theirs);
    this.recorder.connection = new Connection(
      this.loops[0],
      ours,
      maxMessageBytes,
      this.recorder,
    );
  }

  get loop(): EventLoop {
    return this.loops[this.at];
  }

  move(): void {
    using bag = ResourceBag.of();
    const state = structuredClone(this.recorder.connection.save(bag));
    this.recorder.connection.leave();
    assert(this.recorder.connection.closed);
    this.recorder.connection.close("closing again does nothing");
    // A bottom half that was taken back costs a turn and does nothing.
    const handled = this.recorder.messages.length;
    this.loop.turn(0);
    assertEquals(this.loop.turn(0), false, "nothing is left on the old loop");
    assertEquals(this.recorder.messages.length, handled);
    this.at = this.at === 0 ? 1 : 0;
    this.recorder.connection = new Connection(
      this.loop,
      bag.take("socket"),
      this.#maxMessageBytes,
      this.recorder,
      { state, bag },
    );
  }

  settle(): void {
    for (let i = 0; i < 1000 && this.loop.turn(0); i++);
  }

  [Symbol.dispose](): void {
    this.recorder.connection.close("test over");
    this.client.close();
    for (const loop of this.loops) loop.close();
  }
}

function numbered(id: number, payloadBytes = 8): Uint8Array {
  return message(13, new Uint8Array(payloadBytes), { id });
}

Deno.test("Connection.handOver keeps half a message, cut wherever it is", () => {
  const fds = openFds();
  {
    using mover = new Mover();
    const stream = concat(numbered(1, 3), numbered(2, 0), numbered(3, 11));
    let expected = 0;
    for (let cut = 0; cut <= stream.length; cut++) {
      if (cut > 0) mover.client.send(stream.slice(0, cut));
      mover.settle();
      mover.move();
      if (cut < stream.length) mover.client.send(stream.slice(cut));
      mover.settle();
      expected += 3;
      assertEquals(mover.recorder.messages.length, expected, `cut at ${cut}`);
    }
    assertEquals(
      mover.recorder.messages.slice(-3).map(({ id, size }) => [id, size]),
      [[1, 19], [2, 16], [3, 27]],
    );
    assertEquals(mover.recorder.closed, []);
  }
  assertEquals(openFds(), fds);
});

Deno.test("Connection.handOver lets whole messages be handled though the socket says nothing more", () => {
  using mover = new Mover();
  // More than one turn handles.
  mover.client.send(
    concat(...Array.from({ length: 200 }, (_, i) => numbered(i, 0))),
  );
  mover.loop.turn(0);
  const handled = mover.recorder.messages.length;
  assert(handled > 0 && handled < 200, `${handled}`);
  mover.move();
  assertEquals(mover.recorder.messages.length, handled);
  mover.settle();
  assertEquals(
    mover.recorder.messages.map(({ id }) => id),
    Array.from({ length: 200 }, (_, i) => i),
  );
});

Deno.test("Connection.handOver keeps descriptors with the message they came with", () => {
  const before = openFds();
  {
    using mover = new Mover();
    using memfd = createMemfd("handover-test", 4096);
    const three = [memfd.number, memfd.number, memfd.number];
    // With half a header, then the rest.
    const first = numbered(1);
    mover.client.send(first.slice(0, 5), three);
    mover.settle();
    mover.move();
    mover.client.send(first.slice(5));
    mover.settle();
    assertEquals(mover.recorder.messages, [{ id: 1, size: 24, fdCount: 3 }]);
    // With one that begins behind messages that wait for their turn.
    const many = Array.from({ length: 150 }, (_, i) => numbered(i + 2, 0));
    mover.client.send(concat(...many, numbered(500).slice(0, 10)), [
      memfd.number,
    ]);
    mover.loop.turn(0);
    assert(mover.recorder.messages.length < 150);
    for (let i = 0; i < 3; i++) {
      mover.move();
      mover.loop.turn(0);
    }
    mover.settle();
    mover.client.send(numbered(500).slice(10));
    mover.settle();
    const { messages } = mover.recorder;
    assertEquals(messages.length, 152);
    assertEquals(messages.at(-1), { id: 500, size: 24, fdCount: 1 });
    assertEquals(
      messages.slice(1, -1).every(({ fdCount }) => fdCount === 0),
      true,
    );
  }
  assertEquals(openFds(), before);
});

Deno.test("Connection.handOver keeps descriptors apart that come while whole messages wait", () => {
  using mover = new Mover();
  using memfd = createMemfd("handover-test", 4096);
  const { number } = memfd;
  const many = Array.from({ length: 150 }, (_, i) => numbered(i, 0));
  mover.client.send(concat(...many), [number]);
  mover.loop.turn(0);
  assert(mover.recorder.messages.length < 150);
  mover.client.send(numbered(500), [number, number]);
  mover.move();
  mover.settle();
  assertEquals(
    mover.recorder.messages.filter(({ fdCount }) => fdCount > 0),
    [{ id: 149, size: 16, fdCount: 1 }, { id: 500, size: 24, fdCount: 2 }],
  );
});

Deno.test("Connection.handOver closes no descriptor, and the next one closes what nobody takes", () => {
  using mover = new Mover();
  using memfd = createMemfd("handover-test", 4096);
  const before = openFds();
  mover.client.send(numbered(1).slice(0, 20), [memfd.number]);
  mover.settle();
  assertEquals(openFds(), before + 1);
  mover.move();
  assertEquals(openFds(), before + 1);
  mover.client.send(numbered(1).slice(20));
  mover.settle();
  assertEquals(openFds(), before);
});

Deno.test("Connection.handOver keeps a full queue, a half-sent reply and descriptors to go along", () => {
  const before = openFds();
  {
    // Replies that the socket takes in parts, and between them ones that it takes some of.
    using mover = new Mover(300_000);
    using eventFd = createEventFd();
    const { recorder, client } = mover;
    recorder.replyBytes = (id) => id % 9 === 0 ? 250_000 : 4000 + id;
    recorder.replyFds = [eventFd.number];
    const count = 200;
    let sent = 0;
    let received = 0;
    let stuck = 0;
    const receiveOne = () => {
      const reply = client.receive();
      if (reply === null) return false;
      assertEquals([reply.id, reply.fds.length], [received, 1]);
      for (let i = 0; i < reply.payload.byteLength; i++) {
        if (reply.payload.getUint8(i) !== ((received + i + 16) & 0xff)) {
          throw new Error(`byte ${i} of reply ${received} is wrong`);
        }
      }
      reply.fds.forEach(closeFd);
      received++;
      return true;
    };
    // The client asks without reading until nothing goes in either direction, then reads a little at a time.
    for (let round = 0; received < count; round++) {
      assert(round < 10_000, `stuck with ${received} of ${count}`);
      while (sent < count && client.send(numbered(sent, 0)) === 16) sent++;
      mover.settle();
      if (recorder.connection.queuedBytes > 0) stuck++;
      mover.move();
      mover.settle();
      receiveOne();
    }
    assert(stuck > 20, `the queue was full ${stuck} times only`);
    assertEquals(recorder.messages.length, count);
    assertEquals(recorder.connection.queuedBytes, 0);
    mover.settle();
    assertEquals(client.receive(), null, "nothing is sent twice");
  }
  assertEquals(openFds(), before);
});

Deno.test("Connection.leave tells nobody; the next one tells of a client that has gone meanwhile", () => {
  using mover = new Mover();
  mover.client.send(concat(numbered(1), numbered(2).slice(0, 3)));
  mover.loop.turn(0);
  using bag = ResourceBag.of();
  const state = mover.recorder.connection.save(bag);
  mover.recorder.connection.leave();
  mover.client.close();
  assertEquals(mover.recorder.closed, []);
  mover.recorder.connection = new Connection(
    mover.loops[1],
    bag.take("socket"),
    MAX_MESSAGE_BYTES,
    mover.recorder,
    { state, bag },
  );
  for (let i = 0; i < 5; i++) mover.loops[1].turn(0);
  assertEquals(mover.recorder.messages.length, 1);
  assertEquals(mover.recorder.closed, ["it closed the connection"]);
});

Deno.test("Connection leaves what it cannot take over in the bag, for another try", () => {
  using mover = new Mover();
  using memfd = createMemfd("handover-test", 4096);
  mover.client.send(numbered(7).slice(0, 20), [memfd.number]);
  mover.settle();
  using bag = ResourceBag.of();
  const state = mover.recorder.connection.save(bag);
  mover.recorder.connection.leave();
  using socket = bag.take("socket");
  const before = openFds();
  const closed = new EventLoop();
  closed.close();
  let failed = false;
  try {
    new Connection(
      closed,
      socket,
      MAX_MESSAGE_BYTES,
      mover.recorder,
      { state, bag },
    );
  } catch {
    failed = true;
  }
  assert(failed);
  assertEquals(openFds(), before);
  mover.recorder.connection = new Connection(
    mover.loop,
    bag.take("socket"),
    MAX_MESSAGE_BYTES,
    mover.recorder,
    { state, bag },
  );
  mover.client.send(numbered(7).slice(20));
  mover.settle();
  assertEquals(mover.recorder.messages, [{ id: 7, size: 24, fdCount: 1 }]);
});
