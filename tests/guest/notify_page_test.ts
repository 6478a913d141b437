/** Linux' own virtio drivers on devices whose notify structure QEMU maps: no doorbell is a message. */

import { assert, assertEquals } from "@std/assert";
import { Guest, vfioUserDevice } from "./guest.ts";
import { guestTest } from "./harness.ts";
import { DEFAULT_MODULES } from "./initramfs.ts";
import { assertPing, dhcp, DHCP_FILES } from "./net_checks.ts";
import { Serving } from "./serving.ts";

guestTest("a guest notifies by a mapped page", async ({ kit, t }) => {
  const modes = ["mmap", "message"];
  await using serving = await Serving.start({
    devices: modes.flatMap((mode) => [
      `virtio-blk,id=disk-${mode},doorbells=${mode}`,
      ...(mode === "mmap" ? ["virtio-net,id=lan,doorbells=mmap"] : []),
    ]),
  });
  await using guest = await Guest.boot({
    kit,
    modules: [...DEFAULT_MODULES, "virtio_blk"],
    devices: serving.sockets.map((socket) => vfioUserDevice(socket)),
    files: DHCP_FILES,
  });

  await t.step("the card reaches the network", async () => {
    await dhcp(guest);
    await assertPing(guest, "10.0.2.2", 5);
    const { pageKicks, messageKicks } = await serving.counters("lan");
    assert(pageKicks! > 5, `${pageKicks} notifications`);
    assertEquals(messageKicks, 0);
  });

  await t.step("a disk keeps what was written, either way", async () => {
    await guest.output(
      [
        "set -e",
        "until [ -b /dev/vda ] && [ -b /dev/vdb ]; do :; done",
        "head -c 4194304 /dev/urandom > /tmp/data",
        "for disk in vda vdb; do",
        "  dd if=/tmp/data of=/dev/$disk bs=64k conv=fsync 2> /dev/null",
        "  echo 3 > /proc/sys/vm/drop_caches",
        "  head -c 4194304 /dev/$disk | cmp - /tmp/data",
        "done",
      ].join("\n"),
      { timeoutMs: 60_000 },
    );
    const mapped = await serving.counters("disk-mmap");
    assert(mapped.pageKicks! > 0);
    assertEquals(mapped.messageKicks, 0);
    assert(mapped.writtenBytes! >= 4194304 && mapped.readBytes! >= 4194304);
    const told = await serving.counters("disk-message");
    assert(told.messageKicks! > 0);
    assertEquals(told.pageKicks, 0);
  });
});
