import { assert, assertEquals, assertMatch } from "@std/assert";
import { startQemu } from "./bare_qemu.ts";
import { bootImage } from "./boot_sector.ts";
import {
  assertFioVerify,
  FIO_SECONDS,
  kernelErrors,
  readTree,
  waitForDisks,
  waitForNamespace,
  writeTree,
} from "./disk_checks.ts";
import { Guest, vfioUserDevice } from "./guest.ts";
import { guestTest, guestTests } from "./harness.ts";
import { clearSockets, QemuNbd } from "./qemu_nbd.ts";
import { until } from "../until.ts";
import { whileMoving } from "./moving.ts";
import { Serving } from "./serving.ts";

const IMAGE_BYTES = 64 * 1024 * 1024;

/** Time disks are moved to and fro under a load. */
const MOVING_SECONDS = 10;

/** Time a disk that two threads serve is verified. */
const SPREAD_SECONDS = 10;

const diskTest = await guestTests({ tools: ["filesystem", "fio", "nvme"] });

/** A folder for images that goes with the test; on a real file system, not in memory. */
class Images implements Disposable {
  readonly folder: string = Deno.makeTempDirSync({
    dir: "/var/tmp",
    prefix: "outboard-disk-",
  });

  path(name: string): string {
    return `${this.folder}/${name}`;
  }

  /** Makes a sparse image. */
  create(name: string, lengthBytes: number = IMAGE_BYTES): string {
    const path = this.path(name);
    using file = Deno.openSync(path, { create: true, write: true });
    file.truncateSync(lengthBytes);
    return path;
  }

  /** Bytes of a file that have space on the disk. */
  allocatedBytes(name: string): number {
    return Deno.statSync(this.path(name)).blocks! * 512;
  }

  [Symbol.dispose](): void {
    Deno.removeSync(this.folder, { recursive: true });
  }
}

/** Starts random writes in the background and waits until they are under way. */
async function startLoad(guest: Guest, disk: string): Promise<void> {
  await guest.output(
    `fio --name=load --filename=/dev/${disk} --direct=1 --ioengine=libaio --rw=randwrite --bs=4k --iodepth=32 --time_based --runtime=300 > /tmp/load 2>&1 &
    until [ $(awk '{print $9}' /sys/block/${disk}/stat) -gt 0 ]; do :; done`,
  );
}

/** Adds a namespace, has the guest write to it, and takes it away under a load. */
async function addAndRemove(
  serving: Serving,
  guest: Guest,
  nsid: number,
  storage: string,
): Promise<void> {
  await serving.control(`nvme0 add ${nsid} ${storage}`);
  const disk = await waitForNamespace(guest, nsid);
  const written = await writeTree(guest, `/dev/${disk}`);
  assertEquals(await readTree(guest, `/dev/${disk}`), written);
  await startLoad(guest, disk);
  await serving.control(`nvme0 remove ${nsid}`);
  await guest.output(`while [ -e /sys/block/${disk} ]; do :; done`);
  // Whatever was under way has ended: fio with it.
  await guest.output("while pidof fio > /dev/null; do :; done");
}

/** Resets an NVMe controller as its driver does, five times, waiting for it each time. */
async function resetController(guest: Guest): Promise<void> {
  await guest.output(
    "for i in 1 2 3 4 5; do echo 1 > /sys/class/nvme/nvme0/reset_controller; until [ $(cat /sys/class/nvme/nvme0/state) = live ]; do :; done; done",
  );
}

async function stopLoad(guest: Guest): Promise<void> {
  await guest.output(
    "killall -q fio; while pidof fio > /dev/null; do :; done",
  );
}

