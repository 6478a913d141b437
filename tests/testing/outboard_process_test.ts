import { assert, assertEquals, assertRejects } from "@std/assert";
import {
  NetDriver,
  startOutboard,
  VirtioDriver,
} from "../../src/testing/mod.ts";
import {
  GuestRam,
  PciClient,
} from "../../src/transport/vfio_user/client/mod.ts";
import { openFds } from "../resources.ts";
import { PATIENCE_MS } from "../until.ts";
import { connectClient } from "../transport/vfio_user/remote.ts";

/** Runs a test with a program of its own in place of Outboard. */
async function withProgram(
  source: string,
  test: (program: string, path: string) => Promise<void>,
): Promise<void> {
  const folder = await Deno.makeTempDir({ prefix: "outboard-test-" });
  const before = openFds();
  try {
    await Deno.writeTextFile(`${folder}/program.ts`, source);
    await test(`${folder}/program.ts`, `${folder}/dev.sock`);
    assertEquals(openFds(), before);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

const LISTENS = `
  const paths = Deno.args.filter((_, i) => Deno.args[i - 1] === "--socket");
  Deno.addSignalListener("SIGTERM", () => {
    END
  });
  console.error(Deno.env.get("WHO") + " " + Deno.env.get("LD_LIBRARY_PATH"));
  for (const path of paths) {
    Deno.writeTextFileSync(path, "");
    console.log("listening on " + path);
  }
  setInterval(() => {}, 1 << 30);
`;

const ENDS_WELL = LISTENS.replace(
  "END",
  "for (const path of paths) Deno.removeSync(path); Deno.exit(0);",
);

Deno.test("startOutboard waits for every socket, stop asks it to end", () =>
  withProgram(ENDS_WELL, async (program, path) => {
    const outboard = await startOutboard(
      ["--device", "x", "--socket", path, "--socket", `${path}2`],
      { program, env: { WHO: "me" }, libraryPath: "/lib/x" },
    );
    assert(outboard.pid > 1);
    assertEquals(
      outboard.stdout,
      `listening on ${path}\nlistening on ${path}2\n`,
    );
    await outboard.waitFor("speak", () => outboard.stderr.includes("\n"));
    assertEquals(outboard.stderr, "me /lib/x\n");
    assertEquals(outboard.status, null);
    await outboard.stop();
    await outboard.stop();
    assertEquals(outboard.status?.code, 0);
  }));

Deno.test("disposing of OutboardProcess stops it", () =>
  withProgram(ENDS_WELL, async (program, path) => {
    let ended: () => boolean;
    {
      await using outboard = await startOutboard([`--socket=${path}`], {
        program: await withEquals(program),
      });
      ended = () => outboard.status !== null;
      assertEquals(ended(), false);
    }
    assertEquals(ended(), true);
  }));

/** The same program for `--socket=PATH`. */
async function withEquals(program: string): Promise<string> {
  const source = await Deno.readTextFile(program);
  await Deno.writeTextFile(
    program,
    source.replace(
      /const paths = .*;/,
      "const paths = Deno.args.map((arg) => arg.replace('--socket=', ''));",
    ),
  );
  return program;
}

Deno.test("startOutboard gives the output of a program that ends or takes too long", async () => {
  await withProgram(
    // More than a pipe holds, so that some of it comes when the end is known already.
    `console.log("one"); console.error("x".repeat(100_000) + "two"); Deno.exit(3)`,
    async (program, path) => {
      const error = await assertRejects(
        () => startOutboard(["--socket", path], { program }),
        Error,
        "it ended with code 3",
      );
      assert(error.message.includes("one") && error.message.includes("two"));
    },
  );
  // The line is not whole, and names another socket than the one that is waited for.
  await withProgram(
    `Deno.stdout.writeSync(new TextEncoder().encode(
      "on " + Deno.args[1] + "2\\non " + Deno.args[1]))`,
    async (program, path) => {
      await assertRejects(
        () => startOutboard(["--socket", path], { program }),
        Error,
        "it ended with code 0",
      );
    },
  );
  await withProgram(
    `setInterval(() => {}, 1 << 30)`,
    async (program, path) => {
      await assertRejects(
        () => startOutboard(["--socket", path], { program, timeoutMs: 50 }),
        Error,
        "50 ms are over",
      );
    },
  );
});

Deno.test("stop fails for an exit code, and for a socket that is left", async () => {
  await withProgram(
    LISTENS.replace("END", "Deno.exit(4);"),
    async (program, path) => {
      const outboard = await startOutboard(["--socket", path], { program });
      await assertRejects(() => outboard.stop(), Error, "code 4");
    },
  );
  await withProgram(
    LISTENS.replace("END", "Deno.exit(0);"),
    async (program, path) => {
      const outboard = await startOutboard(["--socket", path], { program });
      await assertRejects(() => outboard.stop(), Error, "is left");
    },
  );
});

Deno.test("kill ends it at once, and a second stop has nothing to do", () =>
  withProgram(ENDS_WELL, async (program, path) => {
    const outboard = await startOutboard(["--socket", path], { program });
    await outboard.kill();
    assertEquals(outboard.status?.signal, "SIGKILL");
    assertEquals(await outboard.exitCode(), 137);
    await outboard.stop();
  }));

Deno.test("a card of the real Outboard is there for a client, and gone after stop", async () => {
  const folder = await Deno.makeTempDir({ prefix: "outboard-test-" });
  try {
    const path = `${folder}/dev.sock`;
    await using outboard = await startOutboard([
      ...["--device", "virtio-net,net=none", "--socket", path],
    ]);
    using client = connectClient(path);
    client.negotiate();
    using ram = new GuestRam(1 << 20);
    ram.share(client);
    using pci = new PciClient(client);
    using net = new NetDriver(new VirtioDriver(pci, ram.memory), {
      queueSize: 16,
    });
    assertEquals(net.transmitBurst(16, 60), 16);
    assert(net.waitTransmitted(PATIENCE_MS));
    assertEquals(outboard.status, null);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
