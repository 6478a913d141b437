import { assert, assertEquals } from "@std/assert";
import {
  type BlockClient,
  BlockOp,
  BlockRequest,
} from "../../../../src/backend/block/contract.ts";
import { NbdBackend } from "../../../../src/backend/block/nbd/nbd.ts";
import { Access } from "../../../../src/memory/guest_memory.ts";
import { heapGrowthPerOperation } from "../../../resources.ts";
import { EXPORT_BYTES, NBD, ServerThread } from "./rig.ts";
import { Folder, Host } from "../rig.ts";

const DEPTH = 64;
const BLOCK = 1024;
const WARM_UP = 100_000;

for (const structured of [true, false]) {
  Deno.test(`NbdBackend allocates nothing per request (structured ${structured})`, async () => {
    using folder = new Folder();
    const file = folder.image("disk", EXPORT_BYTES);
    Deno.writeFileSync(file, new Uint8Array(EXPORT_BYTES).fill(1));
    const socket = `${folder.path}/nbd.sock`;
    await using _server = await ServerThread.start({
      file,
      socket,
      structured,
    });
    using host = new Host();
    const backend = new NbdBackend(
      { ...NBD, uri: `unix:${socket}` },
      host.context,
    );
    let completed = 0;
    let failed = 0;
    const client: BlockClient = {
      onComplete: (_request, result) => {
        completed++;
        if (result !== 0) failed++;
      },
      onResize: () => {},
    };
    backend.start(client);
    const requests = Array.from({ length: DEPTH }, (_, i) => {
      const request = new BlockRequest(host.memory, 4, i);
      const write = i % 2 === 1;
      request.op = write ? BlockOp.WRITE : BlockOp.READ;
      request.offset = i * BLOCK;
      request.lengthBytes = BLOCK;
      const access = write ? Access.READ : Access.WRITE;
      host.memory.translate(i * 2 * BLOCK, 100, access, request.buffers);
      host.memory.translate(
        i * 2 * BLOCK + BLOCK,
        BLOCK - 100,
        access,
        request.buffers,
      );
      return request;
    });
    const run = (operations: number) => {
      for (let done = 0; done < operations; done += DEPTH) {
        const until = completed + DEPTH;
        for (let i = 0; i < DEPTH; i++) backend.submit(requests[i]!);
        backend.commit();
        while (completed < until) host.loop.turn(1000);
      }
    };
    // A turn of the loop serves many requests, so that it takes many of them until it is compiled.
    run(WARM_UP);
    const perRequest = heapGrowthPerOperation(25_600, run);
    backend.close();
    assertEquals(failed, 0);
    assert(perRequest < 1, `${perRequest} bytes per request`);
  });
}
