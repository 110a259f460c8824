//! Entry into the guest and exit from it.
//!
//! Unsafe because these are the instructions between two worlds, written in assembly.
#![allow(unsafe_code)]

use core::arch::naked_asm;
use core::mem::offset_of;
use core::sync::atomic::AtomicBool;

use crate::vmx::CurrentVmcs;
use crate::vmx::field::ControlField;
use subpage_emulate::FxArea;
use subpage_emulate::guest::GeneralRegisters;

/// The x87 and SSE state after reset: control word 40H, MXCSR 1F80H, everything else 0.
pub const fn fx_after_reset() -> FxArea {
    let mut area = [0; 512];
    area[0] = 0x40;
    area[24] = 0x80;
    area[25] = 0x1F;
    FxArea(area)
}

/// A guest's registers that the VMCS does not hold. The slot of RSP is unused: the VMCS has it.
#[repr(C, align(16))]
#[allow(missing_debug_implementations)] // A wall of numbers.
pub struct Context {
    /// General registers.
    pub registers: GeneralRegisters,
    /// What FXSAVE64 saves: x87, MXCSR and the low halves of the vector registers.
    ///
    /// That is enough: the hypervisor is built for a baseline processor, whose SSE instructions
    /// leave the upper halves alone, so they stay in the processor as the guest left them.
    pub fx: FxArea,
}

const FX: usize = offset_of!(Context, fx);
const HOST_RSP: u32 = ControlField::HOST_RSP.0;

/// MXCSR as compiled code expects it.
static MXCSR: u32 = 0x1F80;

/// Enters the guest; returns 0 after a VM exit, 1 if the entry instruction failed, 2 if an NMI came
/// before the entry: if `*nmi` is not 0, or later by the NMI handler (see [`cut_short`]).
///
/// # Safety
/// A VMCS is current whose host state is this hypervisor, with [`exit_point`] as RIP; `context` is
/// exclusively the caller's; `launched` tells whether this VMCS has been launched; `nmi` can be read.
#[unsafe(naked)]
unsafe extern "sysv64" fn enter(context: *mut Context, launched: u64, nmi: *const bool) -> u64 {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rdi",
        "mov eax, {host_rsp}",
        "vmwrite rax, rsp",
        "cmp byte ptr [rdx], 0",
        ".globl hypervisor_entry_begins",
        "hypervisor_entry_begins:",
        "jne hypervisor_entry_cut_short",
        "fxrstor64 [rdi + {fx}]",
        "test rsi, rsi",
        "mov rax, [rdi + 0x00]",
        "mov rcx, [rdi + 0x08]",
        "mov rdx, [rdi + 0x10]",
        "mov rbx, [rdi + 0x18]",
        "mov rbp, [rdi + 0x28]",
        "mov rsi, [rdi + 0x30]",
        "mov r8, [rdi + 0x40]",
        "mov r9, [rdi + 0x48]",
        "mov r10, [rdi + 0x50]",
        "mov r11, [rdi + 0x58]",
        "mov r12, [rdi + 0x60]",
        "mov r13, [rdi + 0x68]",
        "mov r14, [rdi + 0x70]",
        "mov r15, [rdi + 0x78]",
        "mov rdi, [rdi + 0x38]",
        "jnz 2f",
        "vmlaunch",
        "jmp 3f",
        "2:",
        "vmresume",
        "3:",
        ".globl hypervisor_entry_ends",
        "hypervisor_entry_ends:",
        // Still here: the entry instruction failed. No register of the guest has changed.
        "ldmxcsr [rip + {mxcsr}]",
        "mov eax, 1",
        "jmp 4f",
        // Likewise, with RSP as above wherever the NMI came.
        ".globl hypervisor_entry_cut_short",
        "hypervisor_entry_cut_short:",
        "ldmxcsr [rip + {mxcsr}]",
        "mov eax, 2",
        "4:",
        "pop rdi",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
        host_rsp = const HOST_RSP,
        fx = const FX,
        mxcsr = sym MXCSR,
    )
}

/// Where a VM exit arrives, with RSP as [`enter`] left it in the VMCS.
///
/// # Safety
/// Never called.
#[unsafe(naked)]
unsafe extern "sysv64" fn exit_point() {
    naked_asm!(
        "xchg rdi, [rsp]",
        "mov [rdi + 0x00], rax",
        "mov [rdi + 0x08], rcx",
        "mov [rdi + 0x10], rdx",
        "mov [rdi + 0x18], rbx",
        "mov [rdi + 0x28], rbp",
        "mov [rdi + 0x30], rsi",
        "mov [rdi + 0x40], r8",
        "mov [rdi + 0x48], r9",
        "mov [rdi + 0x50], r10",
        "mov [rdi + 0x58], r11",
        "mov [rdi + 0x60], r12",
        "mov [rdi + 0x68], r13",
        "mov [rdi + 0x70], r14",
        "mov [rdi + 0x78], r15",
        "pop rax",
        "mov [rdi + 0x38], rax",
        "fxsave64 [rdi + {fx}]",
        "ldmxcsr [rip + {mxcsr}]",
        "xor eax, eax",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
        fx = const FX,
        mxcsr = sym MXCSR,
    )
}

/// The address for the host-state field RIP.
pub fn exit_address() -> u64 {
    exit_point as *const () as u64
}

unsafe extern "sysv64" {
    fn hypervisor_entry_begins();
    fn hypervisor_entry_ends();
    fn hypervisor_entry_cut_short();
}

/// An NMI between the last look at what others want and the entry would be forgotten in the guest:
/// where it interrupts instructions from the first address up to the second, its handler has to
/// return to the third.
pub fn cut_short() -> [usize; 3] {
    [hypervisor_entry_begins, hypervisor_entry_ends, hypervisor_entry_cut_short]
        .map(|label: unsafe extern "sysv64" fn()| label as usize)
}

/// How an attempt to run the guest ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ran {
    /// With an exit.
    Exited,
    /// An NMI came before the entry: the guest has not run.
    NotYet,
}

/// The entry instruction failed; the VM-instruction error field tells why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryFailed;

/// Runs the guest until its next exit, unless an NMI has come since `nmi` was cleared.
pub fn run(
    _: &mut CurrentVmcs,
    context: &mut Context,
    launched: bool,
    nmi: &AtomicBool,
) -> Result<Ran, EntryFailed> {
    // SAFETY: the holder of the VMCS has set up its host state (`setup`); the context is borrowed.
    match unsafe { enter(context, launched.into(), nmi.as_ptr()) } {
        0 => Ok(Ran::Exited),
        1 => Err(EntryFailed),
        _ => Ok(Ran::NotYet),
    }
}
