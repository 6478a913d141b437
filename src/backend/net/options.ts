/**
 * The kinds of network there are, and the options of a card that is plugged into one.
 *
 * @module
 */

import { oneOfKinds } from "../../core/option_groups.ts";
import { type Infer, oneOf, options } from "../../core/options.ts";
import { TX_DROPPED } from "./counters.ts";
import type { NetDriver } from "./driver.ts";
import { PASST } from "./peer/driver.ts";
import { DGRAM, STREAM } from "./socket/drivers.ts";
import { TAP } from "./tap/driver.ts";
import { USER } from "./user/driver.ts";

/** Each kind of network, called as `net=` has it. */
export const NET_DRIVERS = {
  user: USER,
  tap: TAP,
  stream: STREAM,
  dgram: DGRAM,
  passt: PASST,
  none: {
    options: options({}),
    counters: TX_DROPPED,
    load: async () => (await import("./none.ts")).openNone,
    multiQueue: true,
  } satisfies NetDriver<object>,
};

/** The network options of a card. */
export const NET_OPTIONS = oneOfKinds(
  "net",
  NET_DRIVERS,
  oneOf("net", Object.keys(NET_DRIVERS) as (keyof typeof NET_DRIVERS)[], {
    help: "what the card is plugged into",
    default: "user",
  }),
  (kind) => `net=${kind}`,
  "a network",
);

/** Network that a card is plugged into; plain data that can be sent to a Worker. */
export type NetOptions = Infer<typeof NET_OPTIONS>;
