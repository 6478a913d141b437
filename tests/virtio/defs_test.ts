import { assertEquals } from "@std/assert";
import * as defs from "../../src/virtio/defs.ts";
import { COMMON_CONFIG_REGISTERS } from "../../src/transport/virtio_pci/common_config.ts";

// Numbers from Linux' uapi headers (virtio_ring.h, virtio_config.h, virtio_pci.h), typed in anew.

Deno.test("ring layouts are those of virtio_ring.h", () => {
  assertEquals(defs.VRING_DESC, {
    ADDR: 0,
    LEN: 8,
    FLAGS: 12,
    NEXT: 14,
    SIZE: 16,
  });
  assertEquals(defs.VRING_DESC_F, { NEXT: 1, WRITE: 2, INDIRECT: 4 });
  assertEquals(defs.VRING_AVAIL_F_NO_INTERRUPT, 1);
  assertEquals(defs.VRING_USED_F_NO_NOTIFY, 1);
  assertEquals(defs.VRING_AVAIL.RING + 8 * defs.VRING_AVAIL.ENTRY_SIZE, 20);
  assertEquals(defs.VRING_USED.RING + 8 * defs.VRING_USED.ENTRY_SIZE, 68);
  assertEquals(defs.VRING_ALIGN, { DESC: 16, AVAIL: 2, USED: 4 });
});

Deno.test("packed ring layouts are those of virtio_ring.h", () => {
  assertEquals(defs.VRING_PACKED_DESC, {
    ADDR: 0,
    LEN: 8,
    ID: 12,
    FLAGS: 14,
    SIZE: 16,
  });
  assertEquals(defs.VRING_PACKED_DESC_F_AVAIL, 7);
  assertEquals(defs.VRING_PACKED_DESC_F_USED, 15);
  assertEquals(defs.VRING_PACKED_EVENT, { OFF_WRAP: 0, FLAGS: 2, SIZE: 4 });
  assertEquals(defs.VRING_PACKED_EVENT_FLAG, {
    ENABLE: 0,
    DISABLE: 1,
    DESC: 2,
  });
  assertEquals(defs.VRING_PACKED_EVENT_F_WRAP_CTR, 15);
  assertEquals(defs.VRING_PACKED_ALIGN, { DESC: 16, EVENT: 4 });
});

Deno.test("status bits are those of virtio_config.h", () => {
  assertEquals(defs.VIRTIO_CONFIG_S, {
    ACKNOWLEDGE: 1,
    DRIVER: 2,
    DRIVER_OK: 4,
    FEATURES_OK: 8,
    NEEDS_RESET: 0x40,
    FAILED: 0x80,
  });
});

Deno.test("common configuration offsets are those of virtio_pci.h", () => {
  const { SIZE, ...offsets } = defs.VIRTIO_PCI_COMMON;
  assertEquals(SIZE, 64);
  assertEquals(Object.values(offsets), [
    0,
    4,
    8,
    12,
    16,
    18,
    20,
    21,
    22,
    24,
    26,
    28,
    30,
    32,
    36,
    40,
    44,
    48,
    52,
    56,
    58,
    60,
    62,
  ]);
  assertEquals(
    COMMON_CONFIG_REGISTERS.registers.map((it) => it.offset),
    Object.values(offsets),
  );
});

Deno.test("capability layouts are those of virtio_pci.h", () => {
  assertEquals(defs.VIRTIO_PCI_CAP_CFG, {
    COMMON: 1,
    NOTIFY: 2,
    ISR: 3,
    DEVICE: 4,
    PCI: 5,
    SHARED_MEMORY: 8,
    VENDOR: 9,
  });
  const cap = defs.VIRTIO_PCI_CAP;
  assertEquals([cap.CFG_TYPE, cap.BAR, cap.OFFSET, cap.LENGTH], [3, 4, 8, 12]);
  assertEquals([cap.NOTIFY_MULT, cap.PCI_CFG_DATA], [16, 16]);
  assertEquals(defs.VIRTIO_PCI_ISR, { QUEUE: 1, CONFIG: 2 });
  assertEquals(defs.VIRTIO_MSI_NO_VECTOR, 0xffff);
});
