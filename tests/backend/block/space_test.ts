import { assert, assertEquals } from "@std/assert";
import { BlockOp } from "../../../src/backend/block/contract.ts";
import { Errno } from "../../../src/core/errno.ts";
import { namespaceTests } from "../../namespaces.ts";
import { Controller, FILE, Folder, Host, pattern } from "./rig.ts";

function run(command: string, ...args: string[]): string {
  const { success, stdout, stderr } = new Deno.Command(command, { args })
    .outputSync();
  if (!success) throw new Error(new TextDecoder().decode(stderr));
  return new TextDecoder().decode(stdout).trim();
}

const mountTest = namespaceTests({
  url: import.meta.url,
  names: /a full file system/,
  namespaces: ["--mount"],
  why: whyNot(() => {
    const folder = Deno.makeTempDirSync();
    try {
      run("mount", "-t", "tmpfs", "none", folder);
      run("umount", folder);
    } finally {
      Deno.removeSync(folder);
    }
  }),
  probe: "mount -t tmpfs none /tmp",
});

/** Reason why something cannot be done here; null for none. */
function whyNot(attempt: () => void): string | null {
  try {
    attempt();
    return null;
  } catch (error) {
    return (error as Error).message.trim();
  }
}

const noLoop = Deno.uid() === 0
  ? whyNot(() => Deno.statSync(run("losetup", "-f")))
  : "loop devices are root's";

for (const engine of ["auto", "ring", "sync"] as const) {
  mountTest(
    `FileBackend, engine ${engine}: a full file system is ENOSPC`,
    () => {
      using folder = new Folder();
      run("mount", "-t", "tmpfs", "-o", "size=256k", "none", folder.path);
      try {
        const path = folder.image("disk.img", 1 << 20);
        using host = new Host();
        using controller = new Controller(host, { ...FILE, path, engine });
        // Fits, does not fit as a whole, does not fit at all.
        assertEquals(controller.write(0, pattern(65536, 1)), 0);
        assertEquals(
          controller.write(65536, pattern(512 * 1024, 2)),
          -Errno.ENOSPC,
        );
        assertEquals(
          controller.write(700 * 1024, pattern(4096, 3)),
          -Errno.ENOSPC,
        );
        assertEquals(controller.read(0, 65536), pattern(65536, 1));
        // Space that was given back can be used again.
        const all = { op: BlockOp.DISCARD, lengthBytes: 1 << 20 };
        assertEquals(controller.run(all), 0);
        assertEquals(controller.write(700 * 1024, pattern(4096, 3)), 0);
      } finally {
        run("umount", folder.path);
      }
    },
  );

  Deno.test({
    name: `FileBackend, engine ${engine}: a block device works as a file does${
      noLoop === null ? "" : ` (ignored: ${noLoop})`
    }`,
    ignore: noLoop !== null,
    fn: () => {
      using folder = new Folder();
      const image = folder.image("disk.img", 1 << 20);
      const device = run("losetup", "-f", "--show", image);
      try {
        using host = new Host();
        const options = { ...FILE, path: device, engine };
        using controller = new Controller(host, options);
        const { backend } = controller;
        assertEquals(backend.info.sizeBytes, 1 << 20);
        assert(backend.info.discardGranularityBytes > 0);
        const bytes = pattern(1 << 20, 1);
        assertEquals(controller.write(0, bytes), 0);
        const zeroes = { op: BlockOp.WRITE_ZEROES, offset: 4096 };
        assertEquals(controller.run({ ...zeroes, lengthBytes: 8192 }), 0);
        bytes.fill(0, 4096, 12288);
        const discard = { op: BlockOp.DISCARD, offset: 65536 };
        assertEquals(controller.run({ ...discard, lengthBytes: 65536 }), 0);
        // A loop device punches a hole.
        bytes.fill(0, 65536, 131072);
        assertEquals(controller.run({ op: BlockOp.FLUSH }), 0);
        assertEquals(controller.read(0, 1 << 20), bytes);
        assertEquals(Deno.readFileSync(image), bytes);
        assert(Deno.statSync(image).blocks! * 512 < 1 << 20);
        assertEquals(controller.count("failed"), 0);
        Deno.truncateSync(image, 2 << 20);
        run("losetup", "-c", device);
        assertEquals(backend.rescan!(), true);
        assertEquals(backend.info.sizeBytes, 2 << 20);
      } finally {
        run("losetup", "-d", device);
      }
    },
  });
}
