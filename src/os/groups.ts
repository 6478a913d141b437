/**
 * Groups of users.
 *
 * @module
 */

import { cString } from "./errors.ts";
import { libc } from "./symbols.ts";

const GID_MAX = 0xffff_fffe;

/**
 * The number of a group, wherever the system keeps its groups.
 *
 * @param group Its name, or its number
 * @returns null when there is none of that name
 */
export function groupId(group: string): number | null {
  if (/^\d{1,10}$/.test(group)) {
    const number = Number(group);
    return number > GID_MAX ? null : number;
  }
  // struct group { char *gr_name; char *gr_passwd; gid_t gr_gid; char **gr_mem; }
  const GR_GID = 16;
  // SAFETY: the entry lasts until the next call of this function, which nothing else makes, and the main thread alone.
  const entry = libc.getgrnam(cString(group));
  return entry === null
    ? null
    : new Deno.UnsafePointerView(entry).getUint32(GR_GID);
}
