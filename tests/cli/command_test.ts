import { assert, assertEquals, assertMatch } from "@std/assert";
import { listenUnix } from "../../src/os/mod.ts";
import { libc } from "../../src/os/symbols.ts";
import { startOutboard } from "../../src/testing/outboard_process.ts";
import { PATIENCE_MS } from "../until.ts";
import { connectClient } from "../transport/vfio_user/remote.ts";

const ticker = new URL("../../examples/ticker.ts", import.meta.url).pathname;
const store = new URL("../../examples/http_disk.ts", import.meta.url).pathname;
const program = `${import.meta.dirname}/../../mod.ts`;

/** Runs the command to its end, with the permissions that are given as flags. */
async function outboardWith(
  permissions: readonly string[],
  ...args: string[]
) {
  const { code, stdout, stderr } = await new Deno.Command("sh", {
    args: [
      "-c",
      // Some file systems refuse no length: 1 TiB is the most here.
      'trap "" XFSZ; ulimit -f 2147483648; exec "$@"',
      "sh",
      ...[Deno.execPath(), "run", "--quiet", "--no-prompt", ...permissions],
      ...[program, ...args],
    ],
    env: { NO_COLOR: "1" },
  }).output();
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  return { code, stdout: text(stdout), stderr: text(stderr) };
}

const outboard = (...args: string[]) => outboardWith(["-A"], ...args);
/** Without any permission. */
const ask = (...args: string[]) => outboardWith([], ...args);

/** Reads until a whole line matches; the reader may read on. */
async function readUntil(
  reader: ReadableStreamDefaultReader<Uint8Array<ArrayBuffer>>,
  pattern: RegExp,
): Promise<void> {
  const decoder = new TextDecoder();
  for (
    let text = "";
    !pattern.test(text.slice(0, text.lastIndexOf("\n") + 1));
  ) {
    const { value, done } = await reader.read();
    if (done) throw new Error(`Cannot find ${pattern}: there is only ${text}`);
    text += decoder.decode(value, { stream: true });
  }
}

async function inFolder(run: (folder: string) => Promise<void>): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    await run(folder);
    assertEquals([...Deno.readDirSync(folder)].map((e) => e.name), []);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

Deno.test("the command answers questions with status 0, without any permission", async () => {
  const help = await ask("--help");
  assertEquals([help.code, help.stderr], [0, ""]);
  const asked = ["--device", "--socket", "--fd", "--log-level", "--iothreads"];
  for (const option of asked) {
    assert(help.stdout.includes(option), option);
  }
  const version = await ask("--version");
  assertMatch(version.stdout, /^outboard \d+\.\d+\.\d+\n$/);
  const models = await ask("--device", "help");
  assertMatch(models.stdout, /^ {2}virtio-net /m);
  const options = await ask("--device", "virtio-net,help");
  const known = ["id=", "iothread=", "mac=", "net=user|tap|", "ifname="];
  for (const option of [...known, "hostfwd="]) {
    assert(options.stdout.includes(option), option);
  }
  for (const model of ["virtio-blk", "nvme"]) {
    const { code, stdout, stderr } = await ask("--device", `${model},help`);
    assertEquals([code, stderr], [0, ""]);
    assertMatch(stdout, /^ {2}file=/m);
    const named = `${model},ns2.backend=${store},help`;
    const withStore = await outboardWith(["--allow-all"], "--device", named);
    assertEquals([withStore.code, withStore.stderr], [0, ""]);
    assertMatch(
      withStore.stdout,
      /^Options of store http:\n {2}url=text +the/m,
    );
  }
});

