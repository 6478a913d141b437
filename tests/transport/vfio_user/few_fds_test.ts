import { assert } from "@std/assert";

async function runWithFewFds(scenario: string): Promise<void> {
  const program = `${import.meta.dirname}/few_fds.ts`;
  const { success, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", program, scenario],
    env: { NO_COLOR: "1" },
    stdout: "null",
  }).output();
  assert(success, new TextDecoder().decode(stderr));
}

Deno.test(
  "Session answers EMFILE when descriptors were lost on the way",
  () => runWithFewFds("lose"),
);

Deno.test(
  "VfioUserServer does not spin when it may open no more descriptors, and recovers",
  () => runWithFewFds("accept"),
);
