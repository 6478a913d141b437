/**
 * The C library as TypeScript: the only place that calls out of JavaScript.
 *
 * @module
 */

export * from "./affinity.ts";
export * from "./clock.ts";
export * from "./epoll.ts";
export * from "./errors.ts";
export * from "./eventfd.ts";
export * from "./fd.ts";
export * from "./file_io.ts";
export * from "./groups.ts";
export * from "./inet.ts";
export * from "./inet_socket.ts";
export * from "./io_uring.ts";
export * from "./mapping.ts";
export * from "./poll.ts";
export * from "./process.ts";
export * from "./seccomp.ts";
export * from "./socket.ts";
export * from "./tap.ts";
