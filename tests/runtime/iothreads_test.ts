import { assert, assertEquals, assertMatch, equal } from "@std/assert";
import { threadCpus } from "../../src/os/mod.ts";
import { startOutboard } from "../../src/testing/outboard_process.ts";
import { PciClient } from "../../src/transport/vfio_user/client/mod.ts";
import { controlLine } from "../guest/control_line.ts";
import { isGone } from "../resources.ts";
import { until } from "../until.ts";
import { connectClient } from "../transport/vfio_user/remote.ts";
import { COUNTER } from "./fixtures/counter_model.ts";

const fixture = (name: string) =>
  `${import.meta.dirname}/fixtures/${name}_model.ts`;

async function inFolder(run: (folder: string) => Promise<void>): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    await run(folder);
    assertEquals([...Deno.readDirSync(folder)].map((e) => e.name), []);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

async function getMetrics(path: string): Promise<string> {
  using client = Deno.createHttpClient({ proxy: { transport: "unix", path } });
  const response = await fetch("http://localhost/metrics", { client });
  return await response.text();
}

function statusOf(task: string): string | null {
  try {
    return Deno.readTextFileSync(`${task}/status`);
  } catch (error) {
    if (isGone(error)) return null;
    throw error;
  }
}

/** The threads of a process whose names begin with "iothread": name → CPUs. */
function namedThreads(pid: number): Map<string, string> {
  const threads = new Map<string, string>();
  for (const { name: tid } of Deno.readDirSync(`/proc/${pid}/task`)) {
    const status = statusOf(`/proc/${pid}/task/${tid}`);
    // The runtime's threads come and go.
    if (status === null) continue;
    const [, name] = /^Name:\s+(.*)$/m.exec(status)!;
    const [, cpus] = /^Cpus_allowed_list:\s+(.*)$/m.exec(status)!;
    if (name!.startsWith("iothread")) threads.set(name!, cpus!);
  }
  return threads;
}

Deno.test("IOThreads run on the CPUs they are told, under names of their own", () =>
  inFolder(async (folder) => {
    const allowed = threadCpus();
    const first = allowed[0]!, last = allowed.at(-1)!;
    await using child = await startOutboard([
      ...["--iothreads", `2,cpus=${first}:${last}`],
      ...["--device", fixture("counter"), "--socket", `${folder}/a`],
      ...["--device", `${fixture("counter")},id=b`, "--socket", `${folder}/b`],
      ...["--control", `${folder}/control`],
    ]);
    // A thread that the runtime makes for one of them has its name until it has one of its own.
    const expected = [["iothread0", `${first}`], ["iothread1", `${last}`]];
    await until(
      `${JSON.stringify(expected)}`,
      () => equal([...namedThreads(child.pid)].sort(), expected),
    );
    const lines = await controlLine(`${folder}/control`, "iothreads");
    assertMatch(lines[0]!, /^IOThread 0: thread \d+, CPUs \d+, counter0$/);
    assertMatch(lines[1]!, /^IOThread 1: thread \d+, CPUs \d+, b$/);
    for (const line of lines) {
      const [, index, tid] = /^IOThread (\d+): thread (\d+)/.exec(line)!;
      assertEquals(
        Deno.readTextFileSync(`/proc/${child.pid}/task/${tid}/comm`),
        `iothread${index}\n`,
      );
    }
  }));

Deno.test("devices live where they are told, or are dealt out, and are listed with their place", () =>
  inFolder(async (folder) => {
    const device = (options: string, socket: string) => [
      ...["--device", `${fixture("counter")},${options}`],
      ...["--socket", `${folder}/${socket}`],
    ];
    await using _child = await startOutboard([
      ...["--iothreads", "3", "--control", `${folder}/control`],
      ...device("id=a,iothread=2", "a"),
      ...device("id=b", "b"),
      ...device("id=c", "c"),
      ...device("id=d", "d"),
    ]);
    const lines = await controlLine(`${folder}/control`, "list");
    assertEquals(lines.filter((line) => !line.startsWith(" ")), [
      "a (counter) on IOThread 2, no client",
      "b (counter) on IOThread 0, no client",
      "c (counter) on IOThread 1, no client",
      "d (counter) on IOThread 0, no client",
    ]);
  }));

