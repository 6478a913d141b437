/**
 * Errors on the main thread that nobody catches: a model's file runs on it too.
 *
 * @module
 */

import { modelFault } from "../core/model_fault.ts";
import { createLog } from "../runtime/logging/logging.ts";
import { UsageError } from "./usage_error.ts";

/**
 * Takes errors that nobody catches, and rejections, from its making until it is disposed of; the runtime then does not
 * end the process. A model's is a line in the log once devices are served, and ends nothing. Any other fails the run.
 */
export class UncaughtErrors implements Disposable {
  readonly #failed = Promise.withResolvers<never>();
  /** True if devices are served. */
  serving = false;

  /** Takes errors from here on. */
  constructor() {
    // Whoever may fail races this.
    this.failed.catch(() => {});
    addEventListener("error", this.#onError);
    addEventListener("unhandledrejection", this.#onRejection);
  }

  /** Rejects with the error that fails the run: a {@linkcode UsageError} for a model's. */
  get failed(): Promise<never> {
    return this.#failed.promise;
  }

  readonly #onError = (event: ErrorEvent): void => {
    event.preventDefault();
    this.#take(event.error);
  };

  readonly #onRejection = (event: PromiseRejectionEvent): void => {
    event.preventDefault();
    this.#take(event.reason);
  };

  #take(error: unknown): void {
    const fault = modelFault(error);
    if (fault !== null) {
      if (this.serving) createLog().error(fault);
      else this.#failed.reject(new UsageError(fault, { cause: error }));
      return;
    }
    const stack = (error as Error).stack ?? String(error);
    this.#failed.reject(
      new Error(`internal error: ${stack.replaceAll(/\s*\n\s*/g, " ")}`, {
        cause: error,
      }),
    );
  }

  [Symbol.dispose](): void {
    removeEventListener("error", this.#onError);
    removeEventListener("unhandledrejection", this.#onRejection);
  }
}
