/**
 * Descriptor chains that break a rule, and some that look as if they did, as data: each is a list of descriptors in
 * ring order, so that every ring format can lay them out in its own way.
 */

import { Errno } from "../../src/core/errno.ts";
import { BASE, DATA, LENGTH, TABLES } from "./ring_fixture.ts";

/** A descriptor of a chain; in the ring, all but the last are followed by the one after it. */
export interface ChainPart {
  readonly addr: number | bigint;
  readonly len: number;
  readonly write?: boolean;
  readonly indirect?: boolean;
  /** Set NEXT on the last too, or leave it away from another. */
  readonly next?: boolean;
}

/** An indirect table; its descriptors are linked one after the other unless `next` says otherwise. */
export interface TableEntry extends ChainPart {
  /** The `next` field; the following index without it. */
  readonly nextIndex?: number;
}

/** Offer to the device, and its right result. */
export interface HostileCase {
  readonly name: string;
  /** True if INDIRECT_DESC was negotiated; yes unless told. */
  readonly indirect?: boolean;
  readonly chain: readonly ChainPart[];
  /** Laid out from {@linkcode TABLES} on. */
  readonly table?: readonly TableEntry[];
  /** Segments that the device takes. */
  readonly segments?: number;
  /** True if its device can do without some; see Chain.isWhole. */
  readonly mayLack?: boolean;
  /** −errno, or 1. */
  readonly result: number;
  readonly message?: RegExp;
  /** Result in a packed ring, where that differs. */
  readonly packed?: { readonly result: number; readonly message?: RegExp };
}

const OK = { addr: DATA, len: 16 };
const OUT = { addr: DATA, len: 16, write: true };

/** A packed chain has descriptors of one kind (2.8.19). */
const NO_MIX = {
  result: -Errno.EINVAL,
  message: /indirect descriptor in a chain linked by NEXT/,
};

