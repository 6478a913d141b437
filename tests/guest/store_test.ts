import { assert, assertEquals, assertMatch } from "@std/assert";
import {
  assertFioVerify,
  readTree,
  waitForDisks,
  waitForNamespace,
  writeTree,
} from "./disk_checks.ts";
import { Guest, vfioUserDevice } from "./guest.ts";
import { guestTests } from "./harness.ts";
import { Serving } from "./serving.ts";

const storeTest = await guestTests({ tools: ["filesystem", "fio"] });
const file = (path: string) => new URL(path, import.meta.url).pathname;
const HTTP = file("../../examples/http_disk.ts");
const MEMORY = file("../backend/block/fixtures/memory_store.ts");
/** The last piece is not a whole one. */
const IMAGE_BYTES = 8 * 1024 * 1024 + 4096;
const FIO_SECONDS = 5;

/** An HTTP server that has one file, and answers for ranges of it. */
class ImageServer implements AsyncDisposable {
  readonly bytes = new Uint8Array(IMAGE_BYTES);
  requests = 0;
  readonly #server: Deno.HttpServer<Deno.NetAddr>;

  constructor() {
    for (let at = 0; at < IMAGE_BYTES; at += 65536) {
      crypto.getRandomValues(this.bytes.subarray(at, at + 65536));
    }
    this.#server = Deno.serve(
      { hostname: "127.0.0.1", port: 0, onListen: () => {} },
      (request) => this.#answer(request.headers.get("range") ?? ""),
    );
  }

  get url(): string {
    return `http://127.0.0.1:${this.#server.addr.port}/disk.img`;
  }

  #answer(range: string): Response {
    this.requests++;
    const [, first, last] = /^bytes=(\d+)-(\d+)$/.exec(range)!.map(Number);
    const end = Math.min(last! + 1, IMAGE_BYTES);
    return new Response(this.bytes.slice(first, end), {
      status: 206,
      headers: { "content-range": `bytes ${first}-${end - 1}/${IMAGE_BYTES}` },
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#server.shutdown();
  }
}

storeTest(
  "Linux on disks that are written with promises",
  async ({ kit, t }) => {
    await using server = new ImageServer();
    const http = `backend=${HTTP},url=${server.url},cache=1M`;
    await using serving = await Serving.start({
      devices: [
        `virtio-blk,${http}`,
        `nvme,backend=${MEMORY},size=64M,ns2.backend=${HTTP},ns2.url=${server.url},iothread=0:1`,
      ],
      args: ["--iothreads", "2"],
    });
    await using guest = await Guest.boot({
      kit,
      memoryMiB: 512,
      modules: ["virtio_blk"],
      tools: ["busybox", "dash", "filesystem", "fio"],
      devices: serving.sockets.map((socket) => vfioUserDevice(socket)),
    });
    await waitForDisks(guest, "vda");
    const memory = await waitForNamespace(guest, 1);
    const image = await waitForNamespace(guest, 2);

    await t.step("reads what the HTTP server has", async () => {
      const digest = await crypto.subtle.digest("SHA-256", server.bytes);
      const wanted = new Uint8Array(digest).toHex();
      for (const disk of ["vda", image]) {
        const found = await guest.output(`sha256sum /dev/${disk}`, {
          timeoutMs: 120_000,
        });
        assertEquals(found.split(" ")[0], wanted, disk);
        assertEquals(
          (await guest.output(`cat /sys/block/${disk}/ro`)).trim(),
          "1",
        );
      }
      assert(server.requests >= 2 * IMAGE_BYTES / 65536);
    });

    await t.step(
      "keeps a file system and survives a verified load",
      async () => {
        const written = await writeTree(guest, `/dev/${memory}`);
        assertEquals(await readTree(guest, `/dev/${memory}`), written);
        await assertFioVerify(guest, [`/dev/${memory}`], FIO_SECONDS);
        const counters = await serving.counters("nvme0");
        assertEquals(counters["backend.failed"] ?? 0, 0);
      },
    );

    await t.step("reads on after a move to another thread", async () => {
      await serving.control("move virtio-blk0 1");
      const drop = "echo 3 > /proc/sys/vm/drop_caches";
      const same = await guest.output(
        `${drop}; cmp /dev/vda /dev/${image} && echo same`,
        { timeoutMs: 120_000 },
      );
      assertEquals(same.trim(), "same");
    });

    await t.step(
      "has an I/O error when the server is gone, and goes on",
      async () => {
        await server[Symbol.asyncDispose]();
        const read = await guest.output(
          "echo 3 > /proc/sys/vm/drop_caches; cat /dev/vda > /dev/null && echo read || echo failed",
          { timeoutMs: 120_000 },
        );
        assertMatch(read, /failed/);
        assertMatch(
          serving.outboard.stderr,
          /virtio-blk0: error: store http, .*http_disk\.ts:\d+:\d+: .*\(in read/,
        );
        const written = await writeTree(guest, `/dev/${memory}`);
        assertEquals(await readTree(guest, `/dev/${memory}`), written);
      },
    );
  },
);
