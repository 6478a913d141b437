import {
  assert,
  assertEquals,
  assertMatch,
  assertRejects,
  assertThrows,
} from "@std/assert";
import { connectUnix } from "../../src/os/mod.ts";
import {
  type OutboardProcess,
  startOutboard,
} from "../../src/testing/outboard_process.ts";
import {
  type EventFdLines,
  GuestRam,
  PciClient,
  type VfioUserClient,
} from "../../src/transport/vfio_user/client/mod.ts";
import { controlLine } from "../guest/control_line.ts";
import { PATIENCE_MS, until } from "../until.ts";
import { connectClient } from "../transport/vfio_user/remote.ts";
import { COUNTER, GIVEN } from "./fixtures/counter_model.ts";

const fixture = (name: string) =>
  `${import.meta.dirname}/fixtures/${name}_model.ts`;

const MOVES = 50;
/** Address of guest memory, and place in it where the counter tells its sum. */
const RAM_IOVA = 0x10_0000;
const SUM_IOVA = RAM_IOVA + 0x2000;

interface Rig {
  readonly child: OutboardProcess;
  readonly folder: string;
  /** Says a line to the control socket. */
  say(line: string): Promise<string[]>;
  /** Place of the device `name`. */
  place(name: string): Promise<number>;
}

/** Runs devices `model[,options]` on two IOThreads, all on the first. */
async function withDevices(
  devices: readonly string[],
  run: (rig: Rig) => Promise<void>,
): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    {
      await using child = await startOutboard([
        ...["--iothreads", "2", "--control", `${folder}/control`],
        ...devices.flatMap((device, i) => {
          const [name, ...options] = device.split(",");
          const argument = [fixture(name!), "iothread=0", ...options].join(",");
          return ["--device", argument, "--socket", `${folder}/${i}`];
        }),
      ]);
      const say = (line: string) => controlLine(`${folder}/control`, line);
      await run({
        child,
        folder,
        say,
        place: async (name) => {
          const lines = await say("list");
          const line = lines.find((text) => text.startsWith(`${name} `))!;
          return Number(/ on IOThread (\d+),/.exec(line)![1]);
        },
      });
    }
    assertEquals([...Deno.readDirSync(folder)].map((e) => e.name), []);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

/** A connected client with memory and interrupts. */
class Guest implements Disposable {
  readonly client: VfioUserClient;
  readonly ram = new GuestRam(1 << 20, RAM_IOVA);
  readonly pci: PciClient;
  readonly lines: EventFdLines;

  constructor(path: string) {
    this.client = connectClient(path);
    this.client.negotiate();
    this.ram.share(this.client);
    this.pci = new PciClient(this.client);
    this.pci.setEnabled(true);
    this.lines = this.pci.enableMsix(2);
    this.pci.writeBar(0, COUNTER.IOVA, 4, SUM_IOVA);
  }

  read(register: number): number {
    return this.pci.readBar(0, register, 4);
  }

  /** Adds, and waits for the interrupt. @returns The sum in guest memory */
  add(value: number): number {
    this.pci.writeBar(0, COUNTER.ADD, 4, value);
    assert(this.lines.wait(0, PATIENCE_MS) > 0, "no interrupt");
    return this.told();
  }

  /** The sum as the device told it to guest memory. */
  told(): number {
    const { memory } = this.ram;
    return memory.view.getUint32(memory.offset(SUM_IOVA), true);
  }

  [Symbol.dispose](): void {
    this.pci.close();
    this.client.close();
    this.ram.close();
  }
}

/** Text of the counter's refusal, and its line. */
const FAULT =
  "model counter, \\S+counter_model\\.ts:\\d+:\\d+: Cannot count here: there is no abacus";

const turn = () => new Promise((resolve) => setTimeout(resolve, 0));

Deno.test("a client goes on while its device moves", () =>
  withDevices(["counter"], async ({ folder, say, place, child }) => {
    using guest = new Guest(`${folder}/0`);
    const bell = guest.pci.bell(0, COUNTER.BELL, 2);
    let sum = 0;
    for (let move = 1; move <= MOVES; move++) {
      let over = false;
      const moving = say(`move counter0 ${move % 2}`);
      moving.catch(() => {}).finally(() => over = true);
      do {
        sum += move;
        assertEquals(guest.add(move), sum);
        bell.ring(1);
        assert(
          guest.lines.wait(1, PATIENCE_MS) > 0,
          "no interrupt of the bell",
        );
        sum++;
        await turn();
      } while (!over);
      assertMatch(
        (await moving)[0]!,
        new RegExp(`^counter0 moved to IOThread ${move % 2} in [\\d.]+ ms$`),
      );
      assertEquals(guest.read(COUNTER.MOVES), move);
    }
    assertEquals(guest.read(COUNTER.COUNT), sum);
    assertEquals(guest.read(COUNTER.GIVEN), GIVEN);
    assertEquals(await place("counter0"), MOVES % 2);
    await child.waitFor(
      "log the move",
      () => /^counter0 moved to IOThread 1 in [\d.]+ ms$/m.test(child.stderr),
    );
  }));

