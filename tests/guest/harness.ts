/**
 * Tests that boot a guest: reported as ignored, with the reason, where no guest can be provisioned, and as failed
 * there when `CI=true`, so that a CI that lost its guests does not look healthy.
 *
 * @module
 */

import { progress } from "./apt.ts";
import { type ExtraTool, isSkip, type Kit, provision } from "./provision.ts";

/** What a guest test is handed. */
export interface GuestTestContext {
  readonly kit: Kit;
  readonly t: Deno.TestContext;
}

/** Registers a test that boots guests. */
export type GuestTest = (
  name: string,
  fn: (context: GuestTestContext) => Promise<void>,
) => void;

/** Provides a kit with the tools named, and gives the function that registers tests with it. */
export async function guestTests(
  options: { readonly tools?: readonly ExtraTool[] } = {},
): Promise<GuestTest> {
  const kit = await provision(options);
  const inCi = Deno.env.get("CI") === "true";
  if (isSkip(kit) && !inCi) progress(`tests are skipped: ${kit.skip}`);
  return (name, fn) => {
    Deno.test({
      name,
      ignore: isSkip(kit) && !inCi,
      fn: async (t) => {
        if (isSkip(kit)) throw new Error(kit.skip);
        await fn({ kit, t });
      },
    });
  };
}

/** Registers a test that boots guests with the tools that every kit has. */
export const guestTest: GuestTest = await guestTests();
