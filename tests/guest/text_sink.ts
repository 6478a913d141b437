/**
 * Text that a stream brings in over time, to be looked at and waited for.
 *
 * @module
 */

/** Text that comes in over time. */
export class TextSink {
  /** Resolves when there is no more to come. */
  drained: Promise<void> = Promise.resolve();
  #text = "";
  #failed: Error | undefined;
  #waiters: {
    readonly attempt: () => RegExpExecArray | null;
    readonly result: PromiseWithResolvers<RegExpExecArray>;
  }[] = [];

  /** Text that has come so far. */
  get text(): string {
    return this.#text;
  }

  /** Takes over a stream; resolves at its end. */
  drain(stream: ReadableStream<Uint8Array<ArrayBuffer>>): Promise<void> {
    return this.drained = this.#drain(stream);
  }

  /** Resolves when the whole lines of the text from `from` on match: a line that is still coming could match in part. */
  match(pattern: RegExp, from: number): Promise<RegExpExecArray> {
    const attempt = () => {
      const end = this.#text.lastIndexOf("\n") + 1;
      return pattern.exec(this.#text.slice(from, Math.max(from, end)));
    };
    const match = attempt();
    if (match !== null) return Promise.resolve(match);
    if (this.#failed !== undefined) return Promise.reject(this.#failed);
    const result = Promise.withResolvers<RegExpExecArray>();
    this.#waiters.push({ attempt, result });
    return result.promise;
  }

  /** Rejects what is waited for, now and from now on. */
  fail(error: Error): void {
    this.#failed ??= error;
    for (const { result } of this.#waiters) result.reject(error);
    this.#waiters = [];
  }

  async #drain(stream: ReadableStream<Uint8Array<ArrayBuffer>>) {
    const decoder = new TextDecoder();
    try {
      for await (const chunk of stream) {
        this.#text += decoder.decode(chunk, { stream: true });
        this.#waiters = this.#waiters.filter(({ attempt, result }) => {
          const match = attempt();
          if (match !== null) result.resolve(match);
          return match === null;
        });
      }
    } catch {
      // The other end has gone: what has come is all there is.
    }
  }
}
