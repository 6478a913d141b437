/**
 * The environment variables that Outboard heeds. Without the permission to read one it counts as not set.
 *
 * @module
 */

/**
 * Reads an environment variable.
 *
 * @param name Its name
 * @returns Its value; undefined where it is not set or may not be read
 */
export function environmentVariable(name: string): string | undefined {
  const { state } = Deno.permissions.querySync({ name: "env", variable: name });
  return state === "granted" ? Deno.env.get(name) : undefined;
}
