import { assert, assertEquals, assertThrows } from "@std/assert";
import { Errno, ErrnoError } from "../../../../src/core/errno.ts";
import { openNetBackend } from "../../../../src/backend/net/open.ts";
import { NET_OPTIONS } from "../../../../src/backend/net/options.ts";
import {
  openPasst,
  passtArguments,
} from "../../../../src/backend/net/peer/passt.ts";
import { testPasst } from "../../../guest/passt.ts";
import { isRunning, openFds } from "../../../resources.ts";
import { PATIENCE_MS } from "../../../until.ts";
import { Card, Host } from "../card.ts";
import { arpRequest } from "../frames.ts";
import { HostSocket, STREAM } from "../sockets.ts";
import type { OptionTexts } from "../../../../src/core/options.ts";
import type { PasstNetOptions } from "../../../../src/backend/net/peer/driver.ts";

/** Our children, zombies included. */
function children(): string[] {
  return Deno.readTextFileSync(`/proc/self/task/${Deno.pid}/children`).trim()
    .split(/\s+/).filter((pid) => pid !== "");
}

/** True if whoever started the tests left the descriptor open for all that they start. */
function isInherited(fd: string): boolean {
  if (Number(fd) <= 3) return false;
  const info = Deno.readTextFileSync(`/proc/self/fdinfo/${fd}`);
  const O_CLOEXEC = 0o2000000;
  return (parseInt(/flags:\s*(\d+)/.exec(info)![1]!, 8) & O_CLOEXEC) === 0;
}

interface Scene {
  readonly host: Host;
  readonly open: (values?: OptionTexts) => Card;
  /** Opens what ends at once, and gives the error. */
  readonly refuse: (values: OptionTexts) => ErrnoError;
  /** A program of the test's own in passt's place. */
  readonly script: (text: string) => string;
}

/** A test after which neither a descriptor nor a process is left. */
function passtTest(
  name: string,
  run: (scene: Scene) => void,
  ignore = false,
): void {
  Deno.test({
    name: `openPasst ${name}`,
    ignore,
    fn() {
      const folder = Deno.makeTempDirSync({ prefix: "outboard-passt-" });
      const before = [openFds(), children()];
      try {
        {
          using host = new Host();
          run({
            host,
            open: (values) => {
              const options = NET_OPTIONS.parse({ net: "passt", ...values });
              return new Card(host, openNetBackend(options, host.context));
            },
            refuse: (values) => {
              const options = NET_OPTIONS.parse({ net: "passt", ...values });
              return assertThrows(
                () =>
                  openPasst(
                    options as PasstNetOptions,
                    host.context,
                    undefined,
                    PATIENCE_MS,
                  ),
                ErrnoError,
              );
            },
            script: (text) => {
              const path = `${folder}/program`;
              Deno.writeTextFileSync(path, `#!/bin/sh\n${text}\n`, {
                mode: 0o755,
              });
              return path;
            },
          });
        }
        assertEquals([openFds(), children()], before);
      } finally {
        Deno.removeSync(folder, { recursive: true });
      }
    },
  });
}

function counter(card: Card, name: string): number {
  return card.backend.counters!()[name]!;
}

/** Reads frames and sends each back, as a program at the other end of the socket. */
const ECHO = "exec dd bs=65536 status=none <&3 >&3";

passtTest(
  "starts a program with a socket and nothing else of ours",
  (scene) => {
    using card = scene.open({
      passt: scene.script(`ls -l /proc/$$/fd >&2; env >&2; exec sleep 100`),
    });
    const pid = counter(card, "pid");
    // The shell has its script open.
    card.turnUntil(
      "the program",
      () => Deno.readTextFileSync(`/proc/${pid}/comm`) === "sleep\n",
    );
    const fds = [...Deno.readDirSync(`/proc/${pid}/fd`)].map(({ name }) =>
      name
    );
    assertEquals(fds.filter((fd) => !isInherited(fd)).sort(), [
      ...["0", "1", "2", "3"],
    ]);
    assertEquals(Deno.readLinkSync(`/proc/${pid}/fd/0`), "/dev/null");
    assert(Deno.readLinkSync(`/proc/${pid}/fd/3`).startsWith("socket:"));
    const names = Deno.readTextFileSync(`/proc/${pid}/environ`).split("\0")
      .map((entry) => entry.split("=")[0]!);
    assert(names.includes("PATH"));
    assert(!names.includes("HOME"), `${names}`);
    const status = Deno.readTextFileSync(`/proc/${pid}/status`);
    assertEquals(/SigBlk:\s*(\w+)/.exec(status)![1], "0000000000000000");
    assertEquals(/SigIgn:\s*(\w+)/.exec(status)![1], "0000000000000000");
  },
);

