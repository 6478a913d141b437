import type { DeviceCommand } from "../../src/pci/device.ts";

/** Text of a command's answer for people. */
export function textOf(
  command: DeviceCommand | undefined,
  ...args: string[]
): string {
  const answer = command!.run(args);
  return typeof answer === "string" ? answer : answer.text;
}
