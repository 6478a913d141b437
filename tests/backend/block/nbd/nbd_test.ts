import { assert, assertEquals, assertThrows } from "@std/assert";
import { BlockOp } from "../../../../src/backend/block/contract.ts";
import { Errno } from "../../../../src/core/errno.ts";
import { openFds, sharedMappings } from "../../../resources.ts";
import { until } from "../../../until.ts";
import { EXPORT_BYTES, NBD, NbdRig, ServerThread } from "./rig.ts";
import { Controller, Folder, Host, pattern } from "../rig.ts";

const CMD = { READ: 0, WRITE: 1, FLUSH: 3, TRIM: 4, WRITE_ZEROES: 6 } as const;
const FLAG = { HAS: 1, RO: 2, FLUSH: 4, FUA: 8, TRIM: 32, ZEROES: 64 } as const;

for (
  const [name, options] of [
    ["structured replies", {}],
    ["simple replies", { structured: false }],
    ["chunks and holes", { chunkBytes: 1536 }],
    ["NBD_OPT_EXPORT_NAME", { go: false, structured: false }],
    ["newstyle that is not fixed", { fixed: false, structured: false }],
    ["an export name", { exportName: "disk 1" }],
  ] as const
) {
  Deno.test(`NbdBackend reads and writes (${name})`, async () => {
    const uri = "exportName" in options
      ? (folder: string) =>
        `nbd+unix:///disk%201?socket=${encodeURIComponent(folder)}/nbd.sock`
      : null;
    const folder = new Folder();
    const file = folder.image("disk", EXPORT_BYTES);
    const socket = `${folder.path}/nbd.sock`;
    const server = await ServerThread.start({ file, socket, ...options });
    try {
      using host = new Host();
      using client = new Controller(host, {
        ...NBD,
        uri: uri?.(folder.path) ?? `unix:${socket}`,
      });
      assertEquals(client.backend.info, {
        sizeBytes: EXPORT_BYTES,
        logicalBlockBytes: 512,
        physicalBlockBytes: 512,
        optimalBytes: 0,
        readonly: false,
        volatileCache: true,
        discardGranularityBytes: 512,
        maxTransferBytes: 32 << 20,
      });
      for (const length of [512, 4096, 8192, 20480, 1 << 20]) {
        const bytes = pattern(length, length);
        assertEquals(client.write(length, bytes), 0);
        assertEquals(client.read(length, length), bytes);
      }
      // Half written, half a hole.
      assertEquals(client.write(4 << 20, pattern(4096, 9)), 0);
      const mixed = client.read((4 << 20) - 4096, 12288);
      assertEquals(mixed.subarray(0, 4096), new Uint8Array(4096));
      assertEquals(mixed.subarray(4096, 8192), pattern(4096, 9));
      assertEquals(mixed.subarray(8192), new Uint8Array(4096));
      assertEquals(client.run({ op: BlockOp.FLUSH }), 0);
      assertEquals(client.count("reads"), 6);
      assertEquals(client.count("writes"), 6);
      assertEquals(client.count("inFlight"), 0);
    } finally {
      await server[Symbol.asyncDispose]();
      folder[Symbol.dispose]();
    }
  });
}

Deno.test("NbdBackend speaks TCP, by name and by address", async () => {
  using folder = new Folder();
  const file = folder.image("disk", EXPORT_BYTES);
  await using server = await ServerThread.start({ file });
  for (const host of ["localhost", "127.0.0.1"]) {
    for (const scheme of ["nbd", "tcp"]) {
      using home = new Host();
      using client = new Controller(home, {
        ...NBD,
        uri: `${scheme}://${host}:${server.port}`,
      });
      assertEquals(client.write(0, pattern(65536, 3)), 0);
      assertEquals(client.read(0, 65536), pattern(65536, 3));
    }
  }
});

