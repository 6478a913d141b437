/**
 * DEVICE_SET_IRQS in all its kinds, as data.
 *
 * @module
 */

import {
  IRQ_SET,
  VFIO_IRQ_SET_ACTION_MASK,
  VFIO_IRQ_SET_ACTION_TRIGGER,
  VFIO_IRQ_SET_ACTION_UNMASK,
  VFIO_IRQ_SET_DATA_BOOL,
  VFIO_IRQ_SET_DATA_EVENTFD,
  VFIO_IRQ_SET_DATA_NONE,
} from "../defs.ts";

/** Request on interrupts. */
export interface IrqSet {
  /** VFIO_PCI_*_IRQ_INDEX. */
  readonly index: number;
  /** First vector; 0 unless told. */
  readonly start?: number;
  /** Number of vectors; that of the booleans or descriptors unless told, else 0. */
  readonly count?: number;
  /** Action on them. */
  readonly action: "mask" | "unmask" | "trigger";
  /** One boolean a vector: whether the action applies to it. */
  readonly booleans?: readonly boolean[];
  /** Eventfds, one a vector; an empty list takes those assigned before away. */
  readonly fds?: readonly number[];
}

const ACTIONS = {
  mask: VFIO_IRQ_SET_ACTION_MASK,
  unmask: VFIO_IRQ_SET_ACTION_UNMASK,
  trigger: VFIO_IRQ_SET_ACTION_TRIGGER,
} as const;

/** Writes the payload of DEVICE_SET_IRQS at `at` and returns its length in bytes. */
export function writeIrqSet(view: DataView, at: number, set: IrqSet): number {
  const data = set.fds !== undefined
    ? VFIO_IRQ_SET_DATA_EVENTFD
    : set.booleans !== undefined
    ? VFIO_IRQ_SET_DATA_BOOL
    : VFIO_IRQ_SET_DATA_NONE;
  const booleans = set.booleans ?? [];
  const length = IRQ_SET.SIZE + booleans.length;
  view.setUint32(at + IRQ_SET.ARGSZ, length, true);
  view.setUint32(at + IRQ_SET.FLAGS, data | ACTIONS[set.action], true);
  view.setUint32(at + IRQ_SET.INDEX, set.index, true);
  view.setUint32(at + IRQ_SET.START, set.start ?? 0, true);
  view.setUint32(
    at + IRQ_SET.COUNT,
    set.count ?? set.fds?.length ?? booleans.length,
    true,
  );
  booleans.forEach((on, i) => view.setUint8(at + IRQ_SET.DATA + i, on ? 1 : 0));
  return length;
}

/**
 * Splits a list of descriptors as QEMU does: runs that are all descriptors or all −1, none longer than `most`.
 *
 * @returns Pairs of start and end
 */
export function irqRuns(
  fds: readonly number[],
  most: number,
): [start: number, end: number][] {
  const runs: [number, number][] = [];
  let start = 0;
  while (start < fds.length) {
    let end = start + 1;
    while (
      end < fds.length && end - start < most &&
      (fds[end]! >= 0) === (fds[start]! >= 0)
    ) end++;
    runs.push([start, end]);
    start = end;
  }
  return runs;
}
