/**
 * IPv4 addresses as unsigned 32-bit numbers in host order: 10.0.2.2 is 0x0a000202.
 *
 * @module
 */

/**
 * Parses a dotted quad; no shorter or octal form is taken.
 *
 * @returns The address, or null when the text is none
 */
export function parseIpv4(text: string): number | null {
  const parts = text.split(".");
  if (parts.length !== 4) return null;
  let address = 0;
  for (const part of parts) {
    // A leading zero means octal to some and decimal to others: refuse it.
    if (!/^(0|[1-9]\d{0,2})$/.test(part) || Number(part) > 255) return null;
    address = address * 256 + Number(part);
  }
  return address;
}

/** The address as a dotted quad. */
export function formatIpv4(address: number): string {
  return [24, 16, 8, 0].map((shift) => (address >>> shift) & 255).join(".");
}

/** The netmask of a prefix length from 0 to 32. */
export function netmask(prefixLength: number): number {
  return prefixLength === 0 ? 0 : (0xffff_ffff << (32 - prefixLength)) >>> 0;
}

/** Whether the address lies in the network. */
export function inNetwork(
  address: number,
  network: number,
  prefixLength: number,
): boolean {
  return (address & netmask(prefixLength)) >>> 0 === network;
}
