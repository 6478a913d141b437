/**
 * Checks of what a device author wrote, with words that say what is wrong.
 *
 * @module
 */

import { hex, isPowerOfTwo, PAGE_SIZE } from "../core/bits.ts";
import { Errno, ErrnoError } from "../core/errno.ts";
import {
  PCI_CFG_SPACE_SIZE,
  PCI_MSIX_ENTRY_SIZE,
  PCI_STD_HEADER_SIZEOF,
  PCI_STD_NUM_BARS,
  PciExp,
  PciMsi,
  PciMsix,
  PciPm,
} from "./defs.ts";
import { deviceShapeProblem, ModelError } from "../core/model_fault.ts";
import type { BarSpec, CapabilitySpec, PciDevice, PciSpec } from "./device.ts";

/** Bytes before the body of a vendor-specific capability: id, next, length. */
export const VENDOR_PREFIX_BYTES = 3;

const MAX_BAR_BYTES: Record<BarSpec["kind"], number> = {
  // PCI Local Bus 3.0, section 6.2.5.1: no more than 256 bytes of I/O space per register.
  io: 256,
  memory32: 2 ** 31,
  // Half of what a Number counts exactly, so that an end of range is exact too.
  memory64: 2 ** 52,
};

const MIN_BAR_BYTES: Record<BarSpec["kind"], number> = {
  io: 4,
  memory32: 16,
  memory64: 16,
};

/** Length of the MSI-X table. */
export function msixTableBytes(vectors: number): number {
  return vectors * PCI_MSIX_ENTRY_SIZE;
}

/** Length of the pending bit array: whole 64-bit words. */
export function msixPbaBytes(vectors: number): number {
  return Math.ceil(vectors / 64) * 8;
}

/** Length of a capability in configuration space. */
export function capabilityBytes(capability: CapabilitySpec): number {
  switch (capability.kind) {
    case "pm":
      return PciPm.lengthBytes;
    case "pcie":
      return PciExp.lengthBytes;
    case "msi":
      return PciMsi.lengthBytes;
    case "msix":
      return PciMsix.lengthBytes;
    case "vendor":
      return VENDOR_PREFIX_BYTES + capability.body.length;
    default:
      return capability satisfies never;
  }
}

/** Methods of every device model, see {@linkcode PciDevice}. */
const METHODS = ["readBar", "writeBar", "reset", "close"] as const;
const OPTIONAL_METHODS = [
  "ringDoorbell",
  "stop",
  "start",
  "hold",
  "save",
  "load",
  "handOver",
  "place",
  "queueGroups",
  "doorbellEventFd",
  "counters",
  "info",
] as const;
const BAR_KINDS = ["memory32", "memory64", "io"];
const CAPABILITY_KINDS = ["pm", "pcie", "msi", "msix", "vendor"];

/**
 * Checks what a model's `create` has returned.
 *
 * @param name What the model is called in messages
 * @throws {ModelError} Naming the first thing that is wrong
 */
export function validatePciDevice(device: unknown, name: string): void {
  const problem = deviceShapeProblem(device, METHODS, OPTIONAL_METHODS) ??
    specProblem((device as PciDevice).spec);
  if (problem !== null) throw new ModelError(`${name}: ${problem}`);
  try {
    validatePciSpec((device as PciDevice).spec);
  } catch (error) {
    throw new ModelError(`${name}: ${(error as Error).message}`, {
      cause: error,
    });
  }
}

/** Finds the fault in the shape of a specification; its values are {@linkcode validatePciSpec}'s. */
function specProblem(spec: unknown): string | null {
  if (typeof spec !== "object" || spec === null) {
    return "the device has no `spec`, which must be an object";
  }
  const fields = spec as Record<string, unknown>;
  for (
    const [field, kinds] of [
      ["bars", BAR_KINDS],
      ["capabilities", CAPABILITY_KINDS],
    ] as const
  ) {
    const list = fields[field];
    if (!Array.isArray(list)) {
      return `the device has no \`spec.${field}\`, which must be an array`;
    }
    for (const [i, item] of list.entries()) {
      if (kinds.includes(item?.kind)) continue;
      return `\`spec.${field}[${i}].kind\` is "${item?.kind}" and must be one of ${
        kinds.join(", ")
      }`;
    }
  }
  return null;
}

/**
 * Checks a whole specification.
 *
 * @throws {ErrnoError} EINVAL, naming the first thing that is wrong
 */
