/**
 * Fields of the states of all devices, by kind and version, against what was written down: a form whose fields change gets
 * another version, and an upgrade from the one before.
 */

import { assertEquals } from "@std/assert";
import { decodePlainData } from "../../src/core/plain_data.ts";
import { listenUnix } from "../../src/os/mod.ts";
import type { OptionTexts } from "../../src/core/options.ts";
import { NetDriver, VirtioDriver } from "../../src/testing/mod.ts";
import {
  GuestRam,
  PciClient,
  type VfioUserClient,
} from "../../src/transport/vfio_user/client/mod.ts";
import { Folder } from "../backend/block/rig.ts";
import { connectClient } from "../transport/vfio_user/remote.ts";
import { DeviceProcess } from "./device_process.ts";
import { RemoteNvme } from "./nvme_client.ts";
import { VerifiedDisk } from "./verified_disk.ts";

/** A state as an outline of its fields; lists stand for their first elements. */
function outline(value: unknown, indent = "  "): string {
  if (Array.isArray(value)) {
    return value.length === 0 ? " []" : ` []${outline(value[0], indent)}`;
  }
  if (ArrayBuffer.isView(value)) return " bytes";
  if (typeof value !== "object" || value === null) {
    return value === null ? " null" : ` ${typeof value}`;
  }
  const { kind, version, body } = value as Record<string, unknown>;
  if (typeof version === "number" && body !== undefined) {
    return ` ${kind} version ${version}${outline(body, indent)}`;
  }
  return Object.entries(value).map(([name, field]) => {
    // These may come and go: one that a state does not have begins at 0.
    const isFree = name === "counters" || name === "counted";
    const what = isFree ? " by name" : outline(field, `${indent}  `);
    return `\n${indent}${name}:${what}`;
  }).join("");
}

/** Compares with a golden file; `UPDATE_GOLDEN=1` writes it anew, to be read before it is committed. */
function compare(name: string, text: string): void {
  const path = new URL(`./golden/${name}.state`, import.meta.url);
  if (Deno.env.get("UPDATE_GOLDEN") === "1") Deno.writeTextFileSync(path, text);
  assertEquals(
    text,
    Deno.readTextFileSync(path),
    "other fields than the version had: it needs another, and an upgrade",
  );
}

const DEVICES: readonly [
  string,
  OptionTexts,
  (client: VfioUserClient, ram: GuestRam) => void,
][] = [
  [
    "virtio-blk",
    { memory: "1M" },
    (client, ram) =>
      new VerifiedDisk(new VirtioDriver(new PciClient(client), ram.memory), {
        ...{ queues: 1, slotsPerQueue: 1, blocks: 1, seed: 1 },
      }),
  ],
  [
    "virtio-net",
    { net: "none" },
    (client, ram) =>
      new NetDriver(new VirtioDriver(new PciClient(client), ram.memory)),
  ],
  [
    "nvme",
    { memory: "1M", queues: "1" },
    (client, ram) => {
      const { driver } = new RemoteNvme(client, ram, 0);
      driver.configureShadow();
      driver.createPair(1, 16, 0);
    },
  ],
];

Deno.test("states of devices have the fields of their versions", async () => {
  using folder = new Folder();
  await using process = new DeviceProcess(folder.path);
  for (const [model, options, setUp] of DEVICES) {
    const path = `${folder.path}/${model}`;
    using listener = listenUnix(path);
    process.host({ model, options, state: null }, listener);
    using client = connectClient(path);
    client.negotiate();
    using ram = new GuestRam(4 << 20);
    ram.share(client);
    setUp(client, ram);
    const { state, bag } = process.give();
    bag[Symbol.dispose]();
    compare(model, `${outline(decodePlainData(state)).trim()}\n`);
  }
});
