import { assertEquals } from "@std/assert";
import {
  VIRTIO_NET_CONFIG,
  VIRTIO_NET_CTRL_COAL,
  VIRTIO_NET_CTRL_NOTF_COAL_CMD,
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
  const { GUEST_TSO4, GUEST_TSO6, GUEST_ECN, GUEST_UFO } = VIRTIO_NET_F;
  assertEquals([GUEST_TSO4, GUEST_TSO6, GUEST_ECN, GUEST_UFO], [7, 8, 9, 10]);
  const { HOST_TSO4, HOST_TSO6, HOST_ECN, HOST_UFO } = VIRTIO_NET_F;
  assertEquals([HOST_TSO4, HOST_TSO6, HOST_ECN, HOST_UFO], [11, 12, 13, 14]);
  const { CSUM, GUEST_CSUM, CTRL_GUEST_OFFLOADS, MQ } = VIRTIO_NET_F;
  assertEquals([CSUM, GUEST_CSUM, CTRL_GUEST_OFFLOADS, MQ], [0, 1, 2, 22]);
  const { VQ_NOTF_COAL, NOTF_COAL, GUEST_USO4, GUEST_USO6, HOST_USO } =
    VIRTIO_NET_F;
  assertEquals(
    [VQ_NOTF_COAL, NOTF_COAL, GUEST_USO4, GUEST_USO6, HOST_USO],
    [52, 53, 54, 55, 56],
  );
  assertEquals(Object.values(VIRTIO_NET_CTRL_RX_CMD), [0, 1, 2, 3, 4, 5]);
});

Deno.test("VIRTIO_NET_CTRL_COAL has the offsets of struct virtio_net_ctrl_coal", () => {
  assertEquals(Object.values(VIRTIO_NET_CTRL_COAL), [0, 4, 8]);
  assertEquals(Object.values(VIRTIO_NET_CTRL_NOTF_COAL_CMD), [0, 1, 2, 3]);
});
