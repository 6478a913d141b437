import { assertEquals, assertNotEquals } from "@std/assert";
import { kernelErrors } from "./disk_checks.ts";
import { Guest, type GuestOptions, vfioUserDevice } from "./guest.ts";
import { guestTests } from "./harness.ts";
import { buildInitramfs } from "./initramfs.ts";
import { assertPing, dhcp, DHCP_FILES } from "./net_checks.ts";
import { Serving } from "./serving.ts";

const sleepTest = await guestTests({ tools: ["kexec"] });

const DISKS = ["vda", "nvme0n1"];

/** Offset on each disk of the bytes that are compared; before it there is swap space on one, and a kernel on the other. */
const SCRATCH_MIB = 256;
const SCRATCH_LENGTH_MIB = 4;
const MIB = 1024 * 1024;

/** On a busy machine, for what takes seconds on a quiet one. */
const SLEEP_TIMEOUT_MS = 180_000;

/** Number of times a key is pressed until the guest wakes up from a sleep that nothing tells the beginning of. */
const KEY_INTERVAL_MS = 250;

/** The guest's disks and network, and what was written to the disks last. */
class Devices {
  readonly #guest: Guest;
  #sums: string[] = [];

  constructor(guest: Guest) {
    this.#guest = guest;
  }

  /** Waits for both disks, and gets a lease; for devices that have just been bound. */
  async begin(): Promise<void> {
    await this.#guest.output(
      "until [ -b /dev/vda ] && [ -b /dev/nvme0n1 ]; do :; done",
    );
    await dhcp(this.#guest);
  }

