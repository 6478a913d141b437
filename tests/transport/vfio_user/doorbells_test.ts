import { assertEquals } from "@std/assert";
import { closeFd, signalEventFd } from "../../../src/os/mod.ts";
import {
  concat,
  message,
  RawClient,
  versionMessage,
  words,
} from "./raw_client.ts";
import { openFds, Rig } from "./rig.ts";

const EINVAL = 22;

function ask(index: number, argsz = 4096, flags = 0, count = 0): Uint8Array {
  return message(6, words(argsz, flags, index, count));
}

Deno.test("DEVICE_GET_REGION_IO_FDS lists doorbells as the protocol text lays them out", () => {
  using rig = new Rig();
  using client = rig.client();
  const memory = client.request(rig.loop, ask(0));
  assertEquals(
    new Uint8Array(memory.payload.buffer),
    concat(
      words(96, 0, 0, 2),
      words(0x10n, 4n, 0, 0, 0, 0, 0n),
      words(0x20n, 2n, 1, 0, 1, 0, 7n),
    ),
  );
  assertEquals(memory.fds.length, 2);
  const io = client.request(rig.loop, ask(1));
  assertEquals(
    new Uint8Array(io.payload.buffer),
    concat(words(56, 0, 1, 1), words(4n, 0n, 0, 0, 2, 0, 0n)),
  );
  assertEquals(io.fds.length, 1);
  const none = client.request(rig.loop, ask(7));
  assertEquals(new Uint8Array(none.payload.buffer), words(16, 0, 7, 0));
  assertEquals(none.fds.length, 0);
  [...memory.fds, ...io.fds].forEach(closeFd);
});

Deno.test("DEVICE_GET_REGION_IO_FDS says how much room it needs", () => {
  using rig = new Rig();
  using client = rig.client();
  for (const argsz of [16, 95]) {
    const reply = client.request(rig.loop, ask(0, argsz));
    assertEquals(new Uint8Array(reply.payload.buffer), words(96, 0, 0, 2));
    assertEquals(reply.fds.length, 0);
  }
  const reply = client.request(rig.loop, ask(0, 96));
  assertEquals([reply.payload.byteLength, reply.fds.length], [96, 2]);
  reply.fds.forEach(closeFd);
});

Deno.test("DEVICE_GET_REGION_IO_FDS refuses what is not sound", () => {
  using rig = new Rig();
  using client = rig.client();
  const bad = [
    message(6),
    message(6, words(16, 0, 0)),
    ask(0, 15),
    ask(0, 0x10_0001),
    ask(0, 4096, 1),
    ask(0, 4096, 0, 1),
    ask(3),
    ask(6),
    ask(9),
    ask(0xffff_ffff),
  ];
  const before = openFds();
  for (const bytes of bad) {
    assertEquals(client.request(rig.loop, bytes).errno, EINVAL);
  }
  assertEquals(openFds(), before);
});

Deno.test("DEVICE_GET_REGION_IO_FDS: the eventfds ring the doorbells, the same ones every time", () => {
  using rig = new Rig();
  const client = rig.client();
  rig.settle();
  const before = openFds();
  const first = client.request(rig.loop, ask(0)).fds;
  const second = client.request(rig.loop, ask(0)).fds;
  const io = client.request(rig.loop, ask(1)).fds;
  signalEventFd(first[1]!);
  rig.settle();
  signalEventFd(second[0]!);
  rig.settle();
  signalEventFd(io[0]!);
  rig.settle();
  assertEquals(rig.device.rings, ["0:1", "0:0", "1:0"]);
  assertEquals(rig.server.counters().doorbells, 3);
  client.close();
  rig.settle();
  signalEventFd(first[0]!);
  rig.settle();
  assertEquals(rig.device.rings.length, 3, "it has gone");
  [...first, ...second, ...io].forEach(closeFd);
  assertEquals(openFds(), before - 2, "without both ends of the connection");
});

Deno.test("DEVICE_GET_REGION_IO_FDS gives no more descriptors than the client takes", () => {
  using rig = new Rig();
  using client = RawClient.connect(rig.path);
  client.request(rig.loop, versionMessage('{"capabilities":{}}'));
  const reply = client.request(rig.loop, ask(0));
  assertEquals(
    new Uint8Array(reply.payload.buffer).slice(0, 16),
    words(56, 0, 0, 1),
  );
  assertEquals(reply.fds.length, 1);
  reply.fds.forEach(closeFd);
});

Deno.test("A doorbell whose model throws costs its client the connection and nobody else", () => {
  using rig = new Rig();
  using client = rig.client();
  rig.device.ringDoorbell = () => {
    throw new TypeError("a mistake in the model");
  };
  const { fds } = client.request(rig.loop, ask(0));
  signalEventFd(fds[0]!);
  fds.forEach(closeFd);
  rig.settle();
  client.receive();
  assertEquals(client.ended, true);
  using next = rig.client();
  assertEquals(next.request(rig.loop, message(13)).errno, 0);
});

Deno.test("A doorbell rings behind the register writes that were sent before it was signalled", () => {
  using rig = new Rig();
  using client = rig.client();
  const { fds } = client.request(rig.loop, ask(0));
  rig.settle();
  const seen: number[] = [];
  rig.device.ringDoorbell = () => seen.push(rig.device.registers[0]!);
  // The first signal puts the eventfd before the socket among what is ready; the second is the one that counts.
  signalEventFd(fds[0]!);
  // More than are handled in one turn.
  const writes = Array.from(
    { length: 100 },
    (_, i) => message(10, words(0n, 0, 4, i + 1), { flags: 0x10 }),
  );
  client.send(concat(...writes));
  signalEventFd(fds[0]!);
  rig.settle();
  assertEquals(seen, [100]);
  fds.forEach(closeFd);
});
