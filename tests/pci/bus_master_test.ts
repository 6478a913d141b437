import { assert, assertEquals } from "@std/assert";
import { silentLog } from "../../src/core/log.ts";
import { ArrayMemory } from "../../src/memory/array_memory.ts";
import { Access } from "../../src/memory/guest_memory.ts";
import { IrqIndex, PciFunction, PciInterrupts } from "../../src/pci/mod.ts";
import {
  allowMastering,
  CAP,
  RecordingDevice,
  RecordingSink,
  words,
} from "./sample.ts";
import { readWords } from "../memory/read_words.ts";

const { INTX, MSI, MSIX } = IrqIndex;
const CONFIG = 7;
const COMMAND = 4;
const BUS_MASTER_ENABLE = 4;
const PM_CTRL = CAP.PM + 4;
const D3HOT = 3;
const DEVCTL = CAP.EXP + 8;
const FLR = 0x8000;

/** A model that can be stopped, and what it was asked to do. */
class StoppableDevice extends RecordingDevice {
  readonly calls: string[] = [];
  inFlight = 0;
  onStop: () => void = () => {};

  stop(): void {
    this.calls.push("stop");
    this.onStop();
  }

  start(): void {
    this.calls.push("start");
  }

  hold(): number {
    this.calls.push("hold");
    return this.inFlight;
  }

  take(): string[] {
    return this.calls.splice(0);
  }
}

class Bench<D extends RecordingDevice> {
  readonly memory = new ArrayMemory();
  readonly interrupts = new PciInterrupts();
  readonly sink = new RecordingSink();
  readonly pci: PciFunction;
  readonly device: D;

  constructor(device: D) {
    this.device = device;
    this.pci = new PciFunction(
      device,
      this.memory,
      this.interrupts,
      silentLog,
    );
    this.interrupts.connect(this.sink);
  }

  config(offset: number, value: number): void {
    assertEquals(this.pci.writeRegion(CONFIG, offset, words(value), 0, 2), 0);
  }

  /** True if the model finds guest memory, by each way there is. */
  get reaches(): boolean {
    const { memory } = this;
    const list = memory.createScatterGather(1);
    const word = new Uint32Array(1);
    const found = [
      memory.window(0, 4096, Access.READ | Access.WRITE) !== null,
      memory.translate(0, 16, Access.WRITE, list) === 0,
      memory.translateWords(new Uint32Array(2), 0, 16, Access.READ, list) !==
        -14,
      readWords(memory, new Uint32Array(2), word, 0, 1) === 0,
      memory.read(0, new Uint8Array(4)) === 0,
      memory.write(0, new Uint8Array(4)) === 0,
    ];
    assertEquals(new Set(found).size, 1, found.join());
    assertEquals(memory.accessible, found[0]);
    return found[0]!;
  }
}

/** Ways of taking bus mastering away and of giving it back. */
const WAYS: Record<string, [(bench: Bench<RecordingDevice>) => void, string]> =
  {
    "Bus Master Enable cleared": [(it) => it.config(COMMAND, 0), "enable"],
    "D3hot": [(it) => it.config(PM_CTRL, D3HOT), "D0"],
    "function level reset": [(it) => it.config(DEVCTL, FLR), "enable"],
    "reset by the client": [(it) => it.pci.reset("device_reset"), "enable"],
    "the client's end": [(it) => it.pci.reset("client_gone"), "enable"],
  };

function giveBack(bench: Bench<RecordingDevice>, how: string): void {
  if (how === "D0") bench.config(PM_CTRL, 0);
  allowMastering(bench.pci);
}

for (const [name, [takeAway, how]] of Object.entries(WAYS)) {
  Deno.test(`PciFunction takes guest memory from any model: ${name}`, () => {
    const bench = new Bench(new RecordingDevice());
    assert(!bench.reaches, "before the driver has allowed it");
    allowMastering(bench.pci);
    assert(bench.reaches);
    const heard: string[] = [];
    const stale = bench.memory.createScatterGather(1);
    assertEquals(bench.memory.translate(0, 16, Access.WRITE, stale), 0);
    const { generation } = bench.memory;
    bench.memory.subscribe({
      onUnmap: (iova, lengthBytes) => {
        // What is in flight may still end there.
        assert(bench.reaches);
        heard.push(`unmap ${iova} ${lengthBytes}`);
      },
      onChange: () => heard.push("change"),
    });
    takeAway(bench);
    assertEquals(heard.splice(0), ["unmap 0 1048576"]);
    assert(!bench.reaches);
    assert(bench.memory.generation !== generation);
    assertEquals(bench.memory.scatter(stale, Uint8Array.of(1), 1), 0);
    giveBack(bench, how);
    assertEquals(heard, ["change"]);
    assert(bench.reaches);
    const bytes = new Uint8Array(1);
    bench.memory.read(0, bytes);
    assertEquals(bytes[0], 0);
  });

  Deno.test(`PciFunction stops a model while memory is still there: ${name}`, () => {
    const bench = new Bench(new StoppableDevice());
    assertEquals(bench.device.take(), ["stop"]);
    allowMastering(bench.pci);
    allowMastering(bench.pci);
    assertEquals(bench.device.take(), ["start"]);
    bench.device.onStop = () => assert(bench.reaches);
    takeAway(bench);
    assertEquals(bench.device.take(), ["stop"]);
    assert(!bench.reaches);
    giveBack(bench, how);
    assertEquals(bench.device.take(), ["start"]);
  });
}

