import { assert, assertEquals, assertMatch } from "@std/assert";
import {
  assertFioVerify,
  kernelErrors,
  readTree,
  writeTree,
} from "./disk_checks.ts";
import { Guest, vfioUserDevice } from "./guest.ts";
import { guestTests } from "./harness.ts";
import { hostLibslirp } from "./provision.ts";
import { assertTransfers, dhcp, DHCP_FILES } from "./net_checks.ts";
import { Serving } from "./serving.ts";

const iommuTest = await guestTests({
  tools: ["filesystem", "fio"],
  hosts: [hostLibslirp()],
});

const DISKS = ["/dev/vda", "/dev/nvme0n1"] as const;
const VERIFY_SECONDS = 5;
/** A message or two go over the socket for each page that is mapped: an emulated guest takes its time. */
const NET_BYTES = 4 * 1024 * 1024;

/** The kernel's words for how it uses the IOMMU, and what it then says. */
const MODES = {
  "translates everything": [
    ["intel_iommu=on", "iommu.passthrough=0", "iommu.strict=1"],
    /Default domain type: Translated/,
  ],
  "passes addresses through": [
    ["intel_iommu=on", "iommu=pt"],
    /Default domain type: Passthrough/,
  ],
} as const;

for (const [how, [kernelArgs, said]] of Object.entries(MODES)) {
  iommuTest(
    `all devices work behind an IOMMU that ${how}`,
    async ({ kit, t }) => {
      await using serving = await Serving.start({
        devices: ["virtio-net", "virtio-blk,memory=48M", "nvme,memory=48M"],
        user: "libslirp",
      });
      await using guest = await Guest.boot({
        kit,
        memoryMiB: 512,
        modules: [
          "virtio_pci",
          "virtio_net",
          "af_packet",
          "virtio_blk",
          "nvme",
          "ext4",
        ],
        tools: ["busybox", "dash", "filesystem", "fio"],
        files: DHCP_FILES,
        // The IOMMU first: QEMU makes devices in the order in which they are named.
        devices: [
          "intel-iommu,caching-mode=on",
          ...serving.sockets.map((socket) => vfioUserDevice(socket)),
        ],
        kernelArgs,
      });

      await t.step("the guest uses it, and so do the devices", async () => {
        assertMatch(guest.log, said);
        const groups = await guest.output(
          "for d in /sys/bus/pci/devices/*; do readlink $d/iommu_group; done",
        );
        assert(groups.trim().split("\n").length >= 3, groups);
        for (const device of ["eth0", "vda"]) {
          const features = await guest.output(
            `cat /sys/class/*/${device}/device/features`,
          );
          assertEquals(features[33], "1", "ACCESS_PLATFORM");
        }
        await guest.output(
          "until [ -e /dev/vda ] && [ -e /dev/nvme0n1 ]; do :; done",
        );
      });

      await t.step("the disks keep what they are given", async () => {
        for (const disk of DISKS) {
          const written = await writeTree(guest, disk);
          assertEquals(await readTree(guest, disk), written, disk);
        }
        await assertFioVerify(guest, DISKS, VERIFY_SECONDS);
      });

      await t.step("the network moves data unchanged", async () => {
        assertEquals(await dhcp(guest), "10.0.2.15");
        await assertTransfers(guest, "127.0.0.1", "10.0.2.2", NET_BYTES);
      });

      await t.step("nothing was complained of", async () => {
        assertEquals(await kernelErrors(guest), "");
        assertEquals(
          (await guest.output("dmesg | grep -i 'DMAR.*fault' || :")).trim(),
          "",
        );
        const { stderr } = serving.outboard;
        assert(!/warning|error/.test(stderr), stderr);
      });
    },
  );
}
