/**
 * seccomp(2): a process that gives up system calls.
 *
 * @module
 */

import { setU64 } from "../core/bits.ts";
import { Errno } from "../core/errno.ts";
import { check, SyscallError } from "./errors.ts";
import { NativeBuffer } from "./mapping.ts";
import { libc } from "./symbols.ts";

/** Numbers of system calls: on x86_64, and on aarch64 (−1 where it has none). */
// deno-fmt-ignore
const NUMBERS = {
  read: [0, 63], write: [1, 64], readv: [19, 65], writev: [20, 66], pread64: [17, 67], close: [3, 57], lseek: [8, 62],
  fcntl: [72, 25], dup: [32, 23], dup3: [292, 24], pipe2: [293, 59], ioctl: [16, 29],
  fstat: [5, 80], newfstatat: [262, 79], statx: [332, 291], stat: [4, -1], lstat: [6, -1], access: [21, -1],
  faccessat: [269, 48], faccessat2: [439, 439], readlink: [89, -1], readlinkat: [267, 78], getcwd: [79, 17],
  open: [2, -1], openat: [257, 56],
  mmap: [9, 222], munmap: [11, 215], mprotect: [10, 226], mremap: [25, 216], madvise: [28, 233], brk: [12, 214],
  membarrier: [324, 283],
  futex: [202, 98], sched_yield: [24, 124], sched_getaffinity: [204, 123], sched_getparam: [143, 121],
  sched_getscheduler: [145, 120], set_robust_list: [273, 99], rseq: [334, 293],
  getcpu: [309, 168], clone: [56, 220],
  rt_sigaction: [13, 134], rt_sigprocmask: [14, 135], rt_sigreturn: [15, 139], sigaltstack: [131, 132],
  restart_syscall: [219, 128], tgkill: [234, 131], exit: [60, 93], exit_group: [231, 94],
  getpid: [39, 172], gettid: [186, 178], getuid: [102, 174], geteuid: [107, 175], getgid: [104, 176], getegid: [108, 177],
  uname: [63, 160], sysinfo: [99, 179], getrusage: [98, 165], prlimit64: [302, 261], prctl: [157, 167],
  clock_gettime: [228, 113], clock_getres: [229, 114], clock_nanosleep: [230, 115], nanosleep: [35, 101],
  gettimeofday: [96, 169], time: [201, -1], getrandom: [318, 278],
  poll: [7, -1], ppoll: [271, 73], select: [23, -1], pselect6: [270, 72], epoll_create1: [291, 20], epoll_ctl: [233, 21],
  epoll_wait: [232, -1], epoll_pwait: [281, 22], epoll_pwait2: [441, 441], eventfd2: [290, 19],
  timerfd_create: [283, 85], timerfd_settime: [286, 86],
  socket: [41, 198], socketpair: [53, 199], bind: [49, 200], connect: [42, 203], listen: [50, 201], accept: [43, 202], accept4: [288, 242],
  shutdown: [48, 210], getsockname: [51, 204], getpeername: [52, 205], getsockopt: [55, 209], setsockopt: [54, 208],
  sendto: [44, 206], recvfrom: [45, 207], sendmsg: [46, 211], recvmsg: [47, 212], sendmmsg: [307, 269],
  recvmmsg: [299, 243],
} as const satisfies Record<string, readonly [number, number]>;

/** A system call that can be allowed whatever its arguments. */
export type SystemCall = Exclude<
  keyof typeof NUMBERS,
  "open" | "openat" | "socket" | "clone" | "tgkill" | "prlimit64"
>;

const DOMAINS = { unix: 1, inet: 2, inet6: 10 } as const;

/** System calls that a process goes on to need. */
export interface AllowedCalls {
  readonly calls: readonly SystemCall[];
  /** The families of sockets it may make. */
  readonly domains: readonly (keyof typeof DOMAINS)[];
  /** Files that are there may be opened to be read, and in no other way. */
  readonly opens: "to read";
}

const ARCH = Deno.build.arch === "x86_64" ? 0 : 1;
const AUDIT_ARCH = [0xc000_003e, 0xc000_00b7][ARCH]!;

// struct seccomp_data { int nr; __u32 arch; __u64 instruction_pointer; __u64 args[6]; }
const DATA = { NR: 0, ARCH: 4, ARGS: 16 } as const;

// Classic BPF: BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_JMP|BPF_JSET|BPF_K, BPF_RET|BPF_K.
const LD = 0x20;
const JEQ = 0x15;
const JSET = 0x45;
const RET = 0x06;

