/**
 * Fields of the states of all devices, by kind and version, against what was written down: a form whose fields change gets
 * another version, and an upgrade from the one before.
 */

import { assert, assertEquals } from "@std/assert";
import { loadModel } from "../../devices/registry.ts";
import { ErrnoError } from "../../src/core/errno.ts";
import { silentLog } from "../../src/core/log.ts";
import { decodePlainData, encodePlainData } from "../../src/core/plain_data.ts";
import { EventLoop } from "../../src/loop/event_loop.ts";
import { type Fd, listenUnix, type Saved } from "../../src/os/mod.ts";
import { DeviceHost } from "../../src/runtime/device_host.ts";
import type { OptionTexts } from "../../src/core/options.ts";
import { NetDriver, VirtioDriver } from "../../src/testing/mod.ts";
import {
  GuestRam,
  PciClient,
  type VfioUserClient,
} from "../../src/transport/vfio_user/client/mod.ts";
import { Folder } from "../backend/block/rig.ts";
import { openFds, sharedMappings } from "../resources.ts";
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

interface Sample {
  readonly model: string;
  readonly options: (folder: Folder) => OptionTexts;
  readonly setUp: (client: VfioUserClient, ram: GuestRam) => void;
}

function setUpDisk(client: VfioUserClient, ram: GuestRam): void {
  new VerifiedDisk(new VirtioDriver(new PciClient(client), ram.memory), {
    ...{ queues: 1, slotsPerQueue: 1, blocks: 1, seed: 1 },
  });
}

/** By the names of their golden files. */
const SAMPLES: Readonly<Record<string, Sample>> = {
  "virtio-blk": {
    model: "virtio-blk",
    options: () => ({ memory: "1M" }),
    setUp: setUpDisk,
  },
  "virtio-blk-file": {
    model: "virtio-blk",
    options: (folder) => ({ file: folder.image("disk", 1 << 20) }),
    setUp: setUpDisk,
  },
  "virtio-net": {
    model: "virtio-net",
    options: () => ({ net: "none" }),
    setUp: (client, ram) =>
      new NetDriver(new VirtioDriver(new PciClient(client), ram.memory)),
  },
  "nvme": {
    model: "nvme",
    options: () => ({ memory: "1M", queues: "1" }),
    setUp: (client, ram) => {
      const { driver } = new RemoteNvme(client, ram, 0);
      driver.configureShadow();
      driver.createPair(1, 16, 0);
    },
  },
};

/** Has each device be saved while a driver uses it. */
async function withStates(
  run: (sample: {
    readonly name: string;
    readonly model: string;
    readonly options: OptionTexts;
    readonly saved: Saved<Uint8Array>;
    readonly listener: Fd;
  }) => void | Promise<void>,
): Promise<void> {
  using folder = new Folder();
  await using process = new DeviceProcess(folder.path);
  for (const [name, sample] of Object.entries(SAMPLES)) {
    const { model, setUp } = sample;
    const options = sample.options(folder);
    const path = `${folder.path}/${name}`;
    using listener = listenUnix(path);
    process.host({ model, options, state: null }, listener);
    using client = connectClient(path);
    client.negotiate();
    using ram = new GuestRam(4 << 20);
    ram.share(client);
    setUp(client, ram);
    const saved = process.give();
    using _bag = saved.bag;
    await run({ name, model, options, saved, listener });
  }
}

Deno.test("states of devices have the fields of their versions", () =>
  withStates(({ name, saved }) =>
    compare(name, `${outline(decodePlainData(saved.state)).trim()}\n`)
  ));

/** A field of a state, by where it is. */
interface Field {
  readonly place: string;
  readonly owner: Record<string, unknown>;
  readonly name: string;
}

function fieldsOf(value: unknown, place = ""): Field[] {
  if (
    typeof value !== "object" || value === null || ArrayBuffer.isView(value)
  ) {
    return [];
  }
  const owner = value as Record<string, unknown>;
  return Object.keys(owner).flatMap((name) => {
    const at = `${place}.${name}`;
    return [{ place: at, owner, name }, ...fieldsOf(owner[name], at)];
  });
}

const JUNK = [
  ...[-1, 0, 1, 1.5, 255, 0x7fff_ffff, 2 ** 32, Number.MAX_SAFE_INTEGER, NaN],
  ...[null, true, "x", [], [0], {}, new Uint8Array(3), undefined],
];

Deno.test("states with a field of something else are refused, or do no harm", () =>
  withStates(async ({ options, saved, listener, ...sample }) => {
    const { state, bag } = saved;
    const model = await loadModel(sample.model);
    using loop = new EventLoop();
    const attempt = (state: Uint8Array) => {
      using host = new DeviceHost({
        ...{ id: "odd", model, options: model.options!.parse(options) },
        ...{ loop, log: silentLog, listener: listener.number },
        ...{ saved: { state, bag }, poisonUnmapped: true },
      });
      for (let i = 0; i < 3; i++) loop.turn(0);
      host.hold();
    };
    attempt(state);
    const before = [openFds(), sharedMappings()];
    let refused = 0;
    const fields = fieldsOf(decodePlainData(state)).length;
    for (let i = 0; i < fields; i++) {
      const root = decodePlainData(state);
      const { owner, name, place } = fieldsOf(root)[i % fields]!;
      const junk = JUNK[(i * 7 + (i / fields | 0) * 5) % JUNK.length];
      owner[name] = junk;
      try {
        attempt(encodePlainData(root));
      } catch (error) {
        refused++;
        const { name, message } = error as Error;
        assert(
          error instanceof ErrnoError || message.startsWith("Cannot "),
          `${place} = ${junk}: ${name}: ${message}`,
        );
      }
      assertEquals([openFds(), sharedMappings()], before, `${place} = ${junk}`);
    }
    assert(refused > fields / 2);
  }));
