import { assert, assertEquals, assertThrows } from "@std/assert";
import { Errno, ErrnoError } from "../../../src/core/errno.ts";
import {
  VFIO_IRQ_INFO_EVENTFD,
  VFIO_PCI_MSIX_IRQ_INDEX,
} from "../../../src/transport/vfio_user/defs.ts";
import {
  EventFdLines,
  GuestRam,
  PciClient,
} from "../../../src/transport/vfio_user/client/mod.ts";
import { heapGrowthPerOperation } from "../../resources.ts";
import { PATIENCE_MS } from "../../until.ts";
import { LESSON_ID, PAGE, REG } from "./lesson_device.ts";
import { withServer } from "./remote.ts";

Deno.test("a client learns the device's identity and shape", () =>
  withServer({}, (client) => {
    const info = client.deviceInfo();
    assertEquals([info.pci, info.resettable], [true, true]);
    assertEquals([info.numRegions, info.numIrqs], [9, 5]);
    using pci = new PciClient(client);
    assertEquals(pci.readConfig(0, 4), 0x5678_1234);
    assertEquals(pci.readConfig(8, 4), 0xff00_0009);
    assertEquals(pci.capabilities().map((cap) => cap.id), [0x01, 0x11]);
    assertEquals(pci.msixVectors(), 20);
    assertThrows(() => pci.findCapability(0x05), ErrnoError, "capability 5");
    assertEquals(pci.sizeBars(), [
      { index: 0, sizeBytes: 0x1000, kind: "memory32", prefetchable: false },
      { index: 2, sizeBytes: 0x4000, kind: "memory64", prefetchable: true },
      { index: 4, sizeBytes: 0x1000, kind: "memory32", prefetchable: false },
      { index: 5, sizeBytes: 0x20, kind: "io", prefetchable: false },
    ]);
    const irq = client.irqInfo(VFIO_PCI_MSIX_IRQ_INDEX);
    assertEquals(irq.count, 20);
    assert((irq.flags & VFIO_IRQ_INFO_EVENTFD) !== 0);
  }));

Deno.test("a client reads and writes registers, waited for, posted and pipelined", () =>
  withServer({}, (client) => {
    assertEquals(client.readRegion32(0, REG.ID), LESSON_ID);
    client.writeRegion32(0, REG.SCRATCH, 0x8000_0001);
    assertEquals(client.readRegion32(0, REG.SCRATCH), 0x8000_0001);
    client.writeRegion32(0, REG.SCRATCH, 7, true);
    assertEquals(client.readRegion32(0, REG.SCRATCH), 7);
    for (let i = 0; i < 5000; i++) {
      client.queueWrite32(0, REG.SCRATCH, i);
      client.queueRead32(0, REG.SCRATCH);
    }
    assertEquals(client.settle(), 0);
    assertEquals(client.readRegion32(0, REG.SCRATCH), 4999);
    client.queueRead32(0, 0x1000);
    assertEquals(client.settle(), 1);
    const error = assertThrows(() => client.readRegion32(3, 0), ErrnoError);
    assertEquals(error.errno, Errno.EINVAL);
  }));

Deno.test("MSI-X vectors come by the client's eventfds", () =>
  withServer({}, (client) => {
    using pci = new PciClient(client);
    pci.setEnabled(true);
    assertEquals(pci.readConfig(4, 2) & 6, 6);
    // More vectors than fit into one message.
    const lines = pci.enableMsix(20);
    for (const vector of [0, 15, 16, 19]) {
      pci.writeBar(0, REG.RAISE, 4, vector);
      assertEquals(lines.wait(vector, PATIENCE_MS), 1, `vector ${vector}`);
    }
    client.setIrqs({
      index: VFIO_PCI_MSIX_IRQ_INDEX,
      start: 3,
      count: 2,
      action: "trigger",
    });
    assertEquals([lines.wait(3, PATIENCE_MS), lines.wait(4, PATIENCE_MS)], [
      1,
      1,
    ]);
    pci.disableMsix();
    pci.writeBar(0, REG.RAISE, 4, 0);
    assertEquals(lines.wait(0, 0), 0);
    assertEquals(pci.readConfig(pci.findCapability(0x11) + 2, 2) >> 15, 0);
  }));