export function validatePciSpec(spec: PciSpec): void {
  checkIdentity(spec);
  checkBars(spec.bars);
  checkCapabilities(spec);
  for (const bar of spec.bars) checkRanges(spec, bar);
}

function refuse(what: string, why: string): never {
  throw new ErrnoError(Errno.EINVAL, `Cannot use ${what}: ${why}`);
}

function checkUnsigned(what: string, value: number, bits: number): void {
  if (!Number.isInteger(value) || value < 0 || value >= 2 ** bits) {
    refuse(what, `${value} is not an unsigned ${bits}-bit number`);
  }
}

function checkIdentity(spec: PciSpec): void {
  checkUnsigned("vendorId", spec.vendorId, 16);
  checkUnsigned("deviceId", spec.deviceId, 16);
  checkUnsigned("revision", spec.revision, 8);
  checkUnsigned("classCode", spec.classCode, 24);
  checkUnsigned("subsystemVendorId", spec.subsystemVendorId, 16);
  checkUnsigned("subsystemId", spec.subsystemId, 16);
  if (spec.vendorId === 0xffff) {
    refuse("vendorId", "0xffff means that no device is there");
  }
}

function checkBars(bars: readonly BarSpec[]): void {
  const owner: (number | undefined)[] = [];
  for (const bar of bars) {
    const what = `BAR ${bar.index}`;
    if (
      !Number.isInteger(bar.index) || bar.index < 0 ||
      bar.index >= PCI_STD_NUM_BARS
    ) {
      refuse(what, "the index must be 0 to 5");
    }
    if (!isPowerOfTwo(bar.sizeBytes)) {
      refuse(what, `its size ${bar.sizeBytes} is not a power of two`);
    }
    const least = MIN_BAR_BYTES[bar.kind];
    const most = MAX_BAR_BYTES[bar.kind];
    if (bar.sizeBytes < least || bar.sizeBytes > most) {
      refuse(
        what,
        `its size ${hex(bar.sizeBytes)} is outside ${hex(least)} to ${
          hex(most)
        } for ${bar.kind}`,
      );
    }
    if (bar.kind === "io" && bar.prefetchable) {
      refuse(what, "I/O space is never prefetchable");
    }
    const last = bar.kind === "memory64" ? bar.index + 1 : bar.index;
    if (last >= PCI_STD_NUM_BARS) {
      refuse(what, "a 64-bit BAR also takes the next index, and 5 is the last");
    }
    for (let index = bar.index; index <= last; index++) {
      if (owner[index] !== undefined) {
        refuse(what, `index ${index} already belongs to BAR ${owner[index]}`);
      }
      owner[index] = bar.index;
    }
  }
}

function checkCapabilities(spec: PciSpec): void {
  let end = PCI_STD_HEADER_SIZEOF;
  const seen = new Set<string>();
  for (const capability of spec.capabilities) {
    const kind = capability.kind;
    if (kind !== "vendor" && seen.has(kind)) {
      refuse(`capability ${kind}`, "it is there twice");
    }
    seen.add(kind);
    if (kind === "vendor") checkVendor(capability.body, capability.writable);
    if (kind === "msi" && ![1, 2, 4, 8, 16, 32].includes(capability.vectors)) {
      refuse(
        "capability msi",
        `${capability.vectors} vectors are not 1, 2, 4, 8, 16 or 32`,
      );
    }
    if (kind === "msix") checkMsix(spec, capability);
    // Capabilities are aligned to 4 bytes.
    end = Math.ceil(end / 4) * 4 + capabilityBytes(capability);
  }
  if (end > PCI_CFG_SPACE_SIZE) {
    refuse(
      "the capabilities",
      `they end at ${hex(end)} and must end at ${hex(PCI_CFG_SPACE_SIZE)}`,
    );
  }
}

function checkVendor(body: Uint8Array, writable: Uint8Array | undefined): void {
  if (body.length + VENDOR_PREFIX_BYTES > 255) {
    refuse(
      "capability vendor",
      `${body.length} bytes do not fit its 8-bit length`,
    );
  }
  if (writable !== undefined && writable.length !== body.length) {
    refuse(
      "capability vendor",
      `writable has ${writable.length} bytes and body ${body.length}`,
    );
  }
}

