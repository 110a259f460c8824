// A guest in the spirit of a kernel: it serves system calls from a list, counts each one, and keeps,
// on the same page as the counter, the path of the program that it starts to load a module. One
// system call has a bug that lets one request overwrite the path, the way exploits of Linux
// overwrite `modprobe_path`.
//
// It runs without a processor's floating-point and vector registers, without interrupts, and without
// a library. What it has is told by the boot contract of `crates/subpage-kvm/src/boot`: 64-bit mode,
// memory mapped where it is, a stack; a console at port 0x3f8, and port 0xf4, which ends the guest.

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long u64;

#define RESOURCES 8

// One page of data. Objects are laid out by offset, so that what stands beside what does not depend
// on a linker; each also has a symbol of its own, which rules can name.
//
//   offset    0   syscall_count   8 bytes, written by every system call (sub-page 0)
//   offset    8   last_caller     8 bytes, written when another process calls
//   offset  128   limits          8 x 16 bytes, written by setrlimit (sub-page 1)
//   offset  256   modprobe_path   128 bytes, written by nobody (sub-page 2)
//   offset  384   modules         8 bytes, written when a module is loaded (sub-page 3)
__asm__(".pushsection .data, \"aw\", @progbits\n"
        ".balign 4096\n"
        ".macro object name, size\n"
        ".globl \\name\n"
        ".type \\name, @object\n"
        ".size \\name, \\size\n"
        "\\name:\n"
        ".endm\n"
        "object syscall_count, 8\n"
        ".zero 8\n"
        "object last_caller, 8\n"
        ".zero 8 + 112\n"
        "object limits, 128\n"
        ".zero 128\n"
        "object modprobe_path, 128\n"
        ".asciz \"/sbin/modprobe\"\n"
        ".zero 113\n"
        "object modules, 8\n"
        ".zero 8\n"
        ".zero 4096 - 392\n"
        ".popsection\n");

struct limit {
    u64 soft, hard;
};

extern volatile u64 syscall_count;
extern volatile u64 last_caller;
extern volatile struct limit limits[RESOURCES];
extern const volatile char modprobe_path[128];
extern volatile u64 modules;

enum call { GETPID, SETRLIMIT, SOCKET };

// What processes ask for, in this order.
struct request {
    u32 process;
    enum call call;
    u32 times;           // that the same is asked for
    u32 number;          // a resource, a protocol
    struct limit limit;
};

// Four letters, as the number that has them in memory.
#define LETTERS(a, b, c, d) ((u64)(a) | (u64)(b) << 8 | (u64)(c) << 16 | (u64)(d) << 24)

static const struct request requests[] = {
    { .process = 101, .call = GETPID, .times = 5000 },
    { .process = 102, .call = SETRLIMIT, .times = 1, .number = 7, .limit = { 1024, 4096 } },
    { .process = 102, .call = GETPID, .times = 5000 },
    // The crafted one: there is no resource 8.
    { .process = 666, .call = SETRLIMIT, .times = 1, .number = 8,
      .limit = { LETTERS('/', 't', 'm', 'p') | LETTERS('/', 'e', 'v', 'i') << 32, 'l' } },
    { .process = 101, .call = GETPID, .times = 10000 },
    // Nobody knows protocol 44: a module is needed.
    { .process = 666, .call = SOCKET, .times = 1, .number = 44 },
};

static void out(unsigned short port, u8 byte)
{
    __asm__ volatile("outb %0, %1" : : "a"(byte), "Nd"(port));
}

static void print(const volatile char *text)
{
    for (; *text; text++)
        out(0x3f8, *text);
}

static void print_number(u64 number)
{
    if (number >= 10)
        print_number(number / 10);
    out(0x3f8, '0' + number % 10);
}

// The bug: the check was written when there were twice as many resources. Resources 8 to 15 are the
// path.
static void setrlimit(const struct request *request)
{
    if (request->number < 2 * RESOURCES) {
        limits[request->number].soft = request->limit.soft;
        limits[request->number].hard = request->limit.hard;
    }
}

static void socket(const struct request *request)
{
    print("kernel: protocol ");
    print_number(request->number);
    print(" needs a module, run as root: ");
    print(modprobe_path);
    print("\n");
    modules++;
}

static void serve(const struct request *request)
{
    if (last_caller != request->process)
        last_caller = request->process;
    for (u32 left = request->times; left; left--) {
        syscall_count++;
        if (request->call == SETRLIMIT)
            setrlimit(request);
        else if (request->call == SOCKET)
            socket(request);
    }
}

static void show(const struct request *request)
{
    print("process ");
    print_number(request->process);
    if (request->call == GETPID) {
        print(": getpid, ");
        print_number(request->times);
        print(" times\n");
    } else if (request->call == SETRLIMIT) {
        print(": setrlimit of resource ");
        print_number(request->number);
        print("\n");
    } else {
        print(": socket of protocol ");
        print_number(request->number);
        print("\n");
    }
}

void _start(void)
{
    for (u64 at = 0; at < sizeof requests / sizeof *requests; at++) {
        show(&requests[at]);
        serve(&requests[at]);
    }
    print("kernel: ");
    print_number(syscall_count);
    print(" system calls served\n");
    out(0xf4, 0);
    for (;;)
        __asm__ volatile("hlt");
}
