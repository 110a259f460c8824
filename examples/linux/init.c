// The first program of a small Linux guest: a shell with a handful of commands, and what it does
// if it is told nothing else. It needs no library, so that the whole initrd is a few kilobytes.
//
// The kernel's command line tells it what to do, one command each, in quotes:
//     console=ttyS0 -- "cat /proc/version" "echo /tmp/evil > /proc/sys/kernel/modprobe" poweroff

typedef unsigned long word;

enum {
    READ = 0, WRITE = 1, OPEN = 2, CLOSE = 3, IOCTL = 16, PIPE = 22, SOCKETPAIR = 53, FORK = 57, EXIT = 60,
    WAIT4 = 61, RENAME = 82, MKDIR = 83, RMDIR = 84, UNLINK = 87, SYMLINK = 88, GETUID = 102, MOUNT = 165,
    UMOUNT = 166, REBOOT = 169, CLOCK_GETTIME = 228, FINIT_MODULE = 313,
};

enum { READ_ONLY = 0, WRITE_ONLY = 1, CREATE = 0100, TRUNCATE = 01000 };

// Of socketpair(2).
enum { UNIX = 1, STREAM = 1 };

// Of reboot(2).
enum { MAGIC = 0xfee1dead, MAGIC2 = 0x28121969, RESTART = 0x1234567, POWER_OFF = 0x4321fedc };

static long call(long number, word a, word b, word c, word d, word e)
{
    long result;
    register word r10 __asm__("r10") = d;
    register word r8 __asm__("r8") = e;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
                     : "rcx", "r11", "memory");
    return result;
}

#define CALL(number, a, b, c) call(number, (word)(a), (word)(b), (word)(c), 0, 0)

static word length(const char *text)
{
    word n = 0;
    while (text[n])
        n++;
    return n;
}

static void print(const char *text)
{
    CALL(WRITE, 1, text, length(text));
}

static void print_number(long value)
{
    char digits[24];
    int at = sizeof digits - 1;
    word left = value < 0 ? -(word)value : (word)value;
    digits[at] = 0;
    do
        digits[--at] = '0' + left % 10;
    while (left /= 10);
    if (value < 0)
        digits[--at] = '-';
    print(digits + at);
}

static void complain(const char *what, long error)
{
    print(what);
    print(": error ");
    print_number(-error);
    print("\n");
}

// Whether the text begins with the word, followed by a space or nothing; if so, the rest.
static const char *after(const char *text, const char *word)
{
    while (*word)
        if (*text++ != *word++)
            return 0;
    if (*text && *text != ' ')
        return 0;
    while (*text == ' ')
        text++;
    return text;
}

static void cat(const char *path)
{
    char buffer[512];
    long file = CALL(OPEN, path, READ_ONLY, 0);
    if (file < 0) {
        complain(path, file);
        return;
    }
    for (;;) {
        long count = CALL(READ, file, buffer, sizeof buffer);
        if (count <= 0)
            break;
        CALL(WRITE, 1, buffer, count);
    }
    CALL(CLOSE, file, 0, 0);
}

// echo TEXT > PATH
static void echo(const char *rest)
{
    char text[256];
    word n = 0;
    while (*rest && *rest != '>' && n + 2 < sizeof text)
        text[n++] = *rest++;
    while (n && text[n - 1] == ' ')
        n--;
    text[n++] = '\n';
    text[n] = 0;
    if (*rest != '>') {
        print(text);
        return;
    }
    rest++;
    while (*rest == ' ')
        rest++;
    long file = CALL(OPEN, rest, WRITE_ONLY | CREATE | TRUNCATE, 0644);
    long count = file < 0 ? file : CALL(WRITE, file, text, n);
    if (count < 0)
        complain(rest, count);
    if (file >= 0)
        CALL(CLOSE, file, 0, 0);
}

static word now(void)
{
    word time[2] = {0, 0};
    CALL(CLOCK_GETTIME, 1, time, 0);
    return time[0] * 1000000 + time[1] / 1000;
}

static word number(const char *text)
{
    word value = 0;
    while (*text >= '0' && *text <= '9')
        value = value * 10 + (*text++ - '0');
    return value;
}

// Ends a part of work() with the name of what is wrong, unless the condition holds.
#define DO(what, condition) \
    do { \
        if (!(condition)) \
            return what; \
    } while (0)

static int is(const char *text, const char *other, long count)
{
    for (long i = 0; i < count; i++)
        if (text[i] != other[i])
            return 0;
    return 1;
}

// A child writes into one end, its parent reads from the other.
static const char *processes(int ends[2])
{
    int status = 0;
    char text[4];
    long child = CALL(FORK, 0, 0, 0);
    if (child == 0)
        CALL(EXIT, CALL(WRITE, ends[1], "work", 4) != 4, 0, 0);
    DO("fork", child > 0);
    DO("read", CALL(READ, ends[0], text, 4) == 4 && is(text, "work", 4));
    DO("wait", CALL(WAIT4, child, &status, 0) == child && status == 0);
    DO("close", CALL(CLOSE, ends[0], 0, 0) == 0 && CALL(CLOSE, ends[1], 0, 0) == 0);
    return 0;
}

