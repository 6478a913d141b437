import { assert, assertEquals, assertThrows } from "@std/assert";
import type { DeviceModel } from "../../devices/model.ts";
import { EventLoop } from "../../src/loop/event_loop.ts";
import {
  closeFd,
  createEventFd,
  createMemfd,
  drainEventFd,
  listenUnix,
  signalEventFd,
} from "../../src/os/mod.ts";
import { silentLog } from "../../src/core/log.ts";
import { decodePlainData, encodePlainData } from "../../src/core/plain_data.ts";
import { DeviceHost } from "../../src/runtime/device_host.ts";
import { sampleSpec } from "../pci/sample.ts";
import { openFds, sharedMappings } from "../resources.ts";
import { REG } from "../transport/vfio_user/lesson_device.ts";
import { message, words } from "../transport/vfio_user/raw_client.ts";
import {
  EVENTFD_TRIGGER,
  EVENTFD_UNMASK,
  Stage,
  type Trouble,
} from "./stage.ts";

const INTX = 0;

Deno.test("DeviceHost leaves everything as it was when it cannot be made of it", () => {
  const [fds, mappings] = [openFds(), sharedMappings()];
  {
    using stage = new Stage();
    using client = stage.client();
    using memfd = createMemfd("guest", 0x1000);
    using line = createEventFd();
    using unmask = createEventFd();
    stage.map(client, 0, 0x1000, memfd);
    stage.setIrqs(client, EVENTFD_TRIGGER, INTX, 0, line);
    stage.setIrqs(client, EVENTFD_UNMASK, INTX, 0, unmask);
    const bells = stage.request(client, message(6, words(4096, 0, 0, 0))).fds;
    stage.write(client, REG.SCRATCH, 1234);
    stage.device.hidden[1] = 17;
    const request = message(8, words(20, EVENTFD_TRIGGER, INTX, 0, 1));
    client.send(request.slice(0, 30), [line.number]);
    stage.settle();
    const logged = stage.logged.length;
    const saved = stage.handOver();
    using bag = saved.bag;
    const held = [openFds(), sharedMappings()];
    stage.at = 1;
    const troubles: [Trouble, string][] = [
      [{ create: true }, "no back end"],
      [{ load: true }, "not my state"],
      [{ start: true }, "will not start"],
      [
        { memory: true },
        "Cannot go on with movable0: it has shared memory lesson of 4096 bytes, hidden of 8192 bytes, and had",
      ],
    ];
    for (const [trouble, reason] of troubles) {
      stage.trouble = trouble;
      assertThrows(() => stage.make(saved), Error, reason);
      assertEquals([openFds(), sharedMappings()], held, reason);
      stage.loop.turn(0);
      assertEquals(stage.loop.turn(0), false, "nothing is left on the loop");
    }
    stage.trouble = {};
    // deno-lint-ignore no-explicit-any
    const spoilt: [(state: any) => void, string][] = [
      [(state) => state.kind = "devices", "its state is of devices"],
      [(state) => state.version = 2, "its state has version 2, 1 can be read"],
      [(state) => state.body.model = "stone", "its state is of a stone"],
      [(state) => state.body.memory.ranges[0].access = 4, "its access"],
      [
        (state) => state.body.transport.body.pci.body.msix = null,
        "PCI function",
      ],
      [
        (state) => state.body.transport.body.server.client.session.underway = 1,
        "its underway cannot be",
      ],
    ];
    for (const [spoil, reason] of spoilt) {
      const state = decodePlainData(saved.state);
      spoil(state);
      const other = { state: encodePlainData(state), bag };
      assertThrows(() => stage.make(other), Error, reason);
      assertEquals([openFds(), sharedMappings()], held, reason);
    }
    assertEquals([openFds(), sharedMappings()], held);
    // The old thread takes it back.
    stage.at = 0;
    stage.host = stage.make(saved);
    client.send(request.slice(30));
    assertEquals(client.await(stage.loop).errno, 0);
    assertEquals(stage.read(client, REG.SCRATCH), 1234);
    assertEquals(stage.device.hidden[1], 17);
    signalEventFd(bells[0]!);
    stage.settle();
    assertEquals(stage.read(client, REG.RINGS), 1);
    stage.write(client, REG.LEVEL, 1);
    assertEquals(drainEventFd(line.number), 1);
    stage.unmap(client, 0, 0x1000);
    assertEquals(stage.logged.length, logged);
    bells.forEach(closeFd);
  }
  assertEquals([openFds(), sharedMappings()], [fds, mappings]);
});

