// Variables of every kind that a place can be named in. As a guest on KVM it writes to some of them
// and ends.

typedef unsigned int u32;

struct inner {
    u32 flags;
    unsigned low : 3, high : 13;
    const volatile char name[5][3];
};
typedef struct inner inner_t;

struct entry {
    int a;
    union {
        long whole;
        struct {
            short half;
            char quarter;
        };
    };
    inner_t next;
    struct entry *link;
};

struct tail {
    int count;
    char rest[];
};

struct old_tail {
    int count;
    int rest[0];
};

struct entry table[4] = {{1}};
volatile const inner_t fixed[2][3] = {{{1}}};
static volatile struct inner twin = {2};
struct tail flexible = {3, "abcdef"};
struct old_tail empty = {4};
struct tail *pointer = &flexible;
int (*function)(void);
enum kind { A, B } kind = B;
int scalar = 1;
struct opaque;
extern struct opaque *nowhere;
// Another name for the same bytes.
extern struct entry alias[4] __attribute__((alias("table")));

static int count(void)
{
    static volatile struct inner counter = {5};
    counter.flags++;
    return counter.flags;
}

void _start(void)
{
    table[2].next.flags = 7;
    table[3].next.flags = 7;
    twin.flags += count();
    __asm__ volatile("outb %%al, %%dx" : : "a"(0), "d"(0xf4));
    for (;;)
        ;
}
