import { assertEquals } from "@std/assert";
import * as defs from "../../../src/transport/vfio_user/defs.ts";

Deno.test("defs has the numbers of the protocol's command table", () => {
  // The table of section "Commands", by its own numbers; 14 was withdrawn.
  const commands = [
    "VERSION",
    "DMA_MAP",
    "DMA_UNMAP",
    "DEVICE_GET_INFO",
    "DEVICE_GET_REGION_INFO",
    "DEVICE_GET_REGION_IO_FDS",
    "DEVICE_GET_IRQ_INFO",
    "DEVICE_SET_IRQS",
    "REGION_READ",
    "REGION_WRITE",
    "DMA_READ",
    "DMA_WRITE",
    "DEVICE_RESET",
    "",
    "REGION_WRITE_MULTI",
    "DEVICE_FEATURE",
    "MIG_DATA_READ",
    "MIG_DATA_WRITE",
  ];
  const all: Readonly<Record<string, unknown>> = defs;
  commands.forEach((name, i) => {
    if (name === "") return;
    assertEquals(all[`VFIO_USER_${name}`], i + 1, name);
    assertEquals(defs.commandName(i + 1), name);
  });
  assertEquals(defs.commandName(14), "command 14");
  assertEquals(defs.commandName(19), "command 19");
});

Deno.test("defs has the numbers of <linux/vfio.h>", () => {
  const kernel: Readonly<Record<string, number>> = {
    VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP: 0x1,
    VFIO_DMA_UNMAP_FLAG_ALL: 0x2,
    VFIO_DEVICE_FLAGS_RESET: 0x1,
    VFIO_DEVICE_FLAGS_PCI: 0x2,
    VFIO_PCI_BAR0_REGION_INDEX: 0,
    VFIO_PCI_BAR5_REGION_INDEX: 5,
    VFIO_PCI_ROM_REGION_INDEX: 6,
    VFIO_PCI_CONFIG_REGION_INDEX: 7,
    VFIO_PCI_VGA_REGION_INDEX: 8,
    VFIO_PCI_NUM_REGIONS: 9,
    VFIO_PCI_INTX_IRQ_INDEX: 0,
    VFIO_PCI_MSI_IRQ_INDEX: 1,
    VFIO_PCI_MSIX_IRQ_INDEX: 2,
    VFIO_PCI_ERR_IRQ_INDEX: 3,
    VFIO_PCI_REQ_IRQ_INDEX: 4,
    VFIO_PCI_NUM_IRQS: 5,
    VFIO_REGION_INFO_FLAG_READ: 0x1,
    VFIO_REGION_INFO_FLAG_WRITE: 0x2,
    VFIO_REGION_INFO_FLAG_MMAP: 0x4,
    VFIO_REGION_INFO_FLAG_CAPS: 0x8,
    VFIO_REGION_INFO_CAP_SPARSE_MMAP: 1,
    VFIO_IRQ_INFO_EVENTFD: 0x1,
    VFIO_IRQ_INFO_MASKABLE: 0x2,
    VFIO_IRQ_INFO_AUTOMASKED: 0x4,
    VFIO_IRQ_INFO_NORESIZE: 0x8,
    VFIO_IRQ_SET_DATA_NONE: 0x1,
    VFIO_IRQ_SET_DATA_BOOL: 0x2,
    VFIO_IRQ_SET_DATA_EVENTFD: 0x4,
    VFIO_IRQ_SET_ACTION_MASK: 0x8,
    VFIO_IRQ_SET_ACTION_UNMASK: 0x10,
    VFIO_IRQ_SET_ACTION_TRIGGER: 0x20,
    VFIO_IRQ_SET_DATA_TYPE_MASK: 0x7,
    VFIO_IRQ_SET_ACTION_TYPE_MASK: 0x38,
    KVM_IOEVENTFD_FLAG_DATAMATCH: 0x1,
    KVM_IOEVENTFD_FLAG_PIO: 0x2,
  };
  const all: Readonly<Record<string, unknown>> = defs;
  for (const [name, value] of Object.entries(kernel)) {
    assertEquals(all[name], value, name);
  }
});

Deno.test("defs lays structures out as the protocol text does", () => {
  const layouts: [Readonly<Record<string, number>>, number[]][] = [
    [defs.HEADER, [0, 2, 4, 8, 12, 16]],
    [defs.VERSION, [0, 2, 4, 4]],
    [defs.DMA_MAP, [0, 4, 8, 16, 24, 32]],
    [defs.DMA_UNMAP, [0, 4, 8, 16, 24]],
    [defs.DEVICE_INFO, [0, 4, 8, 12, 16]],
    [defs.REGION_INFO, [0, 4, 8, 12, 16, 24, 32]],
    [defs.INFO_CAP_HEADER, [0, 2, 4, 8]],
    [defs.CAP_SPARSE_MMAP, [0, 8, 12, 16, 16]],
    [defs.SPARSE_MMAP_AREA, [0, 8, 16]],
    [defs.REGION_IO_FDS, [0, 4, 8, 12, 16, 16]],
    [defs.SUB_REGION_IOEVENTFD, [0, 8, 16, 20, 24, 28, 32, 40]],
    [defs.IRQ_INFO, [0, 4, 8, 12, 16]],
    [defs.IRQ_SET, [0, 4, 8, 12, 16, 20, 20]],
    [defs.REGION_ACCESS, [0, 8, 12, 16, 16]],
    [defs.WRITE_MULTI, [0, 8, 8]],
    [defs.WRITE_MULTI_ENTRY, [0, 8, 12, 16, 24]],
    [defs.DMA_ACCESS, [0, 8, 16, 16]],
  ];
  for (const [table, offsets] of layouts) {
    assertEquals(Object.values(table), offsets, Object.keys(table).join());
    assertEquals(Object.keys(table).at(-1), "SIZE");
  }
});
