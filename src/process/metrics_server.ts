/**
 * Metrics over HTTP, for Prometheus and for people with curl.
 *
 * @module
 */

import type { MetricsSnapshot } from "./metrics.ts";
import type { MetricsEndpoint } from "./metrics_endpoint.ts";
import { formatMetrics, MetricsFormat } from "./metrics_text.ts";
import {
  explainListening,
  prepareSocketPath,
  socketRemover,
} from "./sockets.ts";

/** What the server asks. */
export interface MetricsSource {
  /** Everything there is to count now. */
  metrics(): Promise<MetricsSnapshot>;
}

const PATH = "/metrics";

function answerText(status: number, text: string, headers = {}): Response {
  return new Response(`${text}\n`, {
    status,
    headers: { "content-type": "text/plain; charset=utf-8", ...headers },
  });
}

/** Serves `GET /metrics` until it is closed. */
export class MetricsServer {
  /** Where it can be reached, for people. */
  readonly where: string;
  readonly #source: MetricsSource;
  readonly #server: Deno.HttpServer;
  readonly #abort = new AbortController();
  readonly #remove: () => void;
  /** Who comes while a snapshot is being taken gets the same one: each costs every IOThread a turn. */
  #taking: Promise<MetricsSnapshot> | null = null;

  /**
   * Listens at once. A socket file is its owner's only, and one that nobody serves any more is replaced.
   *
   * @throws {Error} With the remedy
   */
  constructor(endpoint: MetricsEndpoint, source: MetricsSource) {
    this.#source = source;
    if (endpoint.kind === "path") {
      const { path } = endpoint;
      this.#server = this.#listenAt(path);
      this.#remove = socketRemover(path);
      this.where =
        `${path}, as in curl --unix-socket ${path} http://localhost${PATH}`;
      return;
    }
    this.#server = this.#listenOn(endpoint.hostname, endpoint.port);
    this.#remove = () => {};
    const { hostname, port } = this.#server.addr as Deno.NetAddr;
    const host = hostname.includes(":") ? `[${hostname}]` : hostname;
    this.where = `http://${host}:${port}${PATH}`;
  }

  /** Stops listening, hangs up, and removes the socket file. */
  async close(): Promise<void> {
    this.#abort.abort();
    await this.#server.finished;
    this.#remove();
  }

  #listenAt(path: string): Deno.HttpServer {
    const mask = Deno.umask(0o177);
    try {
      prepareSocketPath(path);
      return Deno.serve(
        { path, signal: this.#abort.signal, onListen: () => {} },
        (request) => this.#answer(request),
      );
    } catch (error) {
      throw explainListening(path, error);
    } finally {
      Deno.umask(mask);
    }
  }

  #listenOn(hostname: string, port: number): Deno.HttpServer {
    try {
      return Deno.serve(
        { hostname, port, signal: this.#abort.signal, onListen: () => {} },
        (request) => this.#answer(request),
      );
    } catch (error) {
      throw explainPort(hostname, port, error);
    }
  }

  async #answer(request: Request): Promise<Response> {
    if (new URL(request.url).pathname !== PATH) {
      return answerText(404, `Nothing is here: metrics are at ${PATH}`);
    }
    if (request.method !== "GET" && request.method !== "HEAD") {
      const allow = "GET, HEAD";
      return answerText(405, `Cannot ${request.method} metrics: GET them`, {
        allow,
      });
    }
    const accept = request.headers.get("accept") ?? "";
    const format = accept.includes("application/openmetrics-text")
      ? MetricsFormat.OPENMETRICS
      : MetricsFormat.PROMETHEUS;
    try {
      const text = formatMetrics(await this.#snapshot(), format);
      return new Response(request.method === "HEAD" ? null : text, {
        headers: { "content-type": format },
      });
    } catch (error) {
      return answerText(503, error instanceof Error ? error.message : "failed");
    }
  }

  async #snapshot(): Promise<MetricsSnapshot> {
    this.#taking ??= this.#source.metrics().finally(() => this.#taking = null);
    return await this.#taking;
  }
}

function explainPort(hostname: string, port: number, error: unknown): unknown {
  const at = hostname.includes(":")
    ? `[${hostname}]:${port}`
    : `${hostname}:${port}`;
  if (error instanceof Deno.errors.AddrInUse) {
    return new Error(
      `Cannot serve metrics on ${at}: the port is in use; choose another one`,
    );
  }
  if (error instanceof Deno.errors.PermissionDenied) {
    return new Error(
      `Cannot serve metrics on ${at}: permission denied; choose a port from 1024`,
    );
  }
  if (error instanceof Deno.errors.AddrNotAvailable) {
    return new Error(
      `Cannot serve metrics on ${at}: this machine does not have the address`,
    );
  }
  return error;
}
