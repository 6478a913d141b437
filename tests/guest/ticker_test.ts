import { assertEquals, assertMatch, assertNotEquals } from "@std/assert";
import { Guest, vfioUserDevice } from "./guest.ts";
import { guestTest } from "./harness.ts";
import { Serving } from "./serving.ts";

const example = (name: string) =>
  `${import.meta.dirname}/../../examples/${name}.ts`;

guestTest("models from files work in a guest", async ({ kit, t }) => {
  await using serving = await Serving.start({
    devices: [example("ticker"), example("virtio_rng")],
  });
  await using guest = await Guest.boot({
    kit,
    devices: serving.sockets.map((socket) => vfioUserDevice(socket)),
    modules: ["virtio_pci", "virtio_rng"],
  });
  const slot = (await guest.output("lspci -d 1234:7469")).split(" ")[0]!;
  await guest.output(`setpci -s ${slot} COMMAND=2:2`);
  const bar = async (index: number) => {
    const lines = await guest.output(
      `cat /sys/bus/pci/devices/0000:${slot}/resource`,
    );
    return Number(lines.split("\n")[index]!.split(" ")[0]);
  };
  const registers = await bar(0);
  const scratch = await bar(2);
  const read = async (address: number) =>
    Number((await guest.output(`busybox devmem ${address} 32`)).trim());
  const write = (address: number, value: number) =>
    guest.output(`busybox devmem ${address} 32 ${value}`);

  await t.step("registers answer", async () => {
    assertEquals(await read(registers), 0x4b434954);
    assertEquals(await read(registers + 8), 0);
  });

  await t.step("the timer ticks and raises its interrupt line", async () => {
    await write(registers + 4, 1);
    await guest.output(
      `until [ $(($(busybox devmem ${registers + 8} 32))) -ge 3 ]; do :; done`,
    );
    await write(registers + 4, 0);
    assertEquals(await read(registers + 12), 1);
    const status = async () =>
      Number(`0x${(await guest.output(`setpci -s ${slot} STATUS`)).trim()}`);
    assertEquals(await status() & 8, 8, "interrupt status");
    await write(registers + 12, 1);
    assertEquals(await status() & 8, 0, "interrupt status");
  });

  await t.step("mapped memory keeps what is written", async () => {
    await write(scratch + 64, 0x12345678);
    assertEquals(await read(scratch + 64), 0x12345678);
    assertEquals(await read(scratch), 0);
  });

  await t.step("Linux takes random bytes from virtio-rng", async () => {
    const chosen = await guest.output(
      "cat /sys/class/misc/hw_random/rng_current",
    );
    assertMatch(chosen, /^virtio_rng/);
    const digest = () =>
      guest.output("busybox head -c 4096 /dev/hwrng | busybox sha1sum");
    assertNotEquals(await digest(), await digest());
  });

  await t.step("a reboot resets the device", async () => {
    await guest.reboot();
    await guest.output(`setpci -s ${slot} COMMAND=2:2`);
    assertEquals(await read(await bar(2) + 64), 0);
  });
});
