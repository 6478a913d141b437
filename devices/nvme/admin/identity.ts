/**
 * Names that stay the same from one run to the next: serial numbers, EUI-64, NGUID and NQN, derived from text.
 *
 * @module
 */

const MASK_64 = 0xffff_ffff_ffff_ffffn;
const FNV_OFFSET = 0xcbf2_9ce4_8422_2325n;
const FNV_PRIME = 0x0100_0000_01b3n;

/** The organizationally unique identifier of KVM's and QEMU's made-up addresses. */
export const OUI = [0x52, 0x54, 0x00] as const;

/** FNV-1a (Fowler, Noll, Vo), with a finish that spreads the last bytes too. */
function hash64(text: string): bigint {
  let hash = FNV_OFFSET;
  for (const byte of new TextEncoder().encode(text)) {
    hash = ((hash ^ BigInt(byte)) * FNV_PRIME) & MASK_64;
  }
  hash ^= hash >> 32n;
  hash = (hash * 0xd6e8_feb8_6659_fd93n) & MASK_64;
  return hash ^ (hash >> 32n);
}

/** As many bytes as wanted, made from a text; the same for the same text. */
function deriveBytes(text: string, lengthBytes: number): Uint8Array {
  const bytes = new Uint8Array(Math.ceil(lengthBytes / 8) * 8);
  const view = new DataView(bytes.buffer);
  for (let at = 0; at < bytes.length; at += 8) {
    view.setBigUint64(at, hash64(`${at / 8}:${text}`));
  }
  return bytes.subarray(0, lengthBytes);
}

function toHex(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0"))
    .join("");
}

/** A serial number of 16 characters made from a text. */
export function deriveSerial(text: string): string {
  return `OB${toHex(deriveBytes(text, 7)).toUpperCase()}`;
}

/** A UUID made from a text: version 8, vendor specific (RFC 9562, section 5.8). */
function deriveUuid(text: string): Uint8Array {
  const uuid = deriveBytes(text, 16);
  uuid[6] = (uuid[6]! & 0x0f) | 0x80;
  uuid[8] = (uuid[8]! & 0x3f) | 0x80;
  return uuid;
}

/** The NVMe qualified name of a subsystem, in the UUID form (NVM Express 1.4, section 7.9). */
export function deriveNqn(text: string): string {
  const hex = toHex(deriveUuid(`nqn:${text}`));
  const parts = [0, 8, 12, 16, 20, 32];
  const dashed = parts.slice(1).map((end, i) => hex.slice(parts[i], end));
  return `nqn.2014-08.org.nvmexpress:uuid:${dashed.join("-")}`;
}

/** Globally unique names of a namespace. */
export interface NamespaceIds {
  /** Eight bytes, most significant first. */
  readonly eui64: Uint8Array;
  /** Sixteen bytes, most significant first. */
  readonly nguid: Uint8Array;
  /** Sixteen bytes, as they are written. Linux complains of a namespace that has an NGUID and no UUID. */
  readonly uuid: Uint8Array;
}

/** Makes the names of a namespace from the serial number of its controller. */
export function deriveNamespaceIds(
  serial: string,
  nsid: number,
): NamespaceIds {
  const eui64 = deriveBytes(`eui64:${serial}:${nsid}`, 8);
  eui64.set(OUI, 0);
  // Extension, then OUI, then the rest of what would be an EUI-64 (figure 245).
  const nguid = deriveBytes(`nguid:${serial}:${nsid}`, 16);
  nguid.set(OUI, 8);
  const uuid = deriveUuid(`uuid:${serial}:${nsid}`);
  return { eui64, nguid, uuid };
}
