/**
 * Metrics over HTTP, for Prometheus and for people with curl.
 *
 * @module
 */

import { AcceptLoop } from "../control/accept_loop.ts";
import type { MetricsSnapshot } from "./metrics.ts";
import type { MetricsEndpoint } from "./endpoint.ts";
import {
  answerOneRequest,
  type HttpRequest,
  type HttpResponse,
  textResponse,
} from "./http.ts";
import { formatMetrics, MetricsFormat } from "./text.ts";
import {
  makeSocketFile,
  removeSocketFile,
  type SocketFile,
} from "../../os/socket/socket_file.ts";

/** Source of what the server tells. */
export interface MetricsSource {
  /** Everything there is to count now. */
  metrics(): Promise<MetricsSnapshot>;
}

const PATH = "/metrics";
/** Requests that are answered at a time, so that nobody takes the descriptors that clients of devices need. */
const CONNECTIONS_MAX = 16;
/** Time one may take to ask and to hear. */
const TIMEOUT_MS = 10_000;

/** Serves `GET /metrics` until it is closed. */
export class MetricsServer {
  /** Address of the server, for people. */
  readonly where: string;
  readonly #source: MetricsSource;
  readonly #connections: AcceptLoop;
  readonly #file: SocketFile | null;
  /** Snapshot that is being taken; whoever comes meanwhile gets it too: each costs every IOThread a turn. */
  #taking: Promise<MetricsSnapshot> | null = null;

  /**
   * Listens at once.
   *
   * @throws {Error} With the remedy
   */
  constructor(endpoint: MetricsEndpoint, source: MetricsSource) {
    this.#source = source;
    let listener: Deno.Listener;
    if (endpoint.kind === "path") {
      const { path } = endpoint;
      ({ made: listener, file: this.#file } = makeSocketFile(
        endpoint,
        () => Deno.listen({ transport: "unix", path }),
      ));
      this.where =
        `${path}, as in curl --unix-socket ${path} http://localhost${PATH}`;
    } else {
      listener = listenOn(endpoint.hostname, endpoint.port);
      this.#file = null;
      const { hostname, port } = listener.addr as Deno.NetAddr;
      const host = hostname.includes(":") ? `[${hostname}]` : hostname;
      this.where = `http://${host}:${port}${PATH}`;
    }
    this.#connections = new AcceptLoop(listener, {
      most: CONNECTIONS_MAX,
      serve: (conn, attendance) =>
        answerOneRequest(
          conn,
          TIMEOUT_MS,
          (request) => attendance.attend(() => this.#answer(request)),
        ),
    });
  }

  /** Stops listening, hangs up, and removes the socket file. */
  close(): void {
    this.#connections.close();
    if (this.#file !== null) removeSocketFile(this.#file);
  }

  async #answer({ method, path, accept }: HttpRequest): Promise<HttpResponse> {
    if (path !== PATH) {
      return textResponse(404, `Nothing is here: metrics are at ${PATH}`);
    }
    if (method !== "GET" && method !== "HEAD") {
      return textResponse(405, `Cannot ${method} metrics: GET them`, {
        allow: "GET, HEAD",
      });
    }
    const format = accept.includes("application/openmetrics-text")
      ? MetricsFormat.OPENMETRICS
      : MetricsFormat.PROMETHEUS;
    try {
      const body = formatMetrics(await this.#snapshot(), format);
      return { status: 200, headers: { "content-type": format }, body };
    } catch (error) {
      return textResponse(
        503,
        error instanceof Error ? error.message : "failed",
      );
    }
  }

  async #snapshot(): Promise<MetricsSnapshot> {
    this.#taking ??= this.#source.metrics().finally(() => this.#taking = null);
    return await this.#taking;
  }
}

function listenOn(hostname: string, port: number): Deno.Listener {
  try {
    return Deno.listen({ hostname, port });
  } catch (error) {
    throw explainPort(hostname, port, error);
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
