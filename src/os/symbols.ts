/**
 * The one FFI table: every C function Outboard calls, with its prototype.
 *
 * Conventions of the table:
 * - An address that is known beforehand is a `pointer`, made once: 7 ns a call.
 * - A computed address or length is a `usize`. Control paths pass a Number. A data path passes a bigint that it loads
 *   from a BigUint64Array (see {@linkcode Words}), which the compiler turns into a plain load: 25 ns and no
 *   allocation, where a Number makes optimised code bail out on every call: 210 ns.
 * - A call that mixes `pointer` and 64-bit integers boxes the integers (40 bytes a call); on data paths that count, give
 *   the address as `usize` too, from the same Words. Mixing with `i32` costs nothing.
 * - `ssize_t` results are taken as `i32`: every length passed is below 2 GiB, so the low half is the value.
 * - A variadic function appears once per shape it is called with, under a name of its own.
 *
 * @module
 */

// deno-fmt-ignore
const TABLE = {
  // int *__errno_location(void)
  __errno_location: { parameters: [], result: "pointer" },

  // ssize_t read(int fd, void *buf, size_t count)
  read: { parameters: ["i32", "pointer", "usize"], result: "i32" },
  // ssize_t write(int fd, const void *buf, size_t count)
  write: { parameters: ["i32", "pointer", "usize"], result: "i32" },
  // ssize_t readv(int fd, const struct iovec *iov, int iovcnt)
  readv: { parameters: ["i32", "pointer", "i32"], result: "i32" },
  // ssize_t writev(int fd, const struct iovec *iov, int iovcnt)
  writev: { parameters: ["i32", "pointer", "i32"], result: "i32" },
  // ssize_t preadv2(int fd, const struct iovec *iov, int iovcnt, off_t offset, int flags)
  preadv2: { parameters: ["i32", "usize", "i32", "i64", "i32"], result: "i32" },
  // ssize_t pwritev2(int fd, const struct iovec *iov, int iovcnt, off_t offset, int flags)
  pwritev2: { parameters: ["i32", "usize", "i32", "i64", "i32"], result: "i32" },
  // int fdatasync(int fd)
  fdatasync: { parameters: ["i32"], result: "i32" },
  // int fallocate(int fd, int mode, off_t offset, off_t len)
  fallocate: { parameters: ["i32", "i32", "i64", "i64"], result: "i32" },
  // int open(const char *path, int flags, mode_t mode)
  open: { parameters: ["buffer", "i32", "u32"], result: "i32" },
  // int close(int fd)
  close: { parameters: ["i32"], result: "i32" },
  // int dup3(int oldfd, int newfd, int flags)
  dup3: { parameters: ["i32", "i32", "i32"], result: "i32" },
  // int fcntl(int fd, int cmd, int arg)
  fcntl: { parameters: ["i32", "i32", "i32"], result: "i32" },
  // int fcntl(int fd, int cmd, struct flock *lock)
  fcntl_lock: { name: "fcntl", parameters: ["i32", "i32", "buffer"], result: "i32" },
  // int ftruncate(int fd, off_t length)
  ftruncate: { parameters: ["i32", "i64"], result: "i32" },
  // int statx(int dirfd, const char *path, int flags, unsigned mask, struct statx *buf)
  statx: { parameters: ["i32", "buffer", "i32", "u32", "buffer"], result: "i32" },
  // int fstatfs(int fd, struct statfs *buf)
  fstatfs: { parameters: ["i32", "buffer"], result: "i32" },
  // int unlink(const char *path)
  unlink: { parameters: ["buffer"], result: "i32" },
  // int sigaction(int signum, const struct sigaction *act, struct sigaction *oldact)
  sigaction: { parameters: ["i32", "pointer", "buffer"], result: "i32" },
  // struct group *getgrnam(const char *name)
  getgrnam: { parameters: ["buffer"], result: "pointer" },
  // mode_t umask(mode_t mask)
  umask: { parameters: ["u32"], result: "u32" },
  // int ioctl(int fd, unsigned long request, void *argp)
  ioctl: { parameters: ["i32", "usize", "buffer"], result: "i32" },
  // int ioctl(int fd, unsigned long request, unsigned long argument)
  ioctl_value: { name: "ioctl", parameters: ["i32", "usize", "usize"], result: "i32" },

  // void *mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
  mmap: { parameters: ["usize", "usize", "i32", "i32", "i32", "i64"], result: "pointer" },
  // int munmap(void *addr, size_t length)
  munmap: { parameters: ["usize", "usize"], result: "i32" },
  // int madvise(void *addr, size_t length, int advice)
  madvise: { parameters: ["usize", "usize", "i32"], result: "i32" },
  // int memfd_create(const char *name, unsigned flags)
  memfd_create: { parameters: ["buffer", "u32"], result: "i32" },
  // void *memcpy(void *dest, const void *src, size_t n)
  memcpy: { parameters: ["usize", "usize", "usize"], result: "void" },
  // void *memset(void *s, int c, size_t n)
  memset: { parameters: ["usize", "i32", "usize"], result: "void" },

  // int socket(int domain, int type, int protocol)
  socket: { parameters: ["i32", "i32", "i32"], result: "i32" },
  // int socketpair(int domain, int type, int protocol, int sv[2])
  socketpair: { parameters: ["i32", "i32", "i32", "buffer"], result: "i32" },
  // int bind(int fd, const struct sockaddr *addr, socklen_t len)
  bind: { parameters: ["i32", "buffer", "u32"], result: "i32" },
  // int listen(int fd, int backlog)
  listen: { parameters: ["i32", "i32"], result: "i32" },
  // int accept4(int fd, struct sockaddr *addr, socklen_t *len, int flags)
  accept4: { parameters: ["i32", "usize", "usize", "i32"], result: "i32" },
  // int connect(int fd, const struct sockaddr *addr, socklen_t len)
  connect: { parameters: ["i32", "buffer", "u32"], result: "i32" },
  // int getsockopt(int fd, int level, int name, void *value, socklen_t *len)
  getsockopt: { parameters: ["i32", "i32", "i32", "buffer", "buffer"], result: "i32" },
  // int setsockopt(int fd, int level, int name, const void *value, socklen_t len)
  setsockopt: { parameters: ["i32", "i32", "i32", "buffer", "u32"], result: "i32" },
  // int getsockname(int fd, struct sockaddr *addr, socklen_t *len)
  getsockname: { parameters: ["i32", "buffer", "buffer"], result: "i32" },
  // int shutdown(int fd, int how)
  shutdown: { parameters: ["i32", "i32"], result: "i32" },
  // ssize_t sendmsg(int fd, const struct msghdr *msg, int flags)
  sendmsg: { parameters: ["i32", "pointer", "i32"], result: "i32" },
  // ssize_t recvmsg(int fd, struct msghdr *msg, int flags)
  recvmsg: { parameters: ["i32", "pointer", "i32"], result: "i32" },

  // int pipe2(int pipefd[2], int flags)
  pipe2: { parameters: ["buffer", "i32"], result: "i32" },
  // int posix_spawn(pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions,
  //                 const posix_spawnattr_t *attr, char *const argv[], char *const envp[])
  posix_spawn: { parameters: ["pointer", "pointer", "pointer", "pointer", "pointer", "pointer"], result: "i32" },
  // int posix_spawn_file_actions_init(posix_spawn_file_actions_t *actions)
  posix_spawn_file_actions_init: { parameters: ["pointer"], result: "i32" },
  // int posix_spawn_file_actions_adddup2(posix_spawn_file_actions_t *actions, int fd, int newfd)
  posix_spawn_file_actions_adddup2: { parameters: ["pointer", "i32", "i32"], result: "i32" },
  // int posix_spawn_file_actions_destroy(posix_spawn_file_actions_t *actions)
  posix_spawn_file_actions_destroy: { parameters: ["pointer"], result: "i32" },
  // int posix_spawnattr_init(posix_spawnattr_t *attr)
  posix_spawnattr_init: { parameters: ["pointer"], result: "i32" },
  // int posix_spawnattr_setflags(posix_spawnattr_t *attr, short flags)
  posix_spawnattr_setflags: { parameters: ["pointer", "i16"], result: "i32" },
  // int posix_spawnattr_setsigdefault(posix_spawnattr_t *attr, const sigset_t *signals)
  posix_spawnattr_setsigdefault: { parameters: ["pointer", "buffer"], result: "i32" },
  // int posix_spawnattr_setsigmask(posix_spawnattr_t *attr, const sigset_t *mask)
  posix_spawnattr_setsigmask: { parameters: ["pointer", "buffer"], result: "i32" },
  // int posix_spawnattr_destroy(posix_spawnattr_t *attr)
  posix_spawnattr_destroy: { parameters: ["pointer"], result: "i32" },
  // pid_t waitpid(pid_t pid, int *wstatus, int options)
  waitpid: { parameters: ["i32", "buffer", "i32"], result: "i32" },
  // int kill(pid_t pid, int sig)
  kill: { parameters: ["i32", "i32"], result: "i32" },
  // long syscall(SYS_pidfd_open, pid_t pid, unsigned flags)
  pidfd_open: { name: "syscall", parameters: ["i32", "i32", "u32"], result: "i32" },
  // long syscall(SYS_pidfd_send_signal, int pidfd, int sig, siginfo_t *info, unsigned flags)
  pidfd_send_signal: { name: "syscall", parameters: ["i32", "i32", "i32", "pointer", "u32"], result: "i32" },
  // long syscall(SYS_gettid)
  gettid: { name: "syscall", parameters: ["i32"], result: "i32" },
  // int prctl(int PR_SET_NAME, const char *name)
  prctl_name: { name: "prctl", parameters: ["i32", "buffer"], result: "i32" },
  // int prctl(int option, unsigned long arg2, unsigned long arg3, unsigned long arg4, unsigned long arg5)
  prctl_value: { name: "prctl", parameters: ["i32", "usize", "usize", "usize", "usize"], result: "i32" },
  // long syscall(SYS_seccomp, unsigned operation, unsigned flags, void *args)
  seccomp: { name: "syscall", parameters: ["i32", "u32", "u32", "pointer"], result: "i32" },
  // int getrlimit(int resource, struct rlimit *limits)
  getrlimit: { parameters: ["i32", "buffer"], result: "i32" },
  // int setrlimit(int resource, const struct rlimit *limits)
  setrlimit: { parameters: ["i32", "buffer"], result: "i32" },
  // int sched_setaffinity(pid_t pid, size_t cpusetsize, const cpu_set_t *mask)
  sched_setaffinity: { parameters: ["i32", "usize", "buffer"], result: "i32" },
  // int sched_getaffinity(pid_t pid, size_t cpusetsize, cpu_set_t *mask)
  sched_getaffinity: { parameters: ["i32", "usize", "buffer"], result: "i32" },

  // int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **res)
  getaddrinfo: { parameters: ["buffer", "buffer", "buffer", "buffer"], result: "i32" },
  // void freeaddrinfo(struct addrinfo *res)
  freeaddrinfo: { parameters: ["pointer"], result: "void" },
  // const char *gai_strerror(int errcode)
  gai_strerror: { parameters: ["i32"], result: "pointer" },

  // int eventfd(unsigned initval, int flags)
  eventfd: { parameters: ["u32", "i32"], result: "i32" },
  // int clock_gettime(clockid_t clock, struct timespec *tp)
  clock_gettime: { parameters: ["i32", "pointer"], result: "i32" },
  // int timerfd_create(int clockid, int flags)
  timerfd_create: { parameters: ["i32", "i32"], result: "i32" },
  // int timerfd_settime(int fd, int flags, const struct itimerspec *new, struct itimerspec *old)
  timerfd_settime: { parameters: ["i32", "i32", "pointer", "pointer"], result: "i32" },
  // int epoll_create1(int flags)
  epoll_create1: { parameters: ["i32"], result: "i32" },
  // int epoll_ctl(int epfd, int op, int fd, struct epoll_event *event)
  epoll_ctl: { parameters: ["i32", "i32", "i32", "pointer"], result: "i32" },
  // int epoll_wait(int epfd, struct epoll_event *events, int maxevents, int timeout)
  epoll_wait: { parameters: ["i32", "pointer", "i32", "i32"], result: "i32" },
  // int poll(struct pollfd *fds, nfds_t nfds, int timeout)
  poll: { parameters: ["usize", "usize", "i32"], result: "i32" },
  // The same on a thread of the runtime's, for the main thread, which must not block.
  poll_apart: { name: "poll", parameters: ["pointer", "usize", "i32"], result: "i32", nonblocking: true },

  // long syscall(SYS_io_uring_setup, u32 entries, struct io_uring_params *p)
  io_uring_setup: { name: "syscall", parameters: ["i32", "u32", "buffer"], result: "i32" },
  // long syscall(SYS_io_uring_enter, unsigned fd, u32 to_submit, u32 min_complete, u32 flags, const void *arg, size_t argsz)
  io_uring_enter: { name: "syscall", parameters: ["i32", "i32", "u32", "u32", "u32", "pointer", "i32"], result: "i32" },
  // long syscall(SYS_io_uring_register, unsigned fd, unsigned opcode, void *arg, unsigned nr_args)
  io_uring_register: { name: "syscall", parameters: ["i32", "i32", "u32", "buffer", "u32"], result: "i32" },
} as const satisfies Deno.ForeignLibraryInterface;

