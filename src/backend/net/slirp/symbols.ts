/**
 * libslirp as C declares it (libslirp.h of 4.7.0): functions, structures, constants.
 *
 * The structures are those of LP64 with natural alignment, which x86_64 and aarch64 share.
 *
 * @module
 */

import type { WithNumbers } from "../../../os/symbols.ts";

/** The version of `struct SlirpConfig` that is filled in; later libraries take it too. */
export const SLIRP_CONFIG_VERSION = 4;

/** Bits of what is polled for. */
export const SLIRP_POLL = {
  IN: 1 << 0,
  OUT: 1 << 1,
  PRI: 1 << 2,
  ERR: 1 << 3,
  HUP: 1 << 4,
} as const;

/** The longest IP packet libslirp is willing to send (IF_MTU_MAX). */
export const IF_MTU_MAX = 65521;
/** The shortest (IF_MTU_MIN). */
export const IF_MTU_MIN = 68;

/**
 * struct SlirpConfig, version 4. IPv4 addresses (struct in_addr) are four bytes in network order, IPv6 ones sixteen;
 * `bool` is a byte, `int` four, pointers and `size_t` eight.
 */
export const SLIRP_CONFIG = {
  VERSION: 0,
  RESTRICTED: 4,
  IN_ENABLED: 8,
  VNETWORK: 12,
  VNETMASK: 16,
  VHOST: 20,
  IN6_ENABLED: 24,
  VPREFIX_ADDR6: 28,
  VPREFIX_LEN: 44,
  VHOST6: 48,
  VHOSTNAME: 64,
  TFTP_SERVER_NAME: 72,
  TFTP_PATH: 80,
  BOOTFILE: 88,
  VDHCP_START: 96,
  VNAMESERVER: 100,
  VNAMESERVER6: 104,
  VDNSSEARCH: 120,
  VDOMAINNAME: 128,
  IF_MTU: 136,
  IF_MRU: 144,
  DISABLE_HOST_LOOPBACK: 152,
  ENABLE_EMU: 153,
  OUTBOUND_ADDR: 160,
  OUTBOUND_ADDR6: 168,
  DISABLE_DNS: 176,
  DISABLE_DHCP: 177,
  SIZE: 184,
} as const;

/** struct SlirpCb: function pointers. */
export const SLIRP_CB = {
  SEND_PACKET: 0,
  GUEST_ERROR: 8,
  CLOCK_GET_NS: 16,
  TIMER_NEW: 24,
  TIMER_FREE: 32,
  TIMER_MOD: 40,
  REGISTER_POLL_FD: 48,
  UNREGISTER_POLL_FD: 56,
  NOTIFY: 64,
  INIT_COMPLETED: 72,
  TIMER_NEW_OPAQUE: 80,
  SIZE: 88,
} as const;

// What calls back into JavaScript does so before it returns. All pointers are made once: a call of a function that is
// not a constant of its module would allocate a bigint for a computed address.
// deno-fmt-ignore
const TABLE = {
  // Slirp *slirp_new(const SlirpConfig *cfg, const SlirpCb *callbacks, void *opaque)
  slirp_new: { parameters: ["pointer", "pointer", "pointer"], result: "pointer" },
  // void slirp_cleanup(Slirp *slirp)
  slirp_cleanup: { parameters: ["pointer"], result: "void" },
  // void slirp_pollfds_fill(Slirp *slirp, uint32_t *timeout, SlirpAddPollCb add_poll, void *opaque)
  slirp_pollfds_fill: { parameters: ["pointer", "pointer", "pointer", "pointer"], result: "void" },
  // void slirp_pollfds_poll(Slirp *slirp, int select_error, SlirpGetREventsCb get_revents, void *opaque)
  slirp_pollfds_poll: { parameters: ["pointer", "i32", "pointer", "pointer"], result: "void" },
  // void slirp_input(Slirp *slirp, const uint8_t *pkt, int pkt_len)
  slirp_input: { parameters: ["usize", "usize", "i32"], result: "void" },
  // void slirp_handle_timer(Slirp *slirp, SlirpTimerId id, void *cb_opaque)
  slirp_handle_timer: { parameters: ["pointer", "i32", "pointer"], result: "void" },
  // int slirp_add_hostfwd(Slirp *slirp, int is_udp, struct in_addr host_addr, int host_port,
  //                       struct in_addr guest_addr, int guest_port)
  // (a struct of one uint32_t is passed as that uint32_t by both calling conventions)
  slirp_add_hostfwd: { parameters: ["pointer", "i32", "u32", "i32", "u32", "i32"], result: "i32" },
} as const satisfies Deno.ForeignLibraryInterface;

const VERSION_TABLE = {
  // const char *slirp_version_string(void)
  slirp_version_string: { parameters: [], result: "pointer" },
} as const satisfies Deno.ForeignLibraryInterface;

/** libslirp's functions. */
export type SlirpSymbols = WithNumbers<
  Deno.StaticForeignLibraryInterface<typeof TABLE>
>;

/** An open libslirp. */
export interface Libslirp {
  /** Its functions; those that call back do so before they return, on this thread. */
  readonly symbols: SlirpSymbols;
  /** Its version, such as `4.7.0`. */
  readonly version: string;
  /** Closes the library; nothing of it may be in use. */
  close(): void;
}

/** Reason for there being no libslirp. */
export interface NoLibslirp {
  /** For people: "it is not installed" and the like. */
  readonly reason: string;
}

/** The library's name by its ABI. */
export const LIBSLIRP_SONAME = "libslirp.so.0";

/** True for `4.7.0` and the like, from 4.7 on. */
export function isSupportedVersion(version: string): boolean {
  const match = /^(\d+)\.(\d+)/.exec(version);
  if (match === null) return false;
  const [major, minor] = [Number(match[1]), Number(match[2])];
  return major > 4 || (major === 4 && minor >= 7);
}

function readVersion(library: string): string {
  const dynamic = Deno.dlopen(library, VERSION_TABLE);
  try {
    const text = dynamic.symbols.slirp_version_string();
    // SAFETY: a string constant of the library, read while it is open.
    return text === null ? "" : new Deno.UnsafePointerView(text).getCString();
  } finally {
    dynamic.close();
  }
}

/**
 * Opens libslirp for this thread.
 *
 * @param library File name, or the name the dynamic linker looks for
 * @returns The library, or why there is none
 */
export function openLibslirp(
  library: string = LIBSLIRP_SONAME,
): Libslirp | NoLibslirp {
  try {
    const version = readVersion(library);
    if (!isSupportedVersion(version)) {
      return { reason: `${library} is version ${version}, 4.7 is wanted` };
    }
    const dynamic = Deno.dlopen(library, TABLE);
    return {
      symbols: dynamic.symbols as never,
      version,
      close: () => dynamic.close(),
    };
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) throw error;
    const detail = error instanceof Error ? error.message : String(error);
    const why = detail.replace(/^(Could not open library: )+/, "");
    return { reason: `${library} cannot be loaded (${why})` };
  }
}