diskTest("virtio-blk and NVMe side by side", async ({ kit, t }) => {
  using images = new Images();
  await using serving = await Serving.start({
    devices: [
      `virtio-blk,file=${images.create("blk")},serial=BLK-0001`,
      `nvme,file=${images.create("nvme")},serial=NVME-0001`,
    ],
    args: ["--iothreads", "2"],
  });
  await using guest = await Guest.boot({
    kit,
    memoryMiB: 512,
    modules: ["virtio_blk"],
    tools: ["busybox", "dash", "lspci", "filesystem", "fio", "nvme"],
    devices: serving.sockets.map((socket) => vfioUserDevice(socket)),
  });
  const disks = ["/dev/vda", "/dev/nvme0n1"];
  await waitForDisks(guest, "vda", "nvme0n1");

  await t.step("Linux's drivers have them, with size and serial", async () => {
    for (const disk of ["vda", "nvme0n1"]) {
      const size = await guest.output(`cat /sys/block/${disk}/size`);
      assertEquals(Number(size) * 512, IMAGE_BYTES, disk);
    }
    assertEquals(await guest.output("cat /sys/block/vda/serial"), "BLK-0001");
    assertMatch(
      await guest.output("cat /proc/interrupts"),
      /virtio\d+-req\.0[\s\S]*nvme0q1|nvme0q1[\s\S]*virtio\d+-req\.0/,
    );
  });

  await t.step("nvme-cli finds the controller sensible", async () => {
    assertMatch(await guest.output("nvme list"), /NVME-0001.*67\.11 {2}MB/);
    const id = await guest.output("nvme id-ctrl /dev/nvme0");
    assertMatch(id, /^sn +: NVME-0001/m);
    assertMatch(id, /^mn +: Outboard/m);
    assertMatch(id, /^ver +: 0x10400$/m);
    const smart = await guest.output("nvme smart-log /dev/nvme0");
    assertMatch(smart, /critical_warning\s*: 0\n/);
    assertMatch(smart, /available_spare\s*: 100%/);
    assertMatch(smart, /media_errors\s*: 0\n/);
    const ns = await guest.output("nvme id-ns /dev/nvme0n1");
    assertMatch(ns, /^nsze +: 0x20000$/m);
    assertMatch(ns, /^npwg +: 7$/m);
    assertMatch(ns, /^nows +: 7$/m);
    assertMatch(
      await guest.output("nvme list-subsys"),
      /NQN=nqn\.2014-08\.org\.nvmexpress:uuid:[\s\S]*nvme0 pcie .* live/,
    );
  });

  await t.step("neither the controller nor Linux has complained", async () => {
    // nvme-cli prints entries that are empty too.
    const log = await guest.output("nvme error-log /dev/nvme0");
    assertMatch(log, /^Error Log Entries/);
    const counts = [...log.matchAll(/^error_count\s*: (\d+)/gm)];
    assertEquals(new Set(counts.map(([, count]) => count)), new Set(["0"]));
    const smart = await guest.output("nvme smart-log /dev/nvme0");
    assertMatch(smart, /num_err_log_entries\s*: 0\n/);
    // Reads it where it is first missed.
    await guest.output("cat /sys/block/nvme0n1/uuid");
    assertMatch(await guest.output("cat /sys/block/nvme0n1/wwid"), /^uuid\./);
    const said = await guest.output(
      "dmesg -r | grep -E '^<[0-4]>.*nvme' || :",
    );
    assertEquals(said.trim(), "");
  });

  await t.step("a tree of files survives a reboot", async () => {
    const written = new Map<string, string>();
    for (const disk of disks) written.set(disk, await writeTree(guest, disk));
    await guest.reboot();
    await waitForDisks(guest, "vda", "nvme0n1");
    for (const disk of disks) {
      assertEquals(await readTree(guest, disk), written.get(disk), disk);
    }
    const smart = await guest.output("nvme smart-log /dev/nvme0");
    assertMatch(smart, /unsafe_shutdowns\s*: 0\n/);
    assertMatch(smart, /num_err_log_entries\s*: 0\n/);
  });

  await t.step("a GPT with partitions is found", async () => {
    for (const disk of disks) {
      await guest.output(
        `printf 'label: gpt\\nsize=16MiB\\nsize=16MiB\\n' | sfdisk -q ${disk} && partprobe ${disk}`,
      );
    }
    const parts = await guest.output("cat /proc/partitions");
    assertMatch(parts, /16384 vda2$/m);
    assertMatch(parts, /16384 nvme0n1p2$/m);
  });

  await t.step("blkdiscard gives the space back", async () => {
    for (
      const [disk, name] of [["/dev/vda", "blk"], ["/dev/nvme0n1", "nvme"]]
    ) {
      await guest.output(
        `dd if=/dev/urandom of=${disk} bs=1M count=32 && sync`,
      );
      const before = images.allocatedBytes(name!);
      assert(before >= 32 * 1024 * 1024, `${name}: ${before} bytes`);
      await guest.output(`blkdiscard ${disk}`);
      const after = images.allocatedBytes(name!);
      assert(after < 1024 * 1024, `${name}: ${after} of ${before} bytes left`);
    }
  });

  await t.step(`fio verifies a random load for ${FIO_SECONDS} s`, async () => {
    await assertFioVerify(guest, disks, FIO_SECONDS);
  });

  await t.step("both change threads under a verified load", async () => {
    await whileMoving(
      (line) => serving.control(line),
      ["virtio-blk0", "nvme0"],
      () => assertFioVerify(guest, disks, MOVING_SECONDS),
    );
  });

  await t.step("a reset in the middle of a load is survived", async () => {
    await startLoad(guest, "nvme0n1");
    await resetController(guest);
    await stopLoad(guest);
    await startLoad(guest, "vda");
    await guest.output(
      "D=$(basename $(readlink -f /sys/block/vda/device)); cd /sys/bus/virtio/drivers/virtio_blk; echo $D > unbind; echo $D > bind",
    );
    await stopLoad(guest);
    for (const disk of disks) {
      const written = await writeTree(guest, disk);
      assertEquals(await readTree(guest, disk), written);
    }
  });

  await t.step("a namespace comes and goes under a load", async () => {
    await addAndRemove(
      serving,
      guest,
      2,
      `file=${images.create("late")}`,
    );
    const written = await writeTree(guest, "/dev/nvme0n1");
    assertEquals(await readTree(guest, "/dev/nvme0n1"), written);
  });

  await t.step("nothing was complained of", () => {
    assert(
      !/warning|error/.test(serving.outboard.stderr),
      serving.outboard.stderr,
    );
  });
});

