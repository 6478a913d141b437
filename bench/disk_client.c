/*
 * A polled driver of a disk that costs next to nothing, so that what it measures is the device: NVMe with a queue pair
 * whose doorbells are mapped, as SPDK's has, or virtio-blk with a split ring, indirect descriptors, event indices and a
 * cache mode that it may change, as Linux has. Each line of standard input is a load:
 *
 *   read|write DEPTH random|sequential MS    -> commands a second, p50 and p99 in nanoseconds
 *
 * Every 64th command's time is taken, and the clock is not looked at otherwise.
 *
 *   disk_client SOCKET nvme|virtio-blk DEPTH_MAX TRANSFER_BYTES
 */
#define _GNU_SOURCE
#include "vfio_user.h"
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, SECTOR = 512, SAMPLE_EVERY = 64, SAMPLES = 1 << 16 };
enum { CONFIG_REGION = 7, PCI_COMMAND = 4, MEMORY_AND_MASTER = 6 };

struct access { uint64_t offset; uint32_t region, count; uint8_t data[8]; };
struct region_info { uint32_t argsz, flags, index, cap; uint64_t size, offset; };

/* Guest memory, from address 0 on. */
static uint8_t *ram;
static uint64_t ram_used;

static int depth_max;
static uint32_t transfer;
static uint64_t sectors;
static uint8_t *buffers;

static uint64_t read_register(uint32_t region, uint64_t offset, uint32_t width) {
    call(REGION_READ, &(struct access){offset, region, width}, 16, -1);
    uint64_t value = 0;
    memcpy(&value, in + sizeof(struct header) + 16, width);
    return value;
}

static void write_register(uint32_t region, uint64_t offset, uint32_t width, uint64_t value) {
    struct access a = {offset, region, width};
    memcpy(a.data, &value, width);
    call(REGION_WRITE, &a, 16 + width, -1);
}

static void make_ram(uint64_t bytes) {
    int memfd = memfd_create("disk-client", 0);
    if (memfd < 0 || ftruncate(memfd, bytes) < 0) fail("there is no memory");
    ram = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, memfd, 0);
    if (ram == MAP_FAILED) fail("there is no memory");
    struct { uint32_t argsz, flags; uint64_t offset, iova, size; } map = {32, 3, 0, 0, bytes};
    call(DMA_MAP, &map, sizeof map, memfd);
}

static void *alloc(uint64_t bytes) {
    void *at = ram + ram_used;
    ram_used += (bytes + PAGE - 1) / PAGE * PAGE;
    return at;
}

static uint64_t iova(const void *at) { return (const uint8_t *)at - ram; }

/* The page of doorbells of a region, which the device polls. */
static uint8_t *map_doorbells(uint32_t region, uint64_t offset) {
    int file = call(GET_REGION_INFO, &(struct region_info){.argsz = PAGE, .index = region}, 32, -1);
    if (file < 0) fail("the doorbells of region %u cannot be mapped", region);
    const struct region_info *info = (void *)(in + sizeof(struct header));
    uint8_t *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, info->offset + offset);
    if (page == MAP_FAILED) fail("the doorbells cannot be mapped");
    return page;
}

/* NVM Express */

enum { CC = 0x14, CSTS = 0x1c, AQA = 0x24, ASQ = 0x28, ACQ = 0x30, DOORBELLS = 0x1000 };
enum { ADMIN_ENTRIES = 16, IO_ENTRIES = 256, CREATE_SQ = 1, CREATE_CQ = 5, IDENTIFY = 6 };

struct command { uint32_t cdw0, nsid, cdw2, cdw3; uint64_t mptr, prp1, prp2; uint32_t cdw10, cdw11, cdw12, rest[3]; };
struct completion { uint32_t result, reserved; uint16_t sq_head, sq_id, id, status; };
struct pair {
    struct command *sq;
    struct completion *cq;
    volatile uint32_t *sq_doorbell, *cq_doorbell;
    uint32_t entries, tail, head, phase;
};

static struct pair admin, io;
static uint64_t *lists;

