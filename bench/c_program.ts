/**
 * Programs in C beside the benches: compiled when they are wanted, and talked to line by line.
 *
 * @module
 */

/**
 * Compiles `NAME.c` of this folder with `cc -O2`.
 *
 * @param into Where the program goes
 * @returns Its path, or null where there is no C compiler
 * @throws {Error} When it does not compile; what the compiler says is in the message
 */
export async function compileC(
  name: string,
  into: string,
): Promise<string | null> {
  const source = `${import.meta.dirname}/${name}.c`;
  const program = `${into}/${name}`;
  let result: Deno.CommandOutput;
  try {
    result = await new Deno.Command("cc", {
      args: ["-O2", "-std=gnu11", "-o", program, source],
    }).output();
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return null;
    throw error;
  }
  if (!result.success) {
    const said = new TextDecoder().decode(result.stderr);
    throw new Error(`Cannot compile ${source}: cc says\n${said}`);
  }
  return program;
}

/** A program that answers each line on its standard input with a line on its standard output. */
export class LineProgram implements AsyncDisposable {
  readonly #child: Deno.ChildProcess;
  readonly #input: WritableStreamDefaultWriter<Uint8Array>;
  readonly #output: ReadableStreamDefaultReader<string>;
  readonly #name: string;
  #rest = "";

  /** Starts it. */
  constructor(program: string, args: readonly string[]) {
    this.#name = program;
    this.#child = new Deno.Command(program, {
      args: [...args],
      stdin: "piped",
      stdout: "piped",
      stderr: "inherit",
    }).spawn();
    this.#input = this.#child.stdin.getWriter();
    this.#output = this.#child.stdout.pipeThrough(new TextDecoderStream())
      .getReader();
  }

  /** Its process id. */
  get pid(): number {
    return this.#child.pid;
  }

  /**
   * The next line it prints, without its end.
   *
   * @throws {Error} When it ends instead
   */
  async line(): Promise<string> {
    for (;;) {
      const end = this.#rest.indexOf("\n");
      if (end >= 0) {
        const line = this.#rest.slice(0, end);
        this.#rest = this.#rest.slice(end + 1);
        return line;
      }
      const { value, done } = await this.#output.read();
      if (done) throw new Error(`Cannot go on: ${this.#name} ended`);
      this.#rest += value;
    }
  }

  /** Sends a line and gives the numbers of the answer. */
  async ask(line: string): Promise<number[]> {
    await this.#input.write(new TextEncoder().encode(`${line}\n`));
    return (await this.line()).split(" ").map(Number);
  }

  /** Ends it. */
  async [Symbol.asyncDispose](): Promise<void> {
    try {
      this.#child.kill("SIGKILL");
    } catch {
      // It has ended already.
    }
    await this.#input.abort().catch(() => {});
    await this.#output.cancel().catch(() => {});
    await this.#child.status;
  }
}