Deno.test("NbdBackend moves data between the wire and pieces of guest memory", async () => {
  await using rig = await NbdRig.start({ chunkBytes: 1000 });
  const { client, host } = rig;
  const bytes = pattern(9216, 4);
  host.memory.write(0x1_0000, bytes);
  const pieces = [
    [0x1_0000, 100],
    [0x1_0064, 1],
    [0x1_0065, 4000],
    [0x1_1005, 5115],
  ] as const;
  assertEquals(
    client.run({ op: BlockOp.WRITE, offset: 1024, at: pieces }),
    0,
  );
  assertEquals(rig.stored(1024, 9216), bytes);
  const apart = [
    [0x2_0001, 3000],
    [0x3_0000, 216],
    [0x4_0ff0, 6000],
  ] as const;
  assertEquals(client.run({ op: BlockOp.READ, offset: 1024, at: apart }), 0);
  let at = 0;
  for (const [iova, length] of apart) {
    const got = new Uint8Array(length);
    host.memory.read(iova, got);
    assertEquals(got, bytes.subarray(at, at + length));
    at += length;
  }
});

Deno.test("NbdBackend has many requests in flight, answered in any order", async () => {
  await using rig = await NbdRig.start({ reorder: 50 });
  const { client, host } = rig;
  const requests = Array.from({ length: 50 }, (_, i) => {
    const iova = i * 8192;
    host.memory.write(iova, pattern(8192, i));
    return client.submit({
      op: BlockOp.WRITE,
      offset: iova,
      at: [[iova, 8192]],
    });
  });
  assertEquals(client.results.size, 0);
  client.backend.commit();
  const order: number[] = [];
  client.onCompletion = (request) => order.push(request.tag);
  client.wait(requests);
  assertEquals(order, requests.map(({ tag }) => tag).reverse());
  for (let i = 0; i < 50; i++) {
    assertEquals(rig.stored(i * 8192, 8192), pattern(8192, i));
  }
});

Deno.test("NbdBackend takes more requests than it sends at once", async () => {
  await using rig = await NbdRig.start();
  const { client } = rig;
  const requests = Array.from({ length: 1500 }, (_, i) =>
    client.submit({
      op: BlockOp.READ,
      offset: i * 512,
      at: [[i * 512, 512]],
    }));
  client.backend.commit();
  client.wait(requests);
  assertEquals(new Set(client.results.values()), new Set([0]));
  assertEquals(client.count("inFlight"), 0);
});

Deno.test("NbdBackend goes on when the socket takes no more", async () => {
  await using rig = await NbdRig.start({ deaf: true });
  const { client, host } = rig;
  const bytes = pattern(1 << 20, 5);
  host.memory.write(0, bytes);
  // The first request is read before the server goes deaf.
  const requests = Array.from({ length: 8 }, (_, i) =>
    client.submit({
      op: BlockOp.WRITE,
      offset: i << 20,
      at: [[0, 1 << 20]],
    }));
  client.backend.commit();
  for (let i = 0; i < 20; i++) host.loop.turn(1);
  assert(client.results.size < 8);
  await rig.server.set({ deaf: false });
  client.wait(requests);
  for (let i = 0; i < 8; i++) assertEquals(rig.stored(i << 20, 1 << 20), bytes);
});

Deno.test("NbdBackend discards, writes zeroes and flushes", async () => {
  await using rig = await NbdRig.start();
  const { client } = rig;
  client.write(0, pattern(8192, 6));
  const range = { offset: 512, lengthBytes: 1024 };
  assertEquals(client.run({ op: BlockOp.DISCARD, ...range }), 0);
  assertEquals(rig.stored(512, 1024), new Uint8Array(1024).fill(0xdd));
  assertEquals(client.run({ op: BlockOp.WRITE_ZEROES, ...range }), 0);
  assertEquals(rig.stored(512, 1024), new Uint8Array(1024));
  assertEquals(
    client.run({ op: BlockOp.WRITE_ZEROES, ...range, mayUnmap: true }),
    0,
  );
  assertEquals(client.run({ op: BlockOp.FLUSH }), 0);
  const requests = await rig.server.requests();
  assertEquals(
    requests.slice(1).map(({ command, flags }) => [command, flags]),
    [[CMD.TRIM, 0], [CMD.WRITE_ZEROES, 2], [CMD.WRITE_ZEROES, 0], [
      CMD.FLUSH,
      0,
    ]],
  );
});

