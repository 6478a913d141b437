/**
 * Confinement of the program that runs libslirp: rights that it gives up once it is set up, whoever takes it over.
 *
 * @module
 */

import {
  type AllowedCalls,
  limitResource,
  Resource,
  restrictSystemCalls,
} from "../../../os/mod.ts";
import { DESCRIPTORS_MAX } from "./poll.ts";

/** Connections to the Internet, files to read, and what a runtime needs to go on. */
const ALLOWED: AllowedCalls = {
  domains: ["inet", "inet6"],
  opens: "to read",
  // deno-fmt-ignore
  calls: [
    "read", "write", "readv", "writev", "pread64", "close", "lseek", "fcntl", "dup", "dup3", "pipe2", "ioctl",
    "fstat", "newfstatat", "statx", "stat", "lstat", "access", "faccessat", "faccessat2", "readlink", "readlinkat", "getcwd",
    "mmap", "munmap", "mprotect", "mremap", "madvise", "brk", "membarrier",
    "futex", "sched_yield", "sched_getaffinity", "sched_getparam", "sched_getscheduler", "set_robust_list", "rseq", "getcpu",
    "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "restart_syscall", "exit", "exit_group",
    "getpid", "gettid", "getuid", "geteuid", "getgid", "getegid", "uname", "sysinfo", "getrusage", "prctl",
    "clock_gettime", "clock_getres", "clock_nanosleep", "nanosleep", "gettimeofday", "time", "getrandom",
    "poll", "ppoll", "select", "pselect6", "epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait", "epoll_pwait2",
    "eventfd2", "timerfd_create", "timerfd_settime",
    "socketpair", "bind", "connect", "listen", "accept", "accept4", "shutdown", "getsockname", "getpeername", "getsockopt", "setsockopt",
    "sendto", "recvfrom", "sendmsg", "recvmsg", "sendmmsg", "recvmmsg",
  ],
};

/** Gives up what is not needed, for good. */
export function confine(): void {
  limitResource(Resource.NOFILE, DESCRIPTORS_MAX);
  // It writes no file, be it of its memory when it fails.
  limitResource(Resource.FSIZE, 0);
  limitResource(Resource.CORE, 0);
  restrictSystemCalls(ALLOWED);
}
