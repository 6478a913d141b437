/**
 * Text that tells where devices are served. Apart from help, which takes no permission.
 *
 * @module
 */

import type { ServedDevice } from "../runtime/run.ts";
import { DEFAULT_DESCRIPTION } from "../transport/description.ts";

/**
 * A path that is good in any folder. That of a socket that was handed over may mean nothing here, when it was bound
 * in another folder or removed; it is then told as it is.
 */
function absolutePath(path: string): string {
  try {
    return Deno.realPathSync(path);
  } catch {
    return path;
  }
}

/** Text to print when everything listens: which socket is whose, and how clients reach them. */
export function readyText(devices: readonly ServedDevice[]): string {
  const at = devices.map((device) =>
    `${device.id} listens on ${device.path ?? `fd ${device.fd}`}`
  );
  const paths = devices.flatMap((device) =>
    device.path === null ? [] : [absolutePath(device.path)]
  );
  return [...at, "", ...DEFAULT_DESCRIPTION.describe(paths), ""].join("\n");
}

/** As {@linkcode readyText}, of a device whose socket has a name: QEMU's argument, for logs that programs read. */
export function qemuArgument(path: string): string {
  return DEFAULT_DESCRIPTION.qemuArgument(absolutePath(path));
}