Deno.test("NbdBackend makes single writes durable, with FUA or a flush behind", async () => {
  for (const fua of [true, false]) {
    await using rig = await NbdRig.start({
      flags: FLAG.HAS | FLAG.FLUSH | FLAG.ZEROES | (fua ? FLAG.FUA : 0),
    });
    const { client } = rig;
    assertEquals(client.write(0, pattern(512, 1), true), 0);
    const zeroes = { op: BlockOp.WRITE_ZEROES, offset: 0, lengthBytes: 512 };
    assertEquals(client.run({ ...zeroes, durable: true }), 0);
    assertEquals(client.backend.setWriteCache(false), 0);
    assertEquals(client.write(512, pattern(512, 1)), 0);
    assertEquals(client.backend.setWriteCache(true), 0);
    assertEquals(client.count("unflushedWrites"), 0);
    assertEquals(client.write(512, pattern(512, 2)), 0);
    assertEquals(client.count("unflushedWrites"), 1);
    client.run({ op: BlockOp.FLUSH });
    assertEquals(client.count("unflushedWrites"), 0);
    const seen = (await rig.server.requests())
      .map(({ command, flags }) => [command, flags & 1]);
    assertEquals(
      seen,
      fua
        ? [[1, 1], [6, 1], [1, 1], [1, 0], [3, 0]]
        : [[1, 0], [3, 0], [6, 0], [3, 0], [1, 0], [3, 0], [1, 0], [3, 0]],
    );
  }
});

Deno.test("NbdBackend writes zeroes itself where the server cannot, and knows what else is missing", async () => {
  await using rig = await NbdRig.start({ flags: FLAG.HAS });
  const { client } = rig;
  assertEquals(client.backend.info.volatileCache, false);
  assertEquals(client.backend.info.discardGranularityBytes, 0);
  client.write(0, pattern(4 << 20, 7));
  const lengthBytes = 3 << 20;
  assertEquals(
    client.run({ op: BlockOp.WRITE_ZEROES, offset: 512, lengthBytes }),
    0,
  );
  assertEquals(rig.stored(512, lengthBytes), new Uint8Array(lengthBytes));
  const [, ...writes] = await rig.server.requests();
  assertEquals(writes.map(({ command }) => command), [1, 1, 1]);
  assertEquals(client.run({ op: BlockOp.FLUSH }), 0);
  assertEquals(
    client.run({ op: BlockOp.DISCARD, offset: 0, lengthBytes: 512 }),
    -Errno.EOPNOTSUPP,
  );
  assertEquals((await rig.server.requests()).length, 4);
});

Deno.test("NbdBackend asks for long ranges in parts", async () => {
  const folder = new Folder();
  const file = folder.image("disk", 300 << 20);
  const socket = `${folder.path}/nbd.sock`;
  const server = await ServerThread.start({
    file,
    socket,
    errors: { [CMD.TRIM]: 0 },
    hold: true,
  });
  try {
    using host = new Host();
    using client = new Controller(host, { ...NBD, uri: `unix:${socket}` });
    await server.set({ hold: false, errors: { [CMD.WRITE_ZEROES]: 28 } });
    const lengthBytes = 300 << 20;
    assertEquals(
      client.run({ op: BlockOp.WRITE_ZEROES, offset: 0, lengthBytes }),
      -Errno.ENOSPC,
    );
    assertEquals((await server.requests()).map(({ length }) => length), [
      128 << 20,
    ]);
  } finally {
    await server[Symbol.asyncDispose]();
    folder[Symbol.dispose]();
  }
});

Deno.test("NbdBackend passes errors on", async () => {
  for (const structured of [true, false]) {
    await using rig = await NbdRig.start({
      structured,
      errors: { 0: 5, 1: 28, 3: 12, 4: 95, 6: 77 },
    });
    const { client } = rig;
    const range = { offset: 0, lengthBytes: 512 };
    const results = [
      client.run({ op: BlockOp.READ, ...range }),
      client.run({ op: BlockOp.WRITE, ...range }),
      client.run({ op: BlockOp.FLUSH }),
      client.run({ op: BlockOp.DISCARD, ...range }),
      client.run({ op: BlockOp.WRITE_ZEROES, ...range }),
    ];
    assertEquals(results, [
      -Errno.EIO,
      -Errno.ENOSPC,
      -Errno.ENOMEM,
      -Errno.EOPNOTSUPP,
      -Errno.EINVAL,
    ]);
    assertEquals(client.count("failed"), 5);
    assertEquals(await rig.server.connections(), 1);
  }
});