/** A verified load through four queues, resets in the middle of another, and a tree of files after all that. */
async function verifySpread(guest: Guest, disk: string): Promise<void> {
  await assertFioVerify(guest, [`/dev/${disk}`], SPREAD_SECONDS);
  for (let cpu = 0; cpu < 4; cpu++) {
    await guest.output(
      `taskset ${
        (1 << cpu).toString(16)
      } dd if=/dev/${disk} of=/dev/null bs=4k count=16 iflag=direct`,
    );
  }
  // Each queue has a CPU of its own, and so a vector, of which half are raised by the other thread.
  const interrupts = await guest.output("grep nvme0q /proc/interrupts");
  for (let queue = 1; queue <= 4; queue++) {
    const line = interrupts.split("\n").find((each) =>
      each.trimEnd().endsWith(`nvme0q${queue}`)
    );
    const counts = line?.match(/:((?: +\d+)+)/)?.[1]?.trim().split(/ +/) ?? [];
    assert(counts.some((count) => Number(count) > 0), interrupts);
  }
  await startLoad(guest, disk);
  await resetController(guest);
  await stopLoad(guest);
  const written = await writeTree(guest, `/dev/${disk}`);
  assertEquals(await readTree(guest, `/dev/${disk}`), written);
}

diskTest("read-only disks refuse writes", async ({ kit }) => {
  using images = new Images();
  await using serving = await Serving.start({
    devices: [
      `virtio-blk,readonly=on,file=${images.create("blk")}`,
      `nvme,readonly=on,file=${images.create("nvme")}`,
    ],
  });
  await using guest = await Guest.boot({
    kit,
    modules: ["virtio_blk"],
    tools: ["busybox", "dash", "filesystem"],
    devices: serving.sockets.map((socket) => vfioUserDevice(socket)),
  });
  await waitForDisks(guest, "vda", "nvme0n1");
  for (const disk of ["/dev/vda", "/dev/nvme0n1"]) {
    const { status } = await guest.run(
      `dd if=/dev/zero of=${disk} bs=4k count=1 oflag=direct conv=fsync`,
    );
    assert(status !== 0, `${disk} took a write`);
    await guest.output(`dd if=${disk} of=/dev/null bs=64k count=16`);
  }
  for (const name of ["blk", "nvme"]) {
    assertEquals(images.allocatedBytes(name), 0);
  }
});

diskTest(
  "an NVMe controller on two threads has four queues, and several namespaces, one of which grows",
  async ({ kit }) => {
    using images = new Images();
    await using serving = await Serving.start({
      devices: [
        `nvme,queues=4,iothread=0:1,ns1.memory=32M,ns2.file=${
          images.create("second", 8 * 1024 * 1024)
        }`,
      ],
      args: ["--iothreads", "2"],
    });
    await using guest = await Guest.boot({
      kit,
      memoryMiB: 512,
      cpus: 4,
      tools: ["busybox", "dash", "filesystem", "fio", "nvme"],
      devices: serving.sockets.map((socket) => vfioUserDevice(socket)),
    });
    await waitForDisks(guest, "nvme0n1", "nvme0n2");
    // Linux looks at namespaces side by side, and names them in the order in which it is done with them.
    const sizeFile = async (nsid: number) =>
      (await guest.output(
        `grep -lx ${nsid} /sys/block/nvme0n*/nsid | sed s/nsid$/size/`,
      )).trim();
    const sectors = async (nsid: number) =>
      Number(await guest.output(`cat ${await sizeFile(nsid)}`));
    assertEquals(await sectors(1), 32 * 2048);
    assertEquals(await sectors(2), 8 * 2048);
    const ids = await guest.output("cat /sys/block/nvme0n*/wwid");
    assertEquals(new Set(ids.trim().split("\n")).size, 2, ids);
    await serving.control("nvme0 resize 2 12M");
    await guest.output(
      `until [ $(cat ${await sizeFile(2)}) = ${12 * 2048} ]; do :; done`,
    );
    assertEquals(await sectors(1), 32 * 2048);
    await verifySpread(guest, (await sizeFile(1)).split("/")[3]!);
    const counters = await serving.counters("nvme0");
    assertEquals([counters.failedCommands, counters.invalidDoorbells], [0, 0]);
    await addAndRemove(serving, guest, 5, "memory=64M");
    assertEquals(await sectors(2), 12 * 2048);
    assert(
      !/warning|error/.test(serving.outboard.stderr),
      serving.outboard.stderr,
    );
  },
);