passtTest("exchanges frames with it", ({ open, script }) => {
  using card = open({ passt: script(ECHO) });
  for (let i = 1; i < 5; i++) {
    const frame = new Uint8Array(300 * i).fill(i);
    assertEquals(card.send(frame, 4), 0);
    card.turnUntil("the echo", () => card.received.length > 0);
    assertEquals(card.received.splice(0), [frame]);
  }
});

passtTest("starts it again when it dies, and says so once", (scene) => {
  using card = scene.open({ passt: scene.script(`echo ouch >&2; ${ECHO}`) });
  const echo = (seed: number) => {
    const sent = new Uint8Array(60).fill(seed);
    card.send(sent);
    card.turnUntil("the echo", () => card.received.length > 0);
    assertEquals(card.received.splice(0), [sent]);
  };
  // By then it has said what it says.
  echo(0);
  for (let starts = 1; starts < 4; starts++) {
    const pid = counter(card, "pid");
    assertEquals(counter(card, "starts"), starts);
    Deno.kill(pid, "SIGKILL");
    card.turnUntil("noticed", () => counter(card, "connected") === 0);
    assertEquals(isRunning(pid), false);
    assertEquals(card.send(new Uint8Array(60)), -Errno.ENOTCONN);
    card.turnUntil("started", () => counter(card, "connected") === 1);
    echo(starts);
  }
  assertEquals(card.links, [false, true, false, true, false, true]);
  assertEquals(
    scene.host.warnings,
    new Array(3).fill(
      "passt has ended (signal 9, ouch): the card is without a network until it is started again",
    ),
  );
  assertEquals(
    scene.host.news,
    new Array(3).fill("passt was started again"),
  );
});

passtTest(
  "ends one that closed its socket, even if it does not care",
  (scene) => {
    using card = scene.open({
      passt: scene.script(
        "trap '' TERM; exec 3>&-; exec sleep 1000",
      ),
    });
    const pid = counter(card, "pid");
    card.turnUntil("noticed", () => counter(card, "connected") === 0);
    assertEquals(isRunning(pid), false);
    assertEquals(scene.host.warnings.length, 1);
  },
);

passtTest("takes all that it says, however much", (scene) => {
  using card = scene.open({
    passt: scene.script(
      // Far more than a pipe holds.
      `head -c 300000 /dev/zero | tr '\\0' x >&2; ${ECHO}`,
    ),
  });
  card.send(new Uint8Array(60).fill(7));
  card.turnUntil("the echo", () => card.received.length > 0);
});

passtTest(
  "says why it ends at once, and leaves nothing",
  ({ refuse, script }) => {
    const program = script("echo 'No interface' >&2; exit 3");
    const fds = openFds();
    const error = refuse({ passt: program });
    assertEquals(
      error.message,
      `Cannot use net=passt: ${program} ends at once and says: No interface (EIO)`,
    );
    assertEquals(openFds(), fds);
    const silent = script("exit 3");
    const other = refuse({ passt: silent });
    assert(other.message.includes("says: exit status 3"), other.message);
  },
);

passtTest("says what to install where there is none", ({ open }) => {
  const path = Deno.env.get("PATH")!;
  const variable = Deno.env.get("OUTBOARD_PASST");
  Deno.env.set("PATH", "/nowhere");
  Deno.env.delete("OUTBOARD_PASST");
  try {
    const absent = assertThrows(() => open(), ErrnoError);
    assertEquals(absent.errno, Errno.ENOENT);
    assert(absent.message.includes("apt install passt"), absent.message);
    Deno.env.set("OUTBOARD_PASST", "/nowhere/passt");
    const wrong = assertThrows(() => open(), ErrnoError);
    assert(wrong.message.includes("/nowhere/passt is no program"));
    assertThrows(() => open({ passt: "/etc/passwd" }), ErrnoError);
  } finally {
    Deno.env.set("PATH", path);
    if (variable === undefined) Deno.env.delete("OUTBOARD_PASST");
    else Deno.env.set("OUTBOARD_PASST", variable);
  }
});

passtTest("says that a program cannot be started", ({ open, script }) => {
  const program = script("");
  Deno.writeTextFileSync(program, "\x7fELF, but not really");
  const error = assertThrows(() => open({ passt: program }), ErrnoError);
  assert(error.message.startsWith(`Cannot start ${program}`), error.message);
});

