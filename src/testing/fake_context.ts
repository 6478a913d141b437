/**
 * Context of a device model, for unit tests: memory on an ArrayBuffer, interrupts and messages that are
 * recorded, time that stands still until it is moved. No permission is needed.
 *
 * @module
 */

import type { ModelContext } from "../../devices/model.ts";
import { VirtioPort } from "../virtio/device.ts";
import { Errno, ErrnoError } from "../core/errno.ts";
import type { Log } from "../core/log.ts";
import { ArrayMemory, type MappableMemory } from "../memory/array_memory.ts";
import type { Interrupts } from "../pci/context.ts";
import type { SharedMemory } from "../pci/device.ts";
import type { PostedWrites } from "../pci/posted_writes.ts";
import { ManualLoop } from "./manual_loop.ts";

/** Interrupts that are written down. */
export class RecordingInterrupts implements Interrupts {
  /** Kind that the driver has enabled; assign it to change it. */
  mode: "intx" | "msi" | "msix" = "msix";
  /** Vectors that were raised, in order. */
  readonly raised: number[] = [];
  /** True if INTA# is asserted. */
  level = false;
  /** Number of times INTA# went from deasserted to asserted. */
  edges = 0;

  raise(vector: number): void {
    this.raised.push(vector);
  }

  setLevel(asserted: boolean): void {
    if (asserted && !this.level) this.edges++;
    this.level = asserted;
  }

  /** Takes the recorded vectors away. */
  take(): number[] {
    return this.raised.splice(0);
  }
}

/** Register writes that a test says it has sent and carried out. */
export class CountedWrites implements PostedWrites {
  /** Number of writes that were sent. */
  sent = 0;
  /** Number of writes that were carried out. */
  done = 0;

  mark(): number {
    return this.sent;
  }

  reached(mark: number): boolean {
    return this.done >= mark;
  }
}

/** A message that was logged. */
export interface LogRecord {
  /** Level of the message. */
  readonly level: "debug" | "info" | "warn" | "error";
  /** The text. */
  readonly message: string;
  /** Properties of the message. */
  readonly properties: Record<string, unknown> | undefined;
}

/** A logger that keeps what it is told. */
export class RecordingLog implements Log {
  readonly debugEnabled = true;
  /** The messages, in order. */
  readonly records: LogRecord[] = [];

  debug(message: string, properties?: Record<string, unknown>): void {
    this.records.push({ level: "debug", message, properties });
  }

  info(message: string, properties?: Record<string, unknown>): void {
    this.records.push({ level: "info", message, properties });
  }

  warn(message: string, properties?: Record<string, unknown>): void {
    this.records.push({ level: "warn", message, properties });
  }

  error(message: string, properties?: Record<string, unknown>): void {
    this.records.push({ level: "error", message, properties });
  }

  /** Messages of one level. */
  at(level: LogRecord["level"]): string[] {
    return this.records.filter((r) => r.level === level).map((r) => r.message);
  }
}

/** A device context whose parts a test can drive and inspect. */
export interface FakeContext extends ModelContext {
  /** The transport of a virtio device, once it is behind one. */
  readonly virtio: VirtioPort;
  /** Guest memory; 1 MiB at address 0 unless told. */
  readonly memory: MappableMemory;
  /** Interrupts, which keep a record of what was raised. */
  readonly interrupts: RecordingInterrupts;
  /** The loop, turned by the test. */
  readonly loop: ManualLoop;
  /** Register writes on their way; none unless the test says so. */
  readonly posted: CountedWrites;
  /** The log, which keeps what was said. */
  readonly log: RecordingLog;
}

/** Parts to use instead of the defaults. */
export interface FakeContextOptions {
  /** Guest memory; 1 MiB at address 0 unless given. */
  readonly memory?: MappableMemory;
  /** Start of the sequence that {@linkcode ModelContext.random} gives; the same seed gives the same bytes. */
  readonly seed?: number;
}

/** A context for unit tests. */
export function fakeContext(options: FakeContextOptions = {}): FakeContext {
  let state = (options.seed ?? 1) >>> 0 || 1;
  return {
    memory: options.memory ?? new ArrayMemory(),
    interrupts: new RecordingInterrupts(),
    loop: new ManualLoop(),
    posted: new CountedWrites(),
    virtio: new VirtioPort(),
    log: new RecordingLog(),
    random(lengthBytes: number): Uint8Array {
      const bytes = new Uint8Array(lengthBytes);
      for (let i = 0; i < lengthBytes; i++) {
        // xorshift32 (Marsaglia, "Xorshift RNGs", 2003)
        state ^= state << 13;
        state ^= state >>> 17;
        state ^= state << 5;
        bytes[i] = state >>> 24;
      }
      return bytes;
    },
    onStart: (tell) => tell(true),
    createSharedMemory(_name: string, lengthBytes: number): SharedMemory {
      if (lengthBytes <= 0 || lengthBytes % 4096 !== 0) {
        throw new ErrnoError(
          Errno.EINVAL,
          `Cannot create shared memory: ${lengthBytes} bytes are not whole pages`,
        );
      }
      return { bytes: new Uint8Array(lengthBytes) };
    },
  };
}
