/*
 * A vfio-user client that costs next to nothing, so that what it measures is the server: the same program drives ours
 * and the one in C. It sleeps in recv while it waits, and does what it reads from standard input, a command a line:
 *
 *   trip COUNT        reads of a register one by one         -> p50 and p99 in nanoseconds
 *   pipe DEPTH MS     reads with up to DEPTH in flight       -> reads a second
 *   post MS           writes that ask for no reply           -> writes a second, until all are known to be done
 *
 *   region_client SOCKET REGION
 */
#include "vfio_user.h"

enum { READ_REPLY = 36, BURST = 64 };

struct message { uint16_t id, command; uint32_t size, flags, error; uint64_t offset; uint32_t region, count, data; };

static uint32_t region;

static void put(uint16_t command, uint32_t size, uint32_t flags) {
    struct message m = {next_id++, command, size, flags, 0, 0, region, 4, 0};
    if (send(fd, &m, size, MSG_NOSIGNAL) != (ssize_t)size) fail("cannot send");
}

/* Receives what there is of the replies to reads, at least one of them; returns how many are complete. */
static int take(void) {
    static size_t have;
    do {
        ssize_t n = recv(fd, in + have, sizeof in - have, 0);
        if (n <= 0) fail("the server hung up");
        have += n;
    } while (have < READ_REPLY);
    struct message *m = (void *)in;
    if (m->size != READ_REPLY || m->flags & ERROR) fail("a read failed");
    int whole = have / READ_REPLY;
    memmove(in, in + whole * READ_REPLY, have -= whole * READ_REPLY);
    return whole;
}

static void read_once(void) {
    put(REGION_READ, 32, 0);
    take();
}

static int ascending(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void trip(long count) {
    uint64_t *samples = malloc(count * sizeof *samples);
    for (long i = 0; i < count; i++) {
        uint64_t start = now();
        read_once();
        samples[i] = now() - start;
    }
    qsort(samples, count, sizeof *samples, ascending);
    printf("%lu %lu\n", (unsigned long)samples[count / 2], (unsigned long)samples[count * 99 / 100]);
    free(samples);
}

/* Half a window at a time: one at a time would put both sides to sleep and wake them for each message. */
static void pipeline(int depth, long ms) {
    uint64_t start = now(), end = start + ms * 1000000ull, done = 0;
    int flying = 0;
    while (now() < end || flying > 0) {
        while (flying < depth && now() < end) put(REGION_READ, 32, 0), flying++;
        int floor = now() < end ? depth / 2 : 0;
        while (flying > floor) {
            int got = take();
            flying -= got;
            done += got;
        }
    }
    printf("%.0f\n", done * 1e9 / (now() - start));
}

static void post(long ms) {
    uint64_t start = now(), end = start + ms * 1000000ull, done = 0;
    while (now() < end) {
        for (int i = 0; i < BURST; i++) put(REGION_WRITE, 36, NO_REPLY);
        done += BURST;
    }
    read_once();
    printf("%.0f\n", done * 1e9 / (now() - start));
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    region = atoi(argv[2]);
    negotiate(argv[1]);
    char line[80];
    while (fgets(line, sizeof line, stdin)) {
        int depth;
        long n;
        if (sscanf(line, "trip %ld", &n) == 1) trip(n);
        else if (sscanf(line, "pipe %d %ld", &depth, &n) == 2) pipeline(depth, n);
        else if (sscanf(line, "post %ld", &n) == 1) post(n);
        else fail("unknown command");
        fflush(stdout);
    }
    return 0;
}
