/**
 * Which features a driver is offered and which it accepts (virtio 1.3, section 2.2).
 *
 * @module
 */

import type { Log } from "../../core/log.ts";
import type { VirtioDevice } from "../device.ts";
import { Features, VIRTIO_F } from "../features.ts";
import type { SessionState } from "./state.ts";

const NONE = new Features(0, 0);

/** Offer and choice of one device. */
export class Negotiation {
  /** What the driver may choose from. */
  readonly offered: Features;
  readonly #device: VirtioDevice;
  readonly #log: Log;
  #accepted = NONE;
  #acceptedBeyond = false;

  /** @param device Has the last word on a choice */
  constructor(device: VirtioDevice, offered: Features, log: Log) {
    this.#device = device;
    this.#log = log;
    this.offered = offered;
  }

  /** What the driver has accepted by now. */
  get accepted(): Features {
    return this.#accepted;
  }

  /** The driver replaces word `select` of what it accepts. */
  accept(select: number, word: number): void {
    const old = this.#accepted;
    if (select === 0) this.#accepted = new Features(word, old.word(1));
    else if (select === 1) this.#accepted = new Features(old.word(0), word);
    // There are no features above 63: accepting one makes FEATURES_OK fail.
    else if (word !== 0) this.#acceptedBeyond = true;
  }

  /** Whether the device can work with what is accepted. */
  check(): boolean {
    const { offered } = this;
    const accepted = this.#accepted;
    const good = !this.#acceptedBeyond && accepted.isSubsetOf(offered) &&
      accepted.has(VIRTIO_F.VERSION_1) &&
      (this.#device.acceptsFeatures?.(accepted) ?? true);
    if (!good) {
      this.#log.debug(
        `Refused FEATURES_OK: the driver accepts ${accepted} of ${offered}`,
      );
    }
    return good;
  }

  /** Nothing is accepted any more. */
  reset(): void {
    this.#accepted = NONE;
    this.#acceptedBeyond = false;
  }

  /** What the driver has accepted. */
  save(): Pick<SessionState, "accepted" | "acceptedBeyond"> {
    const { accepted } = this;
    return {
      accepted: [accepted.word(0), accepted.word(1)],
      acceptedBeyond: this.#acceptedBeyond,
    };
  }

  /** Takes over what {@linkcode save} gave; {@linkcode check} may then fail. */
  load(state: Pick<SessionState, "accepted" | "acceptedBeyond">): void {
    this.#accepted = new Features(state.accepted[0]!, state.accepted[1]!);
    this.#acceptedBeyond = state.acceptedBeyond;
  }
}