static struct pair make_pair(uint8_t *doorbells, int id, uint32_t entries) {
    volatile uint32_t *doorbell = (uint32_t *)doorbells + 2 * id;
    return (struct pair){alloc(entries * sizeof(struct command)), alloc(entries * sizeof(struct completion)), doorbell,
        doorbell + 1, entries, 0, 0, 1};
}

static void nvme_push(struct pair *p, const struct command *c) {
    p->sq[p->tail] = *c;
    p->tail = p->tail + 1 == p->entries ? 0 : p->tail + 1;
}

/* The next completion, or none. */
static const struct completion *nvme_take(struct pair *p) {
    const struct completion *c = &p->cq[p->head];
    if ((__atomic_load_n(&c->status, __ATOMIC_ACQUIRE) & 1) != p->phase) return NULL;
    if (c->status >> 1) fail("command %u failed with status %x", c->id, c->status >> 1);
    if (++p->head == p->entries) p->head = 0, p->phase ^= 1;
    return c;
}

static void nvme_admin(struct command c) {
    nvme_push(&admin, &c);
    __atomic_store_n(admin.sq_doorbell, admin.tail, __ATOMIC_SEQ_CST);
    while (nvme_take(&admin) == NULL);
    __atomic_store_n(admin.cq_doorbell, admin.head, __ATOMIC_SEQ_CST);
}

static void nvme_enable(uint32_t cc, uint32_t ready) {
    write_register(0, CC, 4, cc);
    while ((read_register(0, CSTS, 4) & 1) != ready);
}

static void nvme_open(void) {
    uint8_t *doorbells = map_doorbells(0, DOORBELLS);
    nvme_enable(0, 0);
    admin = make_pair(doorbells, 0, ADMIN_ENTRIES);
    write_register(0, AQA, 4, (ADMIN_ENTRIES - 1) << 16 | (ADMIN_ENTRIES - 1));
    write_register(0, ASQ, 8, iova(admin.sq));
    write_register(0, ACQ, 8, iova(admin.cq));
    nvme_enable(0x460001, 1);
    uint64_t *page = alloc(PAGE);
    nvme_admin((struct command){.cdw0 = IDENTIFY, .nsid = 1, .prp1 = iova(page)});
    sectors = page[0];
    io = make_pair(doorbells, 1, IO_ENTRIES);
    uint32_t size_and_id = (IO_ENTRIES - 1) << 16 | 1;
    nvme_admin((struct command){.cdw0 = CREATE_CQ, .prp1 = iova(io.cq), .cdw10 = size_and_id, .cdw11 = 1});
    nvme_admin((struct command){.cdw0 = CREATE_SQ, .prp1 = iova(io.sq), .cdw10 = size_and_id, .cdw11 = 1 << 16 | 1});
    lists = alloc((uint64_t)depth_max * PAGE);
    for (int slot = 0; slot < depth_max; slot++)
        for (uint32_t i = 1; i < transfer / PAGE; i++)
            lists[slot * (PAGE / 8) + i - 1] = iova(buffers) + (uint64_t)slot * transfer + (uint64_t)i * PAGE;
}

static void nvme_issue(int slot, int write, uint64_t sector) {
    uint64_t buffer = iova(buffers) + (uint64_t)slot * transfer;
    uint64_t second = transfer <= PAGE ? 0 : transfer <= 2 * PAGE ? buffer + PAGE : iova(&lists[slot * (PAGE / 8)]);
    nvme_push(&io, &(struct command){.cdw0 = (write ? 1 : 2) | (uint32_t)slot << 16, .nsid = 1, .prp1 = buffer,
        .prp2 = second, .cdw10 = sector, .cdw11 = sector >> 32, .cdw12 = transfer / SECTOR - 1});
}

static void nvme_flush(void) { __atomic_store_n(io.sq_doorbell, io.tail, __ATOMIC_SEQ_CST); }

static int nvme_reap(uint16_t *done) {
    int count = 0;
    for (const struct completion *c; count < depth_max && (c = nvme_take(&io)) != NULL;) done[count++] = c->id;
    if (count > 0) __atomic_store_n(io.cq_doorbell, io.head, __ATOMIC_RELEASE);
    return count;
}

/* virtio-blk */

