/**
 * The C library as TypeScript: the only place that calls out of JavaScript.
 *
 * @module
 */

export * from "./resource_bag.ts";
export * from "./affinity.ts";
export * from "./clock.ts";
export * from "./wait/epoll.ts";
export * from "./errors.ts";
export * from "./wait/eventfd.ts";
export * from "./fd.ts";
export * from "./file_io.ts";
export * from "./groups.ts";
export * from "./socket/inet.ts";
export * from "./wait/io_uring.ts";
export * from "./mapping.ts";
export * from "./wait/poll.ts";
export * from "./process.ts";
export * from "./seccomp.ts";
export * from "./socket/saved.ts";
export * from "./socket/socket.ts";
export * from "./tap.ts";
