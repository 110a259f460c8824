//! Control registers, the time-stamp counter, and instructions that only wait or invalidate.
//!
//! Unsafe for the instructions themselves; those that can break memory safety are unsafe functions.
#![allow(unsafe_code)]

use core::arch::asm;

use subpage_emulate::bits::CR4_OSXSAVE;

/// CR0.NE, numeric error.
pub const CR0_NE: u64 = 1 << 5;
/// CR0.NW, not write-through.
pub const CR0_NW: u64 = 1 << 29;
/// CR0.CD, cache disable.
pub const CR0_CD: u64 = 1 << 30;
/// CR4.LA57, 57-bit linear addresses.
pub const CR4_LA57: u64 = 1 << 12;
/// CR4.VMXE, VMX enable.
pub const CR4_VMXE: u64 = 1 << 13;
/// CR4.SMXE, SMX enable.
pub const CR4_SMXE: u64 = 1 << 14;
/// CR4.PCIDE, process-context identifiers.
pub const CR4_PCIDE: u64 = 1 << 17;
/// CR4 bits of what guests are not offered, since stores in software would not obey it: 57-bit
/// addresses (12), VMX (13), SMX (14), protection keys (22, 24), control-flow enforcement (23), user
/// interrupts (25), and what is above.
pub const CR4_NOT_OFFERED: u64 =
    CR4_LA57 | CR4_VMXE | CR4_SMXE | 1 << 22 | 1 << 23 | 1 << 24 | 1 << 25 | !0 << 26;

macro_rules! read {
    ($name:ident, $register:literal) => {
        #[doc = concat!("Reads ", $register, ".")]
        pub fn $name() -> u64 {
            let value: u64;
            // SAFETY: reading a control register at CPL 0 has no effect.
            unsafe {
                asm!(concat!("mov {}, ", $register), out(reg) value, options(nomem, nostack));
            }
            value
        }
    };
}

read!(cr0, "cr0");
read!(cr2, "cr2");
read!(cr3, "cr3");
read!(cr4, "cr4");

/// Writes CR0.
///
/// # Safety
/// Paging, protection and write protection stay as they are.
pub unsafe fn set_cr0(value: u64) {
    // SAFETY: by the contract.
    unsafe { asm!("mov cr0, {}", in(reg) value, options(nostack)) };
}

/// Writes CR4.
///
/// # Safety
/// What compiled code relies on (PAE, OSFXSR) stays on, and each bit is one the processor has.
pub unsafe fn set_cr4(value: u64) {
    // SAFETY: by the contract.
    unsafe { asm!("mov cr4, {}", in(reg) value, options(nostack)) };
}

/// Writes CR2, which guests see after a page fault that they are told of.
pub fn set_cr2(value: u64) {
    // SAFETY: the hypervisor takes no page fault that it would read this for.
    unsafe { asm!("mov cr2, {}", in(reg) value, options(nomem, nostack)) };
}

/// XCR0: the guest's, too.
///
/// # Panics
/// If the processor has no XSAVE, whose CR4.OSXSAVE is set where it has.
pub fn xcr0() -> u64 {
    assert!(cr4() & CR4_OSXSAVE != 0, "XCR0 comes with XSAVE");
    let (low, high): (u32, u32);
    // SAFETY: reads a register that exists.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Writes XCR0.
///
/// # Safety
/// CR4.OSXSAVE is 1 and `value` is one that XSETBV takes.
pub unsafe fn set_xcr0(value: u64) {
    // SAFETY: by the contract; the hypervisor itself uses only what FXSAVE saves.
    unsafe {
        asm!("xsetbv", in("ecx") 0, in("eax") low(value), in("edx") low(value >> 32),
             options(nomem, nostack));
    }
}

#[allow(clippy::cast_possible_truncation)]
const fn low(value: u64) -> u32 {
    value as u32
}

/// Forgets the translation of one page of the hypervisor's own memory.
pub fn invalidate_page(address: u64) {
    // SAFETY: forgetting a translation is always allowed.
    unsafe { asm!("invlpg [{}]", in(reg) address, options(nostack)) };
}

/// Writes back and empties the caches.
pub fn write_back_caches() {
    // SAFETY: caches are transparent.
    unsafe { asm!("wbinvd", options(nostack)) };
}

/// Reads the time-stamp counter: on Bochs, instructions.
pub fn time_stamp() -> u64 {
    let (high, low): (u32, u32);
    // SAFETY: RDTSC has no effect.
    unsafe { asm!("rdtsc", out("eax") low, out("edx") high, options(nomem, nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

/// Waits for an interrupt; with interrupts off, for an NMI.
pub fn halt() {
    // SAFETY: HLT only waits.
    unsafe { asm!("hlt", options(nomem, nostack)) };
}

/// Lets NMIs come again after a VM exit for an NMI, which blocks them like an NMI itself: IRET ends
/// the blocking (SDM Vol. 3A, "Handling Multiple NMIs").
pub fn unblock_nmis() {
    // SAFETY: the frame returns to the next instruction with the same segments, flags and stack.
    unsafe {
        asm!(
            "mov {scratch:r}, rsp",
            "push {ss:r}",
            "push {scratch:r}",
            "pushfq",
            "push {cs:r}",
            "lea {scratch:r}, [rip + 2f]",
            "push {scratch:r}",
            "iretq",
            "2:",
            scratch = out(reg) _,
            ss = in(reg) u64::from(super::segments::DATA),
            cs = in(reg) u64::from(super::segments::CODE),
        );
    }
}
