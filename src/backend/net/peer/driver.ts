/**
 * `net=passt`: a passt process.
 *
 * @module
 */

import { type Infer, list, options, text } from "../../../core/options.ts";
import { PEER_COUNTERS } from "../counters.ts";
import type { NetDriver } from "../driver.ts";

/** Specifications of ports, of all that passt(1) allows in one: numbers, ranges, addresses, interfaces, exclusions. */
function ports(protocol: "tcp" | "udp") {
  const name = `${protocol}-ports`;
  return list(text(name, {
    syntax: "spec",
    help:
      `forward ${protocol.toUpperCase()} ports of the host, as passt's option of that name`,
    pattern: [
      /^(?!-)[\w.:%/,~[\]-]+$/,
      `ports as passt(1) takes them are wanted, such as ${name}=2222:22`,
    ],
  }));
}

const OPTIONS = options({
  program: text("passt", {
    syntax: "program",
    help: "the program to start",
    otherwise: "passt",
    pattern: [/./s, "the program's name or path is wanted"],
  }),
  tcpPorts: ports("tcp"),
  udpPorts: ports("udp"),
});

/** A passt process. */
export type PasstNetOptions = Infer<typeof OPTIONS>;

/** Processes of passt. */
export const PASST: NetDriver<PasstNetOptions> = {
  options: OPTIONS,
  counters: PEER_COUNTERS,
  load: async () => (await import("./passt.ts")).openPasst,
  multiQueue: false,
};