Deno.test("DeviceHost with a loop that cannot watch leaves everything as it was", () => {
  using stage = new Stage();
  using client = stage.client();
  using line = createEventFd();
  using unmask = createEventFd();
  stage.setIrqs(client, EVENTFD_TRIGGER, INTX, 0, line);
  stage.setIrqs(client, EVENTFD_UNMASK, INTX, 0, unmask);
  const [bell] = stage.request(client, message(6, words(4096, 0, 0, 0))).fds;
  stage.write(client, REG.SCRATCH, 77);
  const saved = stage.handOver();
  using _bag = saved.bag;
  const held = [openFds(), sharedMappings()];
  // One watch more each time, until all of them can be had.
  for (let watches = 0;; watches++) {
    assert(watches < 100);
    let left = watches;
    const { loop } = stage;
    const watch = loop.watch.bind(loop);
    loop.watch = (...args) => {
      if (left-- === 0) throw new Error("no more watches");
      return watch(...args);
    };
    let failed = false;
    try {
      stage.host = stage.make(saved);
    } catch (error) {
      assertEquals((error as Error).message, "no more watches");
      failed = true;
    }
    loop.watch = watch;
    if (!failed) {
      assert(watches >= 4, "listener, client, unmask eventfd and doorbell");
      break;
    }
    assertEquals([openFds(), sharedMappings()], held);
  }
  assertEquals(stage.read(client, REG.SCRATCH), 77);
  signalEventFd(bell!);
  stage.settle();
  assertEquals(stage.read(client, REG.RINGS), 1);
  stage.write(client, REG.LEVEL, 1);
  assertEquals(drainEventFd(line.number), 1);
  signalEventFd(unmask.number);
  stage.settle();
  assertEquals(drainEventFd(line.number), 1);
  closeFd(bell!);
});

Deno.test("the end of the bag hangs up and gives everything back", () => {
  const [fds, mappings] = [openFds(), sharedMappings()];
  {
    using stage = new Stage();
    using client = stage.client();
    using memfd = createMemfd("guest", 0x1000);
    using line = createEventFd();
    stage.map(client, 0, 0x1000, memfd);
    stage.setIrqs(client, EVENTFD_TRIGGER, INTX, 0, line);
    stage.setIrqs(client, EVENTFD_UNMASK, INTX, 0, line);
    stage.request(client, message(6, words(4096, 0, 0, 0))).fds.forEach(
      closeFd,
    );
    client.send(message(8, words(20, 0)).slice(0, 20), [line.number]);
    stage.settle();
    stage.handOver().bag[Symbol.dispose]();
    client.receive();
    assert(client.ended);
  }
  assertEquals([openFds(), sharedMappings()], [fds, mappings]);
});

Deno.test("DeviceHost.hold says why a model cannot be moved", () => {
  using loop = new EventLoop();
  const directory = Deno.makeTempDirSync({ prefix: "outboard-test-" });
  using listener = listenUnix(`${directory}/s`);
  const spec = sampleSpec();
  const model: DeviceModel<unknown> = {
    name: "stone",
    help: "",
    create: () => ({
      spec,
      readBar: () => 0,
      writeBar: () => {},
      reset: () => {},
      hold: () => 0,
      close: () => {},
    }),
  };
  using host = new DeviceHost({
    id: "stone0",
    model,
    options: null,
    loop,
    log: silentLog,
    listener: listener.number,
  });
  const reason = "Cannot move stone0: its model stone has no save, no load";
  assertThrows(() => host.hold(), Error, reason);
  assertThrows(() => host.handOver(), Error, reason);
  assertEquals(host.describe().id, "stone0");
  Deno.removeSync(directory, { recursive: true });
});

Deno.test("DeviceHost.handOver refuses while requests are in flight, and release lets new ones begin", () => {
  using stage = new Stage();
  using client = stage.client();
  const { lesson } = stage.device;
  // What a bottom half schedules runs in the next turn.
  stage.loop.bottomHalf(() => lesson.writeBar(0, REG.GO, 4, 1)).schedule();
  stage.loop.turn(0);
  assertEquals(stage.host.hold(), 1);
  assertThrows(
    () => stage.host.handOver(),
    Error,
    "Cannot move movable0: requests in flight: 1",
  );
  stage.loop.turn(0);
  assertEquals(stage.host.hold(), 0);
  stage.write(client, REG.RESULT, 0);
  stage.write(client, REG.DMA_LENGTH, 1);
  stage.write(client, REG.GO, 1);
  stage.settle();
  assertEquals(stage.read(client, REG.RESULT), 0, "it waits");
  stage.host.release();
  stage.settle();
  assertEquals(stage.read(client, REG.RESULT) | 0, -14, "nothing is mapped");
});
