/**
 * As much of HTTP/1.1 (RFC 9112) as it takes to answer one request a connection.
 *
 * Our own and not Deno.serve: that takes as many connections as come, and its end when there are no descriptors left is
 * the end of the process; so whoever reaches the port could end every device.
 *
 * @module
 */

import { closeConnection } from "../control/accept_loop.ts";

/** A request without its body, which is not read. */
export interface HttpRequest {
  readonly method: string;
  /** Without a query. */
  readonly path: string;
  /** Value of the Accept field; empty without one. */
  readonly accept: string;
}

/** Response to a request. */
export interface HttpResponse {
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: string;
}

const REASON: Readonly<Record<number, string>> = {
  200: "OK",
  400: "Bad Request",
  404: "Not Found",
  405: "Method Not Allowed",
  431: "Request Header Fields Too Large",
  503: "Service Unavailable",
  505: "HTTP Version Not Supported",
};

/** The longest request line and headers together, in bytes. */
const HEAD_MAX = 16_384;
const HEAD_END = "\r\n\r\n";

/**
 * Parses the head of a request.
 *
 * @param head All of it, without the empty line at its end
 * @returns The status of the answer when it is none
 */
export function parseHttpRequest(head: string): HttpRequest | 400 | 505 {
  const [line, ...fields] = head.split("\r\n");
  const [, method, target, version] =
    /^([!#$%&'*+.^_`|~\w-]+) (\S+) HTTP\/(\d\.\d)$/.exec(line!) ?? [];
  if (method === undefined) return 400;
  if (!version!.startsWith("1.")) return 505;
  const accept: string[] = [];
  for (const field of fields) {
    const [, name, value] = /^([!#$%&'*+.^_`|~\w-]+):(.*)$/.exec(field) ?? [];
    if (name === undefined) return 400;
    if (name.toLowerCase() === "accept") accept.push(value!.trim());
  }
  // With the name of a host before it when a proxy asks.
  const path = target!.replace(/^https?:\/\/[^/?]*/i, "").replace(/\?.*$/, "");
  return { method: method!, path, accept: accept.join(", ") };
}

/** @returns The head of a request, the status that refuses it, or null when the client has gone */
async function readHead(conn: Deno.Conn): Promise<string | 431 | null> {
  const bytes = new Uint8Array(HEAD_MAX);
  // Every byte a character: what is not ASCII matters to nobody here.
  const decoder = new TextDecoder("latin1");
  let head = "";
  for (let length = 0; length < HEAD_MAX;) {
    const n = await conn.read(bytes.subarray(length));
    if (n === null) return null;
    const before = Math.max(0, length - HEAD_END.length + 1);
    head += decoder.decode(bytes.subarray(length, length + n));
    length += n;
    const end = head.indexOf(HEAD_END, before);
    if (end >= 0) return head.slice(0, end);
  }
  return 431;
}

async function writeAll(conn: Deno.Conn, bytes: Uint8Array): Promise<void> {
  for (let at = 0; at < bytes.length;) {
    at += await conn.write(bytes.subarray(at));
  }
}

function encodeResponse(response: HttpResponse, isHead: boolean): Uint8Array {
  const encoder = new TextEncoder();
  const body = encoder.encode(response.body);
  const fields = {
    ...response.headers,
    "content-length": `${body.length}`,
    "date": new Date().toUTCString(),
    "connection": "close",
  };
  const lines = [
    `HTTP/1.1 ${response.status} ${REASON[response.status] ?? ""}`,
    ...Object.entries(fields).map(([name, value]) => `${name}: ${value}`),
  ];
  const head = encoder.encode(lines.join("\r\n") + HEAD_END);
  if (isHead) return head;
  const bytes = new Uint8Array(head.length + body.length);
  bytes.set(head);
  bytes.set(body, head.length);
  return bytes;
}

/** A plain text, ended by a line feed. */
export function textResponse(
  status: number,
  text: string,
  headers: Readonly<Record<string, string>> = {},
): HttpResponse {
  return {
    status,
    headers: { "content-type": "text/plain; charset=utf-8", ...headers },
    body: `${text}\n`,
  };
}

/**
 * Answers one request, then closes the connection. Never rejects.
 *
 * @param timeoutMs How long all of it may take, whoever is slow
 */
export async function answerOneRequest(
  conn: Deno.Conn,
  timeoutMs: number,
  answer: (request: HttpRequest) => Promise<HttpResponse>,
): Promise<void> {
  const timer = setTimeout(() => closeConnection(conn), timeoutMs);
  try {
    const head = await readHead(conn);
    if (head === null) return;
    const request = typeof head === "number" ? head : parseHttpRequest(head);
    const response = typeof request === "number"
      ? textResponse(request, REASON[request]!)
      : await answer(request);
    const isHead = typeof request !== "number" && request.method === "HEAD";
    await writeAll(conn, encodeResponse(response, isHead));
    await conn.closeWrite();
    // Closed with something unread, a connection is reset, and the answer may be lost on its way.
    const rest = new Uint8Array(HEAD_MAX);
    while (await conn.read(rest) !== null);
  } catch {
    // The client hung up, or the time is over: there is nobody to tell.
  } finally {
    clearTimeout(timer);
    closeConnection(conn);
  }
}
