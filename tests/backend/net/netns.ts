/**
 * A network namespace of this thread's own, and what the tests of the TAP ask the kernel in it.
 *
 * @module
 */

import { check, Fd, openFd, SyscallError } from "../../../src/os/mod.ts";
import { lastErrno, libc } from "../../../src/os/symbols.ts";
import { type NamespaceTest, namespaceTests } from "../../namespaces.ts";
import { ip } from "./frames.ts";

const CLONE_NEWNET = 0x4000_0000;
const SIOCSIFADDR = 0x8916;
const SIOCSIFNETMASK = 0x891c;
const SIOCGIFFLAGS = 0x8913;
const SIOCSIFFLAGS = 0x8914;
const SIOCGIFMTU = 0x8921;
const SIOCGIFINDEX = 0x8933;
const AF_INET = 2;

const namespaces = {
  unshare: { parameters: ["i32"], result: "i32" },
  setns: { parameters: ["i32", "i32"], result: "i32" },
} as const;

/** Away from the host's interfaces until it is closed; everything made inside goes with it. */
export class NetworkNamespace implements Disposable {
  readonly #library = Deno.dlopen("libc.so.6", namespaces);
  readonly #home: Fd;
  readonly #socket: Fd;

  /** @throws {SyscallError} EPERM without CAP_SYS_ADMIN */
  constructor() {
    this.#home = openFd("/proc/thread-self/ns/net", 0);
    const { unshare } = this.#library.symbols;
    if (unshare(CLONE_NEWNET) < 0) {
      const errno = lastErrno();
      this.#home.close();
      this.#library.close();
      throw new SyscallError("unshare", errno);
    }
    this.#socket = new Fd(check(libc.socket(AF_INET, 2, 0), "socket"));
  }

  /** Gives the host's side of an interface an address of a /24 network. */
  setAddress(ifname: string, address: string): void {
    const sockaddr = (quad: string) => [AF_INET, 0, 0, 0, ...ip(quad)];
    this.#ioctl(SIOCSIFADDR, ifname, sockaddr(address));
    this.#ioctl(SIOCSIFNETMASK, ifname, sockaddr("255.255.255.0"));
  }

  exists(ifname: string): boolean {
    try {
      this.flags(ifname);
      return true;
    } catch (error) {
      if (error instanceof SyscallError) return false;
      throw error;
    }
  }

  flags(ifname: string): number {
    return this.#ioctl(SIOCGIFFLAGS, ifname).getUint16(16, true);
  }

  isUp(ifname: string): boolean {
    return (this.flags(ifname) & 1) !== 0;
  }

  setUp(ifname: string, up: boolean): void {
    const flags = this.flags(ifname) & ~1 | (up ? 1 : 0);
    this.#ioctl(SIOCSIFFLAGS, ifname, [flags & 255, flags >>> 8]);
  }

  mtu(ifname: string): number {
    return this.#ioctl(SIOCGIFMTU, ifname).getInt32(16, true);
  }

  /** Deletes an interface, as `ip link delete` does. */
  delete(ifname: string): void {
    const index = this.#ioctl(SIOCGIFINDEX, ifname).getInt32(16, true);
    // struct nlmsghdr { u32 len; u16 type, flags; u32 seq, pid } and struct ifinfomsg { …; int index at 4; … }
    const message = new DataView(new ArrayBuffer(32));
    message.setUint32(0, 32, true);
    message.setUint16(4, 17, true); // RTM_DELLINK
    message.setUint16(6, 1, true); // NLM_F_REQUEST
    message.setInt32(20, index, true);
    const AF_NETLINK = 16;
    const SOCK_RAW = 3;
    using netlink = new Fd(
      check(libc.socket(AF_NETLINK, SOCK_RAW, 0), "socket"),
    );
    const pointer = Deno.UnsafePointer.of(message);
    // The kernel has done it when this returns.
    check(libc.write(netlink.number, pointer, 32), "write");
  }

  /** Back to where the thread was. */
  [Symbol.dispose](): void {
    this.#socket.close();
    check(this.#library.symbols.setns(this.#home.number, 0), "setns");
    this.#home.close();
    this.#library.close();
  }

  #ioctl(request: number, ifname: string, data: number[] = []): DataView {
    const ifreq = new Uint8Array(40);
    new TextEncoder().encodeInto(ifname, ifreq);
    ifreq.set(data, 16);
    check(libc.ioctl(this.#socket.number, request, ifreq), "ioctl");
    return new DataView(ifreq.buffer);
  }
}

/** Gives the function that registers tests of a file that make TAPs; their names say so. */
export function tapTests(url: string): NamespaceTest {
  return namespaceTests({
    url,
    names: /TAP|Tap/,
    namespaces: ["--net"],
    why: whyNoTap(),
    probe: "exec 3<> /dev/net/tun",
  });
}

/** Reason why TAPs cannot be made by this process, or null. */
function whyNoTap(): string | null {
  try {
    using _namespace = new NetworkNamespace();
    openFd("/dev/net/tun", 2).close();
    return null;
  } catch (error) {
    if (error instanceof SyscallError) return error.message;
    throw error;
  }
}
