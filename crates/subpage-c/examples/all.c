/* Uses all of subpage.h, once as a monitor does in which no processor walks the tables, and once as a
 * hypervisor does whose processor does. Ends with 0 if every answer was the right one. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "subpage.h"

#define EXPECT(condition)                                                       \
    do {                                                                        \
        if (!(condition)) {                                                     \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
            exit(1);                                                            \
        }                                                                       \
    } while (0)

/* Physical memory of the hypervisor: frames from 16 MiB on. */
#define FRAMES 64
#define BASE 0x1000000ull

struct memory {
    uint64_t *frame[FRAMES];
    unsigned in_use;
    unsigned limit;
};

static uint64_t allocate(void *context)
{
    struct memory *memory = context;
    for (unsigned i = 0; i < memory->limit; i++)
        if (!memory->frame[i]) {
            memory->frame[i] = calloc(512, sizeof(uint64_t));
            memory->in_use++;
            return BASE + i * 4096ull;
        }
    return 0;
}

static void release(void *context, uint64_t hpa)
{
    struct memory *memory = context;
    unsigned i = (unsigned)((hpa - BASE) / 4096);
    free(memory->frame[i]);
    memory->frame[i] = NULL;
    memory->in_use--;
}

static uint64_t *table(void *context, uint64_t hpa)
{
    struct memory *memory = context;
    return memory->frame[(hpa - BASE) / 4096];
}

/* The entry that the processor would use for the page at gpa. */
static uint64_t walk(struct memory *memory, uint64_t root, uint64_t gpa)
{
    uint64_t *entries = table(memory, root);
    for (int shift = 39; shift > 12; shift -= 9) {
        uint64_t entry = entries[gpa >> shift & 511];
        if (!(entry & 7) && !(entry & 1))
            return entry;
        entries = table(memory, entry & 0xffffffffff000ull);
    }
    return entries[gpa >> 12 & 511];
}

static subpage_domain *domain_of(struct subpage_options options)
{
    subpage_domain *domain = NULL;
    EXPECT(subpage_create(&options, &domain) == 0);
    return domain;
}

static struct subpage_rule rule_of(const char *name, uint64_t gpa, uint64_t length, uint32_t action)
{
    struct subpage_rule rule = {.gpa = gpa, .length = length, .action = action};
    strncpy(rule.name, name, sizeof rule.name - 1);
    return rule;
}

