/**
 * Tests that need to be root in namespaces of their own: here where that is permitted, else in a process that
 * unshare(1) makes root in a user namespace, as every Debian lets an ordinary user do.
 *
 * @module
 */

import { assert } from "@std/assert";
import { fileURLToPath } from "node:url";

/** Registers one of those tests. */
export type NamespaceTest = (name: string, fn: () => void) => void;

/** Tests to run, and their needs. */
export interface NamespaceTestOptions {
  /** URL of the file that registers them. */
  readonly url: string;
  /** Matches the names of all of them, and of no other in the file. */
  readonly names: RegExp;
  /** The namespaces besides the user's, as flags of unshare(1). */
  readonly namespaces: readonly string[];
  /** Reason why this process cannot run them; null for none. */
  readonly why: string | null;
  /** A command of a shell that succeeds in the namespaces where the tests can run. */
  readonly probe: string;
}

/** Set in the process that unshare(1) started, so that it starts none. */
const INSIDE = "OUTBOARD_TEST_INSIDE_NAMESPACES";

function unshare(flags: readonly string[], command: readonly string[]) {
  return new Deno.Command("unshare", {
    args: ["--user", "--map-root-user", ...flags, "--", ...command],
    env: { [INSIDE]: "1", NO_COLOR: "1" },
    stdin: "null",
  }).outputSync();
}

/**
 * Gives the function that registers such tests. Where they run in another process, one test stands for all of a file.
 */
export function namespaceTests(
  { url, names, namespaces, why, probe }: NamespaceTestOptions,
): NamespaceTest {
  if (why === null) return (name, fn) => Deno.test(name, fn);
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  const file = fileURLToPath(url);
  let reason = why;
  if (Deno.env.get(INSIDE) === undefined) {
    try {
      const probed = unshare(namespaces, ["sh", "-c", probe]);
      if (probed.success) {
        const short = file.slice(file.lastIndexOf("/") + 1);
        Deno.test(`${short}: ${names.source} in a user namespace`, () => {
          const { success, stdout, stderr } = unshare(namespaces, [
            ...[Deno.execPath(), "test", "-A", "--quiet"],
            ...[`--filter=${names}`, file],
          ]);
          assert(success, text(stdout) + text(stderr));
        });
        return () => {};
      }
      reason += `; in a user namespace: ${text(probed.stderr).trim()}`;
    } catch (error) {
      if (!(error instanceof Deno.errors.NotFound)) throw error;
      reason += "; there is no unshare";
    }
  }
  return (name, fn) =>
    Deno.test({ name: `${name} (ignored: ${reason})`, ignore: true, fn });
}
