/**
 * `net=tap`: a TAP interface of the host.
 *
 * @module
 */

import { type Infer, oneOf, option, options } from "../../../core/options.ts";
import type { CounterRecord, CounterTable } from "../../../core/counters.ts";
import { RX_ERRORS, TX_DROPPED } from "../counters.ts";
import type { NetDriver } from "../driver.ts";

/** The longest name of an interface in bytes: IFNAMSIZ less its NUL. */
export const IFNAME_MAX = 15;

/** Ways to send frames to a TAP. */
export const TapEngine = {
  /** Many at once by io_uring, a few by a system call each, and so all of them where io_uring is refused. */
  AUTO: "auto",
  /** All by io_uring, even a lone one, which is slower; with a warning where it is refused. */
  RING: "io_uring",
  /** A system call for each. */
  SYNC: "sync",
} as const;

/** A way to send frames to a TAP. */
export type TapEngine = typeof TapEngine[keyof typeof TapEngine];

const OPTIONS = options({
  ifname: option("ifname", {
    syntax: "name",
    help:
      "the interface to attach to; made when there is none of that name, with a number for %d",
    default: "tap%d",
  }, (text, refuse) => {
    // What the kernel's dev_valid_name() and dev_alloc_name() take.
    const fits = /^[^\s/:\0]+$/.test(text) && text !== "." && text !== ".." &&
      new TextEncoder().encode(text).length <= IFNAME_MAX &&
      !/%/.test(text.replace("%d", ""));
    return fits ? text : refuse(
      `1 to ${IFNAME_MAX} bytes without blanks, "/" and ":" are allowed, and one %d for a number`,
    );
  }),
  engine: oneOf("engine", Object.values(TapEngine), {
    help: "how frames are sent: many at once by io_uring, or one by one",
    default: TapEngine.AUTO,
  }),
});

/** Counters of a TAP. */
export const TAP_COUNTERS = {
  ...TX_DROPPED,
  txBatches: null,
  ...RX_ERRORS,
} satisfies CounterTable;

/** Values of a TAP's counters. */
export type TapCounters = CounterRecord<typeof TAP_COUNTERS>;

/** A TAP interface. */
export type TapNetOptions = Infer<typeof OPTIONS>;

/** TAP interfaces. */
export const TAP: NetDriver<TapNetOptions> = {
  options: OPTIONS,
  counters: TAP_COUNTERS,
  load: async () => (await import("./tap.ts")).openTapBackend,
  multiQueue: true,
};
