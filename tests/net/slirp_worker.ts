/**
 * The body of a Worker that leases an address from libslirp on its own thread and posts it.
 *
 * @module
 */

/// <reference lib="deno.worker" />

import { parseNetOptions } from "../../src/net/options.ts";
import type { UserNetOptions } from "../../src/net/option_table.ts";
import { SlirpBackend } from "../../src/net/slirp.ts";
import { openLibslirp } from "../../src/net/slirp_symbols.ts";
import { Card, Host } from "./card.ts";
import { dhcp, parseDhcp } from "./frames.ts";

self.onmessage = (event: MessageEvent<string>) => {
  const library = openLibslirp(event.data);
  if ("reason" in library) throw new Error(library.reason);
  using host = new Host();
  const options = parseNetOptions({}) as UserNetOptions;
  using card = new Card(host, new SlirpBackend(options, host.context, library));
  card.send(dhcp([53, 1, 1]));
  self.postMessage(card.take("offer", parseDhcp).address);
};
