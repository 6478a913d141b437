/**
 * Nonblocking IPv4 sockets of the host on loopback, driven from the test's own thread.
 *
 * @module
 */

import { Errno } from "../../../src/core/errno.ts";
import { check, Fd, NativeBuffer } from "../../../src/os/mod.ts";
import { lastErrno, libc } from "../../../src/os/symbols.ts";
import { unusedPort } from "../../ports.ts";

const AF_INET = 2;
const NONBLOCK_CLOEXEC = 0o4000 | 0o2000000;
/** SOCK_STREAM and SOCK_DGRAM. */
export const STREAM = 1, DGRAM = 2;

function loopback(port: number): Uint8Array<ArrayBuffer> {
  const address = new Uint8Array(16);
  const view = new DataView(address.buffer);
  view.setUint16(0, AF_INET, true);
  view.setUint16(2, port, false);
  view.setUint32(4, 0x7f00_0001, false);
  return address;
}

/** A socket that never blocks. */
export class HostSocket implements Disposable {
  readonly fd: Fd;
  readonly #buffer = new NativeBuffer(65536);

  constructor(fd: Fd) {
    this.fd = fd;
  }

  /** A fresh socket. */
  static open(type: number): HostSocket {
    return new HostSocket(
      new Fd(check(libc.socket(AF_INET, type | NONBLOCK_CLOEXEC, 0), "socket")),
    );
  }

  /** Bound to a free port of 127.0.0.1, and listening if it is a stream. */
  static bound(type: number): HostSocket {
    const socket = HostSocket.open(type);
    check(libc.bind(socket.fd.number, loopback(0), 16), "bind");
    if (type === STREAM) check(libc.listen(socket.fd.number, 4), "listen");
    return socket;
  }

  /** Connecting, at least. */
  static connect(type: number, port: number): HostSocket {
    const socket = HostSocket.open(type);
    const result = libc.connect(socket.fd.number, loopback(port), 16);
    if (result < 0 && lastErrno() !== Errno.EINPROGRESS) {
      check(result, "connect");
    }
    return socket;
  }

  /** A port nobody uses at the moment, and that the kernel gives to nobody who does not ask for it. */
  static freePort(type: number): number {
    for (;;) {
      const port = unusedPort();
      using socket = HostSocket.open(type);
      if (libc.bind(socket.fd.number, loopback(port), 16) === 0) return port;
      if (lastErrno() !== Errno.EADDRINUSE) check(-1, "bind");
    }
  }

  get port(): number {
    const address = new Uint8Array(16);
    const length = new Uint8Array(Uint32Array.of(16).buffer);
    check(libc.getsockname(this.fd.number, address, length), "getsockname");
    return new DataView(address.buffer).getUint16(2, false);
  }

  /** An accepted connection, or null. */
  accept(): HostSocket | null {
    const fd = libc.accept4(this.fd.number, 0, 0, NONBLOCK_CLOEXEC);
    return fd < 0 ? null : new HostSocket(new Fd(fd));
  }

  /** Sends what there is room for; returns how much. */
  write(data: Uint8Array): number {
    const part = data.subarray(0, this.#buffer.lengthBytes);
    this.#buffer.bytes.set(part);
    const fd = this.fd.number;
    const n = libc.write(fd, this.#buffer.pointer(), part.length);
    if (n < 0 && lastErrno() !== Errno.EAGAIN) check(n, "write");
    return Math.max(n, 0);
  }

  /** Bytes that have come; empty at the end of the stream, null when there is nothing yet. */
  read(): Uint8Array | null {
    const fd = this.fd.number;
    const n = libc.read(fd, this.#buffer.pointer(), this.#buffer.lengthBytes);
    if (n < 0 && lastErrno() === Errno.EAGAIN) return null;
    check(n, "read");
    return this.#buffer.bytes.slice(0, n);
  }

  /** Ends our side of the stream. */
  shutdown(): void {
    check(libc.shutdown(this.fd.number, 1), "shutdown");
  }

  close(): void {
    this.fd.close();
    this.#buffer.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
