import { createPciDevice } from "../pci_device.ts";
import { assertEquals, assertThrows } from "@std/assert";
import { VIRTIO_BLK_OPTIONS } from "../../../devices/virtio_blk/config.ts";
import { VIRTIO_BLK_CONFIG } from "../../../devices/virtio_blk/defs.ts";
import { virtioBlkModel } from "../../../devices/virtio_blk/mod.ts";
import { fakeContext } from "../../../src/testing/fake_context.ts";

const DEFAULT_RINGS = {
  packed: false,
  inOrder: false,
  eventIdx: true,
  indirect: true,
  notificationData: false,
  iommuPlatform: true,
  msix: true,
  doorbells: "auto" as const,
};

Deno.test("VIRTIO_BLK_OPTIONS.parse has defaults that make a disk", () => {
  const { block, ...disk } = VIRTIO_BLK_OPTIONS.parse({});
  assertEquals(disk, {
    queues: 1,
    queueSize: 256,
    segMax: 254,
    serial: "",
    writeCache: true,
    rings: DEFAULT_RINGS,
  });
  assertEquals(block.kind, "memory");
});

Deno.test("VIRTIO_BLK_OPTIONS.parse takes the disk's options and the storage's", () => {
  const options = VIRTIO_BLK_OPTIONS.parse({
    queues: "4",
    "queue-size": "64",
    "seg-max": "8",
    serial: "12345678901234567890",
    "write-cache": "off",
    memory: "1M",
    readonly: "on",
    packed: "on",
  });
  const { block, ...disk } = options;
  assertEquals(disk, {
    queues: 4,
    queueSize: 64,
    segMax: 8,
    serial: "12345678901234567890",
    writeCache: false,
    rings: { ...DEFAULT_RINGS, packed: true },
  });
  assertEquals(block.readonly, true);
  assertEquals(structuredClone(options), options);
});

for (
  const [key, value, message] of [
    ["queues", "0", "a number from 1 to 16"],
    ["queues", "17", "a number from 1 to 16"],
    ["queues", "two", "a number from 1 to 16"],
    ["queue-size", "100", "a power of two from 8 to 1024"],
    ["queue-size", "4", "a power of two from 8 to 1024"],
    ["queue-size", "2048", "a power of two from 8 to 1024"],
    ["seg-max", "0", "a number from 1 to 1022"],
    ["seg-max", "255", "a number from 1 to 254"],
    ["serial", "123456789012345678901", "up to 20 printable ASCII"],
    ["serial", "Käse", "up to 20 printable ASCII"],
    ["write-cache", "yes", "it is on or off"],
    ["colour", "red", "virtio-blk has queues, queue-size"],
    ["queues", ["1", "2"], "give it once"],
    ["memory", "x", "memory=x"],
  ] as const
) {
  Deno.test(`VIRTIO_BLK_OPTIONS.parse refuses ${key}=${value}`, () => {
    assertThrows(
      () => VIRTIO_BLK_OPTIONS.parse({ [key]: value }, "virtio-blk"),
      Error,
      message,
    );
  });
}

Deno.test("VIRTIO_BLK_OPTIONS have names of their own", () => {
  const names = VIRTIO_BLK_OPTIONS.rows.map(({ name }) => name);
  assertEquals(new Set(names).size, names.length);
});

Deno.test("VIRTIO_BLK_CONFIG has the offsets of the kernel's virtio_blk.h", () => {
  assertEquals(VIRTIO_BLK_CONFIG, {
    CAPACITY: 0x0,
    SIZE_MAX: 0x8,
    SEG_MAX: 0xc,
    GEOMETRY: 0x10,
    BLK_SIZE: 0x14,
    PHYSICAL_BLOCK_EXP: 0x18,
    ALIGNMENT_OFFSET: 0x19,
    MIN_IO_SIZE: 0x1a,
    OPT_IO_SIZE: 0x1c,
    WRITEBACK: 0x20,
    NUM_QUEUES: 0x22,
    MAX_DISCARD_SECTORS: 0x24,
    MAX_DISCARD_SEG: 0x28,
    DISCARD_SECTOR_ALIGNMENT: 0x2c,
    MAX_WRITE_ZEROES_SECTORS: 0x30,
    MAX_WRITE_ZEROES_SEG: 0x34,
    WRITE_ZEROES_MAY_UNMAP: 0x38,
    SIZE: 0x3c,
  });
});

Deno.test("virtioBlkModel.create makes a disk on its storage, and says so", () => {
  const context = fakeContext();
  const options = virtioBlkModel.options!.parse({ memory: "1M", queues: "2" });
  const device = createPciDevice(
    virtioBlkModel,
    context,
    structuredClone(options),
  );
  try {
    assertEquals(device.spec.deviceId, 0x1042);
    assertEquals(device.spec.classCode, 0x010000);
    assertEquals(device.readBar(4, 0x2000, 4), 2048);
    assertEquals(context.log.at("info").length > 0, true);
  } finally {
    device.close();
  }
});
