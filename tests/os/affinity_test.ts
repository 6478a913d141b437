import { assert, assertEquals, assertThrows } from "@std/assert";
import {
  formatCpus,
  setThreadCpus,
  setThreadName,
  SyscallError,
  threadCpus,
  threadId,
} from "../../src/os/mod.ts";

const taskFolder = () => `/proc/self/task/${threadId()}`;

function status(field: string): string {
  const text = Deno.readTextFileSync(`${taskFolder()}/status`);
  return new RegExp(`^${field}:\\s+(.*)$`, "m").exec(text)![1]!;
}

Deno.test("threadCpus says what the kernel says", () => {
  assertEquals(formatCpus(threadCpus()), status("Cpus_allowed_list"));
  assertEquals(threadCpus(threadId()), threadCpus());
  assertThrows(() => threadCpus(2 ** 30), SyscallError);
});

Deno.test("setThreadCpus keeps the thread on some CPUs", () => {
  const before = threadCpus();
  try {
    const last = before.at(-1)!;
    setThreadCpus([last]);
    assertEquals(status("Cpus_allowed_list"), String(last));
    assertEquals(threadCpus(), [last]);
    const error = assertThrows(() => setThreadCpus([8191, 9999]), SyscallError);
    assert(error.message.startsWith("Cannot run on CPUs 8191,9999"));
  } finally {
    setThreadCpus(before);
  }
});

Deno.test("setThreadName names the thread for tools", () => {
  const name = () => Deno.readTextFileSync(`${taskFolder()}/comm`).trimEnd();
  const before = name();
  try {
    setThreadName("iothread63-and-more");
    assertEquals(name(), "iothread63-and-");
  } finally {
    setThreadName(before);
  }
});

Deno.test("formatCpus writes runs as the kernel does", () => {
  assertEquals(formatCpus([]), "");
  assertEquals(formatCpus([4]), "4");
  assertEquals(formatCpus([9, 1, 0, 3, 2, 8, 3]), "0-3,8-9");
});
