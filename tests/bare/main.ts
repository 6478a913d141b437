/**
 * README's commands on machines that have nothing but nodejs, npm and git, as root and as an ordinary user:
 * `main.ts [--suite SUITE]… [--as root|user]… [--quick] [-- COMMAND]`. It takes root.
 *
 * `--quick` provisions what the tests need and leaves the tests out; a COMMAND of a shell is run in place of README's.
 *
 * Ends with status 77 where no such machine can be made, 1 when a command fails on one.
 *
 * @module
 */

import { parseArgs } from "node:util";
import { ProvisionError } from "../guest/apt.ts";
import { BareMachine, type User, USERS } from "./machine.ts";
import { bareRoot, type Suite, SUITES } from "./root.ts";

const CANNOT = 77;

/** The two commands that README begins with. */
export function readmeCommands(readme: string): [string, string] {
  const block = /^```sh\n(npx .*)\n(npx .*)\n```$/m.exec(readme);
  if (block === null) throw new Error("Cannot find README's two commands");
  return [block[1]!, block[2]!];
}

/** Starts a server, stops it as README's reader does, and finds nothing left of it. */
function served(command: string): string {
  return `
    ${command} --exit-with-parent > /tmp/said & started=$!
    until grep 'listens on' /tmp/said; do
      kill -0 $started 2> /dev/null || { cat /tmp/said; exit 1; }
      sleep 0.1
    done
    kill $started
    until [ ! -e /tmp/dev.sock ]; do sleep 0.1; done
    echo 'stopped, and its socket is gone'
  `;
}

const { values, positionals } = parseArgs({
  args: Deno.args,
  options: {
    suite: { type: "string", multiple: true, default: [...SUITES] },
    as: { type: "string", multiple: true, default: [...USERS] },
    quick: { type: "boolean", default: false },
  },
  allowPositionals: true,
});

const [serve, test] = readmeCommands(
  await Deno.readTextFile(new URL("../../README.md", import.meta.url)),
);
const provision = test.replace(
  /task test$/,
  "run -A tests/guest/provision_all.ts",
);
const commands = positionals.length > 0
  ? [positionals.join(" ")]
  : [served(serve), values.quick ? provision : test];

const limitSeconds = (values.quick ? 10 : 120) * 60;
let failed = 0;
for (const suite of values.suite as Suite[]) {
  let root: string;
  try {
    root = await bareRoot(suite);
  } catch (error) {
    if (!(error instanceof ProvisionError)) throw error;
    console.log(`bare ${suite}: skipped: ${error.message}`);
    Deno.exit(CANNOT);
  }
  for (const user of values.as as User[]) {
    await using machine = await BareMachine.prepare(root, suite, user);
    for (const command of commands) {
      const name = `bare ${suite} as ${user}: ${command.trim().split("\n")[0]}`;
      console.log(`${name} …`);
      const startMs = performance.now();
      const code = await machine.run(command, limitSeconds);
      const seconds = Math.round((performance.now() - startMs) / 1000);
      console.log(
        `${name}: ${code === 0 ? "ok" : `status ${code}`} (${seconds} s)`,
      );
      if (code !== 0) failed++;
    }
  }
}
Deno.exit(failed > 0 ? 1 : 0);
