import { assert, assertEquals, assertMatch, assertThrows } from "@std/assert";
import type { MetricsSnapshot } from "../../src/runtime/metrics/metrics.ts";
import { parseMetricsEndpoint } from "../../src/runtime/metrics/endpoint.ts";
import { MetricsServer } from "../../src/runtime/metrics/server.ts";
import { virtioNetModel } from "../../devices/virtio_net/mod.ts";
import { startOutboard } from "../../src/testing/outboard_process.ts";
import { Outboard } from "../../src/runtime/run.ts";
import { workersGone } from "../resources.ts";
import { until } from "../until.ts";
import { connectClient } from "../transport/vfio_user/remote.ts";

const ANY_PORT = { kind: "tcp", hostname: "127.0.0.1", port: 0 } as const;

/** A source whose snapshots the test hands out. */
class Source {
  asked = 0;
  next: Promise<MetricsSnapshot> = Promise.resolve({ families: [] });

  metrics(): Promise<MetricsSnapshot> {
    this.asked++;
    return this.next;
  }
}

async function inFolder(test: (folder: string) => Promise<void>) {
  const folder = await Deno.makeTempDir({ prefix: "outboard-test-" });
  try {
    await test(folder);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

async function get(
  url: string,
  init?: RequestInit & { client?: Deno.HttpClient },
) {
  const response = await fetch(url, init);
  return {
    status: response.status,
    headers: response.headers,
    text: await response.text(),
  };
}

Deno.test("parseMetricsEndpoint takes ports, addresses and paths apart", () => {
  const tcp = (hostname: string, port: number) => ({
    kind: "tcp" as const,
    hostname,
    port,
  });
  const path = (path: string) => ({ kind: "path" as const, path });
  assertEquals(parseMetricsEndpoint("9100"), tcp("127.0.0.1", 9100));
  assertEquals(parseMetricsEndpoint("0"), tcp("127.0.0.1", 0));
  assertEquals(parseMetricsEndpoint("0.0.0.0:80"), tcp("0.0.0.0", 80));
  assertEquals(parseMetricsEndpoint("[::1]:9100"), tcp("::1", 9100));
  assertEquals(parseMetricsEndpoint("localhost:9"), tcp("127.0.0.1", 9));
  assertEquals(parseMetricsEndpoint("/run/m"), path("/run/m"));
  assertEquals(parseMetricsEndpoint("./m.sock"), path("./m.sock"));
  assertEquals(parseMetricsEndpoint("./a:1"), path("./a:1"));
  for (
    const text of ["", "65536", "1.2.3.4:99999", "host:80", "::1:80", ":80"]
  ) {
    assertEquals(parseMetricsEndpoint(text), null, text);
  }
});

Deno.test("MetricsServer answers GET /metrics in the format that is accepted, and nothing else", async () => {
  const server = new MetricsServer(ANY_PORT, new Source());
  try {
    assertMatch(server.where, /^http:\/\/127\.0\.0\.1:\d+\/metrics$/);
    const plain = await get(server.where);
    assertEquals([plain.status, plain.text], [200, "# EOF\n"]);
    assertMatch(
      plain.headers.get("content-type")!,
      /^text\/plain; version=0\.0\.4/,
    );
    const open = await get(server.where, {
      headers: {
        accept:
          "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.1",
      },
    });
    assertEquals(open.text, "# EOF\n");
    assertMatch(
      open.headers.get("content-type")!,
      /^application\/openmetrics-text; version=1\.0\.0/,
    );
    const lost = await get(server.where.replace("/metrics", "/"));
    assertEquals(lost.status, 404);
    assertMatch(lost.text, /metrics are at \/metrics/);
    const posted = await get(server.where, { method: "POST", body: "x" });
    assertEquals([posted.status, posted.headers.get("allow")], [
      405,
      "GET, HEAD",
    ]);
  } finally {
    server.close();
  }
});

Deno.test("MetricsServer takes one snapshot for all who wait for it", async () => {
  const source = new Source();
  const { promise, resolve } = Promise.withResolvers<MetricsSnapshot>();
  source.next = promise;
  const server = new MetricsServer(ANY_PORT, source);
  try {
    const both = [get(server.where), get(server.where)];
    await until("the first of them is served", () => source.asked > 0);
    // Answered without one, over a connection made after the others'.
    await get(server.where + "x");
    assertEquals(source.asked, 1);
    resolve({ families: [] });
    for (const { status } of await Promise.all(both)) assertEquals(status, 200);
    await get(server.where);
    assert(source.asked >= 2);
  } finally {
    server.close();
  }
});

Deno.test("MetricsServer says why there are no metrics", async () => {
  const source = new Source();
  const server = new MetricsServer(ANY_PORT, source);
  try {
    source.next = Promise.reject(new Error("Cannot go on: it has stopped"));
    source.next.catch(() => {});
    const { status, text } = await get(server.where);
    assertEquals([status, text], [503, "Cannot go on: it has stopped\n"]);
  } finally {
    server.close();
  }
});

Deno.test("MetricsServer says that a port is in use", () => {
  const server = new MetricsServer(ANY_PORT, new Source());
  try {
    const port = Number(new URL(server.where).port);
    assertThrows(
      () => new MetricsServer({ ...ANY_PORT, port }, new Source()),
      Error,
      `Cannot serve metrics on 127.0.0.1:${port}: the port is in use; choose another one`,
    );
  } finally {
    server.close();
  }
});

Deno.test("MetricsServer listens on a socket of its owner's only, replaces a stale one and removes its own", () =>
  inFolder(async (folder) => {
    const path = `${folder}/m`;
    const stale = Deno.listen({ transport: "unix", path });
    stale.close();
    const endpoint = { kind: "path", path } as const;
    const server = new MetricsServer(endpoint, new Source());
    try {
      assertMatch(
        server.where,
        /curl --unix-socket \S+\/m http:\/\/localhost\/metrics$/,
      );
      assertEquals(Deno.statSync(path).mode! & 0o777, 0o600);
      const conn = await Deno.connect({ transport: "unix", path });
      await conn.write(new TextEncoder().encode(
        "GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
      ));
      assertMatch(await new Response(conn.readable).text(), /^HTTP\/1\.1 200/);
      assertThrows(
        () => new MetricsServer(endpoint, new Source()),
        Error,
        "another process is serving it",
      );
    } finally {
      server.close();
    }
    assertEquals([...Deno.readDirSync(folder)], []);
    assertThrows(
      () =>
        new MetricsServer(
          { kind: "path", path: `${folder}/none/m` },
          new Source(),
        ),
      Error,
      "its folder does not exist",
    );
  }));

Deno.test("MetricsServer answers though more are connected than it serves, and ask slowly", async () => {
  const server = new MetricsServer(ANY_PORT, new Source());
  const { hostname, port } = new URL(server.where);
  const slow: Deno.Conn[] = [];
  try {
    for (let i = 0; i < 40; i++) {
      const conn = await Deno.connect({ hostname, port: Number(port) });
      await conn.write(new TextEncoder().encode("GET /metrics HT"));
      slow.push(conn);
    }
    assertEquals((await get(server.where)).status, 200);
  } finally {
    for (const conn of slow) conn.close();
    server.close();
  }
});

Deno.test("MetricsServer.close hangs up on a connection that is kept alive", async () => {
  const server = new MetricsServer(ANY_PORT, new Source());
  const { hostname, port } = new URL(server.where);
  const conn = await Deno.connect({ hostname, port: Number(port) });
  await conn.write(
    new TextEncoder().encode("GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n"),
  );
  const some = new Uint8Array(4096);
  assert(await conn.read(some) !== null);
  server.close();
  while (await conn.read(some) !== null);
  conn.close();
});

Deno.test("Outboard.metrics counts what clients do, on every IOThread", () =>
  inFolder(async (folder) => {
    const outboard = new Outboard({ iothreads: 2 });
    try {
      await outboard.serve({
        devices: [0, 1].map((i) => ({
          id: `lan${i}`,
          model: "virtio-net",
          options: virtioNetModel.options!.parse({
            net: "none",
            doorbells: "mmap",
          }),
          endpoint: { kind: "path" as const, path: `${folder}/${i}` },
        })),
        metrics: ANY_PORT,
      });
      using client = connectClient(`${folder}/1`);
      client.negotiate();
      const { families } = await outboard.metrics();
      const valueOf = (name: string, labels: Record<string, string>) =>
        families.find((it) => it.name === name)?.samples.find((it) =>
          Object.entries(labels).every(([key, value]) =>
            it.labels[key] === value
          )
        )?.value;
      const clients = "outboard_connection_clients";
      assertEquals(valueOf(clients, { device: "lan0" }), 0);
      assertEquals(valueOf(clients, { device: "lan1" }), 1);
      const info = { device: "lan1", iothread: "1", doorbells: "mmap" };
      assertEquals(valueOf("outboard_device", info), 1);
      for (const iothread of ["0", "1"]) {
        const turns = valueOf("outboard_iothread_turns", { iothread });
        assert(turns! > 0, `${turns} turns`);
      }
      assert(valueOf("process_open_fds", {})! > 3);
    } finally {
      await outboard.stop();
      await workersGone();
    }
    assertEquals([...Deno.readDirSync(folder)], []);
  }));

Deno.test("the command serves metrics where it is told, and says where", () =>
  inFolder(async (folder) => {
    const path = `${folder}/m`;
    {
      await using child = await startOutboard([
        ...["--device", "virtio-net,net=none", "--socket", `${folder}/s`],
        ...["--metrics", path],
      ]);
      await child.waitFor(
        "metrics",
        () => child.stderr.includes(`metrics on ${path}`),
      );
      using client = Deno.createHttpClient({
        proxy: { transport: "unix", path },
      });
      const { status, text } = await get("http://localhost/metrics", {
        client,
      });
      assertEquals(status, 200);
      assertMatch(
        text,
        /^outboard_connection_clients_total\{device="virtio-net0",model="virtio-net"\} 0$/m,
      );
    }
    assertEquals([...Deno.readDirSync(folder)], []);
  }));

Deno.test("the command says in one line that the place for metrics is taken", () =>
  inFolder(async (folder) => {
    const taken = new MetricsServer(ANY_PORT, new Source());
    try {
      const { port } = new URL(taken.where);
      const { code, stderr } = await new Deno.Command(Deno.execPath(), {
        args: [
          ...["run", "-A", new URL("../../mod.ts", import.meta.url).href],
          ...["--device", "virtio-net,net=none", "--socket", `${folder}/s`],
          ...["--metrics", port],
        ],
      }).output();
      assertEquals([code, new TextDecoder().decode(stderr)], [
        1,
        `outboard: Cannot serve metrics on 127.0.0.1:${port}: the port is in use; choose another one\n`,
      ]);
    } finally {
      taken.close();
    }
    assertEquals([...Deno.readDirSync(folder)], []);
  }));
