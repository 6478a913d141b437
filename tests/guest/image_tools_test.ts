/** Images that QEMU's own tools and we open at the same time. */

import { assert, assertEquals, assertMatch, assertThrows } from "@std/assert";
import { Controller, FILE, Folder, Host } from "../backend/block/rig.ts";
import { guestTests } from "./harness.ts";
import type { Kit } from "./provision.ts";
import { TextSink } from "./text_sink.ts";
import { treeCommand } from "./tree.ts";

const IMAGE_BYTES = 1 << 20;
const READ = "read 0 4k";
const WRITE = "write 0 4k";
/** Complaint of QEMU about an image that it may not open so. */
const REFUSED = /Failed to get (shared )?"\w+" lock/;

/** Arguments for qemu-io that open an image. */
const READONLY = ["-f", "raw", "-r"];
const WRITABLE = ["-f", "raw"];

const toolTest = await guestTests({ tools: ["images"] });

function command(
  kit: Kit,
  program: "qemu-img" | "qemu-io",
  args: readonly string[],
  io: Pick<Deno.CommandOptions, "stdin" | "stderr">,
): Deno.Command {
  const { root } = kit.tools.images!.tree;
  const prefix = treeCommand(root, `usr/bin/${program}`);
  return new Deno.Command("setpriv", {
    args: [
      ...["--pdeathsig", "KILL", "--", prefix.command],
      ...prefix.args,
      ...args,
    ],
    env: prefix.env,
    stdout: "piped",
    ...io,
  });
}

/** Runs a tool; gives null when it did what it was asked for, or what it complained of. */
async function run(
  kit: Kit,
  program: "qemu-img" | "qemu-io",
  ...args: string[]
): Promise<string | null> {
  const { success, stderr } = await command(kit, program, args, {
    stdin: "null",
    stderr: "piped",
  }).output();
  return success ? null : new TextDecoder().decode(stderr);
}

/** Has an image open by qemu-io for as long as `use` runs. */
async function whileOpen(
  kit: Kit,
  args: readonly string[],
  use: () => void,
): Promise<void> {
  const child = command(kit, "qemu-io", args, {
    stdin: "piped",
    stderr: "inherit",
  }).spawn();
  const output = new TextSink();
  const drained = output.drain(child.stdout);
  const input = child.stdin.getWriter();
  try {
    await input.write(new TextEncoder().encode(`${READ}\n`));
    // It has opened the image, and goes on until its input ends.
    await Promise.race([output.match(/read 4096/, 0), drained]);
    use();
  } finally {
    await input.close();
    await drained;
  }
  const { success } = await child.status;
  assert(success, output.text);
}

toolTest(
  "a readonly=on image is QEMU's tools' to read and nobody's to write",
  async ({ kit, t }) => {
    using folder = new Folder();
    const path = folder.image("disk.img", IMAGE_BYTES);
    const copy = `${folder.path}/copy.img`;
    const convert = ["convert", "-f", "raw", "-O", "raw", path, copy];
    using host = new Host();
    const open = (readonly: boolean) =>
      new Controller(host, { ...FILE, path, readonly });

    await t.step("while we have it", async () => {
      using ours = open(true);
      assertEquals(ours.read(0, 4096).length, 4096);
      assertEquals(await run(kit, "qemu-img", "info", path), null);
      assertEquals(await run(kit, "qemu-img", ...convert), null);
      assertEquals(
        await run(kit, "qemu-io", ...READONLY, "-c", READ, path),
        null,
      );
      assertMatch(
        await run(kit, "qemu-io", ...WRITABLE, "-c", WRITE, path) ?? "",
        REFUSED,
      );
    });

    await t.step("when a tool came first", async () => {
      await whileOpen(kit, [...READONLY, path], () => {
        using ours = open(true);
        assertEquals(ours.read(0, 4096).length, 4096);
      });
      await whileOpen(kit, [...WRITABLE, path], () => {
        assertThrows(() => open(true), Error, "somebody else writes to it");
      });
    });

    await t.step("and one that we write to is nobody else's", async () => {
      {
        using _ours = open(false);
        for (
          const refused of [
            await run(kit, "qemu-img", ...convert),
            await run(kit, "qemu-io", ...WRITABLE, "-c", WRITE, path),
          ]
        ) assertMatch(refused ?? "", REFUSED);
      }
      await whileOpen(kit, [...WRITABLE, path], () => {
        assertThrows(() => open(false), Error, "somebody else uses it");
      });
      assertEquals(
        await run(kit, "qemu-io", ...WRITABLE, "-c", WRITE, path),
        null,
      );
    });
  },
);