Deno.test("the device reaches memory that the client shares, and no other", () =>
  withServer({}, (client) => {
    using pci = new PciClient(client);
    pci.setEnabled(true);
    const lines = pci.enableMsix(1);
    using ram = new GuestRam(1 << 20);
    ram.share(client);
    const iova = ram.memory.alloc(256);
    ram.memory.write(iova, new Uint8Array(256).map((_, i) => i));
    const invert = (address: number, lengthBytes: number) => {
      pci.writeBar(0, REG.DMA_LOW, 4, address % 2 ** 32);
      pci.writeBar(0, REG.DMA_HIGH, 4, Math.floor(address / 2 ** 32));
      pci.writeBar(0, REG.DMA_LENGTH, 4, lengthBytes);
      pci.writeBar(0, REG.GO, 4, 1);
      assertEquals(lines.wait(0, PATIENCE_MS), 1);
      return pci.readBar(0, REG.RESULT, 4) | 0;
    };
    assertEquals(invert(iova, 256), 0);
    assertEquals(
      ram.memory.at(iova, 256),
      new Uint8Array(256).map((_, i) => 255 - i),
    );
    assertEquals(invert(ram.memory.iova - 1, 16), -Errno.EFAULT);
    const again = assertThrows(() => ram.share(client), ErrnoError);
    assertEquals(again.errno, Errno.EEXIST);
    ram.unshare(client);
    assertEquals(invert(iova, 16), -Errno.EFAULT);
    ram.share(client, { writable: false });
    assertEquals(invert(iova, 16), -Errno.EFAULT);
    assertEquals(ram.memory.bytes[ram.memory.offset(iova)], 255);
  }));

Deno.test("doorbells ring by message, by eventfd and not where there is none", () =>
  withServer({}, (client) => {
    client.reset();
    using pci = new PciClient(client, { bells: "ioeventfd" });
    pci.setEnabled(true);
    const lines = pci.enableMsix(2);
    pci.bell(0, REG.DOORBELL, 2).ring(0);
    assertEquals(lines.wait(1, PATIENCE_MS), 1);
    assertEquals(pci.readBar(0, REG.RINGS, 4), 1);
    assertThrows(() => pci.bell(0, REG.ID, 2), ErrnoError, "no eventfd");
    assertThrows(() => pci.bell(0, REG.DOORBELL, 4), ErrnoError, "no eventfd");
    for (const bells of ["message", "posted"] as const) {
      using other = new PciClient(client, { bells });
      other.bell(0, REG.DOORBELL, 2).ring(0);
    }
    assertEquals(pci.readBar(0, REG.RINGS, 4), 3);
  }));

Deno.test("a mappable page is the same memory on both sides", () =>
  withServer({}, (client) => {
    using info = client.regionInfo(2);
    assertEquals(info.mmapAreas, [{ offset: PAGE, lengthBytes: 4096 }]);
    using page = info.map(0);
    new Uint8Array(page.buffer)[0] = 0x5a;
    assertEquals(client.readRegion32(0, REG.SHARED), 0x5a);
    assertEquals(client.readRegion8(2, PAGE), 0x5a);
    using pci = new PciClient(client, { bells: "mmap" });
    pci.bell(2, PAGE, 2).ring(0x17);
    assertEquals(client.readRegion32(0, REG.SHARED), 0x17);
    pci.bell(2, PAGE + 4092, 4).ring(0x8765_4321);
    assertEquals(client.readRegion32(2, PAGE + 4092), 0x8765_4321);
    assertThrows(() => pci.bell(2, 0, 2), ErrnoError, "no mappable page");
    assertThrows(() => pci.bell(0, 0, 2), ErrnoError, "no mappable page");
  }));

Deno.test("a reset is the device's, and a client that goes away resets it too", () => {
  let resets = -1;
  return withServer({}, (client) => {
    const now = client.readRegion32(0, REG.RESETS);
    // The first client's departure was a reset.
    if (resets >= 0) assertEquals(now, resets + 1);
    client.writeRegion32(0, REG.SCRATCH, 1);
    client.reset();
    assertEquals(client.readRegion32(0, REG.SCRATCH), 0);
    resets = client.readRegion32(0, REG.RESETS);
    assertEquals(resets, now + 1);
  });
});

Deno.test("register accesses, pipelining and eventfds allocate nothing", () => {
  let connected = false;
  return withServer({}, (client) => {
    if (connected) return;
    connected = true;
    using lines = new EventFdLines(1);
    const waited = heapGrowthPerOperation(20_000, (operations) => {
      for (let i = 0; i < operations; i++) {
        client.writeRegion32(0, REG.SCRATCH, i);
        client.readRegion32(0, REG.SCRATCH);
        lines.wait(0, 0);
      }
    });
    assert(waited < 1, `${waited} bytes an access`);
    const pipelined = heapGrowthPerOperation(100_000, (operations) => {
      for (let i = 0; i < operations; i += 2) {
        client.queueWrite32(0, REG.SCRATCH, i);
        client.queueRead32(0, REG.SCRATCH);
        if ((i & 63) === 0) client.settle();
      }
      client.settle();
    });
    assert(pipelined < 1, `${pipelined} bytes a queued access`);
  });
});
