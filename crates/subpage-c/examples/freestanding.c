/* subpage.h without a C library and without an operating system but for its last word: the library is
 * built with --no-default-features, and this program brings what it asks for. Ends with status 0. */
#include "subpage.h"

/* What a compiler expects of every program, freestanding or not. */
void *memcpy(void *to, const void *from, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        ((uint8_t *)to)[i] = ((const uint8_t *)from)[i];
    return to;
}

void *memmove(void *to, const void *from, size_t bytes)
{
    if ((uintptr_t)to <= (uintptr_t)from)
        return memcpy(to, from, bytes);
    while (bytes--)
        ((uint8_t *)to)[bytes] = ((const uint8_t *)from)[bytes];
    return to;
}

void *memset(void *to, int value, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        ((uint8_t *)to)[i] = (uint8_t)value;
    return to;
}

int memcmp(const void *left, const void *right, size_t bytes)
{
    const uint8_t *a = left, *b = right;
    for (size_t i = 0; i < bytes; i++)
        if (a[i] != b[i])
            return a[i] - b[i];
    return 0;
}

int bcmp(const void *left, const void *right, size_t bytes) { return memcmp(left, right, bytes); }

size_t strlen(const char *text)
{
    size_t bytes = 0;
    while (text[bytes])
        bytes++;
    return bytes;
}

static _Noreturn void end(int status)
{
    for (;;)
        __asm__ volatile("syscall" : : "a"(231L), "D"((long)status) : "rcx", "r11", "memory");
}

/* Memory: an arena that only grows; what is in use is counted. */
static _Alignas(4096) uint8_t arena[1 << 22];
static size_t taken;
static long in_use;
static bool exhausted;

uint8_t *subpage_platform_allocate(size_t bytes, size_t alignment)
{
    size_t first = (taken + alignment - 1) & ~(alignment - 1);
    if (exhausted || bytes > sizeof arena - first)
        return NULL;
    taken = first + bytes;
    in_use++;
    return arena + first;
}

void subpage_platform_release(uint8_t *memory, size_t bytes, size_t alignment)
{
    (void)memory, (void)bytes, (void)alignment;
    in_use--;
}

void subpage_platform_panic(const uint8_t *text, size_t length)
{
    long written;
    __asm__ volatile("syscall"
                     : "=a"(written)
                     : "a"(1L), "D"(2L), "S"(text), "d"(length)
                     : "rcx", "r11", "memory");
    end(100);
}

#define EXPECT(condition) \
    do {                  \
        if (!(condition)) \
            end(__LINE__ & 63 ? __LINE__ & 63 : 64); \
    } while (0)

static void run(void)
{
    struct subpage_options options = {.physical_width = 46};
    subpage_domain *domain = NULL;
    uint64_t change = 0, id = 0;
    exhausted = true;
    EXPECT(subpage_create(&options, &domain) == -SUBPAGE_ENOMEM && !domain);
    exhausted = false;
    EXPECT(subpage_create(&options, &domain) == 0 && subpage_enable(domain) == 0);
    EXPECT(subpage_add_slot(domain, SUBPAGE_SPACE_NORMAL, 0, 16, 16, 0) == 0);
    struct subpage_rule rule = {.gpa = 0x1d010, .length = 16, .action = SUBPAGE_DENY, .name = "path"};
    EXPECT(subpage_add_rule(domain, &rule, &id, &change) == 0);
    struct subpage_decision decision;
    EXPECT(subpage_authorize_write(domain, 0, 0x1d00c, 4, NULL, NULL, &decision) == 0);
    EXPECT(decision.kind == SUBPAGE_ALLOWED);
    EXPECT(subpage_authorize_write(domain, 0, 0x1d00c, 5, NULL, NULL, &decision) == 0);
    EXPECT(decision.kind == SUBPAGE_DENIED && decision.rule == id);
    struct subpage_event event;
    EXPECT(subpage_next_event(domain, &event) == 1 && event.verdict == SUBPAGE_EVENT_DENIED);
    exhausted = true;
    rule.gpa = 0x1e000;
    EXPECT(subpage_add_rule(domain, &rule, &id, &change) == -SUBPAGE_ENOMEM);
    EXPECT(subpage_rules(domain) == 1);
    exhausted = false;
    subpage_destroy(domain);
    EXPECT(in_use == 0);
}

_Noreturn void start(void)
{
    run();
    end(0);
}

__asm__(".globl _start\n_start: xor %ebp, %ebp\n and $-16, %rsp\n call start\n");
