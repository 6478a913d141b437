import type { CommandAnswer, DeviceCommand } from "../../src/pci/device.ts";

/** Text of an answer for people. */
export function textOfAnswer(answer: string | CommandAnswer): string {
  return typeof answer === "string" ? answer : answer.text;
}

/** Text of a command's answer for people, which is to be there at once. */
export function textOf(
  command: DeviceCommand | undefined,
  ...args: string[]
): string {
  const answer = command!.run(args);
  if (typeof answer !== "function") return textOfAnswer(answer);
  const told: (string | CommandAnswer | Error)[] = [];
  answer((outcome) => told.push(outcome));
  const [outcome = new Error("no answer yet")] = told;
  if (outcome instanceof Error) throw outcome;
  return textOfAnswer(outcome);
}