const KILL_PROCESS = 0x8000_0000;
const ALLOW = 0x7fff_0000;
/** The call fails with that error. */
const fails = (errno: number) => 0x0005_0000 | errno;

/** struct sock_filter { __u16 code; __u8 jt; __u8 jf; __u32 k; } */
type Instruction = readonly [code: number, jt: number, jf: number, k: number];

const number = (call: keyof typeof NUMBERS) => NUMBERS[call][ARCH]!;
const argument = (i: number) => DATA.ARGS + 8 * i;

/** If it is this call, goes by its low 32 bits of an argument: allowed when `test` jumps, and forbidden otherwise. */
function byArgument(
  call: keyof typeof NUMBERS,
  i: number,
  tests: readonly (readonly [code: number, k: number])[],
  found: number,
  otherwise: number,
): Instruction[] {
  if (number(call) < 0) return [];
  const n = tests.length;
  return [
    [JEQ, 0, n + 3, number(call)],
    [LD, 0, 0, argument(i)],
    ...tests.map(([code, k], at): Instruction => [code, n - at, 0, k]),
    [RET, 0, 0, otherwise],
    [RET, 0, 0, found],
  ];
}

function program(allowed: AllowedCalls): Instruction[] {
  const O_WRONLY = 1;
  const O_RDWR = 2;
  const O_CREAT = 0o100;
  const O_TRUNC = 0o1000;
  const O_TMPFILE = 0o20_000_000;
  const writing = O_WRONLY | O_RDWR | O_CREAT | O_TRUNC | O_TMPFILE;
  const CLONE_THREAD = 0x1_0000;
  const denied = fails(Errno.EACCES);
  const forbidden = fails(Errno.EPERM);
  return [
    [LD, 0, 0, DATA.ARCH],
    [JEQ, 1, 0, AUDIT_ARCH],
    [RET, 0, 0, KILL_PROCESS],
    [LD, 0, 0, DATA.NR],
    ...allowed.calls.filter((call) => number(call) >= 0).flatMap(
      (call): Instruction[] => [
        [JEQ, 0, 1, number(call)],
        [RET, 0, 0, ALLOW],
      ],
    ),
    ...byArgument("openat", 2, [[JSET, writing]], denied, ALLOW),
    ...byArgument("open", 1, [[JSET, writing]], denied, ALLOW),
    ...byArgument(
      "socket",
      0,
      allowed.domains.map((domain) => [JEQ, DOMAINS[domain]]),
      ALLOW,
      denied,
    ),
    // Threads of its own; itself to be told of, as abort(3) does.
    ...byArgument("clone", 0, [[JSET, CLONE_THREAD]], ALLOW, forbidden),
    ...byArgument("tgkill", 0, [[JEQ, Deno.pid]], ALLOW, forbidden),
    ...byArgument("prlimit64", 0, [[JEQ, 0]], ALLOW, forbidden),
    // As of a kernel that does not have it: who has another way then takes that.
    [RET, 0, 0, fails(Errno.ENOSYS)],
  ];
}

/**
 * Gives up, in all threads and for good, every system call that is not allowed.
 *
 * @throws {SyscallError} EINVAL or ENOSYS on a kernel without seccomp filters
 */
export function restrictSystemCalls(allowed: AllowedCalls): void {
  const PR_SET_NO_NEW_PRIVS = 38;
  const SYS_SECCOMP = [317, 277][ARCH]!;
  const SECCOMP_SET_MODE_FILTER = 1;
  const SECCOMP_FILTER_FLAG_TSYNC = 1;
  const instructions = program(allowed);
  // struct sock_fprog { unsigned short len; struct sock_filter *filter; }
  const FILTER_AT = 16;
  using memory = new NativeBuffer(FILTER_AT + instructions.length * 8);
  const { view } = memory;
  view.setUint16(0, instructions.length, true);
  setU64(view, 8, memory.hva + FILTER_AT);
  instructions.forEach(([code, jt, jf, k], i) => {
    const at = FILTER_AT + i * 8;
    view.setUint16(at, code, true);
    view.setUint8(at + 2, jt);
    view.setUint8(at + 3, jf);
    view.setUint32(at + 4, k, true);
  });
  check(libc.prctl_value(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl");
  const thread = check(
    libc.seccomp(
      SYS_SECCOMP,
      SECCOMP_SET_MODE_FILTER,
      SECCOMP_FILTER_FLAG_TSYNC,
      memory.pointer(),
    ),
    "seccomp",
  );
  // One that goes by another filter already.
  if (thread > 0) throw new SyscallError("seccomp", Errno.EBUSY);
}
