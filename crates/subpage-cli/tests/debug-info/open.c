/* Arrays without a count, whose enclosing structures are not at the end. */
struct open {
    int count;
    int tail[0];
};

struct open several[4] = {{1}, {2}, {3}, {4}};

struct {
    int first;
    char mark[0];
    int last;
} middle = {.first = 1, .last = 2};

struct {
    int first;
    struct open inner;
    int last;
} holder = {1, {2}, 3};

void _start(void)
{
    for (;;)
        several[holder.first].count = middle.last;
}