function open(): Deno.DynamicLibrary<typeof TABLE> {
  try {
    return Deno.dlopen("libc.so.6", TABLE);
  } catch (cause) {
    if (cause instanceof Deno.errors.NotCapable) throw cause;
    throw new Error(
      `Cannot load libc.so.6 on ${Deno.build.os}/${Deno.build.arch}: ` +
        "Outboard runs on Linux with glibc 2.28 or newer (Debian 10, Fedora 29, Ubuntu 18.10 and later); " +
        "on a musl system such as Alpine, run it in a glibc container",
      { cause },
    );
  }
}

if (
  Deno.build.os !== "linux" ||
  (Deno.build.arch !== "x86_64" && Deno.build.arch !== "aarch64")
) {
  throw new Error(
    `Cannot run on ${Deno.build.os}/${Deno.build.arch}: Outboard needs Linux on x86_64 or aarch64`,
  );
}

/**
 * A table's functions with 64-bit integer arguments taken as Numbers, which Deno accepts at run time for any
 * safe integer; not for data paths (see above).
 */
export type WithNumbers<T> = {
  readonly [K in keyof T]: T[K] extends (...args: infer A) => infer R ? (
      ...args: { [I in keyof A]: A[I] extends bigint ? number | bigint : A[I] }
    ) => R
    : never;
};

