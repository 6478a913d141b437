import { assertEquals, assertMatch } from "@std/assert";

const program = `${import.meta.dirname}/../../mod.ts`;

/**
 * Starts Outboard below shells, kills the outermost of them, and gives what was said until all have let go of standard
 * error, which is when Outboard has ended.
 */
async function afterKilling(
  script: (command: string) => string,
  env: (command: string) => Record<string, string> = () => ({}),
): Promise<{ said: string; left: string[] }> {
  const folder = await Deno.makeTempDir();
  try {
    const command = [
      ...[`'${Deno.execPath()}'`, "run", "-A", "--quiet", `'${program}'`],
      ...["--device", "virtio-net,net=none", "--socket", `'${folder}/s'`],
      ...["--exit-with-parent", "--log-format", "json"],
    ].join(" ");
    const child = new Deno.Command("sh", {
      args: ["-c", script(command)],
      env: env(command),
      stdin: "null",
      stdout: "null",
      stderr: "piped",
    }).spawn();
    let said = "";
    let killed = false;
    for await (
      const text of child.stderr.pipeThrough(new TextDecoderStream())
    ) {
      said += text;
      if (killed || !/listens on.*\n/.test(said)) continue;
      child.kill("SIGKILL");
      killed = true;
    }
    await child.status;
    return { said, left: [...Deno.readDirSync(folder)].map((e) => e.name) };
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

Deno.test("--exit-with-parent ends with the process that started it", async () => {
  // Its command line is not ours.
  const { said, left } = await afterKilling(
    () => 'eval "$COMMAND"; true',
    (command) => ({ COMMAND: command }),
  );
  assertMatch(said, /whoever started this process has ended/);
  assertEquals(left, []);
});

Deno.test("--exit-with-parent ends with whoever started the shell that runs it, as npx does", async () => {
  // Two shells that wait for a shell that waits for us: all have our command line in theirs.
  const quoted = (text: string) => `'${text.replaceAll("'", `'\\''`)}'`;
  const { said, left } = await afterKilling((command) => {
    const inner = `sh -c ${quoted(`${command}; true`)}; true`;
    return `sh -c ${quoted(inner)}; true`;
  });
  assertMatch(said, /whoever started this process has ended/);
  assertEquals(left, []);
});

Deno.test("--exit-with-parent ends at once when what started it had ended before it ran", async () => {
  const folder = await Deno.makeTempDir();
  try {
    // The shell that runs it waits until the one that started that has ended, whose session is not init's.
    const child = new Deno.Command("setsid", {
      args: [
        ...["--fork", "sh", "-c"],
        '(while read -r _ _ _ parent _ < /proc/self/stat && [ $parent = $$ ]; do sleep 0.01; done; exec "$@") & echo $!',
        ...["sh", Deno.execPath(), "run", "-A", "--quiet", program],
        ...["--device", "virtio-net,net=none", "--socket", `${folder}/s`],
        ...["--exit-with-parent", "--log-format", "json"],
      ],
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
    }).spawn();
    let said = "";
    let pid = "";
    const reading = (async () => {
      for await (
        const text of child.stdout.pipeThrough(new TextDecoderStream())
      ) pid += text;
    })();
    for await (
      const text of child.stderr.pipeThrough(new TextDecoderStream())
    ) {
      said += text;
      if (/listens on.*\n/.test(said)) Deno.kill(Number(pid), "SIGTERM");
    }
    await Promise.all([reading, child.status]);
    assertMatch(said, /whoever started this process has ended/);
    assertEquals([...Deno.readDirSync(folder)], []);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
