import { assert, assertEquals } from "@std/assert";
import { UncaughtErrors } from "../../src/cli/uncaught.ts";
import { startOutboard } from "../../src/testing/mod.ts";
import { VfioUserClient } from "../../src/transport/vfio_user/client/mod.ts";

const FILE =
  new URL("../runtime/fixtures/late_model.ts", import.meta.url).pathname;
const source = Deno.readTextFileSync(FILE).split("\n");

/** Offset of a piece of text in the fixture. */
function at(text: string): string {
  return `model late, ${FILE}:${
    source.findIndex((line) => line.includes(text)) + 1
  }:`;
}

async function inFolder(run: (folder: string) => Promise<void>): Promise<void> {
  const folder = Deno.makeTempDirSync();
  try {
    await run(folder);
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
}

for (
  const [where, expected] of [
    ["parse", [at('new Error("late boom")'), "late boom"]],
    ["rejection", [at('new Error("no promise")'), "no promise"]],
    ["nothing", ["throws null, which is not an Error"]],
  ] as const
) {
  for (const format of ["text", "json"]) {
    Deno.test(`a model that fails on the main thread (${where}) during the start is one line of ${format}, and nothing is left`, () =>
      inFolder(async (folder) => {
        const { code, stderr } = await new Deno.Command(Deno.execPath(), {
          args: [
            ...["run", "-A", new URL("../../mod.ts", import.meta.url).pathname],
            ...["--device", "virtio-net,net=none", "--socket", `${folder}/n`],
            ...["--device", `${FILE},at=${where}`, "--socket", `${folder}/s`],
            ...["--log-format", format],
          ],
        }).output();
        const said = new TextDecoder().decode(stderr);
        const lines = said.trimEnd().split("\n");
        assertEquals([code, lines.length], [2, 1], said);
        const line = format === "json"
          ? JSON.parse(lines[0]!).message as string
          : lines[0]!;
        for (const text of expected) assert(line.includes(text), said);
        assertEquals([...Deno.readDirSync(folder)], []);
      }));
  }
}

for (
  const [where, text] of [
    ["lateError", "late boom"],
    ["lateRejection", "late promise"],
  ] as const
) {
  Deno.test(`a model that fails on the main thread (${where}) after the start is one line, and ends nothing`, () =>
    inFolder(async (folder) => {
      const socket = `${folder}/s`;
      await using outboard = await startOutboard([
        ...["--device", `${FILE},at=${where},when=${folder}/now`],
        ...["--socket", socket],
      ]);
      Deno.writeTextFileSync(`${folder}/now`, "");
      await outboard.waitFor(
        "tell of it",
        () => outboard.stderr.includes(`${text}\n`),
      );
      assert(
        outboard.stderr.startsWith(`error: ${at(`new Error("${text}")`)}`),
        outboard.stderr,
      );
      assertEquals(outboard.stderr.trimEnd().split("\n").length, 1);
      using client = new VfioUserClient(socket);
      client.negotiate();
      assertEquals(client.readRegion32(0, 0), 42);
    }));
}

Deno.test("UncaughtErrors fails the run for an error of ours, in one line", async () => {
  using uncaught = new UncaughtErrors();
  uncaught.serving = true;
  const error = new Error("broken");
  error.stack = `Error: broken\n    at f (${new URL(
    "../../src/cli/main.ts",
    import.meta.url,
  )}:1:2)`;
  reportError(error);
  const failure = await uncaught.failed.catch((failure) => failure as Error);
  assert(
    /^internal error: Error: broken at f \(file:\S+\/main\.ts:1:2\)$/
      .test((failure as Error).message),
    `${failure}`,
  );
});