enum { COMMON_CFG = 1, NOTIFY_CFG = 2, DEVICE_CFG = 4, STATUS = 20, DRIVER_OK = 15 };
enum { FLUSH = 1 << 9, CONFIG_WCE = 1 << 11, INDIRECT_DESC = 1 << 28, EVENT_IDX = 1 << 29, VERSION_1 = 1 << 0, NEXT = 1, WRITE = 2, INDIRECT = 4 };

struct descriptor { uint64_t address; uint32_t length; uint16_t flags, next; };
struct request { struct descriptor table[3]; uint32_t type, reserved; uint64_t sector; uint8_t status; };
struct structure { uint32_t bar; uint64_t offset; };

static struct descriptor *descriptors;
static uint16_t *avail, *used, *slot_of;
static struct request *requests;
static uint16_t ring_size, avail_index, used_index;
static struct structure notify;

static struct structure structure(int type, uint32_t *extra) {
    for (uint32_t at = read_register(CONFIG_REGION, 0x34, 1); at != 0; at = read_register(CONFIG_REGION, at + 1, 1)) {
        if (read_register(CONFIG_REGION, at, 1) != 9 || (int)read_register(CONFIG_REGION, at + 3, 1) != type) continue;
        if (extra != NULL) *extra = read_register(CONFIG_REGION, at + 16, 4);
        return (struct structure){read_register(CONFIG_REGION, at + 4, 1), read_register(CONFIG_REGION, at + 8, 4)};
    }
    fail("the device has no virtio structure %d", type);
    return (struct structure){0};
}

static void virtio_open(void) {
    uint32_t multiplier;
    struct structure c = structure(COMMON_CFG, NULL), d = structure(DEVICE_CFG, NULL);
    notify = structure(NOTIFY_CFG, &multiplier);
    write_register(c.bar, c.offset + STATUS, 1, 0);
    while (read_register(c.bar, c.offset + STATUS, 1) != 0);
    write_register(c.bar, c.offset + STATUS, 1, 3);
    for (int i = 0; i < 2; i++) {
        write_register(c.bar, c.offset + 8, 4, i);
        write_register(c.bar, c.offset + 12, 4, i ? VERSION_1 : FLUSH | CONFIG_WCE | INDIRECT_DESC | EVENT_IDX);
    }
    write_register(c.bar, c.offset + STATUS, 1, 11);
    if (read_register(c.bar, c.offset + STATUS, 1) != 11) fail("the device refuses the features");
    sectors = read_register(d.bar, d.offset, 4) | read_register(d.bar, d.offset + 4, 4) << 32;
    write_register(c.bar, c.offset + 22, 2, 0);
    ring_size = read_register(c.bar, c.offset + 24, 2);
    if (ring_size < depth_max) fail("the ring has %u entries only", ring_size);
    notify.offset += multiplier * read_register(c.bar, c.offset + 30, 2);
    descriptors = alloc(ring_size * sizeof *descriptors);
    avail = alloc(ring_size * 2 + 6);
    used = alloc(ring_size * 8 + 6);
    requests = alloc(depth_max * sizeof *requests);
    slot_of = calloc(ring_size, sizeof *slot_of);
    const void *parts[] = {descriptors, avail, used};
    for (int i = 0; i < 3; i++) {
        write_register(c.bar, c.offset + 32 + 8 * i, 4, iova(parts[i]));
        write_register(c.bar, c.offset + 36 + 8 * i, 4, iova(parts[i]) >> 32);
    }
    write_register(c.bar, c.offset + 28, 2, 1);
    write_register(c.bar, c.offset + STATUS, 1, DRIVER_OK);
    /* The event index far behind: nobody wants to be interrupted. */
    avail[2 + ring_size] = 0x8000;
}

static void virtio_issue(int slot, int write, uint64_t sector) {
    struct request *r = &requests[slot];
    uint64_t header = iova(&r->type), buffer = iova(buffers) + (uint64_t)slot * transfer;
    r->table[0] = (struct descriptor){header, 16, NEXT, 1};
    r->table[1] = (struct descriptor){buffer, transfer, write ? NEXT : NEXT | WRITE, 2};
    r->table[2] = (struct descriptor){iova(&r->status), 1, WRITE, 0};
    r->type = write;
    r->sector = sector;
    r->status = 0xff;
    /* One descriptor a slot, since each chain is one indirect table. */
    descriptors[slot] = (struct descriptor){iova(r->table), sizeof r->table, INDIRECT, 0};
    avail[2 + avail_index++ % ring_size] = slot;
}

