/** A hosted device that a test moves between two loops. */

import { assert, assertEquals } from "@std/assert";
import type { DeviceModel } from "../../devices/model.ts";
import { EventLoop } from "../../src/loop/event_loop.ts";
import {
  createEventFd,
  type Fd,
  listenUnix,
  type ResourceBag,
  type Saved,
} from "../../src/os/mod.ts";
import type { Log } from "../../src/core/log.ts";
import type {
  AccessWidth,
  DeviceContext,
  PciDevice,
  PciSpec,
} from "../../src/pci/mod.ts";
import type { DeviceState } from "../../src/core/state_form.ts";
import { DeviceHost } from "../../src/runtime/device_host.ts";
import {
  LessonDevice,
  type LessonState,
} from "../transport/vfio_user/lesson_device.ts";
import {
  message,
  RawClient,
  type Reply,
  versionMessage,
  words,
} from "../transport/vfio_user/raw_client.ts";

/** Fault, and when it happens. */
export interface Trouble {
  create?: boolean;
  load?: boolean;
  start?: boolean;
  /** The next device asks for other memory. */
  memory?: boolean;
}

/** The lesson device on a back end, with memory that no client sees. */
export class Movable implements PciDevice {
  readonly context: DeviceContext;
  readonly lesson: LessonDevice;
  readonly spec: PciSpec;
  readonly hidden: Uint8Array;
  readonly #trouble: Trouble;
  readonly #backend: Fd;

  constructor(
    context: DeviceContext,
    trouble: Trouble,
    bag: ResourceBag | undefined,
  ) {
    this.context = context;
    this.lesson = new LessonDevice(context);
    this.spec = this.lesson.spec;
    if (trouble.create) throw new Error("no back end");
    const lengthBytes = trouble.memory ? 8192 : 4096;
    this.hidden = context.createSharedMemory("hidden", lengthBytes).bytes;
    this.#trouble = trouble;
    this.#backend = bag?.take("backend") ?? createEventFd();
  }

  get backend(): number {
    return this.#backend.number;
  }

  readBar(bar: number, offset: number, width: AccessWidth): number {
    return this.lesson.readBar(bar, offset, width);
  }

  writeBar(
    bar: number,
    offset: number,
    width: AccessWidth,
    value: number,
  ): void {
    this.lesson.writeBar(bar, offset, width, value);
  }

  ringDoorbell(bar: number, doorbell: number): void {
    this.lesson.ringDoorbell(bar, doorbell);
  }

  reset(): void {
    this.lesson.reset();
  }

  hold(): number {
    return this.lesson.hold();
  }

  save(): DeviceState<LessonState> {
    return this.lesson.save();
  }

