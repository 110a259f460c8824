// The same in C++: name spaces, bases, members of the class.

struct base {
    long first;
};

struct middle : base {
    static int shared;
    int second;
};

int middle::shared = 1;

namespace app {
namespace {
struct middle hidden = {{1}, 2};
}
struct derived : middle {
    int second;
    int third[2];
};
derived state[3];
int &reference = state[0].third[0];

int use()
{
    static derived local;
    return ++local.third[1] + hidden.second + reference;
}
}

extern "C" void _start()
{
    app::state[1].third[0] = app::use();
    for (;;)
        ;
}
