/**
 * Processors under emulation, as every guest has them here.
 *
 * @module
 */

/**
 * QEMU's arguments for so many processors under TCG, and room for a second one.
 *
 * Where a machine can never have a second processor, TCG leaves out what makes an instruction atomic, and with that the
 * guest's memory barriers: Linux' is a `lock addl` on the stack, which becomes a plain load, addition and store. A
 * driver's store of its ring index may then pass its load of the device's event index, and a notification that the
 * device waits for is never sent, to whoever looks at the ring on another thread: QEMU's own devices as well as ours.
 */
export function tcgArguments(cpus = 1): string[] {
  const smp = `${cpus},maxcpus=${Math.max(cpus, 2)}`;
  return ["-accel", "tcg", "-smp", smp];
}
