/**
 * Outboard's control socket, one line at a time.
 *
 * @module
 */

/**
 * Says one line to a control socket.
 *
 * @returns The lines of the answer
 * @throws {Error} When the answer is an error
 */
export async function controlLine(
  path: string,
  line: string,
): Promise<string[]> {
  using conn = await Deno.connect({ transport: "unix", path });
  await conn.write(new TextEncoder().encode(`${line}\n`));
  await conn.closeWrite();
  let text = "";
  const decoder = new TextDecoder();
  const chunk = new Uint8Array(4096);
  for (let n; (n = await conn.read(chunk)) !== null;) {
    text += decoder.decode(chunk.subarray(0, n), { stream: true });
  }
  const lines = text.trimEnd().split("\n");
  const status = lines.pop();
  if (status !== "ok") throw new Error(status);
  return lines;
}

/** The answer to `counters ID` as numbers by name. */
export function countersOf(lines: readonly string[]): Record<string, number> {
  return Object.fromEntries(lines.map((line) => {
    const [, name, value] = line.split(" ");
    return [name!, Number(value)];
  }));
}