Deno.test("the command refuses with status 2 and one line that says what would be right", async () => {
  const folder = await Deno.makeTempDir();
  const socket = `${folder}/s`;
  const cases: [string[], RegExp][] = [
    [[], /--device virtio-net --socket/],
    [["--device", "nope", "--socket", socket], /virtio-net/],
    [["--devcie", "nvme"], /; did you mean --device\?$/m],
    [
      ["--device", "virtio-blk,iothraed=0", "--socket", socket],
      /comma in a value twice\); did you mean iothread\?$/m,
    ],
    [["--device", "./nope.ts", "--socket", socket], /no such file/],
    [
      ["--device", `${ticker},idd=a`, "--socket", socket],
      /Cannot use option idd: ticker has id, iothread, least .*; did you mean id\?$/m,
    ],
    [
      ["--device", `nvme,ns2.backend=${store},ns2.curl=x`, "--socket", socket],
      /Cannot use option curl: store http has url, cache .*; did you mean url\?$/m,
    ],
    [
      ["--device", "virtio-blk,backend=./no.ts", "--socket", socket],
      /Cannot load store \.\/no\.ts: there is no such file/,
    ],
    [
      ["--device", `virtio-blk,backend=${ticker}`, "--socket", socket],
      /Cannot use .*ticker\.ts as a store: it exports no object/,
    ],
    [["--device", "virtio-net,mtu=3", "--socket", socket], /mtu=3/],
    [["--device", "virtio-net,mtu=1\n5", "--socket", socket], /mtu="1\\n5":/],
    [["--device", "virtio-net,colour=red", "--socket", socket], /colour/],
    [["--device", "virtio-net,net=wifi", "--socket", socket], /user, tap/],
    [
      ["--device", "virtio-net,id=a", "--socket", socket].concat(
        ["--device", "virtio-net,id=a", "--socket", `${folder}/t`],
      ),
      /id=a twice/,
    ],
    [
      ["--device", "virtio-net,iothread=1", "--socket", socket],
      /only IOThread 0; choose that, or start with --iothreads 2/,
    ],
    [
      ["--device", "virtio-net,id=move", "--socket", socket],
      /none of help, .*move/,
    ],
  ];
  try {
    for (const [args, expected] of cases) {
      const { code, stdout, stderr } = await outboard(...args);
      assertEquals([code, stdout], [2, ""], stderr);
      assertMatch(stderr, /^outboard: .*\n$/);
      assertMatch(stderr, expected);
    }
    assertEquals([...Deno.readDirSync(folder)], []);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("the command fails with status 1, and one line, where what it needs is not there yet", () =>
  inFolder(async (folder) => {
    const socket = ["--socket", `${folder}/s`];
    const net = ["--device", "virtio-net,net=none"];
    const cases: [string[], RegExp][] = [
      [
        [...net, "--socket", `${folder}/s,group=nobody-has-it`],
        /there is no such group/,
      ],
      [[...net, "--fd", "77"], /not open/],
      [[...net, "--socket", `${folder}/no/s`], /folder does not exist/],
      [
        ["--iothreads", "1,cpus=8000", ...net, ...socket],
        /IOThread 0 on CPU 8000: this process may use CPU/,
      ],
      [
        ["--device", `virtio-blk,file=${folder}/no`, ...socket],
        /there is none/,
      ],
      [["--device", `virtio-blk,nbd=unix:${folder}/no`, ...socket], /nbd/],
      [[...net, ...socket, "--metrics", "192.0.2.1:1"], /192\.0\.2\.1/],
    ];
    for (const [args, expected] of cases) {
      const { code, stdout, stderr } = await outboard(...args);
      assertEquals([code, stdout], [1, ""], stderr);
      assertMatch(stderr, /^outboard: .*\n$/);
      assertMatch(stderr, expected);
    }
  }));

Deno.test("the command leaves nothing of a start that fails", () =>
  inFolder(async (folder) => {
    const made = (name: string) => [
      ...["--device", `virtio-blk,file=${folder}/${name}.img,create=1M`],
      ...["--socket", `${folder}/${name}`],
    ];
    const failing = [
      // Another device cannot be had, on the same thread and on another.
      [...made("a"), "--device", `virtio-blk,file=${folder}/no`]
        .concat(["--socket", `${folder}/b`]),
      [...made("a"), "--device", `virtio-blk,file=${folder}/no`]
        .concat(["--socket", `${folder}/b`, "--iothreads", "2"]),
      // The device itself, after its image was made.
      [
        "--device",
        `nvme,ns1.file=${folder}/a.img,ns1.create=1M,ns2.file=${folder}/no`,
        ...["--socket", `${folder}/a`],
      ],
      [
        ...["--device", `virtio-blk,file=${folder}/a.img,create=4096T`],
        ...["--socket", `${folder}/a`],
      ],
      // The control socket, the last of what can fail.
      [...made("a"), "--control", "/proc/nowhere"],
    ];
    for (const args of failing) {
      const { code, stdout, stderr } = await outboard(...args);
      assertEquals([code, stdout], [1, ""], stderr);
      assert(!/Made image/.test(stderr), stderr);
      assertEquals([...Deno.readDirSync(folder)].map((e) => e.name), []);
    }
  }));

Deno.test("the command keeps an image that it made, and says so", () =>
  inFolder(async (folder) => {
    const image = `${folder}/a.img`;
    const child = await startOutboard([
      ...["--device", `virtio-blk,file=${image},create=1M`],
      ...["--socket", `${folder}/a`],
    ]);
    await child.stop();
    assertMatch(child.stderr, /Made image .*a\.img of 1M/);
    assertEquals(Deno.statSync(image).size, 1 << 20);
    Deno.removeSync(image);
  }));

for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
  Deno.test(`the command stops cleanly on ${signal}, with a client connected`, () =>
    inFolder(async (folder) => {
      const sockets = [`${folder}/a`, `${folder}/b`];
      await using child = await startOutboard([
        ...["--device", "virtio-net,net=none", "--socket", sockets[0]!],
        ...["--device", "virtio-net,net=none", "--socket", sockets[1]!],
        ...["--control", `${folder}/control`],
      ]);
      using client = connectClient(sockets[0]!);
      client.negotiate();
      child.signal(signal);
      assertEquals(await child.exitCode(), 0);
    }));
}

Deno.test("the command prints the QEMU arguments for each socket", () =>
  inFolder(async (folder) => {
    const socket = `${folder}/it's here`;
    await using child = await startOutboard(
      ["--device", "virtio-net,net=none", "--socket", socket],
    );
    await child.waitFor(
      "print the arguments",
      () => /vfio-user-pci.*\n/.test(child.stdout),
    );
    const quoted = child.stdout.split("\n")
      .find((line) => line.includes("vfio-user-pci"))!
      .trim().replace("-device ", "");
    const { stdout } = await new Deno.Command("sh", {
      args: ["-c", `printf %s ${quoted}`],
    }).output();
    assertEquals(JSON.parse(new TextDecoder().decode(stdout)), {
      driver: "vfio-user-pci",
      socket: { type: "unix", path: Deno.realPathSync(socket) },
    });
    assertMatch(child.stdout, /memory-backend-memfd,id=mem,size=1G,share=on/);
  }));

Deno.test("the command logs JSON lines when asked to", async () => {
  const folder = await Deno.makeTempDir();
  try {
    const socket = `${folder}/s`;
    const child = new Deno.Command(Deno.execPath(), {
      args: [
        ...["run", "-A", "--quiet", program, "--device", "virtio-net,net=none"],
        ...["--socket", socket, "--log-format", "json"],
      ],
      stdout: "null",
      stderr: "piped",
    }).spawn();
    let text = "";
    let told = false;
    for await (
      const part of child.stderr.pipeThrough(new TextDecoderStream())
    ) {
      text += part;
      if (/listens.*\n/.test(text) && !told) {
        child.kill("SIGTERM");
        told = true;
      }
    }
    assertEquals((await child.status).code, 0);
    const records = text.trimEnd().split("\n").map((line) => JSON.parse(line));
    const ready = records.find((record) => record.socket === socket);
    assertEquals([ready.level, ready.id], ["info", "virtio-net0"]);
    assertMatch(ready.qemu, /vfio-user-pci/);
    assert(records.every((record) => !Number.isNaN(Date.parse(record.time))));
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("the command says in JSON too why it does not start", async () => {
  const json = ["--log-format", "json"];
  const model = ["--device", "virtio-blk", "--socket", "/tmp/no/s"];
  const cases: [string[], number, string][] = [
    [[...json, "--devcie=nvme"], 2, "; did you mean --device?"],
    [["--log-format=json", ...model], 1, "/s: its folder does not exist"],
    [["--device", "virtio-blk,id=\n", ...json, "--fd=77"], 2, 'use id="\\n":'],
  ];
  for (const [args, status, words] of cases) {
    const { code, stdout, stderr } = await outboard(...args);
    assertEquals([code, stdout], [status, ""], stderr);
    const { level, message } = JSON.parse(stderr);
    assertEquals(level, "error");
    assert(message.includes(words), message);
  }
});

Deno.test("the command serves an inherited listening socket and leaves its file", async () => {
  const folder = await Deno.makeTempDir();
  try {
    const path = `${folder}/s`;
    using listener = listenUnix(path);
    const F_SETFD = 2;
    libc.fcntl(listener.number, F_SETFD, 0);
    const child = new Deno.Command(Deno.execPath(), {
      args: [
        ...["run", "-A", "--quiet", program, "--device", "virtio-net,net=none"],
        ...["--fd", String(listener.number)],
      ],
      stdout: "piped",
      stderr: "null",
    }).spawn();
    const reader = child.stdout.getReader();
    await readUntil(reader, new RegExp(path));
    {
      using client = connectClient(path);
      client.negotiate();
      assertEquals(client.deviceInfo().numRegions, 9);
    }
    child.kill("SIGTERM");
    await reader.cancel();
    assertEquals((await child.status).code, 0);
    assertEquals([...Deno.readDirSync(folder)].map((e) => e.name), ["s"]);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("the control socket answers, and says what it does not understand", () =>
  inFolder(async (folder) => {
    const control = `${folder}/control`;
    await using _child = await startOutboard([
      ...["--device", "virtio-net,net=none,id=lan", "--socket", `${folder}/s`],
      ...["--control", control],
    ]);
    assertEquals(Deno.statSync(control).mode! & 0o777, 0o600);
    const conn = await Deno.connect({ transport: "unix", path: control });
    const lines = [
      "list",
      "lan link",
      "lan link down",
      "lan link",
      "lan jump",
      "wan link",
      "counters lan",
      "counters wan",
      "what",
      "help",
    ];
    await conn.write(new TextEncoder().encode(lines.join("\n") + "\n"));
    await conn.closeWrite();
    const text = await new Response(conn.readable).text();
    assertMatch(text, /^lan \(virtio-net\) on IOThread 0, no client$/m);
    assertMatch(text, /link is up[\s\S]*link is down/);
    assertMatch(text, /^error: Cannot run "jump" on lan/m);
    assertEquals(text.match(/^error: Cannot find device wan/gm)?.length, 2);
    assertMatch(text, /^lan connection.messages 0$/m);
    assertMatch(text, /^lan rxPackets 0$/m);
    assertMatch(text, /^error: Cannot understand "what"/m);
    assertEquals(text.match(/^ok$/gm)?.length, 6);
  }));

Deno.test("the command serves a handed-over socket whose path is gone", async () => {
  const folder = await Deno.makeTempDir();
  try {
    const path = `${folder}/s`;
    using listener = listenUnix(path);
    await Deno.remove(path);
    const F_SETFD = 2;
    libc.fcntl(listener.number, F_SETFD, 0);
    const child = new Deno.Command(Deno.execPath(), {
      args: [
        ...["run", "-A", "--quiet", program, "--device", "virtio-net,net=none"],
        ...["--fd", String(listener.number)],
      ],
      stdout: "piped",
      stderr: "null",
    }).spawn();
    const reader = child.stdout.getReader();
    await readUntil(reader, new RegExp(path));
    child.kill("SIGTERM");
    await reader.cancel();
    assertEquals((await child.status).code, 0);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("the command goes on when nobody reads what it prints", () =>
  inFolder(async (folder) => {
    const socket = `${folder}/s`;
    const child = new Deno.Command("sh", {
      args: [
        "-c",
        'exec "$@" >/dev/full',
        "sh",
        ...[Deno.execPath(), "run", "-A", "--quiet", program],
        ...["--device", "virtio-net,net=none", "--socket", socket],
      ],
      stdout: "null",
      stderr: "piped",
    }).spawn();
    const reader = child.stderr.getReader();
    await readUntil(reader, /cannot say on standard output/);
    {
      using client = connectClient(socket);
      client.negotiate();
    }
    child.kill("SIGTERM");
    await reader.cancel();
    assertEquals((await child.status).code, 0);
  }));

Deno.test("the command leaves no socket behind when it is stopped while it starts", () =>
  inFolder(async (folder) => {
    const model = `${folder}/slow.ts`;
    const metrics = `${folder}/m`;
    // Their socket is the first that goes when it stops: until then the model is being made.
    await Deno.writeTextFile(
      model,
      `export const model = { name: "slow", help: "takes its time", create() {
        Deno.stderr.writeSync(new TextEncoder().encode("begun\\n"));
        const word = new Int32Array(new SharedArrayBuffer(4));
        for (let ms = 0; ms < ${PATIENCE_MS}; ms++) {
          Atomics.wait(word, 0, 0, 1);
          try {
            Deno.lstatSync(${JSON.stringify(metrics)});
          } catch {
            throw new Error("never used");
          }
        }
      } };`,
    );
    const child = new Deno.Command(Deno.execPath(), {
      args: [
        ...["run", "-A", "--quiet", program, "--device", model],
        ...["--socket", `${folder}/s`, "--metrics", metrics],
      ],
      stdout: "null",
      stderr: "piped",
    }).spawn();
    const reader = child.stderr.getReader();
    await readUntil(reader, /^begun$/m);
    assertEquals(
      [...Deno.readDirSync(folder)].map(({ name }) => name).sort(),
      ["m", "slow.ts"],
      "nobody can connect to what is not there yet",
    );
    child.kill("SIGTERM");
    await reader.cancel();
    assertEquals((await child.status).code, 0);
    await Deno.remove(model);
  }));

Deno.test("the command stops cleanly without its control socket's file, and says where it cannot be", () =>
  inFolder(async (folder) => {
    const device = ["--device", "virtio-net,net=none"];
    const socket = ["--socket", `${folder}/s`];
    const control = `${folder}/control`;
    const child = await startOutboard([
      ...device,
      ...socket,
      "--control",
      control,
    ]);
    await Deno.remove(control);
    await child.stop();
    const refused = await outboard(
      ...[...device, ...socket, "--control", `${folder}/no/control`],
    );
    assertEquals(refused.code, 1);
    assertMatch(refused.stderr, /control: its folder does not exist/);
  }));