Deno.test("clients come and go while a device moves", () =>
  withDevices(["counter"], async ({ folder, say, place }) => {
    await say("move counter0 1");
    for (let round = 0; round < 20; round++) {
      const moving = say(`move counter0 ${round % 2}`);
      for (let i = 0; i < round % 5; i++) await turn();
      {
        using guest = new Guest(`${folder}/0`);
        await turn();
        assertEquals(guest.add(round + 1), round + 1);
        await turn();
      }
      await moving;
      assertEquals(await place("counter0"), round % 2);
    }
    const counters = await say("counters");
    assert(counters.includes("counter0 moves 21"), counters.join("\n"));
    assert(
      counters.includes("counter0 connection.clients 20"),
      counters.join("\n"),
    );
  }));

Deno.test("a move leaks no descriptor and no mapping", () =>
  withDevices(["counter"], async ({ folder, say, child }) => {
    using guest = new Guest(`${folder}/0`);
    const held = () => ({
      fds: [...Deno.readDirSync(`/proc/${child.pid}/fd`)].length,
      shared: Deno.readTextFileSync(`/proc/${child.pid}/maps`).split("\n")
        .filter((line) => line.includes("/memfd:")).length,
    });
    await say("move counter0 1");
    await say("move counter0 0");
    const before = held();
    for (let i = 1; i <= 10; i++) await say(`move counter0 ${i % 2}`);
    // The control socket's own descriptors close a little later, before as well.
    await until("descriptors go", () => held().fds <= before.fds);
    assertEquals(held().shared, before.shared);
    assertEquals(guest.add(3), 3);
  }));

Deno.test("a move waits for requests in flight", () =>
  withDevices(["counter"], async ({ folder, say }) => {
    using guest = new Guest(`${folder}/0`);
    guest.pci.writeBar(0, COUNTER.LATER, 4, 100);
    await say("move counter0 1");
    assertEquals(guest.read(COUNTER.MOVES), 1);
    assertEquals(guest.read(COUNTER.COUNT), 1);
    assert(guest.lines.wait(0, PATIENCE_MS) > 0);
    assertEquals(guest.told(), 1);
  }));

Deno.test("a move gives up when requests do not finish, and the device goes on", () =>
  withDevices(["counter"], async ({ folder, say, place }) => {
    using guest = new Guest(`${folder}/0`);
    guest.pci.writeBar(0, COUNTER.LATER, 4, 3_600_000);
    guest.pci.writeBar(0, COUNTER.ADD, 4, 7);
    await assertRejects(
      () => say("move counter0 1"),
      Error,
      "Cannot move counter0: 1 request does not finish within 5 s; it goes on on IOThread 0",
    );
    assertEquals(await place("counter0"), 0);
    assert(guest.lines.wait(0, PATIENCE_MS) > 0);
    assertEquals(guest.told(), 7);
    assertEquals(guest.read(COUNTER.MOVES), 0);
  }));

Deno.test("a device goes on where it was when the other thread cannot take it", () =>
  withDevices(
    ["counter,refuse=abroad"],
    async ({ folder, say, place }) => {
      using guest = new Guest(`${folder}/0`);
      assertEquals(guest.add(5), 5);
      const error = await assertRejects(() => say("move counter0 1"), Error);
      assertMatch(
        error.message,
        new RegExp(
          `Cannot move counter0 to IOThread 1: ${FAULT}; it goes on on IOThread 0`,
        ),
      );
      assertEquals(await place("counter0"), 0);
      assertEquals(guest.add(5), 10);
      assertEquals(guest.read(COUNTER.GIVEN), GIVEN);
    },
  ));

Deno.test("a device whose state is no plain data goes on where it was", () =>
  withDevices(["counter,unplain"], async ({ folder, say, place }) => {
    using guest = new Guest(`${folder}/0`);
    assertEquals(guest.add(5), 5);
    await assertRejects(
      () => say("move counter0 1"),
      Error,
      "Cannot write plain data: body.transport.body.device.body.given is a function",
    );
    assertEquals(await place("counter0"), 0);
    assertEquals(guest.add(5), 10);
  }));