static const char *files(void)
{
    char text[8];
    DO("mkdir", CALL(MKDIR, "/scratch", 0755, 0) == 0);
    DO("mount", call(MOUNT, (word) "none", (word) "/scratch", (word) "ramfs", 0, 0) == 0);
    long file = CALL(OPEN, "/scratch/a", WRITE_ONLY | CREATE, 0644);
    DO("open", file >= 0);
    DO("write", CALL(WRITE, file, "text\n", 5) == 5 && CALL(CLOSE, file, 0, 0) == 0);
    DO("symlink", CALL(SYMLINK, "/scratch/c", "/scratch/b", 0) == 0);
    DO("rename", CALL(RENAME, "/scratch/a", "/scratch/c", 0) == 0);
    file = CALL(OPEN, "/scratch/b", READ_ONLY, 0);
    DO("open by symlink", file >= 0);
    DO("read of a file", CALL(READ, file, text, sizeof text) == 5 && is(text, "text\n", 5));
    DO("close of a file", CALL(CLOSE, file, 0, 0) == 0);
    DO("unlink", CALL(UNLINK, "/scratch/b", 0, 0) == 0 && CALL(UNLINK, "/scratch/c", 0, 0) == 0);
    DO("umount", CALL(UMOUNT, "/scratch", 0, 0) == 0);
    DO("rmdir", CALL(RMDIR, "/scratch", 0, 0) == 0);
    return 0;
}

// One round; what failed, or 0.
static const char *round(void)
{
    int ends[2];
    const char *failed;
    DO("pipe", CALL(PIPE, ends, 0, 0) == 0);
    if ((failed = processes(ends)))
        return failed;
    DO("socketpair", call(SOCKETPAIR, UNIX, STREAM, 0, (word)ends, 0) == 0);
    if ((failed = processes(ends)))
        return failed;
    return files();
}

// Work of the kind that makes a kernel write its own data: processes, pipes, sockets, files,
// directories, links, mounts. It ends with the first call that fails or gives something else.
static void work(word rounds)
{
    word begun = now(), done = 0;
    const char *failed = 0;
    while (done < rounds && !(failed = round()))
        done++;
    if (failed) {
        print("work: failed in ");
        print(failed);
        print(" after ");
    } else
        print("work: ");
    print_number(done);
    print(" rounds in ");
    print_number(now() - begun);
    print(" us\n");
}

// A module of the kernel, without parameters.
static void insmod(const char *path)
{
    long file = CALL(OPEN, path, READ_ONLY, 0);
    long result = file < 0 ? file : CALL(FINIT_MODULE, file, "", 0);
    if (result < 0)
        complain(path, result);
    if (file >= 0)
        CALL(CLOSE, file, 0, 0);
}

static void end(word how)
{
    // A serial line takes its time, and the kernel does not wait for it: TCSBRK, tcdrain(3).
    CALL(IOCTL, 1, 0x5409, 1);
    CALL(REBOOT, MAGIC, MAGIC2, how);
}

static void shell(void);

static void run(const char *command)
{
    const char *rest;
    if ((rest = after(command, "cat")))
        cat(rest);
    else if ((rest = after(command, "echo")))
        echo(rest);
    else if ((rest = after(command, "work")))
        work(number(rest));
    else if ((rest = after(command, "insmod")))
        insmod(rest);
    else if (after(command, "id")) {
        print("uid=");
        print_number(CALL(GETUID, 0, 0, 0));
        print("\n");
    } else if (after(command, "shell"))
        shell();
    else if (after(command, "poweroff"))
        end(POWER_OFF);
    else if (after(command, "reboot"))
        end(RESTART);
    else if (after(command, "panic"))
        echo("c > /proc/sysrq-trigger");
    else if (*command) {
        print(command);
        print(": not a command: cat FILE, echo TEXT > FILE, work ROUNDS, insmod FILE, id, shell, "
              "poweroff, reboot, panic\n");
    }
}

static void show_and_run(const char *command)
{
    print("# ");
    print(command);
    print("\n");
    run(command);
}

// Commands from the console, until it ends.
static void shell(void)
{
    char line[256];
    word n = 0;
    print("# ");
    for (;;) {
        char byte;
        if (CALL(READ, 0, &byte, 1) <= 0)
            return;
        if (byte == '\n' || byte == '\r') {
            line[n] = 0;
            n = 0;
            run(line);
            print("# ");
        } else if (n + 1 < sizeof line)
            line[n++] = byte;
    }
}

// What an exploit does that can write the kernel's memory, by the way that root has anyway.
static const char *const attack[] = {
    "id",
    "cat /proc/sys/kernel/modprobe",
    "echo /tmp/evil > /proc/sys/kernel/modprobe",
    "cat /proc/sys/kernel/modprobe",
    "poweroff",
};

static int mount(const char *kind, const char *path)
{
    CALL(MKDIR, path, 0755, 0);
    return (int)call(MOUNT, (word)kind, (word)path, (word)kind, 0, 0);
}

__attribute__((used)) static void begin(word *stack)
{
    word count = stack[0];
    char **arguments = (char **)(stack + 1);
    mount("proc", "/proc");
    mount("devtmpfs", "/dev");
    // Nothing of the kernel's between the lines of the commands.
    echo("1 > /proc/sys/kernel/printk");
    if (count > 1)
        for (word i = 1; i < count; i++)
            show_and_run(arguments[i]);
    else
        for (word i = 0; i < sizeof attack / sizeof *attack; i++)
            show_and_run(attack[i]);
    end(POWER_OFF);
    CALL(EXIT, 1, 0, 0);
}

__attribute__((naked, noreturn)) void _start(void)
{
    __asm__("mov %rsp, %rdi\n\tand $-16, %rsp\n\tcall begin\n\thlt");
}
