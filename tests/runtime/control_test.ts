import { assert, assertEquals, assertMatch } from "@std/assert";
import type { CommandAnswer } from "../../src/pci/device.ts";
import {
  type Controllable,
  ControlSocket,
  type IOThreadDescription,
} from "../../src/runtime/control/control.ts";
import type { PlacedDescription } from "../../src/runtime/iothread/messages.ts";

/** A process with one card. */
class Process implements Controllable {
  readonly asked: unknown[] = [];

  describe(): Promise<PlacedDescription[]> {
    return Promise.resolve([{
      id: "lan",
      model: "virtio-net",
      clientPid: 7,
      commands: { link: "plugs it in" },
      connection: { messages: 1 },
      counters: { rxPackets: 2 },
      iothreads: [0],
    }]);
  }

  describeIOThreads(): Promise<IOThreadDescription[]> {
    const devices = ["lan"];
    return Promise.resolve([{ iothread: 0, threadId: 9, cpus: [0], devices }]);
  }

  command(...words: unknown[]): Promise<CommandAnswer> {
    this.asked.push(words);
    return Promise.resolve({ text: "link is up", data: { up: true } });
  }

  move(...words: unknown[]): Promise<string> {
    this.asked.push(words);
    return Promise.resolve("moved");
  }
}

/** Somebody who is connected, and reads line by line. */
class Person implements Disposable {
  readonly #conn: Deno.Conn;
  readonly #reader: ReadableStreamDefaultReader<string>;
  #text = "";

  constructor(conn: Deno.Conn) {
    this.#conn = conn;
    this.#reader = conn.readable.pipeThrough(new TextDecoderStream())
      .getReader();
  }

  async say(text: string): Promise<void> {
    const bytes = new TextEncoder().encode(text);
    for (let at = 0; at < bytes.length;) {
      at += await this.#conn.write(bytes.subarray(at));
    }
  }

  async line(): Promise<string> {
    while (!this.#text.includes("\n")) {
      const { value, done } = await this.#reader.read();
      if (done) throw new Error(`Cannot read a line: only ${this.#text}`);
      this.#text += value;
    }
    const end = this.#text.indexOf("\n");
    const line = this.#text.slice(0, end);
    this.#text = this.#text.slice(end + 1);
    return line;
  }

  // deno-lint-ignore no-explicit-any
  async json(request?: unknown): Promise<any> {
    if (request !== undefined) await this.say(`${JSON.stringify(request)}\n`);
    return JSON.parse(await this.line());
  }

