/**
 * The C library as TypeScript: the only place that calls out of JavaScript.
 *
 * @module
 */

export * from "./epoll.ts";
export * from "./errors.ts";
export * from "./eventfd.ts";
export * from "./fd.ts";
export * from "./mapping.ts";
export * from "./poll.ts";
export * from "./socket.ts";
export * from "./tap.ts";