static void virtio_flush(void) {
    uint16_t before = avail[1];
    __atomic_store_n(&avail[1], avail_index, __ATOMIC_SEQ_CST);
    uint16_t event = __atomic_load_n(&used[2 + 4 * ring_size], __ATOMIC_SEQ_CST);
    if ((uint16_t)(avail_index - event - 1) < (uint16_t)(avail_index - before))
        write_register(notify.bar, notify.offset, 2, 0);
}

static int virtio_reap(uint16_t *done) {
    int count = 0;
    uint16_t index = __atomic_load_n(&used[1], __ATOMIC_ACQUIRE);
    while (used_index != index) {
        uint16_t slot = *(uint32_t *)&used[2 + 4 * (used_index++ % ring_size)];
        if (requests[slot].status != 0) fail("a request failed with status %u", requests[slot].status);
        done[count++] = slot;
    }
    if (count > 0) avail[2 + ring_size] = used_index + 0x8000;
    return count;
}

/* What they have in common */

static void (*issue)(int slot, int write, uint64_t sector);
static void (*flush)(void);
static int (*reap)(uint16_t *done);

static int ascending(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void run(int write, int depth, int sequential, long ms) {
    static uint64_t samples[SAMPLES], issued_at[1 << 16];
    uint16_t done[1 << 16];
    uint32_t random = 1;
    uint64_t each = transfer / SECTOR, places = sectors / each, next = 0, issued = 0, ended = 0, sampled = 0;
    uint64_t start = now(), end = start + ms * 1000000ull;
    int flying = 0, over = 0;
    for (int i = 0; i < depth; i++) done[i] = i;
    for (int count = depth;;) {
        for (int i = 0; i < count; i++) {
            int slot = done[i];
            if (over) continue;
            random = random * 1664525 + 1013904223;
            issued_at[slot] = 0;
            if (issued++ % SAMPLE_EVERY == 0) {
                issued_at[slot] = now();
                over = issued_at[slot] >= end;
            }
            issue(slot, write, (sequential ? next++ % places : random % places) * each);
            flying++;
        }
        if (count > 0) flush();
        if (flying == 0) break;
        count = reap(done);
        flying -= count;
        ended += count;
        for (int i = 0; i < count; i++)
            if (issued_at[done[i]]) samples[sampled++ % SAMPLES] = now() - issued_at[done[i]];
    }
    double seconds = (now() - start) / 1e9;
    uint64_t kept = sampled < SAMPLES ? sampled : SAMPLES;
    qsort(samples, kept, sizeof *samples, ascending);
    printf("%.0f %lu %lu\n", ended / seconds, (unsigned long)samples[kept / 2], (unsigned long)samples[kept * 99 / 100]);
}

int main(int argc, char **argv) {
    if (argc != 5) return 2;
    int nvme = strcmp(argv[2], "nvme") == 0;
    depth_max = atoi(argv[3]);
    transfer = atoi(argv[4]);
    negotiate(argv[1]);
    write_register(CONFIG_REGION, PCI_COMMAND, 2, MEMORY_AND_MASTER);
    make_ram((uint64_t)depth_max * (transfer + PAGE) + (1 << 20));
    buffers = alloc((uint64_t)depth_max * transfer);
    issue = nvme ? nvme_issue : virtio_issue;
    flush = nvme ? nvme_flush : virtio_flush;
    reap = nvme ? nvme_reap : virtio_reap;
    (nvme ? nvme_open : virtio_open)();
    char line[80], op[8], order[16];
    int depth;
    long ms;
    while (fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "%7s %d %15s %ld", op, &depth, order, &ms) != 4 || depth > depth_max) fail("unknown load: %s", line);
        run(strcmp(op, "write") == 0, depth, strcmp(order, "sequential") == 0, ms);
        fflush(stdout);
    }
    return 0;
}
