import { assert, assertEquals, assertThrows } from "@std/assert";
import { Errno } from "../../src/core/errno.ts";
import {
  createPipe,
  formatExitStatus,
  NativeBuffer,
  Poll,
  pollFd,
  spawnProcess,
  SyscallError,
} from "../../src/os/mod.ts";
import { libc } from "../../src/os/symbols.ts";
import { openFds } from "../resources.ts";
import { PATIENCE_MS } from "../until.ts";

function shell(script: string, args: readonly string[] = []) {
  return spawnProcess({
    program: "/bin/sh",
    args: ["sh", "-c", script, ...args],
    env: { PATH: Deno.env.get("PATH")!, WORD: "größer" },
    fds: [],
  });
}

function exists(pid: number): boolean {
  return libc.kill(pid, 0) === 0;
}

Deno.test("spawnProcess passes arguments, environment and descriptors on", () => {
  const before = openFds();
  {
    const [reader, writer] = createPipe();
    using _reader = reader;
    using process = spawnProcess({
      program: "/bin/sh",
      args: ["sh", "-c", 'printf "%s|%s|" "$0" "$WORD" >&7', "a b\n"],
      env: { WORD: "größer" },
      fds: [{ from: writer.number, to: 7 }],
    });
    writer.close();
    assertEquals(process.reap(PATIENCE_MS), { code: 0, signal: null });
    using buffer = new NativeBuffer(4096);
    const n = libc.read(reader.number, buffer.pointer(), 4096);
    assertEquals(
      new TextDecoder().decode(buffer.bytes.slice(0, n)),
      "a b\n|größer|",
    );
    // No copy of the pipe is left anywhere: it has ended.
    assertEquals(libc.read(reader.number, buffer.pointer(), 4096), 0);
  }
  assertEquals(openFds(), before);
});

Deno.test("spawnProcess says that there is no such program", () => {
  const before = openFds();
  const error = assertThrows(
    () => spawnProcess({ program: "/no/where", args: [], env: {}, fds: [] }),
    SyscallError,
  );
  assertEquals(error.errno, Errno.ENOENT);
  assert(error.message.startsWith("Cannot start /no/where: "));
  assertEquals(openFds(), before);
});

Deno.test("ChildProcess.reap tells how the process ended, and leaves no zombie", () => {
  using exits = shell("exit 3");
  assertEquals(pollFd(exits.pidFd, Poll.IN, PATIENCE_MS), Poll.IN);
  // A zombie still has its number.
  assertEquals(exists(exits.pid), true);
  assertEquals(exits.reap(), { code: 3, signal: null });
  assertEquals(exists(exits.pid), false);
  assertEquals(exits.reap(), { code: 3, signal: null });
  assertEquals(formatExitStatus(exits.reap()!), "exit status 3");
  using dies = shell("kill -USR1 $$");
  assertEquals(dies.reap(PATIENCE_MS), { code: null, signal: 10 });
  assertEquals(formatExitStatus(dies.reap()!), "signal 10");
});

Deno.test("ChildProcess.reap gives null while the process runs", () => {
  using process = shell("exec sleep 1000");
  assertEquals(process.reap(), null);
  assertEquals(process.reap(1), null);
});

Deno.test("ChildProcess.end ends a process, by force where it must", () => {
  const before = openFds();
  const willing = shell("exec sleep 1000");
  assertEquals(willing.end(PATIENCE_MS), { code: null, signal: 15 });
  const [reader, writer] = createPipe();
  const deaf = spawnProcess({
    program: "/bin/sh",
    args: ["sh", "-c", "trap '' TERM; echo >&1; exec sleep 1000"],
    env: { PATH: Deno.env.get("PATH")! },
    fds: [{ from: writer.number, to: 1 }],
  });
  writer.close();
  // From now on it does not listen.
  assertEquals(pollFd(reader.number, Poll.IN, PATIENCE_MS) & Poll.IN, Poll.IN);
  reader.close();
  assertEquals(deaf.end(20), { code: null, signal: 9 });
  deaf.close();
  assertEquals(exists(deaf.pid), false);
  assertEquals(openFds(), before);
});
