import { assertEquals, assertMatch } from "@std/assert";
import {
  answerOneRequest,
  type HttpRequest,
  parseHttpRequest,
  textResponse,
} from "../../src/runtime/metrics/http.ts";

Deno.test("parseHttpRequest takes what clients send apart, and refuses what is no request", () => {
  const get = (path: string, accept = "") => ({ method: "GET", path, accept });
  const cases: [string, HttpRequest | 400 | 505][] = [
    ["GET /metrics HTTP/1.1", get("/metrics")],
    ["GET /metrics HTTP/1.0\r\nhost: a b", get("/metrics")],
    ["GET /metrics?a=/b HTTP/1.1\r\nHost: [", get("/metrics")],
    ["GET http://a:99999/metrics HTTP/1.1", get("/metrics")],
    ["GET http://[?x HTTP/1.1", get("")],
    ["OPTIONS * HTTP/1.1", { method: "OPTIONS", path: "*", accept: "" }],
    [
      "GET / HTTP/1.1\r\naccept: a;q=1\r\nAccept:b ",
      get("/", "a;q=1, b"),
    ],
    ["PRI * HTTP/2.0", 505],
    ["", 400],
    ["GET", 400],
    ["GET  /metrics HTTP/1.1", 400],
    ["GET /met rics HTTP/1.1", 400],
    ["GE\0T / HTTP/1.1", 400],
    ["GET / HTTP/1.1\r\n folded", 400],
    ["GET / HTTP/1.1\r\nno field", 400],
  ];
  for (const [head, expected] of cases) {
    assertEquals(parseHttpRequest(head), expected, head);
  }
});

/** Sends bytes to a server that says which method asked for which path. @returns What came back */
async function exchange(
  parts: readonly string[],
  timeoutMs = 10_000,
): Promise<string> {
  const folder = await Deno.makeTempDir({ prefix: "outboard-test-" });
  const path = `${folder}/s`;
  using listener = Deno.listen({ transport: "unix", path });
  try {
    const accepted = listener.accept();
    using client = await Deno.connect({ transport: "unix", path });
    const served = answerOneRequest(
      await accepted,
      timeoutMs,
      ({ method, path }) =>
        Promise.resolve(textResponse(200, `${method} ${path}`)),
    );
    for (const part of parts) {
      await client.write(new TextEncoder().encode(part));
    }
    let text = "";
    const bytes = new Uint8Array(4096);
    for (;;) {
      const n = await client.read(bytes);
      if (n === null) break;
      text += new TextDecoder().decode(bytes.subarray(0, n));
    }
    client.close();
    await served;
    return text.replace(/^date: .*\r\n/m, "");
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

const HEAD = "HTTP/1.1 200 OK\r\n" +
  "content-type: text/plain; charset=utf-8\r\n";

Deno.test("answerOneRequest answers the first request and closes", async () => {
  assertEquals(
    await exchange(["GET /a HTTP/1.1\r", "\n\r\n", "GET /b HTTP/1.1\r\n\r\n"]),
    `${HEAD}content-length: 7\r\nconnection: close\r\n\r\nGET /a\n`,
  );
  // As long as that of the same GET, and without a body.
  assertEquals(
    await exchange(["HEAD /a HTTP/1.1\r\nhost: x\r\n\r\n"]),
    `${HEAD}content-length: 8\r\nconnection: close\r\n\r\n`,
  );
  assertMatch(await exchange(["\x16\x03\x01\r\n\r\n"]), /^HTTP\/1\.1 400 /);
  assertMatch(
    await exchange(["PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]),
    /^HTTP\/1\.1 505 /,
  );
  assertMatch(
    await exchange(["POST /a HTTP/1.1\r\ncontent-length: 99\r\n\r\nabc"]),
    /^HTTP\/1\.1 200 /,
  );
});

Deno.test("answerOneRequest hears so much and no more, and waits so long", async () => {
  const lines = "a: b\r\n".repeat(3000);
  assertMatch(
    await exchange(["GET / HTTP/1.1\r\n", lines]),
    /^HTTP\/1\.1 431 /,
  );
  assertEquals(await exchange([], 1), "");
});
