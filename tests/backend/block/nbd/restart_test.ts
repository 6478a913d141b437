import { assert, assertEquals } from "@std/assert";
import {
  BlockOp,
  type BlockRequest,
} from "../../../../src/backend/block/contract.ts";
import { EXPORT_BYTES, NBD } from "./rig.ts";
import type { NbdServerOptions } from "./server.ts";
import { Controller, Folder, Host, pattern } from "../rig.ts";

const SERVER = `${import.meta.dirname}/server.ts`;
const BLOCK = 4096;
const BLOCKS = 256;
const IN_FLIGHT = 32;
const RESTARTS = 3;

/** A server as a program of its own. */
class ServerProcess {
  readonly #child: Deno.ChildProcess;

  private constructor(child: Deno.ChildProcess) {
    this.#child = child;
  }

  static async start(options: NbdServerOptions): Promise<ServerProcess> {
    const child = new Deno.Command(Deno.execPath(), {
      args: ["run", "--no-check", "-A", SERVER, JSON.stringify(options)],
      stdout: "piped",
    }).spawn();
    const reader = child.stdout.getReader();
    const { value } = await reader.read();
    assert(new TextDecoder().decode(value).startsWith("listening"));
    reader.releaseLock();
    return new ServerProcess(child);
  }

  async kill(): Promise<void> {
    this.#child.kill("SIGKILL");
    await this.#child.status;
    await this.#child.stdout.cancel();
  }
}

Deno.test("NbdBackend loses no write when the server is killed and restarted under load", async () => {
  using folder = new Folder();
  const file = folder.image("disk", EXPORT_BYTES);
  const socket = `${folder.path}/nbd.sock`;
  let server = await ServerProcess.start({ file, socket });
  try {
    using host = new Host();
    using client = new Controller(host, { ...NBD, uri: `unix:${socket}` });
    /** The seed that each block holds for certain. */
    const acknowledged = new Int32Array(BLOCKS);
    const inFlight = new Map<number, { block: number; seed: number }>();
    let seed = 0;
    let completed = 0;
    let writing = true;
    const submit = (): BlockRequest => {
      const mine = ++seed;
      // Two requests of one block are never in flight at once.
      const block = (mine * 7) % BLOCKS;
      const iova = (mine % (IN_FLIGHT * 2)) * BLOCK;
      host.memory.write(iova, pattern(BLOCK, mine));
      const request = client.submit({
        op: BlockOp.WRITE,
        offset: block * BLOCK,
        at: [[iova, BLOCK]],
      });
      inFlight.set(request.tag, { block, seed: mine });
      return request;
    };
    client.onCompletion = (request, result) => {
      const done = inFlight.get(request.tag);
      if (done === undefined) return;
      assertEquals(result, 0);
      inFlight.delete(request.tag);
      acknowledged[done.block] = done.seed;
      completed++;
      if (!writing) return;
      submit();
      client.backend.commit();
    };
    for (let i = 0; i < IN_FLIGHT; i++) submit();
    client.backend.commit();
    for (let i = 0; i < RESTARTS; i++) {
      const until = completed + 500;
      client.turnUntil(() => completed >= until);
      await server.kill();
      Deno.removeSync(socket);
      // The client runs into the loss, and its retries into nothing.
      client.turnUntil(() => client.count("failedConnects") > i);
      server = await ServerProcess.start({ file, socket });
      client.turnUntil(() => client.count("reconnects") === i + 1);
    }
    const until = completed + 500;
    client.turnUntil(() => completed >= until);
    writing = false;
    client.turnUntil(() => inFlight.size === 0);
    assertEquals(client.run({ op: BlockOp.FLUSH }), 0);
    assert(client.count("replays") > 0);
    assertEquals(client.count("failed"), 0);
    const stored = Deno.readFileSync(file);
    for (let block = 0; block < BLOCKS; block++) {
      const wanted = acknowledged[block]!;
      assertEquals(
        stored.subarray(block * BLOCK, (block + 1) * BLOCK),
        wanted === 0 ? new Uint8Array(BLOCK) : pattern(BLOCK, wanted),
        `block ${block}`,
      );
    }
  } finally {
    await server.kill();
  }
});
