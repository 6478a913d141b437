import {
  assert,
  assertEquals,
  assertMatch,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import { DiskOp, VirtioBlkDriver } from "../../bench/disk_driver.ts";
import { startOutboard, VirtioDriver } from "../../src/testing/mod.ts";
import {
  GuestRam,
  PciClient,
} from "../../src/transport/vfio_user/client/mod.ts";
import { MOODS, MOODS_AT } from "../backend/block/fixtures/moody_store.ts";
import { connectClient } from "../transport/vfio_user/remote.ts";
import { controlLine } from "../guest/control_line.ts";
import { until } from "../until.ts";

const STORES = new URL("../backend/block/fixtures", import.meta.url).pathname;
const BLOCK = 4096;
const OK = 0;
const IOERR = 1;

function exists(path: string): boolean {
  try {
    return Deno.statSync(path).isFile;
  } catch {
    return false;
  }
}

/** A driver on a socket, one request at a time. */
class Disk implements Disposable {
  readonly #client;
  readonly #ram = new GuestRam(1 << 20);
  readonly #disk: VirtioBlkDriver;

  constructor(path: string) {
    this.#client = connectClient(path);
    this.#client.negotiate();
    this.#ram.share(this.#client);
    const virtio = new VirtioDriver(
      new PciClient(this.#client),
      this.#ram.memory,
    );
    this.#disk = new VirtioBlkDriver(virtio, {
      slots: 1,
      transferBytes: BLOCK,
    });
  }

  async read(offset: number): Promise<number> {
    this.#disk.issue(0, DiskOp.READ, offset / 512);
    this.#disk.flush();
    await until("answer", () => this.#disk.reap() > 0);
    return this.#disk.status[0]!;
  }

  [Symbol.dispose](): void {
    this.#client.close();
    this.#ram.close();
  }
}

Deno.test("a store that ends is told in one line and as an event, and takes no other disk along", async () => {
  const folder = Deno.makeTempDirSync();
  try {
    const path = (name: string) => `${folder}/${name}`;
    await using outboard = await startOutboard([
      ...["--device", `virtio-blk,id=a,backend=${STORES}/moody_store.ts`],
      ...["--socket", path("a"), "--control", path("control")],
      ...["--device", `virtio-blk,id=b,backend=${STORES}/memory_store.ts`],
      ...["--socket", path("b")],
    ]);
    using control = await Deno.connect({
      transport: "unix",
      path: path("control"),
    });
    await control.write(new TextEncoder().encode('{"execute":"list"}\n'));
    using a = new Disk(path("a"));
    using b = new Disk(path("b"));
    assertEquals(await a.read(0), OK);
    assertEquals(await a.read(MOODS_AT + MOODS.indexOf("exit") * BLOCK), IOERR);
    assertEquals(await a.read(0), IOERR);
    assertEquals(await b.read(0), OK);
    let said = "";
    const chunk = new Uint8Array(4096);
    while (!/STORE_ENDED.*\n/.test(said)) {
      const length = await control.read(chunk);
      assert(length !== null, said);
      said += new TextDecoder().decode(chunk.subarray(0, length ?? 0));
    }
    const event = said.split("\n").map((line) => line && JSON.parse(line))
      .find(({ event }) => event === "STORE_ENDED");
    assertEquals(event.data, { device: "a", reason: "it has called exit()" });
    await outboard.waitFor("tell", () => outboard.stderr.includes("ended"));
    const lines = outboard.stderr.split("\n").filter((it) => /ended/.test(it));
    assertEquals(lines.length, 1);
    assertMatch(lines[0]!, /^a: error: store moody has ended: it has called/);
    assertEquals(outboard.status, null);
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
});

Deno.test("a stop closes every store beside those that never have closed, tells of those and has a status of its own", async () => {
  const folder = Deno.makeTempDirSync();
  try {
    const closing = `backend=${STORES}/closing_store.ts`;
    const saved = `${folder}/saved`;
    const outboard = await startOutboard([
      ...["--iothreads", "2"],
      ...["--device", `nvme,iothread=0:1,${closing},ns2.${closing}`],
      ...["--socket", `${folder}/a`],
      ...["--device", `virtio-blk,iothread=0,${closing},path=${saved}`],
      ...["--socket", `${folder}/b`],
    ]);
    outboard.signal("SIGTERM");
    assertEquals(await outboard.exitCode(), 1);
    assertEquals(Deno.statSync(saved).size, 4096);
    const lines = outboard.stderr.split("\n")
      .filter((it) => it.includes("has not closed within 4 s"));
    assertEquals(lines.length, 2, outboard.stderr);
    assertMatch(lines[0]!, /^nvme0: error: store closing has not closed/);
    assert(!outboard.stderr.includes("did not stop"), outboard.stderr);
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
});

Deno.test("a store that opens as none is a fault of its file, which is named with the device", async () => {
  const folder = Deno.makeTempDirSync();
  try {
    const file = `${folder}/none.ts`;
    Deno.writeTextFileSync(
      file,
      'export const store = { name: "none", open() {} };',
    );
    const error = await assertRejects(() =>
      startOutboard([
        ...["--device", "virtio-blk", "--socket", `${folder}/a`],
        ...["--device", `nvme,ns2.backend=${file}`, "--socket", `${folder}/b`],
      ]), Error);
    assertStringIncludes(
      error.message,
      `outboard: nvme0: Cannot use ${file} as a store: in what its open() gives, \`read\` must be a function\n`,
    );
    assertMatch(error.message, /it ended with code 2/);
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
});

Deno.test("a thread serves on while a store opens that is added at run time", async () => {
  const folder = Deno.makeTempDirSync();
  try {
    const control = `${folder}/control`;
    const file = `${STORES}/gated_store.ts`;
    await using _ = await startOutboard([
      ...["--control", control],
      ...["--device", "nvme,mdts=6", "--socket", `${folder}/a`],
      ...["--device", "virtio-blk,memory=1M", "--socket", `${folder}/b`],
    ]);
    let answered = false;
    const gate = `${folder}/gate`;
    const adding = controlLine(
      control,
      `nvme0 add 2 backend=${file},gate=${gate}`,
    )
      .finally(() => answered = true);
    await until("begin", () => exists(`${gate}.waits`));
    using disk = new Disk(`${folder}/b`);
    assertEquals([await disk.read(0), answered], [OK, false]);
    Deno.writeTextFileSync(gate, "");
    assertEquals(await adding, ["namespace 2 has 1M, on store gated"]);
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
});
