/**
 * Time a bench measures: everything is stated at full length and scaled in one place.
 *
 * @module
 */

/** Settings of every suite. */
export interface BenchSettings {
  /** Factor of durations and counts: 1 is for figures, 0.1 is for seeing that a suite works. */
  readonly scale: number;
}

/** Full length. */
export const FULL: BenchSettings = { scale: 1 };

/** A duration in seconds, scaled. */
export function seconds(settings: BenchSettings, full: number): number {
  return full * settings.scale;
}

/** A number of repetitions, scaled; at least `least`. */
export function count(
  settings: BenchSettings,
  full: number,
  least = 1,
): number {
  return Math.max(least, Math.round(full * settings.scale));
}
