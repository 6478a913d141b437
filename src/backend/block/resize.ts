/**
 * Changing the size of storage, as people ask for it at run time.
 *
 * @module
 */

import type { BlockBackend } from "./contract.ts";
import { formatSize, parseSize, SIZE_WANTED } from "../../core/size.ts";

/** Without this word nothing is cut off; `qemu-img resize` has the same. */
export const SHRINK = "--shrink";

/**
 * Gives storage another size.
 *
 * @param words A size, and {@linkcode SHRINK} when it may be less than there is
 * @throws {Error} With a message for the person who asked
 */
export function resizeStorage(
  backend: BlockBackend,
  words: readonly string[],
): void {
  const [text = "", ...more] = words.filter((word) => word !== SHRINK);
  const { logicalBlockBytes, sizeBytes: present, readonly } = backend.info;
  const refuse = (why: string): never => {
    throw new Error(`Cannot resize to ${words.join(" ")}: ${why}`);
  };
  const sizeBytes = more.length > 0 ? null : parseSize(text);
  if (
    sizeBytes === null || sizeBytes === 0 || sizeBytes % logicalBlockBytes !== 0
  ) {
    return refuse(
      `${SIZE_WANTED}, and it is whole blocks of ${logicalBlockBytes} bytes`,
    );
  }
  if (backend.resize === undefined) {
    return refuse(`${backend.description} has a size of its own`);
  }
  if (readonly) refuse("it is open with readonly=on");
  if (sizeBytes < present && !words.includes(SHRINK)) {
    refuse(
      `it has ${
        formatSize(present)
      }, and what lies beyond would be lost; say ${text} ${SHRINK} if that is wanted`,
    );
  }
  backend.resize(sizeBytes);
}
