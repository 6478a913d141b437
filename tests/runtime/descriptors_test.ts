import { assert, assertEquals, assertMatch } from "@std/assert";
import {
  type OutboardProcess,
  startOutboard,
} from "../../src/testing/outboard_process.ts";
import { VfioUserClient } from "../../src/transport/vfio_user/client/mod.ts";
import { controlLine } from "../guest/control_line.ts";
import { until } from "../until.ts";

/** Number of descriptors more than at its start a process may have: fewer than each test makes connections. */
const SPARE_FDS = 40;
const CONNECTIONS = 100;

interface Rig {
  readonly folder: string;
  /** Number of descriptors the process has open, of as many as it may. */
  openFds(): number;
  readonly fdsMax: number;
}

function openFdsOf({ pid }: OutboardProcess): number {
  return [...Deno.readDirSync(`/proc/${pid}/fd`)].length;
}

/** Runs a card with metrics and control socket, in a process that can open but a few descriptors more. */
async function withFewDescriptors(
  run: (rig: Rig) => Promise<void>,
): Promise<void> {
  const folder = await Deno.makeTempDir({ prefix: "outboard-test-" });
  try {
    {
      await using outboard = await startOutboard([
        ...["--device", "virtio-net,net=none", "--socket", `${folder}/s`],
        ...["--metrics", `${folder}/m`, "--control", `${folder}/c`],
      ]);
      const fdsMax = openFdsOf(outboard) + SPARE_FDS;
      const { success } = await new Deno.Command("prlimit", {
        args: ["--pid", `${outboard.pid}`, `--nofile=${fdsMax}`],
      }).output();
      assert(success);
      await run({ folder, openFds: () => openFdsOf(outboard), fdsMax });
      await outboard.stop();
      // The runtime may complain of what it could not open, in lines of its own.
      assert(!/^error: |panicked/m.test(outboard.stderr), outboard.stderr);
    }
    assertEquals([...Deno.readDirSync(folder)].map((e) => e.name), []);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

async function connectMany(path: string): Promise<Deno.Conn[]> {
  const conns: Deno.Conn[] = [];
  for (let i = 0; i < CONNECTIONS; i++) {
    conns.push(await Deno.connect({ transport: "unix", path }));
  }
  return conns;
}

async function scrape(path: string): Promise<string> {
  using conn = await Deno.connect({ transport: "unix", path });
  await conn.write(new TextEncoder().encode("GET /metrics HTTP/1.1\r\n\r\n"));
  const bytes = new Uint8Array(15);
  await conn.read(bytes);
  return new TextDecoder().decode(bytes);
}

Deno.test("clients that hold many connections for metrics cost no device anything", () =>
  withFewDescriptors(async ({ folder }) => {
    const conns = await connectMany(`${folder}/m`);
    using client = new VfioUserClient(`${folder}/s`);
    client.negotiate();
    const lines = await controlLine(`${folder}/c`, "list");
    assertMatch(lines[0]!, /client pid \d+/);
    for (const conn of conns) conn.close();
    assertEquals(await scrape(`${folder}/m`), "HTTP/1.1 200 OK");
  }));

Deno.test("the process outlives a want of descriptors", () =>
  withFewDescriptors(async ({ folder, openFds, fdsMax }) => {
    const conns = await connectMany(`${folder}/c`);
    await until("all descriptors are taken", () => openFds() >= fdsMax);
    for (const conn of conns) conn.close();
    assertEquals(await scrape(`${folder}/m`), "HTTP/1.1 200 OK");
    const lines = await controlLine(`${folder}/c`, "list");
    assertMatch(lines[0]!, /no client/);
  }));
