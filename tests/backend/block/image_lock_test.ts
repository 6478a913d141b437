import { assertEquals } from "@std/assert";
import { Errno } from "../../../src/core/errno.ts";
import {
  lockImage,
  unlockImage,
} from "../../../src/backend/block/file/image_lock.ts";
import {
  type Fd,
  FileLock,
  isLocked,
  lockFile,
  openFd,
} from "../../../src/os/mod.ts";
import { Folder } from "./rig.ts";

const O_RDONLY = 0;
const O_RDWR = 2;

/** Use of an image by QEMU, and uses it leaves to others, as sets of its permissions. */
interface Use {
  /** BLK_PERM_CONSISTENT_READ 1, WRITE 2, WRITE_UNCHANGED 4, RESIZE 8. */
  readonly perm: number;
  readonly shared: number;
}

/** As its tools and devices ask for them. */
const QEMU = {
  /** qemu-img info, qemu-io -r and qemu-nbd -r */
  tool: { perm: 1, shared: 15 },
  /** qemu-img convert, of its source */
  convert: { perm: 1, shared: 1 | 4 },
  /** A read-only disk of a guest */
  readonlyDisk: { perm: 1, shared: 1 | 4 },
  /** A disk of a guest */
  disk: { perm: 1 | 2 | 8, shared: 1 | 4 },
  /** A disk with share-rw=on */
  sharedDisk: { perm: 1 | 2, shared: 15 },
} as const satisfies Record<string, Use>;

/** Opens an image as QEMU does: bytes 100 and more for what it uses, 200 and more for what it does not leave. */
function openAsQemu(fd: Fd, { perm, shared }: Use): boolean {
  const bits = [0, 1, 2, 3];
  for (const bit of bits) {
    if (perm >> bit & 1) lockFile(fd.number, FileLock.SHARED, 100 + bit, 1);
    if (!(shared >> bit & 1)) {
      lockFile(fd.number, FileLock.SHARED, 200 + bit, 1);
    }
  }
  const isFree = (byte: number) => isLocked(fd.number, byte, 1) === 0;
  return bits.every((bit) =>
    (!(perm >> bit & 1) || isFree(200 + bit)) &&
    ((shared >> bit & 1) === 1 || isFree(100 + bit))
  );
}

Deno.test("lockImage and QEMU exclude one another, whoever comes first", () => {
  using folder = new Folder();
  const path = folder.image("disk.img", 4096);
  const together = (readonly: boolean, use: Use) => {
    const open = () => openFd(path, readonly ? O_RDONLY : O_RDWR);
    const weFirst = (() => {
      using ours = open();
      using theirs = openFd(path, O_RDONLY);
      assertEquals(lockImage(ours.number, readonly), 0);
      return openAsQemu(theirs, use);
    })();
    using theirs = openFd(path, O_RDONLY);
    assertEquals(openAsQemu(theirs, use), true);
    using ours = open();
    const result = lockImage(ours.number, readonly);
    assertEquals(result, weFirst ? 0 : -Errno.EAGAIN);
    // Who was refused leaves nothing.
    if (result < 0) {
      theirs.close();
      using next = openFd(path, O_RDONLY);
      assertEquals(openAsQemu(next, QEMU.disk), true);
    }
    return weFirst;
  };
  for (const use of [QEMU.tool, QEMU.convert, QEMU.readonlyDisk]) {
    assertEquals(together(true, use), true);
  }
  assertEquals(together(true, QEMU.disk), false);
  assertEquals(together(true, QEMU.sharedDisk), false);
  // As to a disk of its own: a tool that only looks may, whoever relies on what it sees may not.
  assertEquals(together(false, QEMU.tool), true);
  for (
    const use of [QEMU.convert, QEMU.readonlyDisk, QEMU.disk, QEMU.sharedDisk]
  ) {
    assertEquals(together(false, use), false);
  }
});

Deno.test("unlockImage gives up the lock of an opening that others hold too", () => {
  using folder = new Folder();
  const path = folder.image("disk.img", 4096);
  using ours = openFd(path, O_RDWR);
  using theirs = openFd(path, O_RDWR);
  assertEquals(lockImage(ours.number, false), 0);
  assertEquals(lockImage(ours.number, false), 0, "our own is not in the way");
  assertEquals(lockImage(theirs.number, false), -Errno.EAGAIN);
  unlockImage(ours.number);
  assertEquals(lockImage(theirs.number, false), 0);
});
