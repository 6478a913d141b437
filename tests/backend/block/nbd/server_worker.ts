/** An NBD server in a Worker: commands come as messages, each is answered. */

import { NbdServer, type NbdServerOptions } from "./server.ts";

/** Messages to the Worker. */
export type NbdServerMessage =
  | { readonly start: NbdServerOptions }
  | { readonly set: Partial<NbdServerOptions> }
  | { readonly ask: "requests" | "connections" }
  | { readonly hangUp: true };

const scope = self as unknown as {
  onmessage: (event: MessageEvent<NbdServerMessage>) => void;
  postMessage(message: unknown): void;
};

let server: NbdServer | null = null;

scope.onmessage = ({ data }) => {
  if ("start" in data) {
    server = new NbdServer(data.start);
    return scope.postMessage(server.port);
  }
  if ("set" in data) server!.set(data.set);
  if ("hangUp" in data) server!.hangUp();
  scope.postMessage("ask" in data ? server![data.ask] : null);
};
