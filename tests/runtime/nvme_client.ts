/**
 * An NVMe controller of another process, driven over its socket by the driver of the unit tests.
 *
 * @module
 */

import { assert } from "@std/assert";
import type { ManualLoop } from "../../src/testing/manual_loop.ts";
import type { Bell, InterruptLines } from "../../src/testing/mod.ts";
import {
  type GuestRam,
  PciClient,
} from "../../src/transport/vfio_user/client/mod.ts";
import type { VfioUserClient } from "../../src/transport/vfio_user/client/mod.ts";
import { NaiveDriver } from "../devices/nvme/naive_driver.ts";

const CC = 0x14;
const CSTS = 0x1c;
const DOORBELLS = 0x1000;
/** As long as CAP.TO gives the controller. */
const WAIT_MS = 20_000;

/** A driver that waits for the other process where it would let a loop settle. */
export class RemoteNvme {
  readonly driver: NaiveDriver;
  readonly pci: PciClient;
  lines!: InterruptLines;
  readonly #vectors: number;
  /** CC.EN as it was written; null once CSTS.RDY has followed. */
  #enabled: number | null = null;

  /**
   * @param vectors MSI-X vectors to use; 0 for the pin
   * @param mapped Doorbells are rung by stores to the page that the server polls
   */
  constructor(
    client: VfioUserClient,
    ram: GuestRam,
    vectors: number,
    mapped = false,
  ) {
    const pci = this.pci = new PciClient(
      client,
      mapped ? { bells: "mmap" } : {},
    );
    const bells = new Map<number, Bell>();
    this.#vectors = vectors;
    this.setUpPci();
    const driver = this.driver = new NaiveDriver(
      {
        spec: undefined as never,
        readBar: (bar, offset, width) => pci.readBar(bar, offset, width),
        writeBar: (bar, offset, width, value) => {
          if (mapped && offset >= DOORBELLS) {
            const bell = bells.get(offset) ?? pci.bell(bar, offset, 4);
            bells.set(offset, bell);
            return bell.ring(value);
          }
          pci.writeBar(bar, offset, width, value);
          if (offset === CC) this.#enabled = value & 1;
        },
        reset: () => client.reset(),
        close: () => {},
      },
      ram.memory,
      { settle: () => this.#wait() } as unknown as ManualLoop,
    );
    driver.enable();
  }

  /** Sets up again what a reset of the device takes away. */
  setUpPci(): void {
    this.pci.setEnabled(true);
    if (this.#vectors > 0) this.lines = this.pci.enableMsix(this.#vectors);
  }

  /** Waits until something is so. */
  until(isSo: () => boolean, what: string): void {
    const deadline = performance.now() + WAIT_MS;
    while (!isSo()) {
      assert(performance.now() < deadline, `${what}: not within ${WAIT_MS} ms`);
    }
  }

  /** Until CSTS.RDY follows CC.EN, and until the admin commands that were told of are completed. */
  #wait(): void {
    const { driver } = this;
    const enabled = this.#enabled;
    if (enabled !== null) {
      // CC reads as before while what is written to it waits for requests in flight.
      this.until(() => (driver.read(CSTS) & 1) === enabled, "CSTS.RDY");
      this.#enabled = null;
      return;
    }
    const { admin } = driver;
    if (admin.sqTail === admin.cqHead) return;
    const at = driver.ram.offset(admin.cq) + admin.cqHead * 16 + 12;
    const words = new Uint32Array(driver.ram.bytes.buffer);
    this.until(
      () => (Atomics.load(words, at / 4) >>> 16 & 1) === admin.phase,
      "an admin command",
    );
  }
}