diskTest("errors of the back end reach the guest", async ({ kit }) => {
  const faulty = `${import.meta.dirname}/faulty_disk.ts`;
  await using serving = await Serving.start({
    devices: [`${faulty},controller=virtio-blk`, `${faulty},controller=nvme`],
  });
  await using guest = await Guest.boot({
    kit,
    modules: ["virtio_blk"],
    tools: ["busybox", "dash"],
    devices: serving.sockets.map((socket) => vfioUserDevice(socket)),
  });
  await waitForDisks(guest, "vda", "nvme0n1");
  for (const disk of ["/dev/vda", "/dev/nvme0n1"]) {
    // Reads of the second MiB fail with EIO, writes to the third with ENOSPC, the rest is fine.
    const dd = (args: string) => guest.run(`dd bs=64k count=1 ${args} 2>&1`);
    assertEquals((await dd(`if=${disk} of=/dev/null iflag=direct`)).status, 0);
    const read = await dd(`if=${disk} of=/dev/null skip=16 iflag=direct`);
    // NVMe's status for it is an unrecovered read error, which Linux calls ENODATA.
    assertMatch(read.output, /Input\/output error|No data available/);
    const write = await dd(`if=/dev/zero of=${disk} seek=32 oflag=direct`);
    assertMatch(write.output, /No space left|Input\/output error/);
    assertEquals((await dd(`if=/dev/zero of=${disk} oflag=direct`)).status, 0);
  }
  assert(await kernelErrors(guest) !== "");
});

diskTest(
  "a qcow2 behind NBD survives the death of its server",
  async ({ kit }) => {
    using images = new Images();
    const image = images.create("disk", 0);
    let server = await QemuNbd.start(kit, images.folder, {
      format: "qcow2",
      createBytes: IMAGE_BYTES,
    });
    try {
      await using serving = await Serving.start({
        // The server keeps a qcow2's tables in its own memory: with a write cache, what nobody flushed dies with it.
        devices: [
          `virtio-blk,write-cache=off,nbd=unix:${images.folder}/nbd.sock?disk`,
        ],
      });
      await using guest = await Guest.boot({
        kit,
        memoryMiB: 512,
        modules: ["virtio_blk"],
        tools: ["busybox", "dash", "filesystem", "fio"],
        devices: [vfioUserDevice(serving.sockets[0]!)],
      });
      let over = false;
      const load = (async () => {
        do await assertFioVerify(guest, ["/dev/vda"], 10); while (!over);
      })();
      // Whoever waits below for what it writes is told when it has failed.
      load.catch(() => over = true);
      // Killed when it has written something, three times.
      for (let round = 0; round < 3 && !over; round++) {
        const written = () => Deno.statSync(image).mtime!.getTime();
        const before = written();
        await until("a write", () => over || written() > before);
        await server.kill();
        clearSockets(images.folder);
        server = await QemuNbd.start(kit, images.folder, { format: "qcow2" });
      }
      over = true;
      await load;
      const counters = await serving.counters("virtio-blk0");
      assertEquals(counters["backend.reconnects"], 3);
      const written = await writeTree(guest, "/dev/vda");
      assertEquals(await readTree(guest, "/dev/vda"), written);
    } finally {
      await server.kill();
    }
  },
);

for (const controller of ["virtio-blk", "nvme"]) {
  guestTest(`SeaBIOS boots from ${controller}`, async ({ kit }) => {
    using images = new Images();
    const text = `booted from ${controller}: ${
      "0123456789abcdef".repeat(100)
    } end\n`;
    const image = images.path("boot");
    await Deno.writeFile(image, bootImage(text));
    await using serving = await Serving.start({
      devices: [`${controller},file=${image}`],
    });
    const qemu = startQemu(kit, [vfioUserDevice(serving.sockets[0]!)], {
      run: true,
    });
    try {
      assertEquals(await qemu.waitForSerial(/ end\n/, 60_000), text);
    } finally {
      await qemu.kill();
    }
  });
}