Deno.test("NbdBackend refuses to write to what is read-only", async () => {
  for (const flags of [FLAG.HAS | FLAG.RO | FLAG.FLUSH, undefined]) {
    await using rig = await NbdRig.start(
      flags === undefined ? {} : { flags },
      { readonly: flags === undefined },
    );
    const { client } = rig;
    assertEquals(client.backend.info.readonly, true);
    assertEquals(client.write(0, pattern(512, 1)), -Errno.EROFS);
    assertEquals(client.run({ op: BlockOp.FLUSH }), 0);
    assertEquals(client.read(0, 512), new Uint8Array(512));
  }
});

Deno.test("NbdBackend respects the server's block sizes", async () => {
  await using rig = await NbdRig.start({ blocks: [512, 4096, 65536] });
  const { info } = rig.client.backend;
  assertEquals(info.physicalBlockBytes, 4096);
  assertEquals(info.maxTransferBytes, 65536);
  const error = await NbdRig.start({ blocks: [4096, 4096, 65536] }).then(
    () => null,
    (error: Error) => error,
  );
  assert(error!.message.includes("give block-size=4096"), error!.message);
  await using large = await NbdRig.start(
    { blocks: [4096, 65536, 0xffff_ffff] },
    { logicalBlockBytes: 4096 },
  );
  assertEquals(large.client.backend.info.optimalBytes, 65536);
  assertEquals(large.client.backend.info.maxTransferBytes, 32 << 20);
});

for (
  const [fault, message] of [
    ["http", /it is something else/],
    ["oldstyle", /oldstyle/],
    ["tls", /wants TLS.*tunnel/],
    ["noInfo", /does not tell the size/],
    ["hugeOption", /its reply is malformed/],
  ] as const
) {
  Deno.test(`NbdBackend says what is wrong with a server at start-up (${fault})`, async () => {
    using folder = new Folder();
    const file = folder.image("disk", EXPORT_BYTES);
    const socket = `${folder.path}/nbd.sock`;
    await using _server = await ServerThread.start({ file, socket, fault });
    using host = new Host();
    const before = sharedMappings();
    const error = assertThrows(
      () => new Controller(host, { ...NBD, uri: `unix:${socket}` }),
      Error,
    );
    assert(message.test(error.message), error.message);
    assert(!error.message.includes("\n"));
    assertEquals(sharedMappings(), before);
  });
}

Deno.test("NbdBackend says how to reach a server that it cannot reach", async () => {
  using folder = new Folder();
  using host = new Host();
  const open = (uri: string) => () => new Controller(host, { ...NBD, uri });
  assertThrows(
    open(`unix:${folder.path}/none`),
    Error,
    "there is no such socket, start the server first",
  );
  Deno.writeTextFileSync(`${folder.path}/file`, "");
  assertThrows(open(`unix:${folder.path}/file`), Error, "nobody listens");
  assertThrows(
    open("nbd://127.0.0.1:1"),
    Error,
    "Cannot reach the NBD server at 127.0.0.1:1: nobody listens there",
  );
  assertThrows(
    open("nbd://no.such.name.invalid"),
    Error,
    "Cannot find the address of no.such.name.invalid",
  );
  const file = folder.image("disk", EXPORT_BYTES);
  const socket = `${folder.path}/nbd.sock`;
  await using _server = await ServerThread.start({
    file,
    socket,
    exportName: "a",
  });
  assertThrows(
    open(`unix:${socket}?b`),
    Error,
    'no such thing as an export "b" ("no  such thing")',
  );
});

Deno.test("NbdBackend leaves nothing behind", async () => {
  using folder = new Folder();
  const file = folder.image("disk", EXPORT_BYTES);
  const socket = `${folder.path}/nbd.sock`;
  await using server = await ServerThread.start({ file, socket, hold: true });
  using host = new Host();
  const uri = `unix:${socket}`;
  const before = [await server.connections(), openFds()];
  const client = new Controller(host, { ...NBD, uri });
  client.submit({ op: BlockOp.READ, lengthBytes: 4096 });
  client.submit({ op: BlockOp.WRITE, lengthBytes: 4096 });
  client.backend.commit();
  client[Symbol.dispose]();
  assertEquals([...client.results.values()], [-125, -125]);
  await server.set({ hold: false });
  await until("the connection", async () => {
    host.loop.turn(1);
    return await server.connections() >= 1;
  });
  await until("its end", () => openFds() <= before[1]!);
});
