/*
 * The least a vfio-user server can be, to compare with: one client, one 32-bit register in every region. It receives
 * what there is, answers each message with one sendmsg, and sleeps in recvmsg in between; or in epoll_wait, as whoever
 * serves more than one descriptor must.
 *
 *   minimal_server SOCKET [epoll]
 */
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>

enum { VERSION = 1, GET_INFO = 4, GET_REGION_INFO = 5, REGION_READ = 9, REGION_WRITE = 10 };
enum { REPLY = 1, NO_REPLY = 0x10, ERROR = 0x20, ENOTSUP_ = 95, PCI = 2, READ_WRITE = 3 };

struct header { uint16_t id, command; uint32_t size, flags, error; };
struct access { uint64_t offset; uint32_t region, count; uint8_t data[8]; };
struct device_info { uint32_t argsz, flags, regions, irqs; };
struct region_info { uint32_t argsz, flags, index, cap; uint64_t size, offset; };

static uint8_t in[1 << 16], out[1 << 16];
static uint32_t reg;

/* Handles a message; the answer's payload goes behind the header of `out`. Returns its length, -1 for an error. */
static int handle(const struct header *m) {
    const uint8_t *payload = (const uint8_t *)(m + 1);
    uint8_t *answer = out + sizeof *m;
    uint32_t length = m->size - sizeof *m;
    const struct access *a = (const void *)payload;
    memcpy(answer, payload, length < 32 ? length : 32);
    switch (m->command) {
    case VERSION:
        memcpy(answer, payload, length);
        return length;
    case GET_INFO:
        *(struct device_info *)answer = (struct device_info){16, PCI, 9, 5};
        return 16;
    case GET_REGION_INFO:
        *(struct region_info *)answer =
            (struct region_info){32, READ_WRITE, ((const struct region_info *)payload)->index, 0, 4096, 0};
        return 32;
    case REGION_READ:
        if (length != 16 || a->count > 4) return -1;
        memcpy(answer + 16, &reg, a->count);
        return 16 + a->count;
    case REGION_WRITE:
        if (a->count > 4 || length != 16 + a->count) return -1;
        memcpy(&reg, a->data, a->count);
        return 16;
    default:
        return -1;
    }
}

static void serve(int fd, int epoll) {
    size_t have = 0;
    struct epoll_event event = {.events = EPOLLIN};
    if (epoll >= 0 && epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0) return;
    for (;;) {
        if (epoll >= 0 && epoll_wait(epoll, &event, 1, -1) < 0) return;
        struct iovec room = {in + have, sizeof in - have};
        ssize_t n = recvmsg(fd, &(struct msghdr){.msg_iov = &room, .msg_iovlen = 1}, 0);
        if (n <= 0) return;
        have += n;
        size_t at = 0;
        while (have - at >= sizeof(struct header)) {
            struct header *m = (void *)(in + at);
            if (m->size < sizeof *m || m->size > sizeof in) return;
            if (have - at < m->size) break;
            int length = handle(m);
            if (!(m->flags & NO_REPLY)) {
                uint32_t size = sizeof *m + (length < 0 ? 0 : length);
                *(struct header *)out = (struct header){m->id, m->command, size,
                    REPLY | (length < 0 ? ERROR : 0), length < 0 ? ENOTSUP_ : 0};
                struct iovec all = {out, size};
                if (sendmsg(fd, &(struct msghdr){.msg_iov = &all, .msg_iovlen = 1}, MSG_NOSIGNAL) < 0) return;
            }
            at += m->size;
        }
        memmove(in, in + at, have -= at);
    }
}

int main(int argc, char **argv) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (argc < 2 || strlen(argv[1]) >= sizeof address.sun_path) return 2;
    strcpy(address.sun_path, argv[1]);
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(listener, (void *)&address, sizeof address) < 0 || listen(listener, 1) < 0) return 1;
    puts("listening");
    fflush(stdout);
    serve(accept(listener, NULL, NULL), argc > 2 ? epoll_create1(0) : -1);
    return 0;
}
