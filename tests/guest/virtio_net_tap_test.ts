import { assert, assertEquals } from "@std/assert";
import { Guest, vfioUserDevice } from "./guest.ts";
import { guestTest } from "./harness.ts";
import {
  assertBound,
  assertPing,
  guestReceives,
  guestSends,
  TRANSFER_BYTES,
} from "./net_checks.ts";
import { treeCommand } from "./provision.ts";

/** Lines of a child's output, one at a time. */
async function* linesOf(stream: ReadableStream<Uint8Array<ArrayBuffer>>) {
  let rest = "";
  for await (const text of stream.pipeThrough(new TextDecoderStream())) {
    const parts = (rest + text).split("\n");
    rest = parts.pop()!;
    yield* parts;
  }
}

guestTest("virtio-net through a TAP", async ({ kit, t }) => {
  const folder = await Deno.makeTempDir({ prefix: "outboard-tap-" });
  const socket = `${folder}/dev.sock`;
  const ip = treeCommand(kit.guestTree.root, "usr/bin/ip");
  // The TAP lives in a network namespace of its own, which ends with the processes in it: nothing is left on the host.
  const child = new Deno.Command("unshare", {
    args: [
      ...["--net", "--map-root-user", "--kill-child=KILL", "--fork", "--"],
      ...[Deno.execPath(), "run", "-A"],
      ...[import.meta.resolve("./tap_host.ts"), socket],
      ...[JSON.stringify([ip.command, ...ip.args]), String(TRANSFER_BYTES)],
    ],
    env: { ...ip.env },
    stdin: "piped",
    stdout: "piped",
    stderr: "inherit",
  }).spawn();
  const lines = linesOf(child.stdout);
  const next = async () => JSON.parse((await lines.next()).value ?? "null");
  try {
    const host = await next();
    assert(host !== null, "the host side did not start");
    await using guest = await Guest.boot({
      kit,
      devices: [vfioUserDevice(socket)],
    });
    await t.step("is bound and reaches the host", async () => {
      await assertBound(guest);
      await guest.output(
        "ip addr add 192.0.2.2/24 dev eth0 && ip link set eth0 up",
      );
      await assertPing(guest, "192.0.2.1");
    });
    await t.step("moves 64 MiB each way unchanged", async () => {
      assertEquals(
        await guestReceives(guest, "192.0.2.1", host.sourcePort),
        host.sha256,
      );
      const sent = await guestSends(guest, "192.0.2.1", host.sinkPort);
      assertEquals(await next(), {
        lengthBytes: TRANSFER_BYTES,
        sha256: sent,
      });
    });
    await t.step("link state and filters reach the driver", async () => {
      await guest.output("ip link set eth0 address 02:00:00:00:00:07");
      await assertPing(guest, "192.0.2.1", 3);
    });
  } finally {
    await child.stdin.close().catch(() => {}); // it has ended already
    await child.status;
    await lines.return(undefined);
    await Deno.remove(folder, { recursive: true });
  }
});