Deno.test("a device answers while another IOThread is busy", () =>
  inFolder(async (folder) => {
    await using _child = await startOutboard([
      ...["--iothreads", "2", "--control", `${folder}/control`],
      ...["--device", fixture("busy"), "--socket", `${folder}/a`],
      ...["--device", fixture("counter"), "--socket", `${folder}/b`],
    ]);
    const names = () => [...Deno.readDirSync(folder)].map((e) => e.name);
    using client = connectClient(`${folder}/b`);
    client.negotiate();
    using pci = new PciClient(client);
    const gate = `${folder}/gate`;
    let over = false;
    const work = controlLine(`${folder}/control`, `busy0 work ${gate}`)
      .finally(() => over = true);
    await until(
      "the thread is at work",
      () => over || names().includes("gate"),
    );
    // On one thread the first of them would wait for the end of the work, which waits for the last.
    for (let served = 1; served <= 50; served++) {
      pci.writeBar(0, COUNTER.BELL, 4, 1);
      assertEquals(pci.readBar(0, COUNTER.COUNT, 4), served);
    }
    assert(names().includes("gate"));
    assertEquals(over, false);
    Deno.removeSync(gate);
    assertEquals(await work, ["done"]);
  }));

Deno.test("an IOThread that does not answer is named, costs the others nothing, and is the one that is ended", () =>
  inFolder(async (folder) => {
    const control = `${folder}/control`;
    const metrics = `${folder}/metrics`;
    const child = await startOutboard([
      ...["--iothreads", "2", "--control", control, "--metrics", metrics],
      ...["--device", fixture("counter"), "--socket", `${folder}/a`],
      ...["--device", fixture("busy"), "--socket", `${folder}/b`],
    ]);
    const names = () => [...Deno.readDirSync(folder)].map((e) => e.name);
    const hang = (gate: string) => {
      const work = controlLine(control, `busy0 work ${folder}/${gate}`);
      const working = until("it works", () => names().includes(gate));
      return { work, working };
    };
    const first = hang("first");
    await first.working;
    const [list, counters, text] = await Promise.all([
      controlLine(control, "list"),
      controlLine(control, "counters counter0"),
      getMetrics(metrics),
    ]);
    assertMatch(list[0]!, /^counter0 .* no client$/);
    assertMatch(list.at(-1)!, /^busy0 .*: IOThread 1 does not answer$/);
    assert(counters.includes("counter0 connection.clients 0"));
    assertMatch(text, /^outboard_iothread_up\{iothread="0"\} 1$/m);
    assertMatch(text, /^outboard_iothread_up\{iothread="1"\} 0$/m);
    assert(!text.includes("busy0"), text);
    assertEquals(await controlLine(control, "counters busy0"), [
      "busy0: IOThread 1 does not answer",
    ]);
    assertEquals(child.stderr.match(/does not answer/g)?.length, 1);
    assertMatch(child.stderr, /IOThread 1 does not answer.* on it: busy0$/m);
    Deno.removeSync(`${folder}/first`);
    assertEquals(await first.work, ["done"]);
    await child.waitFor(
      "say so",
      () => child.stderr.includes("IOThread 1 answers again\n"),
    );
    const again = (await controlLine(control, "list")).join("\n");
    assertMatch(again, /^busy0.*no client$/m);
    const second = hang("second");
    second.work.catch(() => {});
    await second.working;
    child.signal("SIGTERM");
    assertEquals(await child.exitCode(), 1);
    assertMatch(child.stderr, /IOThread 1 did not stop in time and is ended/);
    assert(!child.stderr.includes("IOThread 0 did not"), child.stderr);
    Deno.removeSync(`${folder}/second`);
  }));

Deno.test("the death of an IOThread ends the process and says which devices were on it", () =>
  inFolder(async (folder) => {
    const device = (name: string, id: string, iothread: number) => [
      ...["--device", `${fixture(name)},id=${id},iothread=${iothread}`],
      ...["--socket", `${folder}/${id}`],
    ];
    const child = await startOutboard([
      ...["--iothreads", "2", "--control", `${folder}/control`],
      ...device("counter", "healthy", 0),
      ...device("mortal", "weak", 1),
      ...device("counter", "other", 1),
    ]);
    // The answer may or may not come before the end.
    await controlLine(`${folder}/control`, "weak die").catch(() => {});
    assertEquals(await child.exitCode(), 1);
    assertMatch(
      child.stderr,
      /^error: Cannot go on: IOThread 1 died, and with it weak, other: .*farewell/m,
    );
  }));

Deno.test("the others end in order when an IOThread dies that shared a device with them", () =>
  inFolder(async (folder) => {
    const child = await startOutboard([
      ...["--iothreads", "3", "--control", `${folder}/control`],
      ...["--device", "virtio-blk,memory=1M,queues=3,iothread=0:1:2"],
      ...["--socket", `${folder}/disk`],
      ...["--device", `${fixture("mortal")},iothread=1`],
      ...["--socket", `${folder}/weak`],
    ]);
    await controlLine(`${folder}/control`, "mortal0 die").catch(() => {});
    assertEquals(await child.exitCode(), 1);
    assertMatch(
      child.stderr,
      /^error: Cannot go on: IOThread 1 died, and with it virtio-blk0, mortal0/m,
    );
    assert(!child.stderr.includes("did not stop in time"), child.stderr);
  }));
