//! Control registers, model-specific registers, CPUID, the time-stamp counter.
//!
//! Unsafe: instructions. Functions that cannot break the memory model are safe; those that could
//! say what the caller has to keep.

use core::arch::asm;

/// IA32_EFER.
pub const EFER: u32 = 0xc000_0080;
/// CR0.PG.
pub const CR0_PG: u64 = 1 << 31;
/// CR0.WP.
pub const CR0_WP: u64 = 1 << 16;
/// CR0.CD.
pub const CR0_CD: u64 = 1 << 30;
/// CR4.PGE.
pub const CR4_PGE: u64 = 1 << 7;
/// CR4.OSXSAVE.
pub const CR4_OSXSAVE: u64 = 1 << 18;
/// CR4.SMEP.
pub const CR4_SMEP: u64 = 1 << 20;

/// Reads CR0.
pub fn cr0() -> u64 {
    let value;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr0", out(reg) value, options(nomem, nostack, preserves_flags)) }
    value
}

/// Reads CR2, the address of the last page fault.
pub fn cr2() -> u64 {
    let value;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack, preserves_flags)) }
    value
}

/// Reads CR3.
pub fn cr3() -> u64 {
    let value;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr3", out(reg) value, options(nomem, nostack, preserves_flags)) }
    value
}

/// Reads CR4.
pub fn cr4() -> u64 {
    let value;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr4", out(reg) value, options(nomem, nostack, preserves_flags)) }
    value
}

/// Writes CR0.
///
/// The bits that paging and SSE need stay set: PG, PE, WP and NE are added, EM and TS removed.
pub fn set_cr0(value: u64) {
    let value = (value | CR0_PG | CR0_WP | 0x31) & !0xc;
    // SAFETY: paging stays on with the same tables, so memory stays where it was.
    unsafe { asm!("mov cr0, {}", in(reg) value, options(nostack)) }
}

/// Writes CR3 with tables that map the first 1 GiB to itself, as all of this guest's do.
pub(crate) fn set_cr3(root: u64) {
    // SAFETY: all address spaces of this guest share the mapping of the image.
    unsafe { asm!("mov cr3, {}", in(reg) root, options(nostack)) }
}

/// Sets or clears bits of CR4 that do not change what addresses mean.
///
/// # Panics
/// If `mask` has others than PGE, OSXSAVE and SMEP.
pub fn change_cr4(mask: u64, set: bool) {
    assert!(mask & !(CR4_PGE | CR4_OSXSAVE | CR4_SMEP) == 0);
    let value = if set { cr4() | mask } else { cr4() & !mask };
    // SAFETY: none of these bits changes a translation of the supervisor.
    unsafe { asm!("mov cr4, {}", in(reg) value, options(nostack)) }
}

/// Reads a model-specific register.
pub fn read_msr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading has no effect on memory; an unknown register is #GP.
    unsafe {
        asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high,
            options(nomem, nostack, preserves_flags));
    }
    u64::from(low) | u64::from(high) << 32
}

/// Writes a model-specific register.
///
/// # Safety
/// The value may not change where memory is, or what the processor does to it.
pub unsafe fn write_msr(msr: u32, value: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32,
            options(nostack, preserves_flags));
    }
}

/// Sets or clears SCE (bit 0) or NXE (bit 11) of IA32_EFER.
///
/// # Panics
/// If `mask` has other bits.
pub fn change_efer(mask: u64, set: bool) {
    assert!(mask & !(1 | 1 << 11) == 0);
    let value = if set { read_msr(EFER) | mask } else { read_msr(EFER) & !mask };
    // SAFETY: this guest uses neither SYSCALL nor bit 63 of page-table entries.
    unsafe { write_msr(EFER, value) }
}

/// EAX, EBX, ECX and EDX of a CPUID leaf.
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let result = core::arch::x86_64::__cpuid_count(leaf, subleaf);
    [result.eax, result.ebx, result.ecx, result.edx]
}

/// The time-stamp counter. Bochs counts an instruction as one.
pub fn time_stamp() -> u64 {
    // SAFETY: reads a counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Whether the processor has AVX, as the hypervisor presents it.
pub fn has_avx() -> bool {
    cpuid(1, 0)[2] & (1 << 28 | 1 << 26) == 1 << 28 | 1 << 26
}

/// Whether the processor has AVX-512 with elements of all sizes and vectors of all lengths.
pub fn has_avx512() -> bool {
    const FOUNDATION: u32 = 1 << 16;
    const BYTES_AND_WORDS: u32 = 1 << 30;
    const LENGTHS: u32 = 1 << 31;
    const ALL: u32 = FOUNDATION | BYTES_AND_WORDS | LENGTHS;
    has_avx() && cpuid(7, 0)[1] & ALL == ALL && cpuid(0xd, 0)[0] & AVX512_STATE == AVX512_STATE
}

/// Opmask registers and the parts of vector registers that AVX-512 adds.
const AVX512_STATE: u32 = 7 << 5;

/// Turns on AVX and AVX-512, if the processor has them.
pub(super) fn enable_extended_state() {
    if !has_avx() {
        return;
    }
    change_cr4(CR4_OSXSAVE, true);
    let state = 7 | if has_avx512() { AVX512_STATE } else { 0 };
    // SAFETY: what the processor has of x87, SSE, AVX and AVX-512 state; nothing here saves less.
    unsafe {
        asm!("xsetbv", in("ecx") 0, in("eax") state, in("edx") 0, options(nomem, nostack));
    }
}