Deno.test("passtArguments passes the MTU and the ports on", () => {
  const options = NET_OPTIONS.parse({
    net: "passt",
    "tcp-ports": ["2222:22", "127.0.0.1/80-90,~85"],
    "udp-ports": "53",
  });
  if (options.net !== "passt") throw new Error(options.net);
  assertEquals(passtArguments(options, 1400).slice(1), [
    ...["--foreground", "--quiet", "--one-off", "--fd", "3", "--mtu", "1400"],
    ...["--tcp-ports", "2222:22", "--tcp-ports", "127.0.0.1/80-90,~85"],
    ...["--udp-ports", "53"],
  ]);
});

const real = await testPasst();
const program = "program" in real ? real.program : "";
const reason = "skip" in real ? ` (ignored: ${real.skip})` : "";

/** The address of the interface with the default route, which passt takes over. */
function ownAddress(): string {
  for (const { address, family, cidr } of Deno.networkInterfaces()) {
    if (family === "IPv4" && !address.startsWith("127.") && cidr !== "") {
      return address;
    }
  }
  return "192.0.2.2";
}

/** Asks for an address that is not the guest's own, which passt answers whatever the network. */
function askForAddress(card: Card): void {
  const [a, b, c] = ownAddress().split(".");
  card.send(arpRequest(ownAddress(), `${a}.${b}.${c}.1`));
}

passtTest(
  `talks to the real passt, also when that was killed${reason}`,
  ({ open }) => {
    using card = open({ passt: program });
    for (let starts = 1; starts <= 2; starts++) {
      card.turnUntil("started", () => counter(card, "starts") === starts);
      askForAddress(card);
      const reply = card.take(
        "ARP reply",
        (frame) => frame[12] === 8 && frame[13] === 6 ? frame : null,
      );
      assertEquals([...reply.slice(20, 22)], [0, 2]);
      if (starts === 1) Deno.kill(counter(card, "pid"), "SIGKILL");
      card.turnUntil("next", () => starts === 2 || !counter(card, "connected"));
    }
  },
  reason !== "",
);

passtTest(
  `has the real passt say that a port is in use${reason}`,
  ({ refuse }) => {
    using listener = HostSocket.bound(STREAM);
    const ports = `127.0.0.1/${listener.port}`;
    const error = refuse({ passt: program, "tcp-ports": ports });
    assert(error.message.includes(ports), error.message);
  },
  reason !== "",
);

passtTest(
  `leaves no real passt behind when this process dies${reason}`,
  () => {
    const script = `
      import { Card, Host } from ${
      JSON.stringify(import.meta.resolve("../card.ts"))
    };
      import { openNetBackend } from ${
      JSON.stringify(import.meta.resolve("../../../../src/backend/net/open.ts"))
    };
      const options = { net: "passt", program: ${
      JSON.stringify(program)
    }, tcpPorts: [], udpPorts: [] };
      const host = new Host();
      const card = new Card(host, openNetBackend(options, host.context));
      console.log(card.backend.counters().pid);
      Deno.kill(Deno.pid, "SIGKILL");
    `;
    const ran = new Deno.Command(Deno.execPath(), {
      args: ["eval", script],
      stdout: "piped",
      stderr: "piped",
    }).outputSync();
    const pid = Number(new TextDecoder().decode(ran.stdout));
    assert(pid > 0, new TextDecoder().decode(ran.stderr));
    using host = new Host();
    const deadline = performance.now() + PATIENCE_MS;
    while (isRunning(pid)) {
      assert(performance.now() < deadline, "it outlives us");
      host.loop.turn(20);
    }
  },
  reason !== "",
);

Deno.test("startPeer leaves no descriptor behind when there are too few", () => {
  const program = `${import.meta.dirname}/passt_few_fds.ts`;
  const { success, stdout, stderr } = new Deno.Command("sh", {
    args: [
      "-c",
      'ulimit -n 200 && exec "$0" run -A --no-check "$1"',
      Deno.execPath(),
      program,
    ],
    env: { NO_COLOR: "1" },
  }).outputSync();
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  // Two for the socket pair, two for the pipe, one for /dev/null.
  const attempts = [0, 1, 2, 3, 4].map((n) => `${n} ${n} EMFILE\n`).join("");
  // The runtime may complain on stderr of what it could not open.
  assertEquals([success, text(stdout)], [true, attempts], text(stderr));
});
