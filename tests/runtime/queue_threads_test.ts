import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import {
  type DriverQueue,
  F,
  startOutboard,
  VirtioDriver,
} from "../../src/testing/mod.ts";
import {
  type BellKind,
  GuestRam,
  PciClient,
  type VfioUserClient,
} from "../../src/transport/vfio_user/client/mod.ts";
import { controlLine, countersOf } from "../guest/control_line.ts";
import { PATIENCE_MS } from "../until.ts";
import { connectClient } from "../transport/vfio_user/remote.ts";

const VIRTIO_BLK_F_MQ = 12;
const QUEUES = 4;
const SECTORS_PER_MIB = 2048;

interface Rig {
  readonly client: VfioUserClient;
  readonly ram: GuestRam;
  readonly pci: PciClient;
  readonly virtio: VirtioDriver;
  readonly queues: readonly DriverQueue[];
  ask(line: string): Promise<string[]>;
}

function startDriver(virtio: VirtioDriver, vectors: boolean): DriverQueue[] {
  virtio.negotiate([F.RING_EVENT_IDX, VIRTIO_BLK_F_MQ]);
  if (vectors) virtio.setConfigVector(0);
  const queues = Array.from(
    { length: QUEUES },
    (_, i) => virtio.setupQueue(i, vectors ? { vector: i + 1 } : {}),
  );
  virtio.driverOk();
  return queues;
}

