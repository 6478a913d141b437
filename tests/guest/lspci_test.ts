import { assertEquals } from "@std/assert";
import { connectClient } from "../transport/vfio_user/remote.ts";
import { guestTest } from "./harness.ts";
import { treeCommand } from "./provision.ts";
import { Serving } from "./serving.ts";

const CONFIG_REGION = 7;
const CONFIG_BYTES = 4096;

/** Configuration space in the format of `lspci -xxxx`, which `lspci -F` reads back. */
function dump(bytes: Uint8Array): string {
  const lines = ["00:01.0 device"];
  for (let at = 0; at < bytes.length; at += 16) {
    const row = [...bytes.subarray(at, at + 16)]
      .map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
    lines.push(`${at.toString(16).padStart(2, "0")}: ${row}`);
  }
  return lines.join("\n") + "\n";
}

const PCI_COMMAND = 0x04;
const PCI_COMMAND_MEMORY = 0x02;
const PCI_BASE_ADDRESS_0 = 0x10;

function readConfig(socket: string): Uint8Array {
  using client = connectClient(socket);
  client.negotiate();
  // An address each, as firmware would give: lspci leaves out BARs that are all zeroes.
  for (const bar of [0, 1, 2, 4]) {
    const at = PCI_BASE_ADDRESS_0 + 4 * bar;
    client.writeRegion32(CONFIG_REGION, at, 0xe000_0000 + bar * 0x10_0000);
  }
  client.writeRegion16(CONFIG_REGION, PCI_COMMAND, PCI_COMMAND_MEMORY);
  return client.readRegion(CONFIG_REGION, 0, CONFIG_BYTES);
}

/** Compares with a golden file; `UPDATE_GOLDEN=1` writes it anew, to be read before it is committed. */
function assertGolden(name: string, text: string): void {
  const path = new URL(`./golden/${name}`, import.meta.url);
  if (Deno.env.get("UPDATE_GOLDEN") === "1") Deno.writeTextFileSync(path, text);
  assertEquals(text, Deno.readTextFileSync(path));
}

const ticker = `${import.meta.dirname}/../../examples/ticker.ts`;

for (
  const [name, device] of [
    ["virtio_net.lspci", "virtio-net,net=none"],
    ["ticker.lspci", ticker],
  ] as const
) {
  guestTest(`configuration space reads well: ${name}`, async ({ kit }) => {
    await using serving = await Serving.start({ devices: [device] });
    const file = await Deno.makeTempFile();
    try {
      await Deno.writeTextFile(file, dump(readConfig(serving.sockets[0]!)));
      const lspci = treeCommand(kit.guestTree.root, "usr/bin/lspci");
      const { stdout } = await new Deno.Command(lspci.command, {
        args: [...lspci.args, "-F", file, "-vvv", "-nn"],
        env: { ...lspci.env },
      }).output();
      assertGolden(name, new TextDecoder().decode(stdout));
    } finally {
      await Deno.remove(file);
    }
  });
}
