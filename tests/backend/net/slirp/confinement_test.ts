import { assert, assertEquals } from "@std/assert";

Deno.test("confine leaves the Internet, and files to read, and nothing else", () => {
  const folder = Deno.makeTempDirSync({ prefix: "outboard-confined-" });
  try {
    Deno.writeTextFileSync(`${folder}/old`, "");
    const { stdout, stderr } = new Deno.Command(Deno.execPath(), {
      args: [
        ...["run", "--allow-ffi", "--no-check"],
        ...[`${import.meta.dirname}/confined.ts`, folder, `${Deno.pid}`],
      ],
      env: { NO_COLOR: "1" },
    }).outputSync();
    const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
    assert(stdout.length > 0, text(stderr));
    assertEquals(JSON.parse(text(stdout)), {
      read: "done",
      write: "EACCES",
      create: "EACCES",
      unlink: "ENOSYS",
      memory: "EACCES",
      inet: "done",
      unix: "EACCES",
      netlink: "EACCES",
      kill: "ENOSYS",
      program: "EPERM",
    });
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
});