/**
 * 64-bit arguments of data-path calls: written as Numbers, read as bigints that never exist.
 *
 * `libc.memcpy(words.at[0]!, words.at[1]!, words.at[2]!)` compiles to three plain loads.
 */
export class Words {
  /** The words as the call takes them. */
  readonly at: BigUint64Array<ArrayBuffer>;
  /** The same words as pairs of halves, low first, for code that has an address in two words already. */
  readonly halves: Uint32Array<ArrayBuffer>;

  /** @param count How many */
  constructor(count: number) {
    this.at = new BigUint64Array(count);
    this.halves = new Uint32Array(this.at.buffer);
  }

  /** Sets word `i` to a non-negative integer below 2^53. */
  set(i: number, value: number): void {
    this.halves[2 * i] = value >>> 0;
    this.halves[2 * i + 1] = Math.floor(value / 0x1_0000_0000);
  }
}

/** The C functions, typed as in the table above. */
export const libc: WithNumbers<
  Deno.StaticForeignLibraryInterface<typeof TABLE>
> = open()
  .symbols as never;

// SAFETY: errno is thread-local and lives as long as its thread; this module is evaluated once per
// thread (a Deno Worker has its own module graph and never leaves its thread), so the view is this thread's.
const errnoView = new Int32Array(
  Deno.UnsafePointerView.getArrayBuffer(libc.__errno_location()!, 4),
);

/** The thread's errno, to be read directly after a call that failed. */
export function lastErrno(): number {
  return errnoView[0]!;
}
