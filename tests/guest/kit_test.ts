import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { Guest } from "./guest.ts";
import { isRunning } from "../resources.ts";
import { until } from "../until.ts";
import { guestTest } from "./harness.ts";

guestTest("Guest runs commands, reboots and ends", async ({ kit, t }) => {
  const guest = await Guest.boot({ kit });
  try {
    await t.step("gives output and status of a command", async () => {
      assertEquals(await guest.run("echo out; echo err >&2; exit 3"), {
        output: "out\nerr\n",
        status: 3,
      });
      assertEquals(await guest.run("printf 'no newline'"), {
        output: "no newline",
        status: 0,
      });
      assertEquals(await guest.run("kill -TERM $$"), {
        output: "",
        status: 128 + 15,
      });
    });

    await t.step("gives any output as it was written", async () => {
      assertEquals(
        await guest.output("printf '\\036done 1 0 5\\n\\r\\033[2J\\tä'"),
        "\x1edone 1 0 5\n\r\x1b[2J\tä",
      );
      const big = await guest.output("seq 1 20000");
      const lines = Array.from({ length: 20000 }, (_, n) => `${n + 1}\n`);
      assert(big === lines.join(""), "the output was changed on its way");
    });

    await t.step("takes a long command", async () => {
      const word = "x".repeat(10_000);
      assertEquals(await guest.output(`printf %s ${word}`), word);
    });

    await t.step("queues commands", async () => {
      const results = await Promise.all(
        ["1", "2", "3"].map((word) => guest.output(`printf ${word}`)),
      );
      assertEquals(results, ["1", "2", "3"]);
    });

    await t.step("has the programs and modules of the kit", async () => {
      assertMatch(await guest.output("lspci -nn"), /ISA bridge.*\[8086:2918\]/);
      assertMatch(await guest.output("ethtool --version"), /^ethtool version/);
      assertMatch(await guest.output("ip -V"), /^ip utility, iproute2/);
      assertMatch(await guest.output("lsmod"), /^virtio_net /m);
      assertEquals((await guest.run("ip link show lo | grep -q UP")).status, 0);
    });

    await t.step("has room for a second processor", async () => {
      const places = await guest.qmp("query-hotpluggable-cpus");
      assertEquals((places as unknown[]).length, 2);
      assertEquals(await guest.output("nproc"), "1\n");
    });

    await t.step("throws when a command must succeed", async () => {
      await assertRejects(
        () => guest.output("echo why; false"),
        Error,
        "with status 1\ncommand: echo why; false\noutput: why",
      );
    });

    await t.step("ends a command that takes too long", async () => {
      await assertRejects(
        // Far more than the guest takes to begin.
        () => guest.run("echo so far; sleep 1000", { timeoutMs: 10_000 }),
        Error,
        "no end after 10000 ms\ncommand: echo so far; sleep 1000\noutput so far: so far",
      );
      await guest.output("while ps | grep -q '[s]leep'; do :; done");
    });

    await t.step("ignores what a background process says later", async () => {
      await guest.output(
        "mkdir /tmp/on; (while [ -d /tmp/on ]; do echo late; done) &",
      );
      assertEquals(await guest.output("rmdir /tmp/on; echo now"), "now\n");
    });

    await t.step("answers on the monitor", async () => {
      assertEquals(await guest.qmp("query-status"), {
        running: true,
        status: "running",
      });
      await assertRejects(() => guest.qmp("no-such-command"), Error);
      const stopped = guest.nextQmpEvent("STOP");
      await guest.qmp("stop");
      assertEquals((await stopped).event, "STOP");
      await guest.qmp("cont");
    });

    await t.step("waits for the kernel's log", async () => {
      const from = guest.log.length;
      const match = guest.waitForLog(/word from (\w+)/, { from });
      await guest.output("echo word from userspace > /dev/kmsg");
      assertEquals((await match)[1], "userspace");
    });

    await t.step("reboots within the same QEMU", async () => {
      const { pid } = guest;
      await guest.output("touch /tmp/mark");
      await guest.reboot();
      assertEquals(guest.pid, pid);
      assertEquals((await guest.run("test -e /tmp/mark")).status, 1);
      assertEquals([...guest.log.matchAll(/Linux version/g)].length, 2);
    });

    await t.step("survives being stopped", async () => {
      guest.signal("SIGSTOP");
      const running = guest.output("echo awake");
      guest.signal("SIGCONT");
      assertEquals(await running, "awake\n");
    });

    await t.step("rejects commands when QEMU ends", async () => {
      const running = guest.run("sleep 1000");
      await assertRejects(
        async () => {
          await guest.kill();
          await running;
        },
        Error,
        "QEMU has ended: SIGKILL",
      );
      await assertRejects(() => guest.run("true"), Error, "QEMU has ended");
    });
  } finally {
    await guest[Symbol.asyncDispose]();
  }
  assertEquals(isRunning(guest.pid), false);
  // That no socket or stream is left is what Deno's resource sanitizer checks.
});

guestTest("Guest.boot heeds its options", async ({ kit }) => {
  await using guest = await Guest.boot({
    kit,
    machine: "pc",
    memoryMiB: 192,
    sharedMemory: false,
    cpus: 2,
    availableModules: ["virtio_scsi"],
    loadModules: [],
    kernelArgs: ["outboard.test=1"],
    files: { "/usr/bin/hello": "#!/bin/sh\necho hello\n" },
  });
  assertEquals(await guest.output("hello; nproc"), "hello\n2\n");
  assertMatch(await guest.output("cat /proc/cmdline"), /outboard\.test=1/);
  assertEquals((await guest.output("lsmod")).split("\n").length, 2);
  await guest.output("modprobe virtio_scsi && modprobe virtio_net");
  assertMatch(await guest.output("lsmod"), /^virtio_scsi /m);
});

guestTest("Guest.boot says why QEMU does not start", async ({ kit }) => {
  await assertRejects(
    () => Guest.boot({ kit, devices: ["no-such-device"] }),
    Error,
    "'no-such-device' is not a valid device model name",
  );
});

guestTest("Guest.boot says when the kernel dies", async ({ kit }) => {
  await assertRejects(
    () => Guest.boot({ kit, kernelArgs: ["rdinit=/none", "init=/none"] }),
    Error,
    "the guest's kernel is dead: Kernel panic",
  );
});

guestTest("Guest ends with the process that booted it", async () => {
  const temporary = await Deno.makeTempDir();
  try {
    const script = `
      import { Guest } from ${
      JSON.stringify(import.meta.resolve("./guest.ts"))
    };
      import { kitOrThrow, provision } from ${
      JSON.stringify(import.meta.resolve("./provision.ts"))
    };
      const guest = await Guest.boot({ kit: kitOrThrow(await provision()) });
      console.log(guest.pid);
      await guest.exited;
    `;
    const child = new Deno.Command(Deno.execPath(), {
      args: ["eval", script],
      env: { TMPDIR: temporary },
      stdin: "null",
      stdout: "piped",
    }).spawn();
    const reader = child.stdout.getReader();
    const { value } = await reader.read();
    const pid = Number(new TextDecoder().decode(value));
    assert(isRunning(pid));
    child.kill("SIGKILL");
    await child.status;
    assertEquals((await reader.read()).done, true);
    await until(
      "QEMU ends with the process that booted it",
      () => !isRunning(pid),
    );
    const left = [...Deno.readDirSync(temporary)].map((entry) => entry.name);
    assertEquals(left, []);
  } finally {
    await Deno.remove(temporary, { recursive: true });
  }
});
