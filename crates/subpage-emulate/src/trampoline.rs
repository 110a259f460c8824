//! Executing one instruction with the guest's registers.
//!
//! Unsafe because machine code is written and jumped to. What makes that sound: the code comes from
//! [`Substitute`], which is made from a closed list of instructions, each of which touches general
//! registers, arithmetic flags, x87/MMX/SSE registers and the bytes at one address only; that address
//! is a [`Window`]'s; and everything else that the hypervisor relies on is put back afterwards.
#![allow(unsafe_code)]

use core::arch::global_asm;
use core::mem::offset_of;
use core::ptr;

use super::bits::ARITHMETIC_FLAGS;
use super::{Substitute, Window};
use crate::guest::{GeneralRegisters, Register};

/// Size of a trampoline's executable memory.
pub const CODE_BYTES: usize = 64;

/// The x87, MMX and SSE state, as FXSAVE64 stores it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(16))]
pub struct FxArea(pub [u8; 512]);

impl FxArea {
    const FOP: usize = 6;
    const FIP: usize = 8;
    const FDP: usize = 16;
    const MXCSR: usize = 24;
    const MXCSR_MASK: usize = 28;

    /// The state after FNINIT, with all SSE exceptions masked.
    pub const INITIAL: Self = {
        let mut bytes = [0; 512];
        bytes[0] = 0x7f;
        bytes[1] = 0x03;
        bytes[Self::MXCSR] = 0x80;
        bytes[Self::MXCSR + 1] = 0x1f;
        Self(bytes)
    };

    fn word(&self, at: usize) -> u32 {
        u32::from_le_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }

    fn pointer(&self, at: usize) -> u64 {
        u64::from(self.word(at)) | u64::from(self.word(at + 4)) << 32
    }

    fn set_pointer(&mut self, at: usize, to: u64) {
        self.0[at..at + 8].copy_from_slice(&to.to_le_bytes());
    }

    /// Clears the bits of MXCSR that FXRSTOR would refuse.
    fn mask_mxcsr(&mut self, mask: u32) {
        let mxcsr = self.word(Self::MXCSR) & mask;
        self.0[Self::MXCSR..Self::MXCSR + 4].copy_from_slice(&mxcsr.to_le_bytes());
    }
}

/// The instruction faulted in the hypervisor; nothing of the guest has changed.
///
/// The window was not mapped, or the processor does not have the instruction, or a pending x87
/// exception came first. The hypervisor's exception handler knows which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrampolineFault;

/// What the assembly below works on.
#[derive(Debug)]
#[repr(C, align(16))]
struct Context {
    host_fx: FxArea,
    registers: [u64; 16],
    flags: u64,
    code: u64,
    guest_fx: *mut FxArea,
}

global_asm!(
    // extern "sysv64" fn(context: *mut Context) -> 0 if the instruction ran, 1 if it faulted
    ".globl subpage_emulate_enter",
    ".globl subpage_emulate_leave",
    ".globl subpage_emulate_recover",
    "subpage_emulate_enter:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov rax, [rdi + {guest_fx}]",
    "test rax, rax",
    "jz 2f",
    "fxsave64 [rdi + {host_fx}]",
    "fxrstor64 [rax]",
    "2:",
    // The guest's arithmetic flags among the hypervisor's own other flags.
    "pushfq",
    "pop rax",
    "and rax, {other_flags}",
    "or rax, [rdi + {flags}]",
    "push qword ptr [rdi + {code}]",
    "push rdi",
    "push rax",
    "popfq",
    "mov rax, [rdi + {registers} + 8 * 0]",
    "mov rcx, [rdi + {registers} + 8 * 1]",
    "mov rdx, [rdi + {registers} + 8 * 2]",
    "mov rbx, [rdi + {registers} + 8 * 3]",
    "mov rbp, [rdi + {registers} + 8 * 5]",
    "mov rsi, [rdi + {registers} + 8 * 6]",
    "mov r8, [rdi + {registers} + 8 * 8]",
    "mov r9, [rdi + {registers} + 8 * 9]",
    "mov r10, [rdi + {registers} + 8 * 10]",
    "mov r11, [rdi + {registers} + 8 * 11]",
    "mov r12, [rdi + {registers} + 8 * 12]",
    "mov r13, [rdi + {registers} + 8 * 13]",
    "mov r14, [rdi + {registers} + 8 * 14]",
    "mov r15, [rdi + {registers} + 8 * 15]",
    "mov rdi, [rdi + {registers} + 8 * 7]",
    "jmp qword ptr [rsp + 8]",
    // The code jumps here. Only RSP is the hypervisor's; MOV, XCHG and POP leave the flags alone.
    "subpage_emulate_leave:",
    "xchg rdi, [rsp]",
    "mov [rdi + {registers} + 8 * 0], rax",
    "mov [rdi + {registers} + 8 * 1], rcx",
    "mov [rdi + {registers} + 8 * 2], rdx",
    "mov [rdi + {registers} + 8 * 3], rbx",
    "mov [rdi + {registers} + 8 * 5], rbp",
    "mov [rdi + {registers} + 8 * 6], rsi",
    "mov [rdi + {registers} + 8 * 8], r8",
    "mov [rdi + {registers} + 8 * 9], r9",
    "mov [rdi + {registers} + 8 * 10], r10",
    "mov [rdi + {registers} + 8 * 11], r11",
    "mov [rdi + {registers} + 8 * 12], r12",
    "mov [rdi + {registers} + 8 * 13], r13",
    "mov [rdi + {registers} + 8 * 14], r14",
    "mov [rdi + {registers} + 8 * 15], r15",
    "pop rax",
    "mov [rdi + {registers} + 8 * 7], rax",
    "pushfq",
    "pop rax",
    "mov [rdi + {flags}], rax",
    "mov rax, [rdi + {guest_fx}]",
    "test rax, rax",
    "jz 3f",
    "fxsave64 [rax]",
    "fxrstor64 [rdi + {host_fx}]",
    "3:",
    "xor eax, eax",
    "4:",
    "add rsp, 8",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    // The exception handler continues here, with RSP as it was at the fault.
    "subpage_emulate_recover:",
    "pop rdi",
    "cmp qword ptr [rdi + {guest_fx}], 0",
    "je 5f",
    "fxrstor64 [rdi + {host_fx}]",
    "5:",
    "mov eax, 1",
    "jmp 4b",
    host_fx = const offset_of!(Context, host_fx),
    registers = const offset_of!(Context, registers),
    flags = const offset_of!(Context, flags),
    code = const offset_of!(Context, code),
    guest_fx = const offset_of!(Context, guest_fx),
    other_flags = const !(ARITHMETIC_FLAGS.cast_signed()),
);

