import { assertEquals } from "@std/assert";
import {
  AcceptLoop,
  type AcceptOptions,
  type Acceptor,
  type Attendance,
} from "../../src/runtime/control/accept_loop.ts";

/** Connections of which only the closing matters, handed out by the test. */
class Backlog implements Acceptor {
  readonly log: string[] = [];
  asked = 0;
  #next = Promise.withResolvers<Deno.Conn>();

  accept(): Promise<Deno.Conn> {
    this.asked++;
    this.#next = Promise.withResolvers();
    return this.#next.promise;
  }

  come(name: string, hostname = "::1"): void {
    this.#next.resolve(
      {
        name,
        remoteAddr: { transport: "tcp", hostname },
        close: () => this.log.push(`${name} closed`),
      } as unknown as Deno.Conn,
    );
  }

  fail(): void {
    this.#next.reject(new Error("Too many open files (os error 24)"));
  }

  close(): void {
    this.log.push("listener closed");
    this.#next.reject(new Deno.errors.BadResource("closed"));
  }
}

const settle = () => new Promise((resolve) => setTimeout(resolve, 0));

/** A loop for two, with what the test has each of them do. */
class Rig {
  readonly backlog = new Backlog();
  readonly attendances: Attendance[] = [];
  readonly leave: (() => void)[] = [];
  /** Done at once with a connection that is served. */
  onServe: (attendance: Attendance) => void = () => {};
  readonly loop: AcceptLoop;

  constructor(options: Partial<AcceptOptions> = {}) {
    this.loop = new AcceptLoop(this.backlog, {
      most: 2,
      serve: (conn, attendance) => {
        const { name } = conn as unknown as { name: string };
        this.backlog.log.push(`${name} served`);
        this.attendances.push(attendance);
        this.onServe(attendance);
        return new Promise((resolve) => this.leave.push(resolve));
      },
      ...options,
    });
  }

  async come(name: string, hostname?: string): Promise<void> {
    this.backlog.come(name, hostname);
    await settle();
  }

  /** Has one be busy. @returns What ends that */
  begin(index: number): () => Promise<void> {
    const work = Promise.withResolvers<void>();
    const done = this.attendances[index]!.attend(() => work.promise);
    return async () => {
      work.resolve();
      await done;
      await settle();
    };
  }

  /** Events since it was asked last. */
  log(): string[] {
    return this.backlog.log.splice(0);
  }
}

Deno.test("AcceptLoop serves so many at a time, and the next when one has gone", async () => {
  const rig = new Rig();
  for (const name of ["a", "b"]) await rig.come(name);
  const ends = [rig.begin(0), rig.begin(1)];
  await rig.come("c");
  assertEquals(rig.log(), ["a served", "b served"]);
  await ends[0]!();
  assertEquals(rig.log(), ["a closed", "c served"], "a had become idle");
  const end = rig.begin(2);
  await rig.come("d");
  assertEquals(rig.log(), []);
  rig.leave[1]!();
  await settle();
  assertEquals(rig.log(), ["d served"]);
  rig.begin(3);
  await rig.come("e");
  rig.loop.close();
  rig.loop.close();
  await settle();
  assertEquals(rig.log(), [
    "listener closed",
    "c closed",
    "d closed",
    "e closed",
  ]);
  await Promise.all([ends[1]!(), end()]);
});

Deno.test("AcceptLoop makes room at the cost of the peer with the most connections", async () => {
  const rig = new Rig({ most: 3 });
  await rig.come("owner", "10.0.0.1");
  for (const name of ["a", "b", "c", "d"]) await rig.come(name, "10.0.0.2");
  await rig.come("e", "10.0.0.3");
  assertEquals(rig.log(), [
    "owner served",
    "a served",
    "b served",
    "a closed",
    "c served",
    "b closed",
    "d served",
    "c closed",
    "e served",
  ]);
  rig.loop.close();
});

Deno.test("AcceptLoop makes room at the cost of whoever has never asked, then of who was silent for longest", async () => {
  const rig = new Rig();
  await rig.come("a");
  await rig.begin(0)();
  for (const name of ["b", "c"]) await rig.come(name);
  await rig.begin(2)();
  await rig.begin(0)();
  await rig.come("d");
  assertEquals(rig.log(), [
    "a served",
    "b served",
    "b closed",
    "c served",
    "c closed",
    "d served",
  ]);
  rig.loop.close();
});

Deno.test("AcceptLoop hangs up on the idle, not on the busy nor on those who listen", async () => {
  const work = Promise.withResolvers<void>();
  let busy = Promise.resolve();
  const rigs = ["listens", "busy", "idle"].map(() => new Rig({ idleMs: 1 }));
  const [listens, works, idle] = rigs as [Rig, Rig, Rig];
  listens.onServe = (attendance) => attendance.listens();
  works.onServe = (attendance) => {
    busy = attendance.attend(() => work.promise);
  };
  for (const rig of rigs) await rig.come("a");
  // Timers of one length end in the order they began: those of the others would have ended.
  while (idle.backlog.log.length < 2) await settle();
  assertEquals(idle.log(), ["a served", "a closed"]);
  assertEquals(listens.log(), ["a served"]);
  assertEquals(works.log(), ["a served"]);
  work.resolve();
  await busy;
  while (works.backlog.log.length === 0) await settle();
  assertEquals(works.log(), ["a closed"]);
  for (const { loop } of rigs) loop.close();
});

Deno.test("AcceptLoop tries again when there was nothing to accept a connection with", async () => {
  const backlog = new Backlog();
  const { promise, resolve } = Promise.withResolvers<void>();
  const loop = new AcceptLoop(backlog, {
    most: 2,
    serve: () => {
      resolve();
      return Promise.resolve();
    },
  });
  backlog.fail();
  await settle();
  assertEquals(backlog.asked, 1, "it rests a while");
  while (backlog.asked === 1) await settle();
  backlog.come("a");
  await promise;
  await settle();
  backlog.fail();
  await settle();
  // Nothing is left that would keep the process: no timer above all.
  loop.close();
  await settle();
});
