/**
 * Messages between the main thread and an IOThread. Everything here is structured-clone-able.
 *
 * @module
 */

import type { CommandAnswer } from "../../pci/device.ts";
import type { LogLevel } from "../logging/logging.ts";
import type { QueuePlan } from "../device_threads.ts";
import type { CallLine, Mailbox } from "./thread_calls.ts";
import type { ThreadMetrics } from "../metrics/metrics.ts";

/**
 * Longest time that a thread polls before it sleeps, in microseconds, unless told.
 *
 * Measured: a register read of a client that sleeps takes 20 µs instead of 72 (`deno task bench region`), a guest under
 * TCG on two cores is as fast with it as without, within the noise (`guest-net`, `guest-disk`), and a quiet device costs
 * nothing (`devices`).
 */
export const POLL_MAX_US_DEFAULT = 50;

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
  /** Number of the IOThread it lives on. */
  readonly iothread: number;
  /** By group of its queues, in turns: numbers of the IOThreads that serve them. */
  readonly queues: readonly number[];
}

/** A device between two threads: what its host gave. Owns the descriptors until a bag is made of them. */
export interface SavedHost {
  readonly state: Uint8Array<ArrayBuffer>;
  /** By name. */
  readonly fds: Readonly<Record<string, number>>;
}

/** Requests of the main thread. */
export type Request =
  | {
    readonly kind: "configure";
    /** Longest polling before the thread sleeps, in microseconds. */
    readonly pollMaxUs: number;
    /** Time a client may take until a version is agreed, in milliseconds. */
    readonly helloTimeoutMs: number;
    /** See {@linkcode DeviceHostOptions.prealloc}. */
    readonly prealloc: boolean;
    /** The CPUs it may run on; null leaves them as they are. */
    readonly cpus: readonly number[] | null;
  }
  | {
    readonly kind: "serve";
    readonly device: DeviceSpec;
    readonly debug: boolean;
    /** State it goes on from; when the request fails, for another attempt. */
    readonly saved?: SavedHost;
    /** The threads that serve its queues with this one, each of which has joined. */
    readonly threads?: QueuePlan;
  }
  /** Has a device that was made take clients. */
  | { readonly kind: "listen"; readonly device: string }
  /** Serves queues of a device that lives on another thread, when that asks for it. */
  | {
    readonly kind: "join";
    readonly device: DeviceSpec;
    readonly debug: boolean;
    /** On which the thread calls that the device lives on. */
    readonly line: CallLine;
    readonly control: Mailbox;
  }
  | { readonly kind: "leave"; readonly device: string }
  /** Loads a model while the thread goes on serving, so that a device that comes later is not kept waiting. */
  | { readonly kind: "prepare"; readonly model: string }
  | { readonly kind: "hold"; readonly device: string }
  /** Has other threads serve queues of a device that holds, each of which has joined; or none. */
  | {
    readonly kind: "place";
    readonly device: string;
    readonly threads?: QueuePlan;
  }
  /** Groups of a device's queues that stay together. */
  | { readonly kind: "queueGroups"; readonly device: string }
  | { readonly kind: "release"; readonly device: string }
  | { readonly kind: "handOver"; readonly device: string }
  /** Ends what no thread can take over. */
  | { readonly kind: "discard"; readonly saved: SavedHost }
  | {
    readonly kind: "command";
    readonly device: string;
    readonly name: string;
    readonly args: readonly string[];
  }
  | { readonly kind: "describe" }
  /** Closes all devices: before any thread stops, since a device may need others than its own to be closed. */
  | { readonly kind: "close" }
  | { readonly kind: "metrics" }
  | { readonly kind: "stop" };

/** Answers to requests. */
export interface ReplyOf {
  configure: null;
  serve: null;
  listen: null;
  join: null;
  leave: null;
  prepare: null;
  /** Number of requests that are in flight. */
  hold: number;
  place: null;
  queueGroups: readonly number[];
  release: null;
  handOver: SavedHost;
  discard: null;
  command: CommandAnswer;
  describe: readonly DeviceDescription[];
  metrics: ThreadMetrics;
  close: null;
  stop: null;
}

/** A device as seen from outside. */
export interface DeviceDescription {
  /** Its id, unique in the process. */
  readonly id: string;
  /** Its model, as it was asked for. */
  readonly model: string;
  /** Process id of the connected client, if any. */
  readonly clientPid: number | null;
  /** Commands and their help. */
  readonly commands: Readonly<Record<string, string>>;
  /** Counts of its server. */
  readonly connection: Readonly<Record<string, number>>;
  /** Counts of the model. */
  readonly counters: Readonly<Record<string, number>>;
}

/** A device as seen from outside, and where it lives. */
export interface PlacedDescription extends DeviceDescription {
  /** The IOThread it lives on does not answer: nothing is known but its id, its model and its place. */
  readonly silent?: true;
  /** Numbers of the IOThreads that serve it, the one it lives on first. */
  readonly iothreads: readonly number[];
}

/** A request on its way, with the number its reply carries. */
export interface NumberedRequest {
  readonly id: number;
  readonly request: Request;
}

/** Something to log. One with a property `event`, a name such as `RESIZED`, is told to programs on the control socket. */
export interface LogNotice {
  readonly level: LogLevel;
  /** The device's id; empty for the thread. */
  readonly device: string;
  readonly message: string;
  readonly properties: Readonly<Record<string, unknown>>;
}

/** Messages of an IOThread. */
export type Notice =
  | {
    readonly kind: "ready";
    readonly wakeFd: number;
    /** The thread as the kernel knows it. */
    readonly threadId: number;
    /** Address of the thread for others. */
    readonly mailbox: Mailbox;
  }
  | { readonly kind: "reply"; readonly id: number; readonly value: unknown }
  | {
    readonly kind: "failure";
    readonly id: number;
    readonly message: string;
    /** True for a {@linkcode ModelError}. */
    readonly isModelError: boolean;
  }
  | { readonly kind: "log" } & LogNotice;
