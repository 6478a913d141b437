/*
 * The least a vfio-user client in C needs: one socket, one command at a time, errors end the program.
 */
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>

enum { VERSION = 1, DMA_MAP = 2, GET_REGION_INFO = 5, REGION_READ = 9, REGION_WRITE = 10 };
enum { NO_REPLY = 0x10, ERROR = 0x20 };

struct header { uint16_t id, command; uint32_t size, flags, error; };

static int fd;
static uint16_t next_id;
static uint8_t in[1 << 16];

static void fail(const char *why, ...) {
    va_list arguments;
    va_start(arguments, why);
    vfprintf(stderr, why, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(1);
}

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

/*
 * Sends a command, with a descriptor unless it is -1, and waits for its reply, whose payload is then behind the header
 * in `in`. Gives the descriptor that came along, or -1.
 */
static int call(uint16_t command, const void *payload, uint32_t length, int sent) {
    struct header h = {next_id++, command, sizeof h + length, 0, 0};
    struct iovec parts[] = {{&h, sizeof h}, {(void *)payload, length}};
    union { char room[CMSG_SPACE(8 * sizeof(int))]; struct cmsghdr align; } control = {0};
    struct msghdr m = {.msg_iov = parts, .msg_iovlen = 2};
    if (sent >= 0) {
        m.msg_control = &control;
        m.msg_controllen = CMSG_SPACE(sizeof sent);
        *CMSG_FIRSTHDR(&m) = (struct cmsghdr){CMSG_LEN(sizeof sent), SOL_SOCKET, SCM_RIGHTS};
        memcpy(CMSG_DATA(CMSG_FIRSTHDR(&m)), &sent, sizeof sent);
    }
    if (sendmsg(fd, &m, MSG_NOSIGNAL) != (ssize_t)h.size) fail("cannot send command %d", command);
    int came = -1;
    for (uint32_t got = 0, size = sizeof h; got < size;) {
        struct iovec room = {in + got, (got < sizeof h ? sizeof h : size) - got};
        m = (struct msghdr){.msg_iov = &room, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
        ssize_t n = recvmsg(fd, &m, 0);
        if (n <= 0) fail("the server hung up on command %d", command);
        struct cmsghdr *c = CMSG_FIRSTHDR(&m);
        if (c != NULL) memcpy(&came, CMSG_DATA(c), sizeof came);
        if ((got += n) >= sizeof h) size = ((struct header *)in)->size;
        if (size > sizeof in) fail("the reply to command %d is too long", command);
    }
    h = *(struct header *)in;
    if (h.flags & ERROR) fail("command %d failed: %s", command, strerror(h.error));
    return came;
}

/* Connects and agrees on version 0.1. */
static void negotiate(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path) fail("the path is too long: %s", path);
    strcpy(address.sun_path, path);
    fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connect(fd, (void *)&address, sizeof address) < 0) fail("cannot connect to %s", path);
    static const char hello[] = "\0\0\1\0{\"capabilities\":{\"max_msg_fds\":8}}";
    call(VERSION, hello, sizeof hello, -1);
}