  load(state: unknown): void {
    if (this.#trouble.load) throw new Error("not my state");
    this.lesson.load(state);
  }

  start(): void {
    if (this.#trouble.start) throw new Error("will not start");
    this.lesson.start();
  }

  handOver(bag: ResourceBag): void {
    bag.put("backend", this.#backend.number);
  }

  close(): void {
    this.lesson.close();
    this.#backend.close();
  }
}

/** A hosted device that moves between two loops, and how to talk to it. */
export class Stage implements Disposable {
  readonly loops = [new EventLoop(), new EventLoop()] as const;
  readonly logged: string[] = [];
  readonly path: string;
  host: DeviceHost;
  device!: Movable;
  trouble: Trouble = {};
  at: 0 | 1 = 0;
  readonly #directory = Deno.makeTempDirSync({ prefix: "outboard-test-" });
  readonly #listener: Fd;

  constructor() {
    this.path = `${this.#directory}/s`;
    this.#listener = listenUnix(this.path);
    this.host = this.make();
  }

  get loop(): EventLoop {
    return this.loops[this.at];
  }

  make(saved?: Saved<Uint8Array>): DeviceHost {
    const { trouble } = this;
    const model: DeviceModel<unknown> = {
      name: "movable",
      help: "",
      create: (context, _options, saved) =>
        this.device = new Movable(context, trouble, saved?.bag),
    };
    const host = new DeviceHost({
      id: "movable0",
      model,
      options: null,
      loop: this.loop,
      log: this.#log(),
      listener: this.#listener.number,
      ...(saved === undefined ? {} : { saved }),
    });
    host.listen();
    return host;
  }

  #log(): Log {
    const at = (level: string) => (text: string) => {
      this.logged.push(`${level}: ${text}`);
    };
    return {
      debug: at("debug"),
      info: at("info"),
      warn: at("warn"),
      error: at("error"),
      debugEnabled: false,
    };
  }

  /** Gives the device away and leaves the old loop with nothing to do. */
  handOver(): Saved<Uint8Array> {
    for (let i = 0; this.host.hold() > 0; i++) {
      assert(i < 100, "requests stay in flight");
      this.loop.turn(0);
    }
    const saved = this.host.handOver();
    this.host.close();
    this.loop.turn(0);
    assertEquals(this.loop.turn(0), false, "nothing is left on the old loop");
    return saved;
  }

  move(): void {
    const saved = this.handOver();
    using _bag = saved.bag;
    this.at = this.at === 0 ? 1 : 0;
    this.host = this.make(saved);
  }

  settle(): void {
    for (let i = 0; i < 100 && this.loop.turn(0); i++);
  }

  /** A client that has agreed on a version and made the function a bus master. */
  client(): RawClient {
    const client = RawClient.connect(this.path);
    assertEquals(client.request(this.loop, versionMessage()).errno, 0);
    const [CONFIG, COMMAND, BUS_MASTER_ENABLE] = [7, 4, 4];
    this.write(client, COMMAND, BUS_MASTER_ENABLE, CONFIG);
    return client;
  }

  request(client: RawClient, bytes: Uint8Array, ...fds: Fd[]): Reply {
    const reply = client.request(
      this.loop,
      bytes,
      fds.map(({ number }) => number),
    );
    assertEquals(reply.errno, 0);
    return reply;
  }

  read(client: RawClient, offset: number, region = 0): number {
    const reply = this.request(client, readMessage(offset, region));
    return reply.payload.getUint32(16, true);
  }

  write(client: RawClient, offset: number, value: number, region = 0): void {
    this.request(client, writeMessage(offset, value, region));
  }

  /** SET_IRQS: `flags` is one action and one kind of data. */
  setIrqs(
    client: RawClient,
    flags: number,
    index: number,
    start: number,
    ...fds: Fd[]
  ): void {
    const count = Math.max(1, fds.length);
    this.request(
      client,
      message(8, words(20, flags, index, start, count)),
      ...fds,
    );
  }

  map(client: RawClient, iova: number, lengthBytes: number, fd: Fd): void {
    this.request(
      client,
      message(2, words(32, 3, 0n, BigInt(iova), BigInt(lengthBytes))),
      fd,
    );
  }

  unmap(client: RawClient, iova: number, lengthBytes: number): void {
    this.request(
      client,
      message(3, words(24, 0, BigInt(iova), BigInt(lengthBytes))),
    );
  }

  [Symbol.dispose](): void {
    this.host.close();
    this.#listener.close();
    for (const loop of this.loops) loop.close();
    Deno.removeSync(this.#directory, { recursive: true });
  }
}

export function readMessage(
  offset: number,
  region = 0,
  id = 0x1234,
): Uint8Array {
  return message(9, words(BigInt(offset), region, 4), { id });
}

export function writeMessage(
  offset: number,
  value: number,
  region = 0,
  id = 0x1234,
): Uint8Array {
  return message(10, words(BigInt(offset), region, 4, value), { id });
}

export const EVENTFD_TRIGGER = 4 | 32;
export const NONE_UNMASK = 1 | 16;
export const EVENTFD_UNMASK = 4 | 16;
