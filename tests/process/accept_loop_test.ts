import { assertEquals } from "@std/assert";
import { AcceptLoop, type Acceptor } from "../../src/process/accept_loop.ts";

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

  come(name: string): void {
    this.#next.resolve(
      {
        name,
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

Deno.test("AcceptLoop serves so many at a time, and the next when one has gone", async () => {
  const backlog = new Backlog();
  const leave: (() => void)[] = [];
  const loop = new AcceptLoop(backlog, {
    most: 2,
    serve: (conn) => {
      backlog.log.push(`${(conn as unknown as { name: string }).name} served`);
      return new Promise((resolve) => leave.push(resolve));
    },
  });
  for (const name of ["a", "b"]) {
    backlog.come(name);
    await settle();
  }
  assertEquals(backlog.asked, 2);
  leave[0]!();
  await settle();
  assertEquals(backlog.asked, 3);
  backlog.come("c");
  await settle();
  assertEquals(backlog.asked, 3);
  loop.close();
  loop.close();
  await settle();
  assertEquals(backlog.log, [
    "a served",
    "b served",
    "c served",
    "listener closed",
    "b closed",
    "c closed",
  ]);
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
