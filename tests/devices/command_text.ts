import type { DeviceCommand } from "../../src/pci/device.ts";

/** What a command tells people. */
export function textOf(
  command: DeviceCommand | undefined,
  ...args: string[]
): string {
  const answer = command!.run(args);
  return typeof answer === "string" ? answer : answer.text;
}
