/**
 * Tests that every guest with a disk must pass, in the guest's own words.
 *
 * @module
 */

import { assertEquals, assertMatch } from "@std/assert";
import type { Guest } from "./guest.ts";

/** Time the verified random load runs: it writes each block some three times in that; longer is for a soak. */
export const FIO_SECONDS = Number(Deno.env.get("OUTBOARD_FIO_SECONDS") ?? 15);

/** Waits for disks: Linux looks for namespaces after the guest's shell is there. */
export async function waitForDisks(
  guest: Guest,
  ...names: string[]
): Promise<void> {
  for (const name of names) {
    await guest.output(`until [ -b /dev/${name} ]; do :; done`);
  }
}

/** Waits until the guest has a namespace of this number, and gives the name of its disk. */
export async function waitForNamespace(
  guest: Guest,
  nsid: number,
): Promise<string> {
  const found = await guest.output(
    `until grep -lx ${nsid} /sys/block/nvme0n*/nsid 2> /dev/null; do :; done`,
  );
  const name = found.trim().split("/")[3]!;
  await waitForDisks(guest, name);
  return name;
}

/** Makes a file system, writes a tree of files and gives the SHA-256 of each, sorted by name. */
export async function writeTree(guest: Guest, disk: string): Promise<string> {
  return await guest.output(
    [
      "set -e",
      `mke2fs -q -t ext4 -F ${disk}`,
      `mkdir -p /mnt && mount -t ext4 ${disk} /mnt`,
      "for d in 1 2 3; do mkdir -p /mnt/$d; for f in 1 2 3 4 5; do head -c $((d * f * 40000 + 17)) /dev/urandom > /mnt/$d/$f; done; done",
      "cd /mnt && find . -type f | sort | xargs sha256sum",
      "cd / && sync && umount /mnt",
    ].join("\n"),
    { timeoutMs: 120_000 },
  );
}

/** Mounts the file system again, after checking it, and gives the SHA-256 of each file. */
export async function readTree(guest: Guest, disk: string): Promise<string> {
  return await guest.output(
    [
      "set -e",
      `e2fsck -fn ${disk} > /tmp/fsck 2>&1 || { cat /tmp/fsck; exit 1; }`,
      `mkdir -p /mnt && mount -t ext4 -o ro ${disk} /mnt`,
      "cd /mnt && find . -type f | sort | xargs sha256sum",
      "cd / && umount /mnt",
    ].join("\n"),
    { timeoutMs: 120_000 },
  );
}

/** The fio job: a verified mix of random reads and writes, at depth 32 by four jobs, each on its own part. */
export function fioVerify(disk: string, seconds: number): string {
  return [
    `fio --name=verify --filename=${disk} --direct=1 --ioengine=libaio`,
    "--rw=randrw --bs=4k --iodepth=32 --numjobs=4 --thread",
    "--size=8M --offset_increment=8M",
    "--verify=crc32c --verify_fatal=1 --verify_backlog=256 --serialize_overlap=1",
    `--time_based --runtime=${seconds} --group_reporting --minimal`,
  ].join(" ");
}

/** Runs the verified load on all disks at once and wants no error on any. */
export async function assertFioVerify(
  guest: Guest,
  disks: readonly string[],
  seconds: number,
): Promise<void> {
  const commands = disks.map((disk, i) =>
    `(${
      fioVerify(disk, seconds)
    } > /tmp/fio${i} 2>&1; echo $? > /tmp/fio${i}.status) &`
  );
  await guest.output(`${commands.join("\n")}\nwait`, {
    timeoutMs: (seconds + 120) * 1000,
  });
  for (const i of disks.keys()) {
    const text = await guest.output(`cat /tmp/fio${i}`);
    const status = await guest.output(`cat /tmp/fio${i}.status`);
    assertEquals(status.trim(), "0", text);
    const result = text.split("\n").find((line) => line.startsWith("3;"));
    if (result === undefined) throw new Error(text);
    const fields = result.split(";");
    assertEquals(fields[4], "0", "total error");
    assertMatch(fields[5]!, /^[1-9]\d*$/, "KiB read");
  }
  assertEquals(await kernelErrors(guest), "");
}

/** Messages of the guest's kernel about I/O errors, time-outs and resets. */
export async function kernelErrors(guest: Guest): Promise<string> {
  return (await guest.output(
    "dmesg | grep -iE 'I/O error|timeout|Buffer I/O|aborting|resetting' || :",
  )).trim();
}
