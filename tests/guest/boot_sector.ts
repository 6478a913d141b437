/**
 * A disk image that a BIOS boots: its first sector loads four others through the BIOS and prints what they say on the
 * first serial port.
 *
 * @module
 */

const SECTOR_BYTES = 512;
const TEXT_LBA = 2048;
const TEXT_SECTORS = 4;

// deno-fmt-ignore
const BOOT_CODE = [
  0xfa,             // 7c00 cli
  0x31, 0xc0,       // 7c01 xor ax, ax
  0x8e, 0xd8,       // 7c03 mov ds, ax
  0xfb,             // 7c05 sti
  0xbe, 0x30, 0x7c, // 7c06 mov si, 7c30h    the packet below
  0xb4, 0x42,       // 7c09 mov ah, 42h      extended read, drive still in dl
  0xcd, 0x13,       // 7c0b int 13h
  0x72, 0x0e,       // 7c0d jc 7c1dh
  0xbe, 0x00, 0x80, // 7c0f mov si, 8000h
  0xba, 0xf8, 0x03, // 7c12 mov dx, 3f8h     COM1
  0xac,             // 7c15 lodsb
  0x84, 0xc0,       // 7c16 test al, al
  0x74, 0x03,       // 7c18 jz 7c1dh
  0xee,             // 7c1a out dx, al
  0xeb, 0xf8,       // 7c1b jmp 7c15h
  0xf4,             // 7c1d hlt
  0xeb, 0xfd,       // 7c1e jmp 7c1dh
];

// Disk address packet: size, sectors, to 0000:8000, from TEXT_LBA.
const PACKET_AT = 0x30;
// deno-fmt-ignore
const PACKET = [
  0x10, 0, TEXT_SECTORS, 0, 0x00, 0x80, 0, 0,
  TEXT_LBA & 0xff, TEXT_LBA >> 8, 0, 0, 0, 0, 0, 0,
];

/** The image: boots and prints `text`, of up to 2047 characters. */
export function bootImage(text: string): Uint8Array<ArrayBuffer> {
  const image = new Uint8Array((TEXT_LBA + 2048) * SECTOR_BYTES);
  image.set(BOOT_CODE, 0);
  image.set(PACKET, PACKET_AT);
  image.set([0x55, 0xaa], SECTOR_BYTES - 2);
  const bytes = new TextEncoder().encode(text);
  image.set(
    bytes.subarray(0, TEXT_SECTORS * SECTOR_BYTES - 1),
    TEXT_LBA * SECTOR_BYTES,
  );
  return image;
}
