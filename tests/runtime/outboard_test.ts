import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { IOThread } from "../../src/runtime/iothread/iothread.ts";
import { loadModel, Outboard, type RunDevice } from "../../src/runtime/mod.ts";
import { connectUnix, threadCpus } from "../../src/os/mod.ts";
import { workersGone } from "../resources.ts";

const counter = `${import.meta.dirname}/fixtures/counter_model.ts`;

async function counterAt(
  path: string,
  id: string,
  ...iothreads: number[]
): Promise<RunDevice> {
  const model = await loadModel(counter);
  return {
    id,
    model: counter,
    options: model.options!.parse({}),
    endpoint: { kind: "path", path },
    iothreads,
  };
}

async function inFolder(run: (folder: string) => Promise<void>): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    await run(folder);
    assertEquals([...Deno.readDirSync(folder)], []);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

Deno.test("Outboard serves, describes, moves and stops in a program", () =>
  inFolder(async (folder) => {
    const cpus = [[threadCpus()[0]!], threadCpus()];
    const outboard = new Outboard({ iothreads: 2, cpus });
    try {
      await outboard.serve({
        devices: [
          await counterAt(`${folder}/a`, "a", 1),
          await counterAt(`${folder}/b`, "b"),
          await counterAt(`${folder}/c`, "c"),
        ],
      });
      const places = () =>
        outboard.devices.map(({ id, iothread }) => [id, iothread]);
      assertEquals(places(), [["a", 1], ["b", 0], ["c", 0]]);
      assertEquals(
        await outboard.move("c", 0),
        "c is on IOThread 0 already",
      );
      await Promise.all([outboard.move("a", 0), outboard.move("b", 1)]);
      assertEquals(places(), [["a", 0], ["b", 1], ["c", 0]]);
      const described = await outboard.describe();
      assertEquals(
        described.map(({ id, iothreads }) => [id, ...iothreads]),
        places(),
      );
      const [first, second] = await outboard.describeIOThreads();
      assertEquals([first!.devices, second!.devices], [["a", "c"], ["b"]]);
      assertEquals([first!.cpus, second!.cpus], cpus);
      connectUnix(`${folder}/b`).close();
    } finally {
      await outboard.stop();
      await workersGone();
    }
    await assertRejects(() => outboard.move("a", 1), Error, "being stopped");
    await assertRejects(() => outboard.command("a", "count", []), Error);
  }));

Deno.test("Outboard says how many threads and which CPUs it can have", () => {
  assertThrows(() => new Outboard({ iothreads: 65 }), Error, "1 to 64");
  assertThrows(
    () => new Outboard({ iothreads: 2, cpus: [[0]] }),
    Error,
    "one set for each",
  );
  assertThrows(() => new Outboard({ cpus: [[8191]] }), Error, "may use CPU");
});

Deno.test("Outboard opens nothing when a device has no place, and says which failed", () =>
  inFolder(async (folder) => {
    const outboard = new Outboard({ iothreads: 2 });
    try {
      await assertRejects(
        async () =>
          outboard.serve({ devices: [await counterAt(`${folder}/a`, "a", 2)] }),
        Error,
        "Cannot put a on IOThread 2",
      );
      assertEquals([...Deno.readDirSync(folder)], []);
      const bad = await counterAt(`${folder}/a`, "a", 1);
      await assertRejects(
        () =>
          outboard.serve({ devices: [{ ...bad, model: `${folder}/no.ts` }] }),
        Error,
        "there is no such file",
      );
      assertEquals(outboard.devices, []);
      assert((await outboard.describe()).length === 0);
    } finally {
      await outboard.stop();
      await workersGone();
    }
  }));

Deno.test("IOThread closes where other threads reached it", async () => {
  const thread = new IOThread(0, {
    onLog: () => {},
    onCrash: () => {},
    onSilence: () => {},
  });
  const link = `/proc/self/fd/${(await thread.mailbox()).eventFd}`;
  await thread.request({ kind: "stop" });
  thread.terminate();
  // Others may still say that they end.
  assertEquals(Deno.readLinkSync(link), "anon_inode:[eventfd]");
  await workersGone();
  thread.closeMailbox();
  assertThrows(() => Deno.readLinkSync(link), Deno.errors.NotFound);
  thread.closeMailbox();
});