unsafe extern "sysv64" {
    fn subpage_emulate_enter(context: *mut Context) -> u64;
    fn subpage_emulate_leave();
    fn subpage_emulate_recover();
}

/// Executable memory for one instruction at a time. Each processor needs its own.
#[derive(Debug)]
pub struct Trampoline {
    code: *mut [u8; CODE_BYTES],
    context: Context,
    /// The bits of MXCSR that this processor has.
    mxcsr_mask: u32,
}

// SAFETY: the memory belongs to this value alone, and no processor keeps anything about it: code is
// written and executed by the same processor within one call.
unsafe impl Send for Trampoline {}

impl Trampoline {
    /// A trampoline at `code`.
    ///
    /// # Safety
    /// For as long as the value lives:
    /// 1. the bytes are mapped readable, writable and executable in the address space of every
    ///    processor that uses it, and nothing else uses them;
    /// 2. an exception with an instruction pointer that [`contains`](Self::contains) has its handler
    ///    continue at [`recovery_address`](Self::recovery_address) with all registers as they were,
    ///    and pushes its frame where the bytes below RSP do not matter (they never do) or on a stack
    ///    of its own;
    /// 3. SSE is enabled (CR4.OSFXSR set, CR0.EM and CR0.TS clear) where an instruction is executed.
    ///
    /// AVX stores need CR4.OSXSAVE as well, and the guest's XCR0; without them they fault, which is
    /// reported like any other fault.
    pub unsafe fn new(code: *mut [u8; CODE_BYTES]) -> Self {
        let mut host_fx = FxArea::INITIAL;
        // SAFETY: 512 aligned bytes to store to; SSE is enabled.
        unsafe { core::arch::x86_64::_fxsave64(host_fx.0.as_mut_ptr()) };
        // 0 stands for a processor without DAZ (SDM Vol. 1, "Guidelines for Writing to the MXCSR
        // Register").
        let mxcsr_mask = match host_fx.word(FxArea::MXCSR_MASK) {
            0 => 0xffbf,
            mask => mask,
        };
        let context = Context {
            host_fx,
            registers: [0; 16],
            flags: 0,
            code: code.expose_provenance() as u64,
            guest_fx: ptr::null_mut(),
        };
        Self { code, context, mxcsr_mask }
    }

    /// Whether an exception at `rip` comes from the trampoline's instruction.
    pub fn contains(&self, rip: u64) -> bool {
        rip.wrapping_sub(self.context.code) < CODE_BYTES as u64
    }

    /// Where the handler of such an exception continues.
    pub fn recovery_address() -> u64 {
        let recover: unsafe extern "sysv64" fn() = subpage_emulate_recover;
        recover as usize as u64
    }