static void a_monitor(void)
{
    struct subpage_options options = {.physical_width = 46, .events = 4};
    subpage_domain *domain = domain_of(options);
    uint64_t change = 77, id = 0;
    uint32_t maps[4] = {~8u, 0, ~0u, 0x55555555};

    /* Nothing works before it is turned on, and a failed call writes nothing. */
    EXPECT(subpage_set_access(domain, 16, maps, 4, &change) == -SUBPAGE_ENODEV && change == 77);
    EXPECT(subpage_sppt_root(domain) == -SUBPAGE_ENODEV);
    EXPECT(subpage_enable(domain) == 0 && subpage_enable(domain) == 0);
    EXPECT(subpage_add_slot(domain, SUBPAGE_SPACE_NORMAL, 0, 16, 16, 0) == 0);
    EXPECT(subpage_add_slot(domain, SUBPAGE_SPACE_NORMAL, 1, 31, 2, 0) == -SUBPAGE_EINVAL);
    EXPECT(subpage_add_slot(domain, SUBPAGE_SPACE_NORMAL, 1, 1ull << 60, 2, 0) == -SUBPAGE_EINVAL);
    EXPECT(subpage_add_slot(domain, 2, 1, 64, 2, 0) == -SUBPAGE_EINVAL);
    EXPECT(subpage_add_slot(domain, SUBPAGE_SPACE_NORMAL, 1, 64, 2, 4) == -SUBPAGE_EINVAL);
    EXPECT(subpage_add_slot(domain, SUBPAGE_SPACE_NORMAL, 1, 64, 2, SUBPAGE_SLOT_READ_ONLY) == 0);

    /* Maps: all or none; what is read is what was set. */
    EXPECT(subpage_set_access(domain, 30, maps, 4, &change) == -SUBPAGE_EFAULT);
    EXPECT(subpage_set_access(domain, 16, NULL, 4, &change) == -SUBPAGE_EFAULT);
    EXPECT(subpage_set_access(domain, 16, NULL, 0, &change) == -SUBPAGE_EINVAL);
    EXPECT(subpage_set_access(domain, 16, maps, 4, &change) == 4);
    uint32_t found[4] = {0};
    EXPECT(subpage_get_access(domain, 16, found, 4) == 4 && !memcmp(found, maps, sizeof maps));
    EXPECT(subpage_get_access(domain, 16, NULL, 4) == -SUBPAGE_EFAULT);

    /* The same by the series' structure. */
    struct {
        uint64_t gfn_base;
        uint32_t npages, flags, map[3];
    } request = {.gfn_base = 20, .npages = 2, .map = {1, 2, 0}};
    EXPECT(subpage_request_set(domain, (uint8_t *)&request, sizeof request, &change) == 2);
    memset(request.map, 0, sizeof request.map);
    EXPECT(subpage_request_get(domain, (uint8_t *)&request, sizeof request) == 2);
    EXPECT(request.map[0] == 1 && request.map[1] == 2 && request.map[2] == 0);
    request.npages = 3;
    EXPECT(subpage_request_get(domain, (uint8_t *)&request, 24) == -SUBPAGE_EFAULT);
    request.flags = 1;
    EXPECT(subpage_request_set(domain, (uint8_t *)&request, sizeof request, &change) == -SUBPAGE_EINVAL);

    /* Rules. */
    struct subpage_rule path = rule_of("helper path", 0x1d010, 16, SUBPAGE_DENY);
    EXPECT(subpage_add_rule(domain, &path, &id, &change) == 0);
    struct subpage_rule once = rule_of("once", 0x1d400, 8, SUBPAGE_ALLOW_ONCE);
    uint64_t once_id = 0, stop_id = 0;
    EXPECT(subpage_add_rule(domain, &once, &once_id, &change) == 0 && once_id != id);
    struct subpage_rule stop = rule_of("stop", 0x1d800, 8, SUBPAGE_STOP);
    stop.flags = SUBPAGE_RULE_UNARMED;
    stop.owner = 7;
    EXPECT(subpage_add_rule(domain, &stop, &stop_id, &change) == 0);
    struct subpage_rule wrong = rule_of("", 0x1d000, 8, SUBPAGE_DENY);
    EXPECT(subpage_add_rule(domain, &wrong, &id, &change) == -SUBPAGE_EINVAL);
    memset(wrong.name, 'x', sizeof wrong.name);
    EXPECT(subpage_add_rule(domain, &wrong, &id, &change) == -SUBPAGE_EINVAL);
    wrong = rule_of("\xff", 0x1d000, 8, SUBPAGE_DENY);
    EXPECT(subpage_add_rule(domain, &wrong, &id, &change) == -SUBPAGE_EINVAL);
    wrong = rule_of("range", ~0ull, 8, SUBPAGE_DENY);
    EXPECT(subpage_add_rule(domain, &wrong, &id, &change) == -SUBPAGE_EINVAL);
    wrong = rule_of("action", 0x1d000, 8, 4);
    EXPECT(subpage_add_rule(domain, &wrong, &id, &change) == -SUBPAGE_EINVAL);
    EXPECT(subpage_rules(domain) == 3);

    /* Decisions and their events. */
    struct subpage_decision decision;
    uint8_t bytes[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    struct subpage_origin origin = {
        .vcpu = 3, .cpl = 0, .rip = 0xffffffff81000000ull, .cr3 = SUBPAGE_UNKNOWN,
        .gla = 0xffffffff8001d00cull, .unix_ns = 1700000000000000000ull, .since_start_ns = 5,
    };
    EXPECT(subpage_check_write(domain, 0, 0x1d00c, 8, &decision) == 0);
    EXPECT(decision.kind == SUBPAGE_DENIED && decision.rule == id && decision.at == 0x1d010);
    EXPECT(subpage_next_event(domain, &(struct subpage_event){0}) == 0);
    EXPECT(subpage_authorize_write(domain, 0, 0x1d00c, 8, bytes, &origin, &decision) == 0);
    EXPECT(decision.kind == SUBPAGE_DENIED && !decision.stop);
    char line[1024];
    long length = subpage_next_event_json(domain, line, 10);
    EXPECT(length > 100 && length == subpage_next_event_json(domain, NULL, 0));
    EXPECT(subpage_next_event_json(domain, line, sizeof line) == length);
    printf("%.*s\n", (int)length, line);
    EXPECT(subpage_authorize_write(domain, 0, 0x1d008, 8, bytes, &origin, &decision) == 0);
    EXPECT(decision.kind == SUBPAGE_ALLOWED && decision.rule == SUBPAGE_UNKNOWN);
    for (int i = 0; i < 2; i++)
        EXPECT(subpage_authorize_write(domain, 0, 0x1d404, 2, NULL, NULL, &decision) == 0);
    EXPECT(decision.kind == SUBPAGE_DENIED && decision.rule == once_id);
    EXPECT(subpage_authorize_write(domain, 0, 0x1d800, 8, NULL, NULL, &decision) == 0);
    EXPECT(decision.kind == SUBPAGE_ALLOWED);
    EXPECT(subpage_arm_rule(domain, stop_id, &change) == 0);
    EXPECT(subpage_authorize_write(domain, 0, 0x1d800, 8, bytes, NULL, &decision) == 0);
    EXPECT(decision.kind == SUBPAGE_DENIED && decision.stop);
    EXPECT(subpage_authorize_write(domain, 0, 0x40000, 8, NULL, NULL, &decision) == 0);
    EXPECT(decision.kind == SUBPAGE_NOT_ELIGIBLE);
    EXPECT(subpage_authorize_write(domain, 0, 0x90000, 8, NULL, NULL, &decision) == 0);
    EXPECT(decision.kind == SUBPAGE_NOT_MAPPED && decision.at == 0x90000);
    EXPECT(subpage_authorize_write(domain, 0, 0x1d800, 0, NULL, NULL, &decision) == -SUBPAGE_EINVAL);
    EXPECT(subpage_authorize_write(NULL, 0, 0x1d800, 8, NULL, NULL, &decision) == -SUBPAGE_EFAULT);
    EXPECT(subpage_authorize_write(domain, 0, 0x1d800, 8, NULL, NULL, NULL) == -SUBPAGE_EFAULT);

    struct subpage_event event;
    EXPECT(subpage_next_event(domain, &event) == 1 && event.number == 2 && event.write == 3);
    EXPECT(event.verdict == SUBPAGE_EVENT_ALLOWED_ONCE && event.known_bytes == 0);
    EXPECT(event.cpl == 4 && event.rip == SUBPAGE_UNKNOWN && event.in_software);
    EXPECT(subpage_next_event(domain, &event) == 1 && event.verdict == SUBPAGE_EVENT_DENIED);
    EXPECT(event.action == SUBPAGE_ALLOW_ONCE && event.gpa == 0x1d404 && event.length == 2);
    EXPECT(subpage_next_event(domain, &event) == 1 && event.verdict == SUBPAGE_EVENT_STOPPED);
    EXPECT(event.known_bytes == 8 && !memcmp(event.bytes, bytes, 8) && event.rule == stop_id);
    EXPECT(subpage_next_event(domain, &event) == 0 && subpage_events(domain) == 4);
    /* Four wait at most; the numbers tell that one was lost. */
    for (int i = 0; i < 5; i++)
        EXPECT(subpage_authorize_write(domain, 0, 0x10180, 1, NULL, NULL, &decision) == 0);
    for (int i = 0; i < 4; i++)
        EXPECT(subpage_next_event(domain, &event) == 1 && event.rule == SUBPAGE_UNKNOWN);
    EXPECT(event.number == 8 && subpage_events(domain) == 9);

    /* Whose a rule is, and a lock that nothing opens. */
    EXPECT(subpage_remove_rule(domain, stop_id, 5, &change) == -SUBPAGE_EPERM);
    EXPECT(subpage_remove_rule(domain, stop_id, 7, &change) == 0);
    EXPECT(subpage_remove_rule(domain, stop_id, 7, &change) == -SUBPAGE_ENOENT);
    EXPECT(subpage_lock_rule(domain, id, 0) == 0);
    EXPECT(subpage_remove_rule(domain, id, 0, &change) == -SUBPAGE_EPERM);
    maps[0] = ~0u;
    EXPECT(subpage_set_access(domain, 0x1d, maps, 1, &change) == -SUBPAGE_EPERM);
    EXPECT(subpage_check_write(domain, 0, 0x1d010, 1, &decision) == 0);
    EXPECT(decision.kind == SUBPAGE_DENIED);
    struct subpage_rule read;
    EXPECT(subpage_rule_at(domain, 0, &read) == 0 && !strcmp(read.name, "helper path"));
    EXPECT(read.id == id && read.flags == SUBPAGE_RULE_LOCKED && read.length == 16);
    EXPECT(subpage_rule_at(domain, 1, &read) == 0 && read.flags == SUBPAGE_RULE_SPENT);
    EXPECT(subpage_rule_at(domain, 2, &read) == -SUBPAGE_ENOENT);

    /* The state, bit for bit in another domain. */
    long size = subpage_export(domain, NULL, 0);
    EXPECT(size > 0);
    uint8_t *state = malloc((size_t)size), *again = malloc((size_t)size);
    EXPECT(subpage_export(domain, state, (size_t)size) == size);
    subpage_domain *other = domain_of(options);
    EXPECT(subpage_import(other, state, (size_t)size, 1000, &change) == -SUBPAGE_ENODEV);
    EXPECT(subpage_enable(other) == 0);
    state[size / 2] ^= 1;
    EXPECT(subpage_import(other, state, (size_t)size, 1000, &change) == -SUBPAGE_EINVAL);
    state[size / 2] ^= 1;
    EXPECT(subpage_import(other, state, (size_t)size, 1, &change) == -SUBPAGE_ENOSPC);
    EXPECT(subpage_import(other, state, (size_t)size, 1000, &change) == 0);
    EXPECT(subpage_import(other, state, (size_t)size, 1000, &change) == -SUBPAGE_EEXIST);
    EXPECT(subpage_export(other, again, (size_t)size) == size && !memcmp(state, again, (size_t)size));
    free(state);
    free(again);
    subpage_destroy(other);

    EXPECT(subpage_pending_changes(domain) == 0 && change == 0);
    EXPECT(subpage_set_slot_flags(domain, 0, 0, SUBPAGE_SLOT_READ_ONLY, &change) == 0);
    EXPECT(subpage_move_slot(domain, 0, 0, 32, &change) == 0);
    EXPECT(subpage_remove_slot(domain, 0, 0, &change) == 0);
    EXPECT(subpage_remove_slot(domain, 0, 0, &change) < 0);
    subpage_destroy(domain);
}

/* What was written: sub-pages of a tracked range, pages of a slot that logs, under two names. */
static void what_was_written(void)
{
    struct subpage_options options = {.physical_width = 46};
    subpage_domain *domain = domain_of(options);
    uint64_t change = 0, track = 0, harvest = 0, second = 0, words[2] = {0};
    struct subpage_decision decision;
    struct subpage_written written[4];
    EXPECT(subpage_track(domain, 0x10000, 4096, &track, &change) == -SUBPAGE_ENODEV);
    EXPECT(subpage_enable(domain) == 0);
    EXPECT(subpage_add_slot(domain, 0, 0, 16, 70, SUBPAGE_SLOT_LOG_DIRTY) == 0);
    EXPECT(subpage_add_alias(domain, 0, 1, 256, 4, 0, 400, &change) == -SUBPAGE_EFAULT);
    EXPECT(subpage_add_alias(domain, 0, 1, 20, 4, 0, 16, &change) == -SUBPAGE_EINVAL);
    EXPECT(subpage_add_alias(domain, 0, 1, 256, 4, 0, 16, &change) == 0);
    EXPECT(subpage_track(domain, 0x10000, 0x2000, &track, &change) == 0);
    EXPECT(subpage_track(domain, 0x11f80, 1, &second, &change) == -SUBPAGE_EBUSY);

    /* Frame 257 is frame 17. */
    EXPECT(subpage_authorize_write(domain, 0, 0x10ffc, 8, NULL, NULL, &decision) == 0);
    EXPECT(subpage_authorize_write(domain, 0, 0x101085, 1, NULL, NULL, &decision) == 0);
    EXPECT(subpage_authorize_write(domain, 0, 0x55000, 1, NULL, NULL, &decision) == 0);
    EXPECT(decision.kind == SUBPAGE_ALLOWED);

    EXPECT(subpage_harvest_written(domain, track + 1, &harvest, &change) == -SUBPAGE_ENOENT);
    EXPECT(subpage_harvest_written(domain, track, &harvest, &change) == 2);
    EXPECT(subpage_harvest_dirty(domain, 0, 1, &second, &change) == -SUBPAGE_EINVAL);
    EXPECT(subpage_harvest_dirty(domain, 0, 0, &second, &change) == 0 && second != harvest);
    EXPECT(subpage_read_written(domain, second, written, 4) == -SUBPAGE_ENOENT);
    EXPECT(subpage_read_dirty(domain, harvest, words, 2) == -SUBPAGE_ENOENT);
    EXPECT(subpage_read_written(domain, harvest, NULL, 0) == 2);
    EXPECT(subpage_read_written(domain, harvest, NULL, 2) == -SUBPAGE_EFAULT);
    EXPECT(subpage_read_written(domain, harvest, written, 4) == 2);
    EXPECT(written[0].gfn == 16 && written[0].sub_pages == 1u << 31);
    EXPECT(written[1].gfn == 17 && written[1].sub_pages == 3);
    EXPECT(subpage_read_written(domain, harvest, written, 4) == -SUBPAGE_ENOENT);
    EXPECT(subpage_read_dirty(domain, second, words, 1) == 2);
    EXPECT(subpage_read_dirty(domain, second, words, 2) == 2);
    EXPECT(words[0] == 3 && words[1] == 1u << (0x55 - 16 - 64));

    /* Tracked anew, and no more than so many harvests wait. */
    EXPECT(subpage_authorize_write(domain, 0, 0x10080, 1, NULL, NULL, &decision) == 0);
    EXPECT(subpage_harvest_written(domain, track, &harvest, &change) == 1);
    for (unsigned i = 1; i < SUBPAGE_MOST_HARVESTS; i++)
        EXPECT(subpage_harvest_written(domain, track, &second, &change) == 0);
    EXPECT(subpage_harvest_written(domain, track, &second, &change) == -SUBPAGE_ENOSPC);
    EXPECT(subpage_untrack(domain, track, &change) == 0);
    EXPECT(subpage_untrack(domain, track, &change) == -SUBPAGE_ENOENT);
    EXPECT(subpage_read_written(domain, harvest, written, 4) == 1 && written[0].sub_pages == 2);
    subpage_destroy(domain);
}

static void a_hypervisor(void)
{
    struct memory memory = {.limit = FRAMES};
    struct subpage_options options = {
        .physical_width = 46,
        .sub_page_permissions = true,
        .frames = {&memory, allocate, release, table},
    };
    subpage_domain *domain = domain_of(options);
    uint64_t change = 0, id = 0;
    EXPECT(subpage_enable(domain) == 0);
    EXPECT(subpage_add_slot(domain, 0, 0, 0, 1024, 0) == 0);
    struct subpage_page page = {.hpa = 0x40000000, .bytes = 0x200000, .writable = true,
                                .executable = true, .memory_type = 6};
    EXPECT(subpage_map(domain, 0, 0, &page) == 0);
    page.bytes = 12345;
    EXPECT(subpage_map(domain, 0, 512, &page) == -SUBPAGE_EINVAL);
    uint64_t ept = (uint64_t)subpage_ept_root(domain, 0), sppt = (uint64_t)subpage_sppt_root(domain);
    EXPECT(ept >= BASE && sppt >= BASE && ept != sppt);
    EXPECT(subpage_ept_root(domain, SUBPAGE_SPACE_SMM) == -SUBPAGE_ENODEV);

    /* A rule breaks the large page up, takes W and sets bit 61 of one leaf: to be invalidated. */
    struct subpage_rule rule = rule_of("path", 0x3080, 128, SUBPAGE_DENY);
    EXPECT(subpage_add_rule(domain, &rule, &id, &change) == 0 && change == 1);
    uint64_t leaf = walk(&memory, ept, 0x3000), vector = walk(&memory, sppt, 0x3000);
    EXPECT((leaf & 7) == 5 && leaf >> 61 & 1 && (leaf & 0xffffffffff000ull) == 0x40003000);
    EXPECT(!(vector & 4) && (vector & 1) && (vector & 16));
    EXPECT((walk(&memory, ept, 0x4000) & 7) == 7);
    EXPECT(subpage_pending_changes(domain) == 1);
    EXPECT(subpage_invalidated(domain, 2) == -SUBPAGE_EINVAL);
    EXPECT(subpage_invalidated(domain, change) == 0 && subpage_pending_changes(domain) == 0);
    EXPECT(subpage_invalidated(domain, change) == 0 && subpage_invalidated(domain, 0) == 0);

    /* The processor denies a write; the next sub-page is a stale translation, then to be emulated. */
    struct subpage_retry retry = {0};
    struct subpage_exit left = {.qualification = 0x18a, .gpa = 0x3088, .gla = 0x7000088, .rip = 0x1234,
                                .vectoring = 0x80000b0e, .error_code = 2, .virtual_nmis = true};
    struct subpage_answer answer;
    EXPECT(subpage_ept_violation(domain, &retry, &left, NULL, &answer) == 0);
    EXPECT(answer.kind == SUBPAGE_DENY_WRITE && answer.rule == id && answer.during_delivery);
    EXPECT(answer.reinject && answer.vectoring == 0x80000b0e && answer.error_code == 2);
    struct subpage_event event;
    EXPECT(subpage_next_event(domain, &event) == 1 && event.rip == 0x1234 && event.gla == 0x7000088);
    EXPECT(event.length == SUBPAGE_UNKNOWN && event.during_delivery && !event.in_software);
    left.gpa = 0x3100;
    left.vectoring = 0;
    EXPECT(subpage_ept_violation(domain, &retry, &left, NULL, &answer) == 0);
    EXPECT(answer.kind == SUBPAGE_RETRY && retry.retried && retry.rip == 0x1234);
    EXPECT(subpage_ept_violation(domain, &retry, &left, NULL, &answer) == 0);
    EXPECT(answer.kind == SUBPAGE_EMULATE);
    left.gpa = 0x900000;
    EXPECT(subpage_ept_violation(domain, &retry, &left, NULL, &answer) == 0);
    EXPECT(answer.kind == SUBPAGE_NO_SLOT && answer.gpa == 0x900000);
    left.gpa = 0x210000;
    EXPECT(subpage_ept_violation(domain, &retry, &left, NULL, &answer) == 0);
    EXPECT(answer.kind == SUBPAGE_MAP_PAGE);
    left.gpa = ~0ull;
    EXPECT(subpage_ept_violation(domain, &retry, &left, NULL, &answer) == -SUBPAGE_EINVAL);
    left.gpa = 0x3000;
    left.qualification = 0x800;
    EXPECT(subpage_spp_event(domain, &retry, &left, &answer) == 0 && answer.kind == SUBPAGE_RETRY);

    /* No frame is left: the call fails and has changed nothing. */
    memory.limit = 0;
    struct subpage_rule far = rule_of("far", 0x300000, 1, SUBPAGE_DENY);
    EXPECT(subpage_add_rule(domain, &far, &id, &change) == -SUBPAGE_ENOMEM);
    EXPECT(subpage_rules(domain) == 1);
    memory.limit = FRAMES;

    /* A harvest can be read when no processor can write through an old translation any more. */
    uint64_t track = 0, harvest = 0;
    struct subpage_decision decision;
    struct subpage_written written;
    EXPECT(subpage_track(domain, 0x4000, 4096, &track, &change) == 0 && change > 0);
    EXPECT(subpage_invalidated(domain, change) == 0);
    EXPECT((walk(&memory, ept, 0x4000) & 7) == 5);
    EXPECT(subpage_authorize_write(domain, 0, 0x4100, 4, NULL, NULL, &decision) == 0);
    EXPECT(subpage_harvest_written(domain, track, &harvest, &change) == 1 && change > 0);
    EXPECT(subpage_read_written(domain, harvest, &written, 1) == -SUBPAGE_EBUSY);
    EXPECT(subpage_invalidated(domain, change) == 0);
    EXPECT(subpage_read_written(domain, harvest, &written, 1) == 1);
    EXPECT(written.gfn == 4 && written.sub_pages == 1u << 2);
    EXPECT(subpage_untrack(domain, track, &change) == 0);
    EXPECT((walk(&memory, ept, 0x4000) & 7) == 7);

    EXPECT(subpage_protect(domain, 0, 4, 1, false, &change) == 0 && change > 0);
    EXPECT((walk(&memory, ept, 0x4000) & 7) == 5);
    EXPECT(subpage_unmap(domain, 0, 0, 512, &change) == 0 && change > 0);
    EXPECT(subpage_pending_changes(domain) == 2);
    EXPECT(subpage_invalidated(domain, change) == 0 && subpage_pending_changes(domain) == 0);
    subpage_destroy(domain);
    EXPECT(memory.in_use == 0);
}

int main(void)
{
    EXPECT(subpage_interface() == SUBPAGE_INTERFACE);
    EXPECT(subpage_create(NULL, NULL) == -SUBPAGE_EFAULT);
    struct subpage_options options = {.physical_width = 12};
    subpage_domain *domain = NULL;
    EXPECT(subpage_create(&options, &domain) == -SUBPAGE_EINVAL && !domain);
    options.physical_width = 46;
    options.frames.allocate = allocate;
    EXPECT(subpage_create(&options, &domain) == -SUBPAGE_EINVAL);
    options.frames.allocate = NULL;
    options.events = 1 << 20;
    EXPECT(subpage_create(&options, &domain) == -SUBPAGE_EINVAL);
    subpage_destroy(NULL);
    EXPECT(subpage_enable(NULL) == -SUBPAGE_EFAULT);
    a_monitor();
    what_was_written();
    a_hypervisor();
    return 0;
}