Deno.test("a device that no thread can take is gone, and the others are not", () =>
  withDevices(
    ["counter,id=lost,refuse=always", "counter,id=other"],
    async ({ folder, say, child }) => {
      using guest = new Guest(`${folder}/0`);
      using other = new Guest(`${folder}/1`);
      const error = await assertRejects(() => say("move lost 1"), Error);
      assertMatch(
        error.message,
        new RegExp(
          `to IOThread 1: ${FAULT}; IOThread 0 cannot take it back: ${FAULT}`,
        ),
      );
      assertEquals(await say("list"), [
        `other (counter) on IOThread 0, client pid ${Deno.pid}`,
        "  count: the sum",
      ]);
      await assertRejects(() => say("lost count"), Error, "Cannot find");
      let failure: unknown;
      try {
        guest.read(COUNTER.COUNT);
      } catch (error) {
        failure = error;
      }
      assertMatch(String(failure), /ECONNRESET|EPIPE/);
      assertEquals(other.add(2), 2);
      await child.waitFor(
        "log the loss",
        () => /^error: Cannot .* lost/m.test(child.stderr),
      );
      assertThrows(() => connectUnix(`${folder}/0`), Error, "ENOENT");
    },
  ));

Deno.test("a device whose model cannot be moved says so and goes on", () =>
  withDevices(["mortal"], async ({ say, place }) => {
    await assertRejects(
      () => say("move mortal0 1"),
      Error,
      "Cannot move mortal0: its model mortal has no hold, no save, no load",
    );
    assertEquals(await place("mortal0"), 0);
  }));

Deno.test("move says what it does not understand, and what is so already", () =>
  withDevices(["counter"], async ({ say }) => {
    assertEquals(await say("move counter0 0"), [
      "counter0 is on IOThread 0 already",
    ]);
    const cases = [
      ["move", "its device is missing; say move DEVICE IOTHREAD"],
      ["move counter0", "its iothread is missing; say move DEVICE IOTHREAD"],
      ["move counter0 one", "its iothread must be a number"],
      ["move counter0 1 2", "it has no 2; say move DEVICE IOTHREAD"],
      ["move counter9 1", "Cannot find device counter9: known are counter0"],
      ["move counter0 2", "there are IOThreads 0 and 1"],
    ];
    for (const [line, expected] of cases) {
      await assertRejects(() => say(line!), Error, expected);
    }
    assertMatch((await say("help")).join("\n"), /^move DEVICE IOTHREAD /m);
  }));

Deno.test("commands and moves of a device take turns", () =>
  withDevices(["counter"], async ({ folder, say, place }) => {
    using guest = new Guest(`${folder}/0`);
    guest.pci.writeBar(0, COUNTER.LATER, 4, 200);
    const first = say("move counter0 1");
    await until(
      "the first move",
      () => guest.read(COUNTER.HELD) === 1 || guest.read(COUNTER.MOVES) > 0,
    );
    const answers = await Promise.all([
      first,
      ...Array.from({ length: 6 }, (_, i) => say(`move counter0 ${i % 2}`)),
      say("counter0 count"),
      say("counters"),
    ]);
    // The command ran after that move, which waited for the request in flight.
    assertEquals(answers[7], ["1"]);
    assertMatch(answers[8]![0]!, /^counter0 /);
    const moves = guest.read(COUNTER.MOVES);
    assert(moves >= 1, `${moves} moves`);
    assertEquals(await place("counter0"), moves % 2);
  }));

for (const phase of ["while requests are in flight", "at any time"] as const) {
  Deno.test(`the process stops cleanly during a move, ${phase}`, () =>
    withDevices(["counter"], async ({ folder, say, child }) => {
      using guest = new Guest(`${folder}/0`);
      const inFlight = phase === "while requests are in flight";
      if (inFlight) guest.pci.writeBar(0, COUNTER.LATER, 4, 3_600_000);
      const moving = Promise.allSettled(
        [1, 0, 1, 0, 1, 0].map((iothread) => say(`move counter0 ${iothread}`)),
      );
      await until(
        "a move",
        () => guest.read(inFlight ? COUNTER.HELD : COUNTER.MOVES) > 0,
      );
      child.signal("SIGTERM");
      assertEquals(await child.exitCode(), 0, child.stderr);
      // What is ended by force is complained of.
      assert(!child.stderr.includes("in time"), child.stderr);
      await moving;
    }));
}
