import { assertEquals, assertThrows } from "@std/assert";
import { Errno } from "../../src/core/errno.ts";
import { encodePlainData } from "../../src/core/plain_data.ts";
import {
  createEventFd,
  drainEventFd,
  MessageHeader,
  NativeBuffer,
  receiveSaved,
  ResourceBag,
  sendSaved,
  signalEventFd,
  socketPair,
} from "../../src/os/mod.ts";
import { openFds } from "../resources.ts";

const TIMEOUT_MS = 2000;

function framed(payload: Uint8Array): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(4 + payload.length);
  new DataView(bytes.buffer).setUint32(0, payload.length, true);
  bytes.set(payload, 4);
  return bytes;
}

/** Has a receiver take some bytes, with eventfds on the first of them, from a sender that goes then. */
function receiveRaw(bytes: Uint8Array, fdCount: number): void {
  const [ours, theirs] = socketPair();
  using _ours = ours;
  {
    using _theirs = theirs;
    using header = new MessageHeader();
    using buffer = new NativeBuffer(Math.max(1, bytes.length));
    using stack = new DisposableStack();
    buffer.bytes.set(bytes);
    const fds = Array.from(
      { length: fdCount },
      () => stack.use(createEventFd()).number,
    );
    if (bytes.length > 0) {
      const sent = header.send(theirs.number, buffer, 0, bytes.length, fds);
      assertEquals(sent, bytes.length);
    }
  }
  const { bag } = receiveSaved(ours.number, TIMEOUT_MS);
  bag[Symbol.dispose]();
}

Deno.test("receiveSaved gives what sendSaved sent, with as many descriptors as there are, and no byte more", () => {
  const before = openFds();
  for (const count of [0, 1, 253, 254, 600]) {
    const [ours, theirs] = socketPair();
    using _ours = ours;
    using _theirs = theirs;
    using sent = ResourceBag.of();
    for (let i = 0; i < count; i++) {
      using fd = createEventFd();
      for (let j = 0; j <= i; j++) signalEventFd(fd.number);
      sent.at("part").put(`${i}`, fd.number);
    }
    const state = Uint8Array.from({ length: 5000 }, (_, i) => i);
    for (let twice = 0; twice < 2; twice++) {
      sendSaved(theirs.number, { state, bag: sent }, TIMEOUT_MS);
    }
    for (let twice = 0; twice < 2; twice++) {
      const saved = receiveSaved(ours.number, TIMEOUT_MS);
      using received = saved.bag;
      assertEquals(saved.state, state);
      assertEquals(received.entries().length, count);
      for (let i = 0; i < count && twice === 0; i++) {
        using fd = received.at("part").take(`${i}`);
        assertEquals(drainEventFd(fd.number), i + 1);
      }
    }
  }
  assertEquals(openFds(), before);
});

Deno.test("receiveSaved refuses streams that end anywhere, and leaks no descriptor", () => {
  const names = ["a", "b"];
  const whole = framed(encodePlainData({ names, state: Uint8Array.of(7) }));
  receiveRaw(whole, 2);
  const before = openFds();
  for (let length = 0; length < whole.length; length++) {
    const error = assertThrows(() => receiveRaw(whole.slice(0, length), 2));
    assertEquals((error as { errno?: number }).errno, Errno.ECONNRESET);
  }
  assertEquals(openFds(), before);
});

Deno.test("receiveSaved refuses what is no state, and leaks no descriptor", () => {
  const before = openFds();
  const state = Uint8Array.of(1, 2, 3);
  const hostile: [string, Uint8Array, number][] = [
    ["no value has the tag", framed(Uint8Array.of(99)), 1],
    ["it ends too early", framed(new Uint8Array(0)), 0],
    ["no saved state", framed(encodePlainData(7)), 1],
    ["no names", framed(encodePlainData({})), 1],
    ["its names cannot be", framed(encodePlainData({ names: [1], state })), 1],
    ["no state", framed(encodePlainData({ names: ["a"] })), 1],
    [
      "its state cannot be",
      framed(encodePlainData({ names: ["a"], state: [] })),
      1,
    ],
    [
      "1 names for 2 descriptors",
      framed(encodePlainData({ names: ["a"], state })),
      2,
    ],
    [
      "1 names for 0 descriptors",
      framed(encodePlainData({ names: ["a"], state })),
      0,
    ],
    [
      "2 names for 2 descriptors",
      framed(encodePlainData({ names: ["a", "a"], state })),
      2,
    ],
    ["it has 4294967295 bytes", new Uint8Array(4).fill(0xff), 253],
    ["1 of 2 bytes are a value", framed(Uint8Array.of(0, 0)), 1],
  ];
  for (const [message, bytes, fds] of hostile) {
    assertThrows(() => receiveRaw(bytes, fds), Error, message);
  }
  assertEquals(openFds(), before);
});

Deno.test("receiveSaved and sendSaved give up on who does not answer", () => {
  const before = openFds();
  {
    const [ours, theirs] = socketPair();
    using _ours = ours;
    using _theirs = theirs;
    assertThrows(() => receiveSaved(ours.number, 20), Error, "recvmsg");
    using bag = ResourceBag.of();
    const state = new Uint8Array(1 << 22);
    assertThrows(
      () => sendSaved(ours.number, { state, bag }, 20),
      Error,
      "sendmsg",
    );
  }
  assertEquals(openFds(), before);
});
