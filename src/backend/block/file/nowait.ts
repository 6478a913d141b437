/**
 * Whether it pays to try an access that must not wait.
 *
 * @module
 */

/** Misses in a row that are put up with: a failed try costs 1 µs, a good one saves 30 µs. */
const PATIENCE = 8;
const SKIP_MAX = 1024;

/**
 * Remembers how tries ended. After eight misses in a row the next ones are left out, more and more up to 1024; a hit
 * forgives everything.
 */
export class NowaitPredictor {
  #supported = true;
  #misses = 0;
  #skip = 0;
  #penalty = 0;

  /** Whether to try now. */
  shouldTry(): boolean {
    if (!this.#supported) return false;
    if (this.#skip === 0) return true;
    this.#skip--;
    return false;
  }

  /** The try was served. */
  hit(): void {
    this.#misses = 0;
    this.#penalty = 0;
  }

  /** The try would have waited. */
  miss(): void {
    if (++this.#misses < PATIENCE) return;
    this.#penalty = Math.min(this.#penalty * 2 + 1, SKIP_MAX);
    this.#skip = this.#penalty;
  }

  /** The file system cannot do that: no more tries. */
  giveUp(): void {
    this.#supported = false;
  }
}

/** A write into the page cache takes microseconds: this long says that the kernel made it wait. */
const STALL_US = 1000;
const STALL_SKIP_MIN = 256;
const STALL_SKIP_MAX = 65_536;
const FORGIVING_WRITES = 1024;

/**
 * Keeps writes that cannot be told not to wait (ext4 has no RWF_NOWAIT for them) from waiting often. They go to the page
 * cache at once while that is quick; after one that the kernel held up, as it does with too many dirty pages, the next
 * 256 do not, and after further ones more, up to 65,536.
 */
export class StallGuard {
  #skip = 0;
  #penalty = 0;
  #quick = 0;

  /** Whether to write at once. */
  shouldTry(): boolean {
    if (this.#skip === 0) return true;
    this.#skip--;
    return false;
  }

  /**
   * Tells how long a write took.
   *
   * @param elapsedUs In microseconds
   * @returns Whether it was held up
   */
  took(elapsedUs: number): boolean {
    if (elapsedUs < STALL_US) {
      if (++this.#quick < FORGIVING_WRITES) return false;
      this.#quick = 0;
      this.#penalty >>>= 1;
      return false;
    }
    this.#quick = 0;
    this.#penalty = Math.min(
      Math.max(this.#penalty * 4, STALL_SKIP_MIN),
      STALL_SKIP_MAX,
    );
    this.#skip = this.#penalty;
    return true;
  }
}