/** For a queue of 8 entries. */
export const HOSTILE_CASES: readonly HostileCase[] = [
  {
    name: "readable after writable",
    chain: [OUT, OK],
    result: -Errno.EINVAL,
    message: /readable.*2\.(7\.4\.2|8\.17)/,
  },
  {
    name: "readable in an indirect table after writable in the ring",
    chain: [OUT, { addr: TABLES, len: 16, indirect: true }],
    table: [OK],
    result: -Errno.EINVAL,
    message: /2\.7\.4\.2/,
    packed: NO_MIX,
  },
  {
    name: "readable after writable in an indirect table",
    chain: [{ addr: TABLES, len: 32, indirect: true }],
    table: [OUT, OK],
    result: -Errno.EINVAL,
    message: /readable.*2\.(7\.4\.2|8\.17)/,
  },
  {
    name: "empty readable after writable",
    chain: [OUT, { addr: DATA, len: 0 }],
    result: -Errno.EINVAL,
    message: /2\.(7\.4\.2|8\.17)/,
  },
  {
    name: "indirect without the feature",
    indirect: false,
    chain: [{ addr: TABLES, len: 16, indirect: true }],
    table: [OK],
    result: -Errno.EINVAL,
    message: /without INDIRECT_DESC/,
  },
  {
    name: "indirect in an indirect table",
    chain: [{ addr: TABLES, len: 32, indirect: true }],
    table: [OK, { addr: TABLES, len: 16, indirect: true }],
    result: -Errno.EINVAL,
    message: /inside an indirect table/,
    // The flag is reserved there, and ignored by the device (2.8.7).
    packed: { result: 1 },
  },
  {
    name: "indirect with NEXT",
    chain: [{ addr: TABLES, len: 16, indirect: true, next: true }, OK],
    table: [OK],
    result: -Errno.EINVAL,
    message: /both INDIRECT and NEXT/,
  },
  ...[0, 8, 15, 17, 0x10_0010, 0xffff_ffff].map((len) => ({
    name: `indirect table of ${len} bytes`,
    chain: [{ addr: TABLES, len, indirect: true }],
    table: [OK],
    result: -Errno.EINVAL,
    message: /indirect table has \d+ bytes/,
  })),
  {
    name: "indirect table that is not mapped",
    chain: [{ addr: 0x1000, len: 16, indirect: true }],
    result: -Errno.EFAULT,
    message: /indirect table at 0x1000/,
  },
  {
    name: "indirect table that ends behind the mapping",
    chain: [{ addr: BASE + LENGTH - 16, len: 32, indirect: true }],
    result: -Errno.EFAULT,
    message: /indirect table/,
  },
  {
    name: "indirect table at the end of the address space",
    chain: [{ addr: 0xffff_ffff_ffff_fff0n, len: 32, indirect: true }],
    result: -Errno.EFAULT,
    message: /indirect table/,
  },
  {
    name: "next beyond an indirect table",
    chain: [{ addr: TABLES, len: 32, indirect: true }],
    table: [{ ...OK, next: true, nextIndex: 2 }, OK],
    result: -Errno.EINVAL,
    message: /next is 2 in a table of 2/,
    packed: { result: 1 },
  },
  {
    name: "loop in an indirect table",
    chain: [{ addr: TABLES, len: 32, indirect: true }],
    table: [{ ...OK, next: true, nextIndex: 1 }, {
      ...OK,
      next: true,
      nextIndex: 0,
    }],
    result: -Errno.ELOOP,
    message: /longer than the queue size/,
    packed: { result: 1 },
  },
  {
    name: "indirect chain longer than the queue",
    chain: [{ addr: TABLES, len: 16 * 9, indirect: true }],
    table: Array.from({ length: 9 }, () => OK),
    result: -Errno.ELOOP,
    message: /longer than the queue size/,
  },
  {
    name: "ring and indirect descriptors together longer than the queue",
    chain: [OK, OK, { addr: TABLES, len: 16 * 7, indirect: true }],
    table: Array.from({ length: 7 }, () => OK),
    result: -Errno.ELOOP,
    message: /longer than the queue size/,
    packed: NO_MIX,
  },
  {
    name: "readable buffer that is not mapped",
    chain: [OK, { addr: 0x1000, len: 1 }],
    result: -Errno.EFAULT,
    message: /1 bytes at 0x1000 .*read/,
  },
  {
    name: "writable buffer that is not mapped",
    chain: [OK, { addr: 0x1000, len: 1, write: true }],
    result: -Errno.EFAULT,
    message: /1 bytes at 0x1000 .*written/,
  },
  {
    name: "buffer that ends behind the mapping",
    chain: [{ addr: BASE + LENGTH - 8, len: 9 }],
    result: -Errno.EFAULT,
    message: /not guest memory/,
  },
  {
    name: "buffer that begins before the mapping",
    chain: [{ addr: BASE - 1, len: 2 }],
    result: -Errno.EFAULT,
    message: /not guest memory/,
  },
  {
    name: "buffer whose end overflows 64 bits",
    chain: [{ addr: 0xffff_ffff_ffff_f000n, len: 0x2000 }],
    result: -Errno.EFAULT,
    message: /not guest memory/,
  },
  {
    name: "buffer of the greatest length",
    chain: [{ addr: BASE, len: 0xffff_ffff }],
    result: -Errno.EFAULT,
    message: /not guest memory/,
  },
  {
    name: "address that a 32-bit truncation would make good",
    chain: [{ addr: BigInt(DATA) + 0x1_0000_0000n, len: 1 }],
    result: -Errno.EFAULT,
    message: /not guest memory/,
  },
  {
    name: "more segments than the device takes",
    segments: 3,
    chain: [0, 1, 2, 3].map((i) => ({ addr: DATA + i * 64, len: 16 })),
    result: -Errno.E2BIG,
    message: /more than 3 segments/,
  },
  {
    name: "more segments, of which the device can do without (allowed)",
    segments: 3,
    mayLack: true,
    chain: [0, 1, 2, 3].map((i) => ({ addr: DATA + i * 64, len: 16 })),
    result: 1,
  },
  {
    name: "more segments, and a buffer behind them that is not memory",
    segments: 3,
    mayLack: true,
    chain: [0, 1, 2, 3].map((i) => ({
      addr: i === 3 ? 0x5000_0000 : DATA + i * 64,
      len: 16,
      write: true,
    })),
    result: -Errno.EFAULT,
    message: /not guest memory/,
  },
  {
    name: "as many segments as the device takes (allowed)",
    segments: 3,
    chain: [0, 1, 2].map((i) => ({ addr: DATA + i * 64, len: 16 })),
    result: 1,
  },
  {
    name:
      "ring and indirect descriptors together as long as the queue (allowed)",
    chain: [OK, { addr: TABLES, len: 16 * 7, indirect: true }],
    table: Array.from({ length: 7 }, () => OUT),
    result: 1,
    packed: NO_MIX,
  },
  {
    name: "a table longer than its chain (allowed)",
    chain: [{ addr: TABLES, len: 16 * 100, indirect: true }],
    table: [{ ...OK, next: true, nextIndex: 99 }],
    result: 1,
    // There the table is the chain.
    packed: { result: -Errno.ELOOP, message: /longer than the queue size/ },
  },
];

/** Part that a ring format plays. */
export interface HostileHarness {
  /** Lays out a chain and makes it available. */
  offer(chain: readonly ChainPart[]): void;
  /** Lays out an entry of the indirect table at {@linkcode TABLES}. */
  tableEntry(index: number, entry: TableEntry, last: boolean): void;
  /** Result of the queue's pop. */
  pop(): number;
  lastError(): string;
  /** Number of chains the queue thinks the device holds. */
  inFlight(): number;
}

/** Runs every case against a fresh ring. */
export function runHostileCases(
  format: string,
  kind: "split" | "packed",
  make: (options: {
    indirect: boolean;
    segments: number;
    mayLack: boolean;
  }) => HostileHarness,
  check: (actual: unknown, expected: unknown, message?: string) => void,
): void {
  for (const common of HOSTILE_CASES) {
    const it = kind === "packed" ? { ...common, ...common.packed } : common;
    Deno.test(`${format}: ${it.name}`, () => {
      const harness = make({
        indirect: it.indirect ?? true,
        segments: it.segments ?? 1024,
        mayLack: it.mayLack ?? false,
      });
      it.table?.forEach((entry, i) =>
        harness.tableEntry(i, entry, i === it.table!.length - 1)
      );
      harness.offer(it.chain);
      check(harness.pop(), it.result, harness.lastError());
      if (it.result > 0) return;
      check(it.message!.test(harness.lastError()), true, harness.lastError());
      check(harness.inFlight(), 0);
      // A violation stays one, however often the device looks.
      check(harness.pop(), it.result);
    });
  }
}
