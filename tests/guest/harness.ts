/**
 * Tests that boot a guest: reported as ignored, with the reason, where no guest can be provisioned, and as failed
 * there when `CI=true`, so that a CI that lost its guests does not look healthy.
 *
 * @module
 */

import {
  type ExtraTool,
  isSkip,
  type Kit,
  kitOrThrow,
  provision,
} from "./provision.ts";

/** Context of a guest test. */
export interface GuestTestContext {
  readonly kit: Kit;
  readonly t: Deno.TestContext;
}

/** Registers a test that boots guests. */
export type GuestTest = (
  name: string,
  fn: (context: GuestTestContext) => Promise<void>,
) => void;

/** Needs of guest tests besides a virtual machine. */
export interface GuestTestNeeds {
  readonly tools?: readonly ExtraTool[];
  /** Other things that must be there, such as `hostLibslirp()`. */
  readonly hosts?: readonly (object | Promise<object>)[];
}

/**
 * Provides a kit and whatever else is needed, and gives the function that registers tests with it. A test that is
 * skipped has the reason in its name.
 */
export async function guestTests(
  { tools = [], hosts = [] }: GuestTestNeeds = {},
): Promise<GuestTest> {
  const kit = await provision({ tools });
  const skip = [kit, ...await Promise.all(hosts)].find(isSkip)?.skip;
  const ignore = skip !== undefined && Deno.env.get("CI") !== "true";
  return (name, fn) => {
    Deno.test({
      name: ignore ? `${name} (ignored: ${skip})` : name,
      ignore,
      fn: async (t) => {
        if (skip !== undefined) throw new Error(skip);
        await fn({ kit: kitOrThrow(kit), t });
      },
    });
  };
}

/** Registers a test that boots guests with the tools that every kit has. */
export const guestTest: GuestTest = await guestTests();
