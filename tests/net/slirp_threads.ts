/**
 * A program that runs libslirp on two threads at once and prints what they leased, one address a line.
 *
 * It is a process of its own because a runtime keeps descriptors of its Workers for a while, which other tests count.
 *
 * @module
 */

import { testLibslirp } from "./libslirp.ts";

const found = await testLibslirp();
if ("skip" in found) throw new Error(found.skip);
const url = new URL("slirp_worker.ts", import.meta.url);
const workers = [1, 2].map(() => new Worker(url, { type: "module" }));
const addresses = await Promise.all(
  workers.map((worker) =>
    new Promise((resolve, reject) => {
      worker.onmessage = (event) => resolve(event.data);
      worker.onerror = (event) => reject(new Error(event.message));
      worker.postMessage(found.library);
    })
  ),
);
for (const worker of workers) worker.terminate();
for (const address of addresses) console.log(address);