async function withDiskOnTwoThreads(
  vectors: boolean,
  run: (rig: Rig) => Promise<void> | void,
  bells: BellKind = "message",
  args: readonly string[] = [],
): Promise<void> {
  const folder = Deno.makeTempDirSync();
  try {
    const control = `${folder}/control`;
    await using _outboard = await startOutboard([
      "--iothreads",
      "3",
      "--device",
      `virtio-blk,memory=2M,queues=${QUEUES},iothread=0:1`,
      "--socket",
      `${folder}/dev`,
      "--control",
      control,
      ...args,
    ]);
    using client = connectClient(`${folder}/dev`);
    client.negotiate();
    using ram = new GuestRam(4 * 1024 * 1024);
    ram.share(client);
    using pci = new PciClient(client, { bells });
    const virtio = new VirtioDriver(
      pci,
      ram.memory,
      vectors ? { vectors: QUEUES + 1 } : {},
    );
    const queues = startDriver(virtio, vectors);
    const ask = (line: string) => controlLine(control, line);
    await run({ client, ram, pci, virtio, queues, ask });
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
}

/** Reads one sector; the status byte is left in memory. Returns where. */
function issueRead(ram: GuestRam, queue: DriverQueue, sector = 0): number {
  const header = ram.memory.alloc(32, 16);
  const buffer = ram.memory.alloc(512, 512);
  const at = ram.memory.offset(header);
  ram.memory.view.setUint32(at, 0, true);
  ram.memory.view.setUint32(at + 8, sector, true);
  ram.memory.view.setUint8(at + 16, 0xff);
  assert(queue.ring.begin(3));
  queue.ring.readable(header, 16);
  queue.ring.writable(buffer, 512);
  queue.ring.writable(header + 16, 1);
  queue.ring.end();
  return at + 16;
}

for (const bells of ["message", "ioeventfd"] as const) {
  Deno.test(`a disk on two threads hears of each queue by ${bells} and raises its vector, on the thread that serves it`, () =>
    withDiskOnTwoThreads(
      true,
      async ({ ram, queues, ask }) => {
        const rounds = 50;
        for (let round = 0; round < rounds; round++) {
          for (const queue of queues) {
            const status = issueRead(ram, queue);
            queue.ring.enableInterrupts();
            queue.ring.publish();
            queue.kick();
            assert(
              queue.waitInterrupt(PATIENCE_MS) > 0,
              `queue ${queue.index}`,
            );
            assert(queue.ring.take());
            assertEquals(ram.memory.view.getUint8(status), 0);
          }
        }
        const counters = countersOf(await ask("counters virtio-blk0"));
        // Eventfds of queues that the other thread serves are signalled past the home thread.
        const direct = bells === "message" ? 0 : rounds * QUEUES / 2;
        assertEquals(counters["connection.doorbells"], direct);
        // A thread that polls may find a request before it hears of it, and hear twice at once.
      },
      bells,
      ["--poll", "0"],
    ));
}

Deno.test("a disk on two threads raises INTA# for the queues of both", () =>
  withDiskOnTwoThreads(false, ({ ram, virtio, queues }) => {
    for (const queue of queues) {
      virtio.readIsr();
      issueRead(ram, queue);
      queue.flush();
      assert(queue.waitUsed(PATIENCE_MS));
      const deadline = performance.now() + PATIENCE_MS;
      while ((virtio.readIsr() & 1) === 0) {
        assert(performance.now() < deadline, `queue ${queue.index}`);
      }
      assert(queue.ring.take());
    }
  }));

Deno.test("a disk on two threads fails as a whole when one thread meets a broken ring", () =>
  withDiskOnTwoThreads(true, ({ ram, virtio, queues }) => {
    const NEEDS_RESET = 64;
    const hostile = queues[1]!;
    assert(hostile.ring.begin(1));
    hostile.ring.readable(0xdead_0000_0000, 16);
    hostile.ring.end();
    hostile.flush();
    const deadline = performance.now() + PATIENCE_MS;
    while ((virtio.status & NEEDS_RESET) === 0) {
      assert(performance.now() < deadline);
    }
    // No thread serves anything any more, until the driver has reset the device.
    for (const queue of [queues[0]!, queues[2]!, queues[3]!]) {
      issueRead(ram, queue);
      queue.flush();
      queue.kick();
    }
    assertEquals(virtio.status & NEEDS_RESET, NEEDS_RESET);
    for (const queue of queues.slice(2)) assert(!queue.ring.hasUsed);
    for (const queue of startDriver(virtio, true)) {
      issueRead(ram, queue);
      queue.flush();
      assert(
        queue.waitUsed(PATIENCE_MS),
        `queue ${queue.index} after the reset`,
      );
    }
  }));

Deno.test("a disk on two threads is resized for both", () =>
  withDiskOnTwoThreads(true, async ({ ram, queues, ask }) => {
    const statusOf = (queue: DriverQueue, sector: number) => {
      const status = issueRead(ram, queue, sector);
      queue.flush();
      assert(queue.waitUsed(PATIENCE_MS));
      assert(queue.ring.take());
      return ram.memory.view.getUint8(status);
    };
    const beyond = 3 * SECTORS_PER_MIB;
    for (const queue of queues) assertEquals(statusOf(queue, beyond), 1);
    await ask("virtio-blk0 resize 4M");
    for (const queue of queues) assertEquals(statusOf(queue, beyond), 0);
    await ask("virtio-blk0 resize 1M --shrink");
    for (const queue of queues) {
      assertEquals(statusOf(queue, SECTORS_PER_MIB), 1);
      assertEquals(statusOf(queue, 0), 0);
    }
    const counters = countersOf(await ask("counters virtio-blk0"));
    assertEquals([counters.reads, counters.errors], [8, 8]);
    assertMatch((await ask("list"))[0]!, / on IOThreads 0:1, client pid /);
  }));

Deno.test("a disk on two threads fetches nothing on any while the function is no bus master, and goes on", () =>
  withDiskOnTwoThreads(true, async ({ ram, queues, pci, client, ask }) => {
    pci.setEnabled(false);
    const issue = () =>
      queues.map((queue) => {
        const status = issueRead(ram, queue);
        ram.memory.view.setUint8(status, 0xee);
        queue.ring.publish();
        queue.kick();
        return status;
      });
    const statuses = issue();
    // Each thread has answered, and its loop has had its turns.
    for (let i = 0; i < 3; i++) await ask("counters virtio-blk0");
    for (const [i, queue] of queues.entries()) {
      assert(!queue.ring.hasUsed, `queue ${i}`);
      assertEquals(ram.memory.view.getUint8(statuses[i]!), 0xee);
    }
    // Memory comes and goes meanwhile; a command stops all threads, and starts none.
    using more = new GuestRam(4096, 1 << 30);
    more.share(client);
    await ask("virtio-blk0 resize 4M");
    for (const queue of queues) assert(!queue.ring.hasUsed);
    pci.setEnabled(true);
    for (const [i, queue] of queues.entries()) {
      // Not by waitUsed, which takes the interrupt where it has to wait for it.
      assert(queue.waitInterrupt(PATIENCE_MS) > 0, `queue ${i}`);
      assert(queue.ring.take());
      assertEquals(ram.memory.view.getUint8(statuses[i]!), 0);
    }
  }));

for (const bells of ["message", "ioeventfd"] as const) {
  Deno.test(`queues of a disk move from thread to thread, and the disk with them, while its driver works (${bells})`, () =>
    withDiskOnTwoThreads(
      true,
      async ({ ram, queues, ask }) => {
        const work = (rounds: number) => {
          for (let round = 0; round < rounds; round++) {
            for (const queue of queues) {
              const status = issueRead(ram, queue);
              queue.ring.enableInterrupts();
              queue.ring.publish();
              queue.kick();
              assert(
                queue.waitInterrupt(PATIENCE_MS) > 0,
                `queue ${queue.index}`,
              );
              assert(queue.ring.take());
              assertEquals(ram.memory.view.getUint8(status), 0);
            }
          }
        };
        const placeOf = async () =>
          / on (IOThreads? [\d:]+),/.exec((await ask("list"))[0]!)![1];
        work(3);
        for (
          const [reference, iothread, place] of [
            ["virtio-blk0.2", 2, "IOThreads 0:1:2"],
            ["virtio-blk0.0", 1, "IOThreads 0:1:2"],
            ["virtio-blk0", 1, "IOThread 1"],
            ["virtio-blk0.3", 0, "IOThreads 1:0"],
            ["virtio-blk0", 2, "IOThread 2"],
            ["virtio-blk0.1", 2, "IOThread 2"],
          ] as const
        ) {
          const answer = (await ask(`move ${reference} ${iothread}`))[0]!;
          assertMatch(answer, /moved to IOThread|is on IOThread \d already/);
          assertEquals(await placeOf(), place, reference);
          work(3);
        }
        await assertRejects(
          () => ask("move virtio-blk0.4 1"),
          Error,
          "Cannot move queue 4 of virtio-blk0: queues that can be moved are 0 to 3",
        );
        const counters = countersOf(await ask("counters virtio-blk0"));
        assertEquals(counters.reads, 7 * 3 * QUEUES);
      },
      bells,
    ));
}

Deno.test("devices whose queues stay together take several threads, and say that some serve none", async () => {
  const folder = Deno.makeTempDirSync();
  try {
    const control = `${folder}/control`;
    await using outboard = await startOutboard([
      ...["--iothreads", "2", "--control", control],
      ...["--device", "virtio-net,net=none,iothread=0:1"],
      ...["--socket", `${folder}/net`],
      ...["--device", "virtio-blk,memory=1M,queues=1,iothread=0:1"],
      ...["--socket", `${folder}/blk`],
      ...["--device", "nvme,queues=1,iothread=0:1"],
      ...["--socket", `${folder}/nvme`],
      ...["--device", "nvme,queues=2,doorbells=mmap,id=shared,iothread=0:1"],
      ...["--socket", `${folder}/shared`],
    ]);
    assertMatch(outboard.stderr, /virtio-net0.*IOThread 1 serves none/);
    assertMatch(outboard.stderr, /nvme0.*IOThread 1 serves none/);
    assert(!/shared.*serves none/.test(outboard.stderr));
    const move = (device: string) => controlLine(control, `move ${device} 1`);
    for (const device of ["virtio-net0.0", "virtio-blk0.0", "nvme0.1"]) {
      assertMatch((await move(device))[0]!, / moved to IOThread 1 in /);
    }
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
});
