/* `nothing` has no byte, and lies where `thing` of the other file does. */
struct wide {
    long before[2];
    int a;
} nothing[0] __attribute__((section(".data"))) = {};

struct {
    int b;
} other = {1};

extern struct narrow {
    int a;
    int b;
} thing[1];

void _start(void)
{
    for (;;)
        other.b = ((volatile int *)thing)[1];
}
