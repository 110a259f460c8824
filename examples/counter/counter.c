// A small server in the spirit of a kernel's data page: hot counters, and on the same 4 KiB page
// a string that decides which program is run. The parser of requests has a bug that lets one
// request overwrite the string, the way exploits of Linux overwrite `modprobe_path`.
//
// usage: counter < requests

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define KINDS 48

// One page of data. Objects are laid out by offset, so that what stands beside what does not
// depend on a linker; each also has a symbol of its own, which rules can name.
//
//   offset    0   counters      48 x 8 bytes, written all the time (sub-pages 0 to 2)
//   offset  384   helper_path   128 bytes, sub-page 3, written by nobody
//   offset  512   last_seen     48 x 8 bytes, written all the time (sub-pages 4 to 6)
__asm__(".pushsection .data.page, \"aw\", @progbits\n"
        ".balign 4096\n"
        ".globl counters, helper_path, last_seen\n"
        ".type counters, @object\n"
        ".size counters, 384\n"
        "counters: .zero 384\n"
        ".type helper_path, @object\n"
        ".size helper_path, 128\n"
        "helper_path: .asciz \"/usr/sbin/helper\"\n"
        ".zero 111\n"
        ".type last_seen, @object\n"
        ".size last_seen, 384\n"
        "last_seen: .zero 384\n"
        ".zero 4096 - 896\n"
        ".popsection\n");

extern unsigned long counters[KINDS];
extern char helper_path[128];
extern unsigned long last_seen[KINDS];

static unsigned long clock_ticks;

// `count KIND AMOUNT`: adds AMOUNT (hexadecimal) to a counter.
//
// The bug: both tables were once one array, and the check still allows its length. KIND 48 to 63
// is the helper's path.
static void count(const char *request)
{
    char *end;
    unsigned long kind = strtoul(request, &end, 10);
    unsigned long amount = strtoul(end, NULL, 16);

    if (kind < 2 * KINDS)
        counters[kind] += amount;
}

// What the server does all day: every kind of event, in its turn.
static void tick(void)
{
    unsigned int kind = clock_ticks % KINDS;

    clock_ticks++;
    counters[kind]++;
    last_seen[kind] = clock_ticks;
}

int main(void)
{
    char request[128];

    while (fgets(request, sizeof request, stdin)) {
        char *newline = strchr(request, '\n');
        if (newline)
            *newline = '\0';
        if (strncmp(request, "count ", 6) == 0)
            count(request + 6);
        else if (strncmp(request, "run ", 4) == 0)
            for (long i = strtol(request + 4, NULL, 10); i > 0; i--)
                tick();
    }
    printf("%lu ticks; the helper is %s\n", clock_ticks, helper_path);
    return 0;
}
