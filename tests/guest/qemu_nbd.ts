/**
 * QEMU's NBD server, which is also that of qemu-nbd and qemu-storage-daemon: a QEMU without a machine that exports a
 * file.
 *
 * @module
 */

import type { Kit } from "./provision.ts";
import { PATIENCE_MS } from "../until.ts";
import { Qmp } from "./qmp.ts";

/** Export of the server. */
export interface QemuNbdOptions {
  /** True if clients may write; they may unless told. */
  readonly writable?: boolean;
  /** Format of the file; raw unless told. */
  readonly format?: "raw" | "qcow2";
  /** Makes a qcow2 image of so many bytes in the file, which exists and is empty. */
  readonly createBytes?: number;
}

/** A QEMU that exports the file `disk` of a folder as `disk`, on `nbd.sock` beside it. */
export class QemuNbd {
  readonly #child: Deno.ChildProcess;
  readonly #qmp: Qmp;

  private constructor(child: Deno.ChildProcess, qmp: Qmp) {
    this.#child = child;
    this.#qmp = qmp;
  }

  /** Starts it and waits until it serves. */
  static async start(
    kit: Kit,
    folder: string,
    options: QemuNbdOptions = {},
  ): Promise<QemuNbd> {
    const writable = options.writable ?? true;
    const { qemu } = kit;
    const monitor = `${folder}/qmp.sock`;
    const child = new Deno.Command("setpriv", {
      args: [
        ...["--pdeathsig", "KILL", "--", qemu.command, ...qemu.args],
        ...["-nodefaults", "-no-user-config", "-display", "none"],
        ...["-machine", "none", "-qmp", `unix:${monitor},server=on,wait=off`],
      ],
      env: { ...qemu.env },
      stdin: "null",
      stdout: "null",
      stderr: "inherit",
    }).spawn();
    const qmp = new Qmp(await connectWhenThere(monitor));
    await qmp.negotiate();
    await qmp.execute("blockdev-add", {
      "node-name": "file",
      driver: "file",
      filename: `${folder}/disk`,
      discard: "unmap",
      "read-only": !writable,
    });
    if (options.createBytes !== undefined) {
      await createQcow2(qmp, options.createBytes);
    }
    await qmp.execute("blockdev-add", {
      "node-name": "disk",
      driver: options.format ?? "raw",
      discard: "unmap",
      "read-only": !writable,
      file: "file",
    });
    await qmp.execute("nbd-server-start", {
      addr: { type: "unix", data: { path: `${folder}/nbd.sock` } },
    });
    await qmp.execute("block-export-add", {
      type: "nbd",
      id: "export",
      name: "disk",
      "node-name": "disk",
      writable,
    });
    return new QemuNbd(child, qmp);
  }

  /** Ends it as a crash would. */
  async kill(): Promise<void> {
    this.#child.kill("SIGKILL");
    await this.#child.status;
    await this.#qmp.close();
  }
}

async function connectWhenThere(path: string): Promise<Deno.Conn> {
  const deadline = performance.now() + PATIENCE_MS;
  for (;;) {
    try {
      return await Deno.connect({ transport: "unix", path });
    } catch (error) {
      if (performance.now() > deadline) throw error;
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  }
}

/** Makes an image in the node `file`. */
async function createQcow2(qmp: Qmp, sizeBytes: number): Promise<void> {
  await qmp.execute("blockdev-create", {
    "job-id": "create",
    options: { driver: "qcow2", file: "file", size: sizeBytes },
  });
  for (;;) {
    const jobs = await qmp.execute("query-jobs") as {
      status: string;
      error?: string;
    }[];
    if (jobs[0]?.error !== undefined) throw new Error(jobs[0].error);
    if (jobs[0]?.status === "concluded") break;
  }
  await qmp.execute("job-dismiss", { id: "create" });
}

/** Removes what a killed one left behind. */
export function clearSockets(folder: string): void {
  for (const name of ["qmp.sock", "nbd.sock"]) {
    Deno.removeSync(`${folder}/${name}`);
  }
}
