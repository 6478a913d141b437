import { assertEquals } from "@std/assert";
import {
  VIRTIO_NET_CONFIG,
  VIRTIO_NET_CTRL_RX_CMD,
  VIRTIO_NET_F,
  VIRTIO_NET_HDR,
} from "../../../devices/virtio_net/defs.ts";

Deno.test("VIRTIO_NET_HDR has the offsets of struct virtio_net_hdr_v1", () => {
  assertEquals(Object.values(VIRTIO_NET_HDR), [0, 1, 2, 4, 6, 8, 10, 12]);
});

Deno.test("VIRTIO_NET_CONFIG has the offsets of struct virtio_net_config", () => {
  assertEquals(Object.values(VIRTIO_NET_CONFIG), [0, 6, 8, 10, 12]);
});

Deno.test("VIRTIO_NET_F has the bit numbers of the kernel", () => {
  // include/uapi/linux/virtio_net.h
  assertEquals(VIRTIO_NET_F.MTU, 3);
  assertEquals(VIRTIO_NET_F.MAC, 5);
  assertEquals(VIRTIO_NET_F.MRG_RXBUF, 15);
  assertEquals(VIRTIO_NET_F.STATUS, 16);
  assertEquals(VIRTIO_NET_F.CTRL_VQ, 17);
  assertEquals(VIRTIO_NET_F.CTRL_RX, 18);
  assertEquals(VIRTIO_NET_F.CTRL_VLAN, 19);
  assertEquals(VIRTIO_NET_F.CTRL_RX_EXTRA, 20);
  assertEquals(VIRTIO_NET_F.GUEST_ANNOUNCE, 21);
  assertEquals(VIRTIO_NET_F.CTRL_MAC_ADDR, 23);
  assertEquals(Object.values(VIRTIO_NET_CTRL_RX_CMD), [0, 1, 2, 3, 4, 5]);
});