  /** Each disk has the bytes that were written last and takes others, and the network answers. */
  async check(): Promise<void> {
    assertEquals(await this.#read(), this.#sums);
    await this.write();
    await assertPing(this.#guest, "10.0.2.2", 3);
    assertEquals(await kernelErrors(this.#guest), "");
  }

  /** Writes new bytes to each disk. */
  async write(): Promise<void> {
    const before = this.#sums;
    const commands = DISKS.map((disk) =>
      `head -c ${SCRATCH_LENGTH_MIB * MIB} /dev/urandom > /tmp/bytes && ` +
      `dd if=/tmp/bytes of=/dev/${disk} bs=1M seek=${SCRATCH_MIB} oflag=direct 2> /dev/null && ` +
      "sha256sum < /tmp/bytes"
    );
    this.#sums = lines(await this.#guest.output(commands.join(" && ")));
    assertNotEquals(this.#sums, before);
    assertEquals(await this.#read(), this.#sums);
  }

  async #read(): Promise<string[]> {
    const commands = DISKS.map((disk) =>
      `dd if=/dev/${disk} bs=1M skip=${SCRATCH_MIB} count=${SCRATCH_LENGTH_MIB} iflag=direct 2> /dev/null | sha256sum`
    );
    return lines(await this.#guest.output(commands.join(" && ")));
  }
}

function lines(text: string): string[] {
  return text.trim().split("\n");
}

/** Suspends to RAM, as the firmware sees it, and wakes up. */
async function suspendToRam(guest: Guest): Promise<void> {
  const asleep = guest.nextQmpEvent("SUSPEND");
  const awake = suspend(guest, "deep");
  // It may fail without a SUSPEND.
  await Promise.race([asleep, awake]);
  await guest.qmp("system_wakeup");
  await awake;
}

/** Suspends to idle, which only the guest knows of, and wakes up by a key. */
async function suspendToIdle(guest: Guest): Promise<void> {
  await guest.output(
    "for f in /sys/bus/serio/devices/*/power/wakeup; do echo enabled > $f; done",
  );
  let ended = false;
  const awake = suspend(guest, "s2idle").finally(() => {
    ended = true;
  });
  awake.catch(() => {});
  while (!ended) {
    await guest.qmp("send-key", { keys: [{ type: "qcode", data: "shift" }] });
    await new Promise((resolve) => setTimeout(resolve, KEY_INTERVAL_MS));
  }
  await awake;
}

async function suspend(guest: Guest, how: "deep" | "s2idle"): Promise<void> {
  const count = async () =>
    Number(await guest.output("cat /sys/power/suspend_stats/success"));
  const before = await count();
  await guest.output(
    `echo ${how} > /sys/power/mem_sleep && echo mem > /sys/power/state`,
    { timeoutMs: SLEEP_TIMEOUT_MS },
  );
  assertEquals(await count(), before + 1);
}

/** Ways to reset a function without its driver, by name. */
const RESETS = {
  "function level reset": byMethod("flr"),
  "D3hot and back to D0": byMethod("pm"),
  // By hand: Linux' own way then waits for the link, which QEMU's port did not say to be active.
  "secondary bus reset": [
    "port=$(basename $(dirname $(readlink -f $d)))",
    "echo 1 > $d/remove",
    "setpci -s $port BRIDGE_CONTROL=40:40",
    "setpci -s $port BRIDGE_CONTROL=00:40",
    "echo 1 > /sys/bus/pci/rescan",
  ].join("\n"),
} as const;

function byMethod(method: "flr" | "pm"): string {
  return [
    "echo $f > unbind",
    `echo ${method} > $d/reset_method`,
    "echo 1 > $d/reset",
    "echo $f > bind",
  ].join("\n");
}

/** Resets every function that we serve, as a person at a shell does; `$f` is the function and `$d` its folder. */
async function resetFunctions(guest: Guest, commands: string): Promise<void> {
  await guest.output([
    "set -e",
    "for driver in virtio-pci nvme; do",
    "  cd /sys/bus/pci/drivers/$driver",
    "  for f in [0-9]*:*; do",
    "    d=/sys/bus/pci/devices/$f",
    commands,
    "  done",
    "done",
  ].join("\n"));
}

/** Hibernates to swap space on a disk, and has another boot of the same kernel resume from there. */
async function hibernate(guest: Guest): Promise<void> {
  await guest.output(
    `mkswap /dev/vda ${
      SCRATCH_MIB * 1024
    } && swapon /dev/vda && touch /tmp/hibernated`,
  );
  const from = guest.log.length;
  await guest.reboot({
    command:
      "echo reboot > /sys/power/disk && echo disk > /sys/power/state; echo hibernation ended: $? > /dev/kmsg",
    timeoutMs: SLEEP_TIMEOUT_MS,
  });
  assertEquals((await guest.run("test -e /tmp/hibernated")).status, 1);
  const ended = guest.waitForLog(/hibernation ended: (\d+)/, {
    from,
    timeoutMs: SLEEP_TIMEOUT_MS,
  });
  await guest.start(
    "until [ -b /dev/vda ]; do :; done; cat /sys/block/vda/dev > /sys/power/resume",
  );
  assertEquals((await ended)[1], "0");
  await guest.output("rm /tmp/hibernated && swapoff /dev/vda");
}

/** A disk image with a kernel and its initramfs, each from a whole MiB on. */
class BootImage implements Disposable {
  readonly path = Deno.makeTempFileSync({ prefix: "outboard-boot-" });
  readonly #kernelMib: number;
  readonly #initramfsMib: number;

  constructor(kernel: Uint8Array, initramfs: Uint8Array) {
    this.#kernelMib = Math.ceil(kernel.length / MIB);
    this.#initramfsMib = Math.ceil(initramfs.length / MIB);
    using file = Deno.openSync(this.path, { write: true });
    file.truncateSync(2 * SCRATCH_MIB * MIB);
    file.seekSync(0, Deno.SeekMode.Start);
    writeAll(file, kernel);
    file.seekSync(this.#kernelMib * MIB, Deno.SeekMode.Start);
    writeAll(file, initramfs);
  }

  /** Boots what is on that disk, without a shutdown. */
  async kexec(guest: Guest, disk: string): Promise<void> {
    const copy = (to: string, skip: number, count: number) =>
      `dd if=/dev/${disk} of=${to} bs=1M skip=${skip} count=${count} iflag=direct 2> /dev/null`;
    await guest.output(
      [
        copy("/tmp/kernel", 0, this.#kernelMib),
        copy("/tmp/initramfs", this.#kernelMib, this.#initramfsMib),
        "kexec -s -l /tmp/kernel --initrd=/tmp/initramfs --reuse-cmdline",
        "touch /tmp/before",
      ].join(" && "),
    );
    await guest.reboot({ command: "kexec -e", timeoutMs: SLEEP_TIMEOUT_MS });
    assertEquals((await guest.run("test -e /tmp/before")).status, 1);
  }

  [Symbol.dispose](): void {
    Deno.removeSync(this.path);
  }
}

function writeAll(file: Deno.FsFile, bytes: Uint8Array): void {
  for (let at = 0; at < bytes.length;) {
    at += file.writeSync(bytes.subarray(at));
  }
}

sleepTest("all devices survive sleep, resets and kexec", async ({ kit, t }) => {
  const system = {
    kit,
    modules: ["virtio_pci", "virtio_net", "af_packet", "virtio_blk"],
    tools: ["busybox", "dash", "ip", "kexec", "lspci"],
    files: DHCP_FILES,
  } as const satisfies GuestOptions;
  using image = new BootImage(
    await Deno.readFile(kit.kernel.packedImage),
    await Deno.readFile(await buildInitramfs(kit, system)),
  );
  await using serving = await Serving.start({
    devices: [
      "virtio-net",
      `virtio-blk,memory=${2 * SCRATCH_MIB}M`,
      `nvme,file=${image.path}`,
    ],
    user: "gateway",
  });
  await using guest = await Guest.boot({
    ...system,
    packedKernel: true,
    memoryMiB: 512,
    // Behind ports of their own, so that each bus can be reset.
    devices: serving.sockets.flatMap((socket, i) => [
      JSON.stringify({
        driver: "pcie-root-port",
        id: `port${i}`,
        chassis: i,
        slot: i,
      }),
      vfioUserDevice(socket, { bus: `port${i}` }),
    ]),
    qemuArgs: [
      ...["-global", "ICH9-LPC.disable_s3=0"],
      ...["-global", "ICH9-LPC.disable_s4=0"],
    ],
  });
  const devices = new Devices(guest);
  await devices.begin();
  await devices.write();

  await t.step("suspend to RAM", async () => {
    await suspendToRam(guest);
    await devices.check();
  });

  await t.step("suspend to idle", async () => {
    await suspendToIdle(guest);
    await devices.check();
  });

  for (const [name, commands] of Object.entries(RESETS)) {
    await t.step(name, async () => {
      await resetFunctions(guest, commands);
      await devices.begin();
      await devices.check();
    });
  }

  await t.step("hibernate and resume", async () => {
    await hibernate(guest);
    await devices.check();
  });

  await t.step("kexec", async () => {
    await image.kexec(guest, "nvme0n1");
    await devices.begin();
    await devices.check();
  });

  assertEquals(lines(serving.outboard.stderr).filter(isComplaint), []);
});

function isComplaint(line: string): boolean {
  return /\b(warn|warning|error)\b/i.test(line);
}