function checkMsix(
  spec: PciSpec,
  msix: Extract<CapabilitySpec, { kind: "msix" }>,
): void {
  const { vectors, tableBar, tableOffset, pbaBar, pbaOffset } = msix;
  if (!Number.isInteger(vectors) || vectors < 1 || vectors > 2048) {
    refuse("capability msix", `${vectors} vectors are not 1 to 2048`);
  }
  checkMsixPart(
    spec,
    "MSI-X table",
    tableBar,
    tableOffset,
    msixTableBytes(vectors),
  );
  checkMsixPart(spec, "MSI-X PBA", pbaBar, pbaOffset, msixPbaBytes(vectors));
}

function checkMsixPart(
  spec: PciSpec,
  what: string,
  index: number,
  offset: number,
  lengthBytes: number,
): void {
  const bar = spec.bars.find((candidate) => candidate.index === index);
  if (bar === undefined) refuse(what, `there is no BAR ${index}`);
  if (bar.kind === "io") refuse(what, `BAR ${index} is not memory`);
  checkUnsigned(`offset of ${what}`, offset, 32);
  if (offset % 8 !== 0) {
    refuse(what, `its offset ${hex(offset)} is not a multiple of 8`);
  }
  checkInside(what, bar, offset, lengthBytes);
}

function checkInside(
  what: string,
  bar: BarSpec,
  offset: number,
  lengthBytes: number,
): void {
  if (
    !Number.isSafeInteger(offset) || offset < 0 ||
    offset + lengthBytes > bar.sizeBytes
  ) {
    refuse(
      what,
      `${lengthBytes} bytes at ${offset} are outside BAR ${bar.index} of ${
        hex(bar.sizeBytes)
      } bytes`,
    );
  }
}

interface Range {
  readonly what: string;
  readonly start: number;
  readonly end: number;
}

/** Checks what lies in one BAR: areas stay inside, do not overlap, and doorbells are not in MSI-X structures. */
function checkRanges(spec: PciSpec, bar: BarSpec): void {
  const msix = msixRanges(spec, bar.index);
  const ranges = [...msix, ...mmapRanges(bar)].sort((a, b) =>
    a.start - b.start
  );
  for (let i = 1; i < ranges.length; i++) {
    const before = ranges[i - 1]!;
    const range = ranges[i]!;
    if (range.start < before.end) {
      refuse(range.what, `it overlaps ${before.what} in BAR ${bar.index}`);
    }
  }
  for (const doorbell of bar.doorbells ?? []) {
    const what = `doorbell ${hex(doorbell.offset)} of BAR ${bar.index}`;
    if (![0, 1, 2, 4, 8].includes(doorbell.sizeBytes)) {
      refuse(what, `its size ${doorbell.sizeBytes} is not 0, 1, 2, 4 or 8`);
    }
    const lengthBytes = Math.max(doorbell.sizeBytes, 1);
    checkInside(what, bar, doorbell.offset, lengthBytes);
    if (doorbell.offset % lengthBytes !== 0) {
      refuse(what, `it is not aligned to its ${lengthBytes} bytes`);
    }
    const end = doorbell.offset + lengthBytes;
    const hit = msix.find((range) =>
      doorbell.offset < range.end && end > range.start
    );
    if (hit !== undefined) refuse(what, `it lies in the ${hit.what}`);
  }
}

function msixRanges(spec: PciSpec, bar: number): Range[] {
  const ranges: Range[] = [];
  for (const capability of spec.capabilities) {
    if (capability.kind !== "msix") continue;
    const { vectors, tableBar, tableOffset, pbaBar, pbaOffset } = capability;
    if (tableBar === bar) {
      const end = tableOffset + msixTableBytes(vectors);
      ranges.push({ what: "MSI-X table", start: tableOffset, end });
    }
    if (pbaBar === bar) {
      const end = pbaOffset + msixPbaBytes(vectors);
      ranges.push({ what: "MSI-X PBA", start: pbaOffset, end });
    }
  }
  return ranges;
}

function mmapRanges(bar: BarSpec): Range[] {
  return (bar.mmap ?? []).map(({ offset, memory }) => {
    const what = `mmap area ${hex(offset)}`;
    const lengthBytes = memory.bytes.length;
    if (bar.kind === "io") refuse(what, `BAR ${bar.index} is not memory`);
    if (offset % PAGE_SIZE !== 0) {
      refuse(what, `its offset is not a multiple of ${PAGE_SIZE}`);
    }
    if (lengthBytes === 0 || lengthBytes % PAGE_SIZE !== 0) {
      refuse(what, `its ${lengthBytes} bytes are not whole pages`);
    }
    checkInside(what, bar, offset, lengthBytes);
    return { what, start: offset, end: offset + lengthBytes };
  });
}
