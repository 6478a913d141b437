/**
 * Runs every test, real guests included, and ends with the true counts on a line of their own.
 *
 * @module
 */

interface Counts {
  passed: number;
  failed: number;
  ignored: number;
}

const root = `${import.meta.dirname}/..`;

/** Runs a suite with its output shown as it comes, and reads the runner's closing line. */
async function runSuite(args: readonly string[]): Promise<Counts> {
  const child = new Deno.Command(Deno.execPath(), {
    args: ["test", "-A", ...args],
    cwd: root,
    env: { NO_COLOR: "1" },
    stdin: "null",
    stdout: "piped",
    stderr: "inherit",
  }).spawn();
  const decoder = new TextDecoder();
  let text = "";
  for await (const chunk of child.stdout) {
    Deno.stdout.writeSync(chunk);
    text = (text + decoder.decode(chunk, { stream: true })).slice(-4096);
  }
  const { success } = await child.status;
  const closing =
    /(\d+) passed(?: \(\d+ steps?\))? \| (\d+) failed(?: \(\d+ steps?\))?(?: \| (\d+) ignored)?/g;
  const last = [...text.matchAll(closing)].at(-1);
  const counts = {
    passed: Number(last?.[1] ?? 0),
    failed: Number(last?.[2] ?? 0),
    ignored: Number(last?.[3] ?? 0),
  };
  // A run that died (or leaked) without a failed test has failed all the same.
  if (!success && counts.failed === 0) counts.failed = 1;
  return counts;
}

const suites = [
  ["--ignore=tests/guest", "tests/"],
  ["tests/guest/"],
];
const total: Counts = { passed: 0, failed: 0, ignored: 0 };
for (const suite of suites) {
  const counts = await runSuite([...suite, ...Deno.args]);
  total.passed += counts.passed;
  total.failed += counts.failed;
  total.ignored += counts.ignored;
}
const skipped = total.ignored > 0 ? `, ${total.ignored} skipped` : "";
console.log(`\n${total.passed} passed, ${total.failed} failed${skipped}`);
Deno.exit(total.failed > 0 || total.passed === 0 ? 1 : 0);
