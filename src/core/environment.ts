/**
 * The environment variables that Outboard heeds. One that is empty, or may not be read,
 * counts as not set.
 *
 * @module
 */

/**
 * Reads an environment variable.
 *
 * @param name Its name
 * @returns Its value, never empty; undefined where there is none or it may not be read
 */
export function environmentVariable(name: string): string | undefined {
  const { state } = Deno.permissions.querySync({ name: "env", variable: name });
  return state === "granted" ? Deno.env.get(name) || undefined : undefined;
}
