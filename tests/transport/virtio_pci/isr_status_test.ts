import { assertEquals } from "@std/assert";
import { RecordingInterrupts } from "../../../src/testing/fake_context.ts";
import { IsrStatus } from "../../../src/transport/virtio_pci/isr_status.ts";

// By the standard, section 4.1.4.5.
const QUEUE = 1;
const CONFIG = 2;
const NO_VECTOR = 0xffff;

/** Queue 0 has vector 5, queue 1 none. */
function rig(mode: RecordingInterrupts["mode"], configVector: number) {
  const interrupts = new RecordingInterrupts();
  interrupts.mode = mode;
  const vectors = {
    queueVector: (queue: number) => queue === 0 ? 5 : NO_VECTOR,
    configVector,
  };
  return { interrupts, isr: new IsrStatus(interrupts, vectors) };
}

Deno.test("IsrStatus raises vectors where there are any, and notes changes of the configuration in any case", () => {
  const { interrupts, isr } = rig("msix", 7);
  isr.notifyUsed(0);
  isr.notifyUsed(1);
  assertEquals([interrupts.take(), isr.value], [[5], 0]);
  isr.notifyConfig();
  assertEquals([interrupts.take(), isr.value], [[7], CONFIG]);
  const without = rig("msix", NO_VECTOR);
  without.isr.notifyConfig();
  assertEquals([without.interrupts.take(), without.isr.value], [[], CONFIG]);
  assertEquals([interrupts.edges, without.interrupts.edges], [0, 0]);
});

Deno.test("IsrStatus asserts INTA# without MSI-X until it is read", () => {
  const { interrupts, isr } = rig("intx", 7);
  isr.notifyUsed(1);
  assertEquals([isr.value, interrupts.level], [QUEUE, true]);
  isr.notifyConfig();
  isr.raiseLine();
  assertEquals([isr.value, interrupts.edges], [QUEUE | CONFIG, 1]);
  assertEquals([isr.read(), interrupts.level], [QUEUE | CONFIG, false]);
  assertEquals([isr.read(), interrupts.take()], [0, []]);
});

Deno.test("IsrStatus leaves the level alone when nothing was pending", () => {
  const { interrupts, isr } = rig("intx", 7);
  // As when another function of the device, or a device that was here before, asserts it.
  interrupts.setLevel(true);
  isr.read();
  isr.reset();
  assertEquals(interrupts.level, true);
  isr.load(QUEUE);
  isr.reset();
  assertEquals([isr.value, interrupts.level], [0, false]);
});
