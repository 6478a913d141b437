/**
 * IPv4 addresses as unsigned 32-bit numbers in host order: 10.0.2.2 is 0x0a000202.
 *
 * @module
 */

import { parseIpv4Bytes } from "../../../core/inet_address.ts";

/**
 * Parses a dotted quad; no shorter or octal form is taken.
 *
 * @returns The address, or null when the text is none
 */
export function parseIpv4(text: string): number | null {
  const bytes = parseIpv4Bytes(text);
  return bytes && bytes.reduce((address, byte) => address * 256 + byte, 0);
}

/** The address as a dotted quad. */
export function formatIpv4(address: number): string {
  return [24, 16, 8, 0].map((shift) => (address >>> shift) & 255).join(".");
}

/** The netmask of a prefix length from 0 to 32. */
export function netmask(prefixLength: number): number {
  return prefixLength === 0 ? 0 : (0xffff_ffff << (32 - prefixLength)) >>> 0;
}

/** True for an address in the network. */
export function inNetwork(
  address: number,
  network: number,
  prefixLength: number,
): boolean {
  return (address & netmask(prefixLength)) >>> 0 === network;
}
