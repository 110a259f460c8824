// Members that several bases have.

struct left {
    int x, only_left;
};

struct right {
    int y, x;
};

struct both : left, right {
    int own;
};

// A member hides those of the bases.
struct hides : left, right {
    int x;
};

struct first : left {
    int a;
};

struct second : left {
    int b, x;
};

// Twice the same base: in one of the two it is hidden, in the other not.
struct twice : first, second {
    int own;
};

struct shared {
    int in_shared;
};

struct one : virtual shared {
    int in_one;
};

struct two : virtual shared {
    int in_two;
};

struct diamond : one, two {
    int own;
};

// Its own, in a part without a name, and that of a base.
struct nameless : left {
    union {
        int x;
        float f;
    };
};

struct both both = {{1, 2}, {3, 4}, 5};
struct hides hides = {{1, 2}, {3, 4}, 5};
struct twice twice = {{{1, 2}, 3}, {{4, 5}, 6, 7}, 8};
struct diamond diamond;
struct nameless nameless = {{1, 2}, {3}};

extern "C" void _start()
{
    for (;;)
        both.own = hides.x + twice.own + diamond.own + nameless.x;
}
