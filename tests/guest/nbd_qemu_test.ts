/**
 * The NBD client against QEMU's server, which is also that of qemu-nbd and qemu-storage-daemon: a QEMU without a machine
 * that exports a file.
 */

import { assert, assertEquals } from "@std/assert";
import { BlockOp } from "../../src/backend/block/contract.ts";
import { EXPORT_BYTES, NBD } from "../backend/block/nbd/rig.ts";
import { Controller, Folder, Host, pattern } from "../backend/block/rig.ts";
import { guestTest } from "./harness.ts";
import { clearSockets, QemuNbd } from "./qemu_nbd.ts";

guestTest(
  "NbdBackend does everything with QEMU's NBD server",
  async ({ kit }) => {
    using folder = new Folder();
    const file = folder.image("disk", EXPORT_BYTES);
    const server = await QemuNbd.start(kit, folder.path);
    try {
      using host = new Host();
      using client = new Controller(host, {
        ...NBD,
        uri: `nbd+unix:///disk?socket=${folder.path}/nbd.sock`,
      });
      const { info } = client.backend;
      assertEquals(info.sizeBytes, EXPORT_BYTES);
      assertEquals(info.volatileCache, true);
      assert(info.discardGranularityBytes > 0);
      for (const length of [512, 4096, 65536, 3 << 20]) {
        assertEquals(client.write(1 << 20, pattern(length, length)), 0);
        assertEquals(client.read(1 << 20, length), pattern(length, length));
      }
      // A hole, data, and a hole again: chunks of two kinds.
      const around = client.read(0, 6 << 20);
      assertEquals(
        around.subarray(1 << 20, 4 << 20),
        pattern(3 << 20, 3 << 20),
      );
      assert(around.subarray(0, 1 << 20).every((byte) => byte === 0));
      assert(around.subarray(4 << 20).every((byte) => byte === 0));
      const range = { offset: 1 << 20, lengthBytes: 1 << 20 };
      assertEquals(client.run({ op: BlockOp.WRITE_ZEROES, ...range }), 0);
      assertEquals(client.run({ op: BlockOp.DISCARD, ...range }), 0);
      assertEquals(client.write(512, pattern(512, 1), true), 0);
      assertEquals(client.run({ op: BlockOp.FLUSH }), 0);
      assertEquals(client.count("disconnects"), 0);
      const stored = Deno.readFileSync(file);
      assertEquals(stored.subarray(512, 1024), pattern(512, 1));
      assert(stored.subarray(1 << 20, 2 << 20).every((byte) => byte === 0));
    } finally {
      await server.kill();
    }
  },
);

guestTest("NbdBackend takes a read-only export of QEMU's", async ({ kit }) => {
  using folder = new Folder();
  folder.image("disk", EXPORT_BYTES);
  const server = await QemuNbd.start(kit, folder.path, { writable: false });
  try {
    using host = new Host();
    using client = new Controller(host, {
      ...NBD,
      uri: `unix:${folder.path}/nbd.sock?disk`,
    });
    assertEquals(client.backend.info.readonly, true);
    assertEquals(client.read(0, 4096), new Uint8Array(4096));
  } finally {
    await server.kill();
  }
});

guestTest(
  "NbdBackend outlives a QEMU that is killed under load",
  async ({ kit }) => {
    using folder = new Folder();
    const file = folder.image("disk", EXPORT_BYTES);
    let server = await QemuNbd.start(kit, folder.path);
    try {
      using host = new Host();
      using client = new Controller(host, {
        ...NBD,
        uri: `unix:${folder.path}/nbd.sock?disk`,
      });
      const count = 256;
      host.memory.write(0, pattern(count * 16384, 8));
      const requests = Array.from({ length: count }, (_, i) =>
        client.submit({
          op: BlockOp.WRITE,
          offset: i * 16384,
          at: [[i * 16384, 16384]],
        }));
      client.backend.commit();
      client.turnUntil(() => client.results.size > 0);
      await server.kill();
      clearSockets(folder.path);
      client.turnUntil(() => client.count("failedConnects") > 0);
      server = await QemuNbd.start(kit, folder.path);
      client.wait(requests);
      assertEquals(new Set(client.results.values()), new Set([0]));
      assertEquals(client.run({ op: BlockOp.FLUSH }), 0);
      assertEquals(client.count("reconnects"), 1);
      const stored = Deno.readFileSync(file);
      assertEquals(
        stored.subarray(0, count * 16384),
        pattern(count * 16384, 8),
      );
    } finally {
      await server.kill();
    }
  },
);
