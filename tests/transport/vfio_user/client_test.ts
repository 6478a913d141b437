import { assert, assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import { Errno, ErrnoError } from "../../../src/core/errno.ts";
import { isOpen } from "../../../src/os/mod.ts";
import {
  parseAgreement,
  PciClient,
  RegionInfo,
  RegionIoFds,
  type VfioUserClient,
} from "../../../src/transport/vfio_user/client/mod.ts";
import {
  join,
  memfd,
  type ScriptedPeer,
  withPeer,
  words,
} from "./scripted_peer.ts";

const SEED = 0x5eed;

function fails(errno: number, run: () => unknown): ErrnoError {
  const error = assertThrows(run, ErrnoError);
  assertEquals(error.errno, errno, error.message);
  return error;
}

function version(major: number, minor: number, text: string): Uint8Array {
  return join(
    words(major | minor << 16),
    new TextEncoder().encode(text),
  );
}

Deno.test("negotiate proposes what QEMU does and keeps the server's limits", () =>
  withPeer((client, peer) => {
    peer.reply(
      0,
      1,
      version(
        0,
        0,
        '{"capabilities":{"max_msg_fds":16,"max_data_xfer_size":65536}}\0',
      ),
    );
    const agreement = client.negotiate();
    assertEquals(agreement.maxMessageFds, 16);
    assertEquals(agreement.maxTransferBytes, 65536);
    assertEquals(client.agreement, agreement);
    const [seen] = peer.seen();
    assertEquals([seen!.id, seen!.command, seen!.flags], [0, 1, 0]);
    assertEquals([...seen!.payload.subarray(0, 4)], [0, 0, 0, 0]);
    assertEquals(seen!.payload.at(-1), 0);
    const text = new TextDecoder().decode(seen!.payload.subarray(4, -1));
    assertEquals(JSON.parse(text), {
      capabilities: {
        max_msg_fds: 8,
        max_data_xfer_size: 1048576,
        pgsizes: 4096,
        max_dma_maps: 65535,
        write_multiple: true,
      },
    });
  }));

Deno.test("negotiate without capabilities sends four bytes and assumes the defaults", () =>
  withPeer((client, peer) => {
    peer.reply(0, 1, version(0, 1, ""));
    const agreement = client.negotiate({ minor: 1, capabilities: null });
    assertEquals(agreement.capabilities, {});
    assertEquals(agreement.maxMessageFds, 1);
    assertEquals(agreement.maxTransferBytes, 1048576);
    assertEquals([...peer.seen()[0]!.payload], [0, 0, 1, 0]);
  }));

for (
  const [what, payload] of [
    ["a higher minor", version(0, 1, "")],
    ["another major", version(1, 0, "")],
    ["a short payload", new Uint8Array(3)],
    ["JSON without NUL", version(0, 0, "{}")],
    ["text that is not JSON", version(0, 0, "{\0")],
    ["a list", version(0, 0, "[]\0")],
    ["capabilities that are no object", version(0, 0, '{"capabilities":1}\0')],
    ["17 fds", version(0, 0, '{"capabilities":{"max_msg_fds":17}}\0')],
    [
      "128 MiB",
      version(0, 0, '{"capabilities":{"max_data_xfer_size":134217728}}\0'),
    ],
  ] as const
) {
  Deno.test(`negotiate refuses ${what}`, () =>
    withPeer((client, peer) => {
      peer.reply(0, 1, payload);
      fails(Errno.EPROTO, () => client.negotiate());
      fails(Errno.ENOTCONN, () => client.agreement);
    }));
}

Deno.test("an error reply is thrown with its errno, EIO when it names none", () =>
  withPeer((client, peer) => {
    peer.refuse(0, 13, Errno.EBUSY);
    peer.refuse(1, 13, 0);
    fails(Errno.EBUSY, () => client.reset());
    fails(Errno.EIO, () => client.reset());
  }));

Deno.test("request gives an error reply instead of throwing it", () =>
  withPeer((client, peer) => {
    peer.refuse(0, 99, Errno.ENOSYS);
    const reply = client.request(99, words(1, 2));
    assertEquals(reply.errno, Errno.ENOSYS);
    assertEquals(reply.payload.length, 0);
    assertEquals([...peer.seen()[0]!.payload], [1, 0, 0, 0, 2, 0, 0, 0]);
  }));

Deno.test("a reply that comes too late is dropped, in whatever pieces it came", () =>
  withPeer((client, peer) => {
    const late = peer.message(0, 9, 1, 0, words(0, 0, 0, 4, 0xdead));
    for (const cut of [7, 16, 21]) {
      fails(Errno.ETIMEDOUT, () => client.readRegion32(0, 0));
      peer.send(late.subarray(0, cut));
      fails(Errno.ETIMEDOUT, () => client.readRegion32(0, 0));
      peer.send(late.subarray(cut));
      const id = new DataView(late.buffer).getUint16(0, true);
      // The request in between was given up as well, and its reply never comes.
      peer.reply(id + 2, 9, words(0, 0, 0, 4, 0xbeef));
      assertEquals(client.readRegion32(0, 0), 0xbeef);
      new DataView(late.buffer).setUint16(0, id + 3, true);
    }
  }, { timeoutMs: 5 }));

Deno.test("a server that hangs up in the middle of a reply is ECONNRESET", () =>
  withPeer((client, peer) => {
    const id = client.submit(13);
    assertEquals(peer.seen().length, 1);
    peer.send(peer.message(id, 13, 1, 0, new Uint8Array(0)).subarray(0, 9));
    peer.close();
    fails(Errno.ECONNRESET, () => client.collect(id));
  }));

Deno.test("sending to a server that has gone is EPIPE and kills nobody", () =>
  withPeer((client, peer) => {
    peer.close();
    fails(Errno.EPIPE, () => client.reset());
  }));

for (
  const [what, bytes] of [
    [
      "a reply to nothing",
      (p: ScriptedPeer) => p.message(9, 13, 1, 0, words()),
    ],
    [
      "a reply to another command",
      (p: ScriptedPeer) => p.message(0, 12, 1, 0, words()),
    ],
    [
      "a type that is neither",
      (p: ScriptedPeer) => p.message(0, 13, 2, 0, words()),
    ],
    ["a size below a header", () => words(13 << 16, 15, 1, 0)],
    ["a size beyond the buffer", () => words(13 << 16, 1 << 30, 1, 0)],
  ] as const
) {
  Deno.test(`a message with ${what} is EPROTO`, () =>
    withPeer((client, peer) => {
      peer.send(bytes(peer));
      fails(Errno.EPROTO, () => client.reset());
    }));
}

Deno.test("strictHeader refuses a header in pieces, as QEMU does", () =>
  withPeer((client, peer) => {
    peer.send(new Uint8Array(15));
    fails(Errno.EPROTO, () => client.reset());
  }, { strictHeader: true }));

Deno.test("readRegion and writeRegion pack the protocol's structures", () =>
  withPeer((client, peer) => {
    peer.reply(0, 9, words(0x10, 2, 4, 3, 0xcafe));
    peer.seen();
    fails(Errno.EPROTO, () => client.readRegion(4, 0x10, 4));
    peer.reply(1, 9, join(words(0x10, 2, 4, 3), Uint8Array.of(7, 8, 9)));
    assertEquals([...client.readRegion(4, 2 * 2 ** 32 + 0x10, 3)], [7, 8, 9]);
    assertEquals(peer.seen()[1]!.payload, words(0x10, 2, 4, 3));
    peer.reply(2, 10, words(0x20, 0, 7, 2));
    client.writeRegion(7, 0x20, Uint8Array.of(0xaa, 0xbb));
    const [write] = peer.seen();
    assertEquals(write!.flags, 0);
    assertEquals(
      write!.payload,
      join(words(0x20, 0, 7, 2), Uint8Array.of(0xaa, 0xbb)),
    );
    peer.reply(3, 10, words(0, 0, 0, 1));
    fails(Errno.EPROTO, () => client.writeRegion32(0, 0, 1));
  }));

Deno.test("reads and writes of 8, 16 and 32 bits are unsigned and little-endian", () =>
  withPeer((client, peer) => {
    const head = (count: number) => words(0, 0, 1, count);
    peer.reply(0, 9, join(head(1), Uint8Array.of(0xff)));
    peer.reply(1, 9, join(head(2), Uint8Array.of(0xfe, 0xff)));
    peer.reply(2, 9, join(head(4), Uint8Array.of(0xfd, 0xff, 0xff, 0xff)));
    assertEquals(client.readRegion8(1, 0), 0xff);
    assertEquals(client.readRegion16(1, 0), 0xfffe);
    assertEquals(client.readRegion32(1, 0), 0xffff_fffd);
    peer.reply(3, 10, head(1));
    peer.reply(4, 10, head(2));
    peer.reply(5, 10, head(4));
    client.writeRegion8(1, 0, 0x81);
    client.writeRegion16(1, 0, 0x8182);
    client.writeRegion32(1, 0, 0x8182_8384);
    const data = peer.seen().slice(3).map((
      seen,
    ) => [...seen.payload.slice(16)]);
    assertEquals(data, [[0x81], [0x82, 0x81], [0x84, 0x83, 0x82, 0x81]]);
  }));

Deno.test("a bell writes its register whole", () =>
  withPeer((client, peer) => {
    const head = (count: number) => words(0x1008, 0, 0, count);
    using waiting = new PciClient(client);
    peer.reply(0, 10, head(2));
    waiting.bell(0, 0x1008, 2).ring(0x8182);
    peer.reply(1, 10, head(4));
    waiting.bell(0, 0x1008, 4).ring(0x82);
    using posting = new PciClient(client, { bells: "posted" });
    posting.bell(0, 0x1008, 4).ring(0x83);
    assertEquals(peer.seen().map(({ flags, payload }) => [flags, payload]), [
      [0, join(head(2), Uint8Array.of(0x82, 0x81))],
      [0, join(head(4), Uint8Array.of(0x82, 0, 0, 0))],
      [0x10, join(head(4), Uint8Array.of(0x83, 0, 0, 0))],
    ]);
  }));

Deno.test("a posted write sets the no-reply bit and waits for nothing", () =>
  withPeer((client, peer) => {
    client.writeRegion32(0, 0, 1, true);
    client.writeRegion(0, 0, new Uint8Array(2), true);
    client.post(10, words(0, 0, 0, 0));
    assertEquals(peer.seen().map((seen) => seen.flags), [0x10, 0x10, 0x10]);
  }));

Deno.test("writeMulti packs 24 bytes a write and checks the count of the reply", () =>
  withPeer((client, peer) => {
    const writes = [
      { region: 0, offset: 8, data: Uint8Array.of(1, 2) },
      { region: 4, offset: 16, data: new Uint8Array(8).fill(3) },
    ];
    peer.reply(0, 15, words(2, 0));
    client.writeMulti(writes);
    assertEquals(
      peer.seen()[0]!.payload,
      join(
        words(2, 0),
        words(8, 0, 0, 2, 0x0201, 0),
        words(16, 0, 4, 8, 0x0303_0303, 0x0303_0303),
      ),
    );
    peer.reply(1, 15, words(1, 0));
    fails(Errno.EPROTO, () => client.writeMulti(writes));
    client.writeMulti(writes, true);
    assertEquals(peer.seen().at(-1)!.flags, 0x10);
  }));

Deno.test("deviceInfo and irqInfo read their structures and nothing shorter", () =>
  withPeer((client, peer) => {
    peer.reply(0, 4, words(16, 3, 9, 5));
    assertEquals(client.deviceInfo(), {
      flags: 3,
      resettable: true,
      pci: true,
      numRegions: 9,
      numIrqs: 5,
    });
    peer.reply(1, 7, words(16, 9, 2, 64));
    assertEquals(client.irqInfo(2), { flags: 9, index: 2, count: 64 });
    const [info, irq] = peer.seen();
    assertEquals(info!.payload, words(16, 0, 0, 0));
    assertEquals(irq!.payload, words(16, 0, 2, 0));
    peer.reply(2, 4, words(16, 3, 9));
    fails(Errno.EPROTO, () => client.deviceInfo());
    peer.reply(3, 7, words(16, 9, 2));
    fails(Errno.EPROTO, () => client.irqInfo(2));
  }));

// A region of 64 KiB with two mappable areas.
const SPARSE = join(
  words(80, 15, 1, 32, 0x1_0000, 0, 0, 0),
  words(1 | 1 << 16, 0, 2, 0, 0x1000, 0, 0x1000, 0, 0x4000, 0, 0x2000, 0),
);

Deno.test("regionInfo asks again with the argsz the server wants and closes the first descriptors", () =>
  withPeer((client, peer) => {
    using first = memfd(0x6000);
    using second = memfd(0x6000);
    peer.reply(0, 5, SPARSE.subarray(0, 32), [first.number]);
    peer.reply(1, 5, SPARSE, [second.number]);
    using info = client.regionInfo(1);
    assertEquals(peer.seen().map((seen) => seen.payload), [
      words(32, 0, 1, 0, 0, 0, 0, 0),
      words(80, 0, 1, 0, 0, 0, 0, 0),
    ]);
    assertEquals(info.lengthBytes, 0x1_0000);
    assertEquals(info.fds.length, 1);
    assertEquals(info.mmapAreas, [
      { offset: 0x1000, lengthBytes: 0x1000 },
      { offset: 0x4000, lengthBytes: 0x2000 },
    ]);
    assertEquals(info.capabilities, [{ id: 1, version: 1, offset: 32 }]);
    using one = info.map(0);
    using two = info.map(1);
    assertEquals([one.lengthBytes, two.lengthBytes], [0x1000, 0x2000]);
  }));

Deno.test("regionInfo takes one descriptor per area", () =>
  withPeer((client, peer) => {
    using first = memfd(0x2000);
    using second = memfd(0x6000);
    peer.reply(0, 5, SPARSE.subarray(0, 32));
    peer.reply(1, 5, SPARSE, [first.number, second.number]);
    using info = client.regionInfo(1);
    using area = info.map(1);
    new Uint8Array(area.buffer)[0] = 42;
    using reader = info.map(1);
    assertEquals(new Uint8Array(reader.buffer)[0], 42);
  }));

Deno.test("a region without flags has nothing to map, one without areas is mapped whole", () => {
  const plain = words(32, 3, 0, 0, 0x1000, 0, 0, 0);
  assertEquals(new RegionInfo(new Uint8Array(plain), []).mmapAreas, []);
  const whole = new RegionInfo(
    new Uint8Array(words(32, 7, 0, 0, 0x1000, 0, 0, 0)),
    [],
  );
  assertEquals(whole.mmapAreas, [{ offset: 0, lengthBytes: 0x1000 }]);
  fails(Errno.EINVAL, () => whole.map(0));
});

Deno.test("regionInfo gives up on a server that wants more each time, or sends more than asked", () =>
  withPeer((client, peer) => {
    using fd = memfd(4096);
    for (let id = 0; id < 3; id++) {
      peer.reply(id, 5, words(100 + id, 0, 0, 0, 0, 0, 0, 0), [fd.number]);
    }
    fails(Errno.EPROTO, () => client.regionInfo(0));
    peer.reply(3, 5, SPARSE, [fd.number]);
    fails(Errno.EPROTO, () => client.regionInfo(0));
  }));

for (
  const [what, capOffset, cap] of [
    ["loops", 32, words(9 | 1 << 16, 32)],
    ["lies in the structure", 16, words(0, 0)],
    ["ends outside", 60, words(0, 0)],
    ["has more areas than fit", 32, words(1 | 1 << 16, 0, 9, 0)],
    ["names an area outside", 32, words(1 | 1 << 16, 0, 1, 0, 0, 0, 9999, 0)],
    ["is cut short", 32, words(1 | 1 << 16, 0, 0)],
  ] as const
) {
  Deno.test(`a region capability that ${what} is EPROTO and leaks nothing`, () =>
    withPeer((client, peer) => {
      using fd = memfd(4096);
      const size = 32 + cap.length;
      const info = join(words(size, 15, 0, capOffset, 4096, 0, 0, 0), cap);
      peer.reply(0, 5, info.subarray(0, 32));
      peer.reply(1, 5, info, [fd.number]);
      fails(Errno.EPROTO, () => client.regionInfo(0));
    }));
}

Deno.test("regionIoFds reads entries of the protocol and of libvfio-user", () =>
  withPeer((client, peer) => {
    using fd = memfd(1);
    const ours = words(0x3000, 0, 2, 0, 0, 0, 1, 0, 5, 0);
    peer.reply(0, 6, words(56, 0, 2, 1), [fd.number]);
    peer.reply(1, 6, join(words(56, 0, 2, 1), ours), [fd.number]);
    using io = client.regionIoFds(2);
    const expected = {
      offset: 0x3000,
      lengthBytes: 2,
      fdIndex: 0,
      type: 0,
      flags: 1,
      datamatch: 5,
    };
    assertEquals(io.subRegions, [expected]);
    assert(isOpen(io.fds[0]!.number));
    const theirs = words(0x3000, 0, 2, 0, 0, 0, 1, 0, 99, 0, 5, 0);
    peer.reply(2, 6, words(64, 0, 2, 1));
    peer.reply(3, 6, join(words(64, 0, 2, 1), theirs), [fd.number]);
    using other = client.regionIoFds(2);
    assertEquals(other.subRegions, [expected]);
    peer.reply(4, 6, words(56, 0, 2, 1));
    peer.reply(5, 6, join(words(56, 0, 2, 1), ours));
    fails(Errno.EPROTO, () => client.regionIoFds(2));
  }));

Deno.test("dmaMap passes the descriptor, dmaUnmap wants the range back", () =>
  withPeer((client, peer) => {
    using fd = memfd(8192);
    const mapping = {
      iova: 2 ** 32,
      lengthBytes: 4096,
      fd: fd.number,
      fdOffset: 4096,
    };
    peer.reply(0, 2);
    client.dmaMap(mapping);
    assertEquals(client.dma.size, 1);
    const [map] = peer.seen();
    assertEquals(map!.payload, words(32, 3, 4096, 0, 0, 1, 4096, 0));
    assertEquals(map!.fds.length, 1);
    map!.fds[0]!.close();
    peer.refuse(1, 2, Errno.EEXIST);
    fails(Errno.EEXIST, () => client.dmaMap({ ...mapping, readable: false }));
    const again = peer.seen()[0]!;
    assertEquals(again.payload[4], 2);
    again.fds[0]!.close();
    assertEquals(client.dma.size, 1);
    peer.reply(2, 3, words(24, 0, 0, 1, 4096, 0));
    client.dmaUnmap(2 ** 32, 4096);
    assertEquals(client.dma.size, 0);
    assertEquals(peer.seen()[0]!.payload, words(24, 0, 0, 1, 4096, 0));
    peer.reply(3, 3);
    fails(Errno.EPROTO, () => client.dmaUnmap(0, 4096));
    peer.reply(4, 3, words(24, 2, 0, 0, 0, 0));
    client.unmapAll();
    assertEquals(peer.seen().at(-1)!.payload, words(24, 2, 0, 0, 0, 0));
  }));

Deno.test("dmaMapAll has all requests in flight at once", () =>
  withPeer((client, peer) => {
    const at = (iova: number) => ({ iova, lengthBytes: 4096 });
    peer.reply(1, 2);
    peer.reply(2, 2);
    peer.refuse(0, 2, Errno.ENOSPC);
    fails(
      Errno.ENOSPC,
      () => client.dmaMapAll([at(0), at(0x1000), at(0x2000)]),
    );
    assertEquals(peer.seen().map((seen) => seen.id), [0, 1, 2]);
    assertEquals(client.connection.inFlight, 0);
  }));

Deno.test("setIrqs packs every kind", () =>
  withPeer((client, peer) => {
    using fd = memfd(1);
    for (let id = 0; id < 5; id++) peer.reply(id, 8);
    client.disableIrqs(2);
    client.setIrqs({ index: 0, count: 1, action: "mask" });
    client.setIrqs({
      index: 2,
      start: 3,
      action: "trigger",
      booleans: [true, false, true],
    });
    client.setIrqs({ index: 2, action: "trigger", fds: [fd.number] });
    client.setIrqs({ index: 0, count: 1, action: "unmask", fds: [] });
    const seen = peer.seen();
    assertEquals(seen.map((it) => it.payload), [
      words(20, 0x21, 2, 0, 0),
      words(20, 0x09, 0, 0, 1),
      join(words(23, 0x22, 2, 3, 3), Uint8Array.of(1, 0, 1)),
      words(20, 0x24, 2, 0, 1),
      words(20, 0x14, 0, 0, 1),
    ]);
    assertEquals(seen.map((it) => it.fds.length), [0, 0, 0, 1, 0]);
    seen[3]!.fds[0]!.close();
  }));

Deno.test("setIrqEventFds splits by runs and by the server's limit", () =>
  withPeer((client, peer) => {
    peer.reply(0, 1, version(0, 0, '{"capabilities":{"max_msg_fds":2}}\0'));
    client.negotiate();
    peer.seen();
    using fd = memfd(1);
    const n = fd.number;
    for (let id = 1; id < 5; id++) peer.reply(id, 8);
    client.setIrqEventFds(2, 10, [n, n, n, -1, -1, n]);
    const seen = peer.seen();
    assertEquals(seen.map((it) => it.payload), [
      words(20, 0x24, 2, 10, 2),
      words(20, 0x24, 2, 12, 1),
      words(20, 0x24, 2, 13, 2),
      words(20, 0x24, 2, 15, 1),
    ]);
    assertEquals(seen.map((it) => it.fds.length), [2, 1, 0, 1]);
    for (const it of seen) for (const received of it.fds) received.close();
  }));

Deno.test("replies to submitted requests are collected in any order, with their descriptors", () =>
  withPeer((client, peer) => {
    using fd = memfd(1);
    const first = client.submit(4);
    const second = client.submit(5);
    assertEquals(client.connection.inFlight, 2);
    peer.reply(second, 5, words(7), [fd.number]);
    peer.refuse(first, 4, Errno.EINVAL);
    assertEquals(client.collect(first).errno, Errno.EINVAL);
    const reply = client.collect(second);
    assertEquals(reply.payload, new Uint8Array(words(7)));
    assertEquals(reply.fds.length, 1);
    reply.fds[0]!.close();
    assertEquals(client.connection.inFlight, 0);
    fails(Errno.ENOENT, () => client.collect(second));
  }));

Deno.test("a reply that nobody collects is closed with the client", () =>
  withPeer((client, peer) => {
    using fd = memfd(1);
    const never = client.submit(5);
    const other = client.submit(4);
    peer.reply(never, 5, words(7), [fd.number]);
    peer.reply(other, 4);
    client.collect(other);
  }));

Deno.test("settle counts the queued requests that failed", () =>
  withPeer((client, peer) => {
    for (let i = 0; i < 3; i++) client.queueRead32(0, 0);
    client.queueWrite32(0, 0, 1);
    peer.reply(0, 9, words(0, 0, 0, 4, 0));
    peer.refuse(1, 9, Errno.EINVAL);
    peer.reply(2, 9, words(0, 0, 0, 4, 0));
    peer.refuse(3, 10, Errno.EINVAL);
    assertEquals(client.settle(2), 1);
    assertEquals(client.connection.inFlight, 2);
    assertEquals(client.settle(), 1);
    assertEquals(client.settle(), 0);
  }));

function withMemory(client: VfioUserClient, peer: ScriptedPeer): Uint8Array {
  const bytes = Uint8Array.from({ length: 16 }, (_, i) => i);
  const ro = new Uint8Array(16).fill(0xee);
  peer.reply(0, 2);
  peer.reply(1, 2);
  peer.reply(2, 2);
  client.dmaMap({ iova: 0x1000, lengthBytes: 16, bytes });
  client.dmaMap({ iova: 0x1010, lengthBytes: 16, bytes: ro, writable: false });
  client.dmaMap({ iova: 0x2000, lengthBytes: 16 });
  peer.seen();
  return bytes;
}

Deno.test("DMA messages of the server are answered while a reply is awaited", () =>
  withPeer((client, peer) => {
    const bytes = withMemory(client, peer);
    peer.ask(7, 11, words(0x100e, 0, 4, 0));
    peer.ask(7, 12, join(words(0x1002, 0, 2, 0), Uint8Array.of(0xaa, 0xbb)));
    peer.reply(3, 13);
    client.reset();
    const [reset, read, write] = peer.seen();
    assertEquals(reset!.command, 13);
    assertEquals([read!.id, read!.command, read!.flags], [7, 11, 1]);
    assertEquals(
      read!.payload,
      join(words(0x100e, 0, 4, 0), Uint8Array.of(14, 15, 0xee, 0xee)),
    );
    assertEquals([write!.id, write!.command, write!.flags], [7, 12, 1]);
    assertEquals(write!.payload, words(0x1002, 0, 2, 0));
    assertEquals([...bytes.subarray(1, 5)], [1, 0xaa, 0xbb, 4]);
    assertEquals([client.dmaResponder.reads, client.dmaResponder.writes], [
      1,
      1,
    ]);
  }));

Deno.test("DMA messages that cannot be answered get QEMU's error numbers", () =>
  withPeer((client, peer) => {
    const bytes = withMemory(client, peer);
    const before = bytes.slice();
    peer.ask(0, 11, words(0x3000, 0, 4, 0));
    peer.ask(1, 11, words(0x2000, 0, 4, 0));
    peer.ask(2, 12, words(0x1010, 0, 4, 0, 9));
    peer.ask(3, 11, words(0x1000, 0, 1 << 21, 0));
    peer.ask(4, 12, words(0x1000, 0, 5, 0, 9));
    peer.ask(5, 11, words(0x1000, 0, 4));
    peer.ask(6, 13, words());
    peer.ask(7, 11, words(0x101e, 0, 4, 0));
    peer.ask(8, 12, words(0x1000, 0, 1, 1, 9));
    client.connection.serve();
    const seen = peer.seen();
    assertEquals(seen.map((it) => it.id), [0, 1, 2, 3, 4, 5, 6, 7, 8]);
    assertEquals(seen.map((it) => it.errno), [
      Errno.EFAULT,
      Errno.EFAULT,
      Errno.EPERM,
      Errno.E2BIG,
      Errno.E2BIG,
      Errno.EINVAL,
      Errno.ENOSYS,
      Errno.EFAULT,
      Errno.E2BIG,
    ]);
    for (const it of seen) {
      assertEquals([it.flags, it.payload.length], [0x21, 0]);
    }
    assertEquals(bytes, before);
  }));

Deno.test("a command of the server that comes while the socket is full is answered afterwards", () =>
  withPeer((client, peer) => {
    withMemory(client, peer);
    peer.ask(5, 11, words(0x1000, 0, 4, 0));
    let sent = 0;
    fails(Errno.ETIMEDOUT, () => {
      for (;; sent++) client.post(13, new Uint8Array(1000));
    });
    const before = peer.seen();
    assertEquals(before.length, sent);
    assert(before.every((it) => it.command === 13));
    client.connection.serve();
    const [answer] = peer.seen();
    assertEquals([answer!.id, answer!.command, answer!.flags], [5, 11, 1]);
    assertEquals(answer!.payload, words(0x1000, 0, 4, 0, 0x0302_0100));
  }, { timeoutMs: 5 }));

Deno.test("a DMA write without reply is done and not answered", () =>
  withPeer((client, peer) => {
    const bytes = withMemory(client, peer);
    peer.ask(0, 12, words(0x1000, 0, 4, 0, 0x0403_0201), 0x10);
    client.connection.serve();
    assertEquals([...bytes.subarray(0, 4)], [1, 2, 3, 4]);
    assertEquals(peer.seen(), []);
  }));

Deno.test("dmaLayout qemu-10.1 puts data at byte 28 and answers writes with a header", () =>
  withPeer((client, peer) => {
    const bytes = withMemory(client, peer);
    peer.ask(0, 11, words(0x1004, 0, 4));
    peer.ask(1, 12, words(0x1000, 0, 4, 0x0d0c_0b0a));
    client.connection.serve();
    const [read, write] = peer.seen();
    assertEquals(read!.payload, words(0x1004, 0, 4, 0x0706_0504));
    assertEquals([write!.flags, write!.payload.length], [1, 0]);
    assertEquals([...bytes.subarray(0, 4)], [0x0a, 0x0b, 0x0c, 0x0d]);
  }, { dmaLayout: "qemu-10.1" }));

Deno.test("sendRaw and receiveRaw pass messages as they are", () =>
  withPeer((client, peer) => {
    using fd = memfd(1);
    client.connection.sendRaw(Uint8Array.of(1, 2, 3));
    peer.send(peer.message(5, 6, 1, 2, words(3)), [fd.number]);
    const raw = client.connection.receiveRaw();
    assertEquals(
      raw.payload,
      new Uint8Array(words(5 | 6 << 16, 20, 1, 2, 3)),
    );
    raw.fds[0]!.close();
    assertEquals(client.connection.waitForClose(), false);
    peer.close();
    assertEquals(client.connection.waitForClose(), true);
  }, { timeoutMs: 10 }));

Deno.test("parsers of replies throw EPROTO for any bytes they do not take", () => {
  const parsers = [
    (bytes: Uint8Array<ArrayBuffer>) => new RegionInfo(bytes, []),
    (bytes: Uint8Array<ArrayBuffer>) => new RegionIoFds(bytes, []),
    (bytes: Uint8Array<ArrayBuffer>) => parseAgreement(bytes, {}),
  ];
  // Small words make chains and counts that nearly fit.
  const word = fc.oneof(fc.nat(64), fc.integer());
  fc.assert(
    fc.property(
      fc.array(word, { maxLength: 24 }),
      fc.nat(3),
      (values, odd) => {
        const bytes = new Uint8Array(
          join(words(...values), new Uint8Array(odd)),
        );
        for (const parse of parsers) {
          try {
            parse(bytes);
          } catch (error) {
            if (!(error instanceof ErrnoError)) throw error;
            assertEquals(error.errno, Errno.EPROTO);
          }
        }
      },
    ),
    { seed: SEED, numRuns: 2000 },
  );
});