    /// Executes `substitute` on `window` with the guest's registers and arithmetic flags.
    ///
    /// The x87, MMX and SSE registers come from `fx` and go there; the upper halves of the YMM and
    /// ZMM registers, and the opmask registers, are taken from the processor, where baseline x86-64
    /// code of the hypervisor has left the guest's. On a fault nothing has changed. Not to be called
    /// by a handler that may have interrupted a call on the same trampoline, which `&mut` forbids
    /// anyway.
    ///
    /// An x87 instruction leaves the guest's addresses and opcode in FIP, FDP and FOP, not the
    /// hypervisor's.
    pub(super) fn run(
        &mut self,
        substitute: &Substitute,
        window: &mut Window<'_>,
        guest: &mut Guest<'_>,
    ) -> Result<(), TrampolineFault> {
        self.write_code(substitute.bytes());
        let pointer = substitute.pointer() as usize;
        let rsp = Register::Rsp as usize;
        self.context.registers = guest.registers.0;
        self.context.registers[pointer] = window.address();
        if let Some(stand_in) = substitute.stack_pointer() {
            self.context.registers[stand_in as usize] = guest.registers[Register::Rsp];
        }
        self.context.flags = *guest.rflags & ARITHMETIC_FLAGS;
        let mut fx = substitute.is_extended().then_some(*guest.fx);
        self.context.guest_fx = fx.as_mut().map_or(ptr::null_mut(), |fx| {
            fx.mask_mxcsr(self.mxcsr_mask);
            ptr::from_mut(fx)
        });
        // SAFETY: the context is filled in; its code is a substitute's, which accesses the window
        // and nothing else. The window's length is that of the store for which the substitute was
        // made (asserted by the caller), and its memory is writable.
        let faulted = unsafe { subpage_emulate_enter(&raw mut self.context) } != 0;
        if faulted {
            return Err(TrampolineFault);
        }
        for (number, value) in guest.registers.0.iter_mut().enumerate() {
            let stands_in = substitute.stack_pointer().is_some_and(|by| by as usize == number);
            if number != pointer && number != rsp && !stands_in {
                *value = self.context.registers[number];
            }
        }
        if let Some(stand_in) = substitute.stack_pointer() {
            guest.registers[Register::Rsp] = self.context.registers[stand_in as usize];
        }
        *guest.rflags = *guest.rflags & !ARITHMETIC_FLAGS | self.context.flags & ARITHMETIC_FLAGS;
        if let Some(mut fx) = fx {
            if substitute.is_x87() {
                self.hide_addresses(&mut fx, window, guest);
            }
            *guest.fx = fx;
        }
        Ok(())
    }

    /// Puts the guest's addresses and opcode where the x87 has noted the hypervisor's.
    fn hide_addresses(&self, fx: &mut FxArea, window: &Window<'_>, guest: &Guest<'_>) {
        if self.contains(fx.pointer(FxArea::FIP)) {
            fx.set_pointer(FxArea::FIP, guest.rip);
            if let Some(opcode) = guest.x87_opcode {
                fx.0[FxArea::FOP..FxArea::FOP + 2].copy_from_slice(&opcode.to_le_bytes());
            }
        }
        if fx.pointer(FxArea::FDP) == window.address() {
            fx.set_pointer(FxArea::FDP, guest.offset);
        }
    }

    /// Writes `instruction` and a jump to the way back.
    fn write_code(&mut self, instruction: &[u8]) {
        // JMP [RIP + 0], with the address right behind it.
        const JUMP: [u8; 6] = [0xff, 0x25, 0, 0, 0, 0];
        let leave: unsafe extern "sysv64" fn() = subpage_emulate_leave;
        let mut code = [0xcc; CODE_BYTES];
        let after = instruction.len();
        code[..after].copy_from_slice(instruction);
        code[after..after + 6].copy_from_slice(&JUMP);
        code[after + 6..after + 14].copy_from_slice(&(leave as usize as u64).to_le_bytes());
        // SAFETY: the memory is writable and this value's own. Volatile, because the compiler does
        // not see that it is executed; the processor does (SDM Vol. 3A, "Handling Self- and
        // Cross-Modifying Code": same linear address, then a jump).
        unsafe { self.code.write_volatile(code) };
    }
}

/// The guest's registers, as far as an instruction of the allow list uses them.
pub(super) struct Guest<'a> {
    pub(super) registers: &'a mut GeneralRegisters,
    pub(super) rflags: &'a mut u64,
    pub(super) fx: &'a mut FxArea,
    /// Address of the instruction.
    pub(super) rip: u64,
    /// Offset of the destination in its segment.
    pub(super) offset: u64,
    /// What FOP is to say, if the instruction is one of the x87's.
    pub(super) x87_opcode: Option<u16>,
}