Deno.test("PciFunction needs both Bus Master Enable and D0", () => {
  const bench = new Bench(new StoppableDevice());
  bench.config(PM_CTRL, D3HOT);
  allowMastering(bench.pci);
  assert(!bench.reaches);
  assertEquals(bench.device.take(), ["stop"]);
});

Deno.test("PciFunction takes memory away though a model cannot be stopped", () => {
  const bench = new Bench(new StoppableDevice());
  allowMastering(bench.pci);
  bench.device.onStop = () => {
    throw new Error("its storage keeps a request");
  };
  let failure = "";
  try {
    bench.config(COMMAND, 0);
  } catch (error) {
    failure = (error as Error).message;
  }
  assertEquals(failure, "its storage keeps a request");
  assert(!bench.reaches);
});

Deno.test("PciFunction has a model hold that is started while it holds, and release it once memory is there", () => {
  const bench = new Bench(new StoppableDevice());
  bench.device.inFlight = 3;
  assertEquals(bench.pci.hold(), 3);
  bench.device.take();
  allowMastering(bench.pci);
  assertEquals(bench.device.take(), ["start", "hold"]);
  bench.config(COMMAND, 0);
  bench.pci.release();
  assertEquals(bench.device.take(), ["stop"]);
  allowMastering(bench.pci);
  assertEquals(bench.device.take(), ["start"]);
  assertEquals(bench.pci.hold(), 3);
  bench.pci.release();
  assertEquals(bench.device.take(), ["hold", "start"]);
});

Deno.test("PciFunction.load goes on with memory as it was, and starts nothing that may not", () => {
  for (const isMaster of [false, true]) {
    const before = new Bench(new StoppableDevice());
    if (isMaster) allowMastering(before.pci);
    const after = new Bench(new StoppableDevice());
    after.pci.load(structuredClone(before.pci.save()));
    assertEquals(after.reaches, isMaster);
    assertEquals(after.device.take(), ["stop"]);
    after.pci.release();
    assertEquals(after.device.take(), isMaster ? ["start"] : []);
    allowMastering(after.pci);
    assertEquals(after.device.take(), isMaster ? [] : ["start"]);
    assert(after.reaches);
  }
});

Deno.test("PciInterrupts keeps messages until the function is a bus master, and sends them once then", () => {
  for (
    const [index, enable, raised] of [[MSI, CAP.MSI + 2, 1], [
      MSIX,
      CAP.MSIX + 2,
      0x8000,
    ]] as const
  ) {
    const bench = new Bench(new RecordingDevice());
    bench.config(enable, raised);
    bench.interrupts.raise(0);
    bench.interrupts.raise(0);
    bench.interrupts.retry(index, 0, 1);
    assertEquals(bench.sink.take(), []);
    allowMastering(bench.pci);
    assertEquals(bench.sink.take(), [[index, 0]]);
    bench.interrupts.raise(0);
    assertEquals(bench.sink.take(), [[index, 0]]);
    bench.config(COMMAND, 0);
    bench.interrupts.raise(0);
    assertEquals(bench.sink.take(), []);
    bench.config(COMMAND, BUS_MASTER_ENABLE);
    assertEquals(bench.sink.take(), [[index, 0]]);
  }
});

Deno.test("PciInterrupts gives other threads no eventfd while the function is no bus master", () => {
  const bench = new Bench(new RecordingDevice());
  bench.interrupts.connect({ deliver: () => true, eventFd: (_, v) => 100 + v });
  const direct = new Int32Array(new SharedArrayBuffer(4 * 71));
  bench.interrupts.publishDirect(direct, () => {});
  bench.config(CAP.MSIX + 2, 0x8000);
  assertEquals([direct[1], direct[2]], [-1, -1]);
  allowMastering(bench.pci);
  assertEquals([direct[1], direct[2]], [100, 101]);
  bench.config(PM_CTRL, D3HOT);
  assertEquals([direct[1], direct[2]], [-1, -1]);
});

Deno.test("PciInterrupts drives INTA# without a bus master, but not in D3hot", () => {
  const bench = new Bench(new RecordingDevice());
  bench.interrupts.setLevel(true);
  assertEquals(bench.sink.take(), [[INTX, 0]]);
  bench.interrupts.setLevel(false);
  bench.config(PM_CTRL, D3HOT);
  bench.interrupts.setLevel(true);
  assertEquals(bench.sink.take(), []);
});
