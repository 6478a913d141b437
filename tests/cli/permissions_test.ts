import { assertEquals, assertMatch, assertRejects } from "@std/assert";
import { fileURLToPath } from "node:url";
import { startOutboard } from "../../src/testing/outboard_process.ts";
import { controlLine } from "../guest/control_line.ts";
import { freeTcpPort } from "../ports.ts";
import { connectClient } from "../transport/vfio_user/remote.ts";

const checkout = fileURLToPath(new URL("../..", import.meta.url));

/** Paths by what is done to them. */
interface Paths {
  readonly read?: readonly string[];
  readonly write?: readonly string[];
  /** More flags. */
  readonly flags?: readonly string[];
}

/** Permissions that README's table gives to every device, and those it adds. */
function permissions(socket: string, more: Paths = {}): string[] {
  const { read = [], write = [], flags = [] } = more;
  return [
    "--allow-ffi",
    `--allow-read=${[checkout, socket, ...read]}`,
    `--allow-write=${[socket, ...write]}`,
    ...flags,
  ];
}

interface Case {
  readonly args: readonly string[];
  readonly paths?: Paths;
  /** Other things that are to work. */
  readonly use?: () => Promise<void>;
}

async function inFolder(run: (folder: string) => Promise<void>): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    await run(folder);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

/** A case for each row of the table, in a folder of its own. */
function casesIn(folder: string): Record<string, Case> {
  const peer = [`${folder}/peer`];
  const program = `${folder}/passt`;
  Deno.writeTextFileSync(program, "#!/bin/sh\nexec sleep 1000\n");
  Deno.chmodSync(program, 0o755);
  const model = `${folder}/model.ts`;
  Deno.copyFileSync(
    `${checkout}/tests/runtime/fixtures/counter_model.ts`,
    model,
  );
  const store = `${folder}/store.ts`;
  Deno.writeTextFileSync(
    store,
    `export const store = { name: "zeroes", open: () => ({
      info: { sizeBytes: 4096 }, read: (_at, into) => void into.fill(0) }) };`,
  );
  const port = freeTcpPort();
  const control = `${folder}/control`;
  return {
    "virtio-net,net=none": { args: ["--device", "virtio-net,net=none"] },
    "virtio-net,net=user": { args: ["--device", "virtio-net"] },
    "virtio-net,net=user, with the gateway": {
      args: ["--device", "virtio-net"],
      paths: { flags: ["--allow-env=OUTBOARD_LIBSLIRP"] },
    },
    "virtio-net,net=stream": {
      args: ["--device", `virtio-net,net=stream,server=on,path=${peer}`],
      paths: { read: peer, write: peer },
    },
    "virtio-net,net=passt": {
      args: ["--device", `virtio-net,net=passt,passt=${program}`],
      paths: { read: [program] },
    },
    "virtio-blk": { args: ["--device", "virtio-blk"] },
    "virtio-blk,file": {
      args: ["--device", `virtio-blk,file=${folder}/a,create=1M`],
    },
    "virtio-blk,backend": {
      args: ["--device", `virtio-blk,backend=${store}`],
      paths: { read: [store] },
    },
    "nvme,file": { args: ["--device", `nvme,file=${folder}/b,create=1M`] },
    "--control": {
      args: ["--device", "virtio-blk", "--control", control],
      paths: {
        read: [control],
        write: [control],
        flags: [`--allow-net=unix:${control}`],
      },
      use: async () => {
        const list = await controlLine(control, "list");
        assertMatch(list.join("\n"), /^virtio-blk0 /);
      },
    },
    "--metrics": {
      args: ["--device", "virtio-blk", "--metrics", String(port)],
      paths: {
        flags: [`--allow-net=127.0.0.1:${port}`],
      },
      use: async () => {
        const answer = await fetch(`http://127.0.0.1:${port}/metrics`);
        assertMatch(await answer.text(), /^# EOF$/m);
        assertEquals(answer.status, 200);
      },
    },
    "--exit-with-parent": {
      args: ["--device", "virtio-blk", "--exit-with-parent"],
    },
  };
}

Deno.test("the permissions that README lists are enough", async (t) => {
  await inFolder(async (folder) => {
    const socket = `${folder}/s`;
    for (
      const [name, { args, paths, use }] of Object.entries(casesIn(folder))
    ) {
      await t.step(name, async () => {
        await using _outboard = await startOutboard(
          [...args, "--socket", socket],
          {
            permissions: permissions(socket, paths),
            env: { OUTBOARD_LIBSLIRP: "none" },
          },
        );
        using client = connectClient(socket);
        client.negotiate();
        client.reset();
        await use?.();
      });
    }
  });
});

Deno.test("the command says which permission it lacks, and leaves no socket", async () => {
  await inFolder(async (folder) => {
    const socket = `${folder}/s`;
    const paths = ["net", "control", "metrics"].map((name) =>
      `${folder}/${name}`
    );
    const [net, control, metrics] = paths;
    const flags = [
      "--allow-ffi",
      ...[checkout, socket, ...paths].map((path) => `--allow-read=${path}`),
      ...[socket, ...paths].map((path) => `--allow-write=${path}`),
      ...[control, metrics].map((path) => `--allow-net=unix:${path}`),
    ];
    for (const without of flags) {
      const error = await assertRejects(() =>
        startOutboard([
          ...["--device", `virtio-net,net=stream,server=on,path=${net}`],
          ...["--socket", `${socket},mode=0660`],
          ...["--control", control!, "--metrics", metrics!],
        ], { permissions: flags.filter((one) => one !== without) })
      );
      const flag = /^--allow-\w+/.exec(without)![0];
      assertMatch(
        String(error),
        new RegExp(`Requires \\w+ access.*${flag}`),
        without,
      );
      assertEquals([...Deno.readDirSync(folder)], [], without);
    }
  });
});

Deno.test("an image that was made goes with a start that fails, without a permission", async () => {
  await inFolder(async (folder) => {
    const socket = `${folder}/s`;
    const images =
      `ns1.file=${folder}/a,ns1.create=1M,ns2.file=${folder}/missing`;
    const error = await assertRejects(() =>
      startOutboard(["--device", `nvme,${images}`, "--socket", socket], {
        permissions: permissions(socket),
      })
    );
    assertMatch(String(error), /Cannot open image .*missing/);
    assertEquals([...Deno.readDirSync(folder)], []);
  });
});