  /** Says all there is to say, and hears the rest. */
  async end(): Promise<string> {
    await (this.#conn as Deno.UnixConn).closeWrite();
    for (;;) {
      const { value, done } = await this.#reader.read();
      if (done) return this.#text;
      this.#text += value;
    }
  }

  [Symbol.dispose](): void {
    this.#reader.cancel().catch(() => {});
  }
}

async function onSocket(
  run: (
    connect: () => Promise<Person>,
    process: Process,
    socket: ControlSocket,
  ) => Promise<void>,
): Promise<void> {
  const folder = Deno.makeTempDirSync();
  const path = `${folder}/control`;
  const process = new Process();
  const socket = new ControlSocket({ path }, process);
  try {
    const connect = async () =>
      new Person(await Deno.connect({ transport: "unix", path }));
    await run(connect, process, socket);
  } finally {
    socket.close();
    Deno.removeSync(folder, { recursive: true });
  }
}

Deno.test("ControlSocket takes words: a command of its table, or of a device", () =>
  onSocket(async (connect, process) => {
    using person = await connect();
    await person.say("lan link up\nrun lan link up\nmove lan 3\n");
    await person.say("list now\nmove lan\nmove lan x\nmov lan 1\nhepl\n");
    // The last line has no line feed.
    await person.say("counters lan");
    const lines = (await person.end()).split("\n");
    assertEquals(lines, [
      ...["link is up", "ok", "link is up", "ok", "moved", "ok"],
      'error: Cannot understand "list": it has no now; say list',
      'error: Cannot understand "move": its iothread is missing; say move DEVICE IOTHREAD',
      'error: Cannot understand "move": its iothread must be a number; say move DEVICE IOTHREAD',
      ...["link is up", "ok"],
      'error: Cannot understand "hepl": try help; did you mean help?',
      ...["lan connection.messages 1", "lan rxPackets 2", "ok", ""],
    ]);
    assertEquals(process.asked, [
      ["lan", "link", ["up"]],
      ["lan", "link", ["up"]],
      ["lan", 3],
      ["mov", "lan", ["1"]],
    ]);
  }));

Deno.test("ControlSocket takes JSON lines, and answers each by its id", () =>
  onSocket(async (connect, process) => {
    using person = await connect();
    const run = {
      execute: "run",
      arguments: { device: "lan", command: "link", arguments: ["up"] },
    };
    assertEquals(await person.json({ ...run, id: [1] }), {
      return: { up: true },
      id: [1],
    });
    assertEquals(await person.json(run), { return: { up: true } });
    assertEquals(process.asked, [["lan", "link", ["up"]], [
      "lan",
      "link",
      ["up"],
    ]]);
    assertEquals((await person.json({ execute: "list" })).return, [{
      id: "lan",
      model: "virtio-net",
      clientPid: 7,
      commands: { link: "plugs it in" },
      iothreads: [0],
    }]);
    assertEquals((await person.json({ execute: "counters" })).return, [{
      id: "lan",
      connection: { messages: 1 },
      counters: { rxPackets: 2 },
    }]);
    const [thread] = (await person.json({ execute: "iothreads" })).return;
    assertEquals(thread.threadId, 9);
    const move = { device: "lan", iothread: 1 };
    assertEquals(
      await person.json({ execute: "move", arguments: move }),
      { return: move },
    );
    const help = (await person.json({ execute: "help" })).return;
    assert(help.some(({ name }: { name: string }) => name === "move"));
  }));

Deno.test("ControlSocket answers every JSON line that it cannot run", () =>
  onSocket(async (connect) => {
    using person = await connect();
    const wrong: [unknown, RegExp][] = [
      [{}, /"execute": "NAME"/],
      [{ execute: "list", arguments: [] }, /"execute": "NAME"/],
      [{ execute: "list", argument: {} }, /"execute": "NAME"/],
      [{ execute: "list", arguments: { all: 1 } }, /it has no all/],
      [
        { execute: "move", arguments: { device: "lan" } },
        /iothread is missing/,
      ],
      [
        { execute: "move", arguments: { device: "lan", iothread: "1" } },
        /iothread must be a number/,
      ],
      [
        { execute: "move", arguments: { device: "lan", iothraed: 1 } },
        /iothread is missing/,
      ],
      [
        {
          execute: "run",
          arguments: { device: "lan", command: "link", arguments: [1] },
        },
        /arguments must be a list of texts/,
      ],
      [
        { execute: "counters", arguments: { device: "wan" } },
        /Cannot find device wan: known are lan; did you mean lan\?/,
      ],
    ];
    for (const [request, expected] of wrong) {
      const { error, id } = await person.json({ ...request as object, id: 5 });
      assertEquals([error.class, id], ["GenericError", 5]);
      assertMatch(error.desc, expected);
    }
    const unknown = await person.json({ execute: "lits" });
    assertEquals(unknown.error.class, "CommandNotFound");
    assertMatch(unknown.error.desc, /did you mean list\?/);
    await person.say('{"execute"\n');
    assertMatch((await person.json()).error.desc, /Cannot understand the line/);
  }));

Deno.test("ControlSocket answers lines that are too long, and goes on", () =>
  onSocket(async (connect) => {
    using person = await connect();
    const long = "x".repeat(10_000);
    await person.say(`${long}\nlan link\n`);
    assertMatch(await person.line(), /^error: Cannot take a line of more than/);
    assertEquals([await person.line(), await person.line()], [
      "link is up",
      "ok",
    ]);
    assertEquals((await person.json({ execute: "list" })).error, undefined);
    await person.say(`${long}\n`);
    assertMatch((await person.json()).error.desc, /more than 4096/);
    await person.say(long);
    assertMatch(await person.end(), /more than 4096/);
    // Nobody has spoken JSON before.
    using program = await connect();
    await program.say(`{"execute": "${long}"}\n`);
    assertMatch((await program.json()).error.desc, /more than 4096/);
    assertEquals((await program.json({ execute: "list" })).error, undefined);
  }));

Deno.test("ControlSocket tells events to those who speak JSON, and counts what they do not read", () =>
  onSocket(async (connect, _process, socket) => {
    using program = await connect();
    using person = await connect();
    await program.json({ execute: "list" });
    await person.say("lan link\n");
    assertEquals(await person.line(), "link is up");
    const told = { event: "LINK_CHANGED", data: { device: "lan", up: true } };
    socket.tell(told);
    const { timestamp, ...event } = await program.json();
    assertEquals(event, told);
    assert(Math.abs(timestamp.seconds - Date.now() / 1000) < 3600);
    assert(timestamp.microseconds < 1e6);
    // Told in one turn, of which nothing can be written meanwhile.
    for (let i = 0; i < 300; i++) socket.tell({ event: "E", data: { i } });
    for (let i = 0; i < 256; i++) {
      assertEquals((await program.json()).data, { i });
    }
    const lost = await program.json();
    assertEquals([lost.event, lost.data], ["EVENTS_LOST", { count: 44 }]);
    assertEquals(await person.end(), "ok\n");
  }));

Deno.test("ControlSocket answers though more are connected than it serves, and keeps those who have asked", () =>
  onSocket(async (connect) => {
    using program = await connect();
    await program.json({ execute: "list" });
    const idle: Person[] = [];
    for (let i = 0; i < 200; i++) idle.push(await connect());
    using person = await connect();
    await person.say("lan link\n");
    assertEquals(await person.line(), "link is up");
    assertEquals((await program.json({ execute: "list" })).error, undefined);
    for (const one of idle) one[Symbol.dispose]();
  }));
