/**
 * What the main thread and an IOThread say to each other. Everything here is structured-clone-able.
 *
 * @module
 */

import type { LogLevel } from "./logging.ts";

/** A device to serve, as the command line describes it. */
export interface DeviceSpec {
  /** Unique in the process, such as `virtio-net0`. */
  readonly id: string;
  /** Name in the registry, or path or URL of a model's module. */
  readonly model: string;
  /** The model's own options, parsed and checked by the model. */
  readonly options: unknown;
  /** Number of the listening socket; the main thread owns it. */
  readonly listener: number;
}

/** Requests of the main thread. */
export type Request =
  | { readonly kind: "configure"; readonly pollMaxUs: number }
  | {
    readonly kind: "serve";
    readonly device: DeviceSpec;
    readonly debug: boolean;
  }
  | {
    readonly kind: "command";
    readonly device: string;
    readonly name: string;
    readonly args: readonly string[];
  }
  | { readonly kind: "describe" }
  | { readonly kind: "stop" };

/** What a request is answered with. */
export interface ReplyOf {
  configure: null;
  serve: null;
  command: string;
  describe: readonly DeviceDescription[];
  stop: null;
}

/** A device as seen from outside. */
export interface DeviceDescription {
  readonly id: string;
  readonly model: string;
  /** Process id of the connected client, if any. */
  readonly clientPid: number | null;
  /** Commands and their help. */
  readonly commands: Readonly<Record<string, string>>;
  readonly counters: Readonly<Record<string, number>>;
}

/** A request on its way, with the number its reply carries. */
export interface NumberedRequest {
  readonly id: number;
  readonly request: Request;
}

/** Messages of an IOThread. */
export type Notice =
  | { readonly kind: "ready"; readonly wakeFd: number }
  | { readonly kind: "reply"; readonly id: number; readonly value: unknown }
  | {
    readonly kind: "failure";
    readonly id: number;
    readonly message: string;
  }
  | {
    readonly kind: "log";
    readonly level: LogLevel;
    readonly device: string;
    readonly message: string;
    readonly properties: Readonly<Record<string, unknown>>;
  };
