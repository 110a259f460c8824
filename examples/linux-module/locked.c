// SPDX-License-Identifier: GPL-2.0-only
/*
 * A module that guards memory of its own through the hypercalls of Subpage's hypervisor
 * (docs/hypercalls.md). A write to /proc/locked asks for one of:
 *
 *	lock		a rule on 128 bytes of the module's own, which nobody can remove any more
 *	store		the module writes there itself
 *	event		reads the hypervisor's events up to that of the store
 *	remove		tries to remove the rule
 *	remove NUMBER	tries to remove another
 *
 * A read of /proc/locked tells what came of it.
 */
#include <linux/io.h>
#include <linux/kernel.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/string.h>
#include <linux/uaccess.h>
#include <asm/processor.h>

enum { ADD_RULE = 3, REMOVE_RULE = 4, READ_EVENTS = 9 };
enum { DENY = 2, SKIP = 1, LOCKED = 1, GUARDED_BYTES = 128 };

struct rule_request {
	__le64 gpa;
	__le64 bytes;
	__le32 action;
	__le32 response;
	__le32 flags;
	__le16 reserved;
	__le16 name_length;
	char name[64];
} __packed;

struct event {
	__le64 sequence, rule, gpa, gla, at, rip, cr3, qualification;
	__le32 length, cpu;
	__le16 outcome, flags;
	u8 instruction_length, cpl, data_length, reserved;
	u8 data[64];
	u8 instruction[16];
	__le64 time;
} __packed;

static_assert(sizeof(struct rule_request) == 96);
static_assert(sizeof(struct event) == 168);

/* Two pages: what is guarded, and what the hypervisor reads and writes. */
static u64 *guarded;
static void *shared;
static long rule;
static char report[160];

static long hypercall(long number, u64 first, u64 second)
{
	long result;

	asm volatile("vmcall" : "=a"(result) : "a"(number), "b"(first), "c"(second) : "memory");
	return result;
}

static bool hypervisor_is_there(void)
{
	u32 eax, ebx, ecx, edx;

	cpuid(0x40000000, &eax, &ebx, &ecx, &edx);
	if (ebx != 0x70627553 || ecx != 0x56656761 || edx != 0x00782d54)
		return false;
	/* Another major version may mean something else by the same numbers. */
	return cpuid_eax(0x40000001) >> 16 == 2;
}

static void lock(void)
{
	static const char name[] = "the module's own";
	struct rule_request *request = shared;

	if (rule > 0) {
		snprintf(report, sizeof(report), "lock: it is\n");
		return;
	}
	memset(request, 0, sizeof(*request));
	request->gpa = cpu_to_le64(virt_to_phys(guarded));
	request->bytes = cpu_to_le64(GUARDED_BYTES);
	request->action = cpu_to_le32(DENY);
	request->response = cpu_to_le32(SKIP);
	request->flags = cpu_to_le32(LOCKED);
	request->name_length = cpu_to_le16(strlen(name));
	memcpy(request->name, name, strlen(name));
	rule = hypercall(ADD_RULE, virt_to_phys(request), 0);
	if (rule > 0)
		snprintf(report, sizeof(report), "lock: rule %ld\n", rule);
	else
		snprintf(report, sizeof(report), "lock: error %ld\n", rule);
}

/* Within the bytes, and behind them in the same page. */
static void store(void)
{
	u64 *behind = guarded + GUARDED_BYTES / sizeof(u64);
	u64 inside = READ_ONCE(*guarded), beside = READ_ONCE(*behind);

	WRITE_ONCE(*guarded, inside + 1);
	WRITE_ONCE(*behind, beside + 1);
	snprintf(report, sizeof(report), "store: inside %s, beside %s\n",
		 READ_ONCE(*guarded) == inside ? "unchanged" : "changed",
		 READ_ONCE(*behind) == beside ? "unchanged" : "changed");
}

/* One at a time: others of the kernel's writes may have been met before. */
static void read_event(void)
{
	struct event *event = shared;
	long count;

	while ((count = hypercall(READ_EVENTS, virt_to_phys(event), 1)) == 1) {
		if (le64_to_cpu(event->rule) != rule || rule <= 0)
			continue;
		snprintf(report, sizeof(report), "event: rule %llu, outcome %u, %u bytes %s, by %s\n",
			 le64_to_cpu(event->rule), le16_to_cpu(event->outcome),
			 le32_to_cpu(event->length),
			 le64_to_cpu(event->gpa) == virt_to_phys(guarded) ? "inside" : "elsewhere",
			 within_module(le64_to_cpu(event->rip), THIS_MODULE) ? "this module" :
									       "others");
		return;
	}
	snprintf(report, sizeof(report), "event: none (%ld)\n", count);
}

static void remove(long number)
{
	snprintf(report, sizeof(report), "remove %ld: %ld\n", number,
		 hypercall(REMOVE_RULE, number, 0));
}

static ssize_t asked(struct file *file, const char __user *from, size_t bytes, loff_t *at)
{
	char words[32];
	long number;

	if (bytes >= sizeof(words))
		return -EINVAL;
	if (copy_from_user(words, from, bytes))
		return -EFAULT;
	words[bytes] = 0;
	strim(words);
	if (!strcmp(words, "lock"))
		lock();
	else if (!strcmp(words, "store"))
		store();
	else if (!strcmp(words, "event"))
		read_event();
	else if (!strcmp(words, "remove"))
		remove(rule);
	else if (!strncmp(words, "remove ", 7) && !kstrtol(words + 7, 10, &number))
		remove(number);
	else
		return -EINVAL;
	return bytes;
}

static ssize_t told(struct file *file, char __user *to, size_t bytes, loff_t *at)
{
	return simple_read_from_buffer(to, bytes, at, report, strlen(report));
}

static const struct proc_ops operations = { .proc_write = asked, .proc_read = told };

static int __init begin(void)
{
	if (!hypervisor_is_there())
		return -ENODEV;
	guarded = (void *)get_zeroed_page(GFP_KERNEL);
	shared = (void *)get_zeroed_page(GFP_KERNEL);
	if (guarded && shared && proc_create("locked", 0600, NULL, &operations))
		return 0;
	free_page((unsigned long)guarded);
	free_page((unsigned long)shared);
	return -ENOMEM;
}

/* No exit: what is locked stays so, and its memory must not become another's. */
module_init(begin);
MODULE_DESCRIPTION("A module that guards its own memory by Subpage's hypercalls");
MODULE_LICENSE("GPL");
