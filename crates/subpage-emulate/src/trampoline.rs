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

use arrayvec::ArrayVec;

use super::bits::ARITHMETIC_FLAGS;
use super::extended::{Addresses, Extended, XsaveArea, mask_mxcsr, mxcsr_mask};
use super::{MAX_INSTRUCTION_BYTES, Substitute, Window};
use crate::guest::{GeneralRegisters, Register};

/// Size of a trampoline's executable memory.
pub const CODE_BYTES: usize = SLOTS * SLOT_BYTES;

/// Instructions that are kept: a loop's worth.
const SLOTS: usize = 8;

/// Room for one and the jump behind it.
const SLOT_BYTES: usize = 32;
const _: () = assert!(MAX_INSTRUCTION_BYTES + JUMP.len() + 8 <= SLOT_BYTES);

/// JMP [RIP + 0], with the address right behind it.
const JUMP: [u8; 6] = [0xff, 0x25, 0, 0, 0, 0];

/// The instruction faulted in the hypervisor; nothing of the guest has changed but for MXCSR's
/// exception flags, which #XM tells by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrampolineFault {
    /// Vector of the exception.
    pub vector: u8,
}

/// #XM.
pub(super) const SIMD_EXCEPTION: u8 = 19;

/// What the assembly below works on.
#[derive(Debug)]
#[repr(C, align(64))]
struct Context {
    registers: [u64; 16],
    flags: u64,
    code: u64,
    /// The guest's extended registers; null if the instruction uses none.
    guest: *mut u8,
    /// Components for XSAVE and XRSTOR; 0 to use FXSAVE and FXRSTOR.
    components: u64,
    /// Vector of the exception of an instruction that faulted.
    vector: u64,
    /// MXCSR at that exception.
    mxcsr: u32,
    /// What is the hypervisor's while the guest's extended registers are loaded. Last, so that the rest
    /// lies close to what is used next to it.
    host: XsaveArea,
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
    "mov rcx, [rdi + {guest}]",
    "test rcx, rcx",
    "jz 2f",
    "mov rax, [rdi + {components}]",
    "test rax, rax",
    "jz 6f",
    "mov rdx, rax",
    "shr rdx, 32",
    "xsave64 [rdi + {host}]",
    "xrstor64 [rcx]",
    "jmp 2f",
    "6:",
    "fxsave64 [rdi + {host}]",
    "fxrstor64 [rcx]",
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
    "mov rcx, [rdi + {guest}]",
    "test rcx, rcx",
    "jz 3f",
    "mov rax, [rdi + {components}]",
    "test rax, rax",
    "jz 7f",
    "mov rdx, rax",
    "shr rdx, 32",
    "xsave64 [rcx]",
    "xrstor64 [rdi + {host}]",
    "jmp 3f",
    "7:",
    "fxsave64 [rcx]",
    "fxrstor64 [rdi + {host}]",
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
    // The exception handler continues here, with RSP as it was at the fault and the vector in RAX.
    "subpage_emulate_recover:",
    "pop rdi",
    "mov [rdi + {vector}], rax",
    "cmp qword ptr [rdi + {guest}], 0",
    "je 5f",
    "stmxcsr [rdi + {mxcsr}]",
    "mov rax, [rdi + {components}]",
    "test rax, rax",
    "jz 8f",
    "mov rdx, rax",
    "shr rdx, 32",
    "xrstor64 [rdi + {host}]",
    "jmp 5f",
    "8:",
    "fxrstor64 [rdi + {host}]",
    "5:",
    "mov eax, 1",
    "jmp 4b",
    host = const offset_of!(Context, host),
    registers = const offset_of!(Context, registers),
    flags = const offset_of!(Context, flags),
    code = const offset_of!(Context, code),
    guest = const offset_of!(Context, guest),
    components = const offset_of!(Context, components),
    vector = const offset_of!(Context, vector),
    mxcsr = const offset_of!(Context, mxcsr),
    other_flags = const !(ARITHMETIC_FLAGS.cast_signed()),
);

unsafe extern "sysv64" {
    fn subpage_emulate_enter(context: *mut Context) -> u64;
    fn subpage_emulate_leave();
    fn subpage_emulate_recover();
}

/// Executable memory for instructions, of which one runs at a time. Each processor needs its own.
#[derive(Debug)]
pub struct Trampoline {
    code: *mut [u8; CODE_BYTES],
    context: Context,
    /// The instructions that are there already.
    written: [ArrayVec<u8, MAX_INSTRUCTION_BYTES>; SLOTS],
    /// The slot for the next one that is not.
    next: usize,
    /// The bits of MXCSR that this processor has.
    mxcsr_mask: u32,
}

// SAFETY: the memory belongs to this value alone. That a processor which takes it over executes no
// older code is promised to `new`.
unsafe impl Send for Trampoline {}

impl Trampoline {
    /// A trampoline at `code`.
    ///
    /// # Safety
    /// For as long as the value lives:
    /// 1. the bytes are mapped readable, writable and executable in the address space of every
    ///    processor that uses it, and nothing else uses them;
    /// 2. an exception with an instruction pointer that [`contains`](Self::contains) has its handler
    ///    continue at [`recovery_address`](Self::recovery_address) with the vector in RAX and all
    ///    other registers as they were, and pushes its frame where the bytes below RSP do not matter (they never do) or on a stack
    ///    of its own;
    /// 3. SSE is enabled (CR4.OSFXSR set, CR0.EM and CR0.TS clear) where an instruction is executed;
    /// 4. if an instruction is executed on another processor than the one before it, that processor
    ///    has executed a serializing instruction since its own last one, so that it has prefetched
    ///    nothing of what was there (SDM Vol. 3A, "Handling Self- and Cross-Modifying Code").
    ///
    /// AVX stores, and extended registers in the format of XSAVE, need CR4.OSXSAVE as well, and an XCR0
    /// that enables the components; without them they fault, which is reported like any other fault.
    pub unsafe fn new(code: *mut [u8; CODE_BYTES]) -> Self {
        let mut host = XsaveArea::INITIAL;
        // SAFETY: 512 aligned bytes to store to; SSE is enabled.
        unsafe { core::arch::x86_64::_fxsave64(host.0.as_mut_ptr()) };
        let mxcsr_mask = mxcsr_mask(&host.0);
        let context = Context {
            host,
            registers: [0; 16],
            flags: 0,
            code: 0,
            guest: ptr::null_mut(),
            components: 0,
            vector: 0,
            mxcsr: 0,
        };
        Self { code, context, written: Default::default(), next: 0, mxcsr_mask }
    }

    /// Whether an exception at `rip` comes from the trampoline's instruction.
    pub fn contains(&self, rip: u64) -> bool {
        rip.wrapping_sub(self.code.expose_provenance() as u64) < CODE_BYTES as u64
    }

    /// Where the handler of such an exception continues.
    pub fn recovery_address() -> u64 {
        let recover: unsafe extern "sysv64" fn() = subpage_emulate_recover;
        recover as usize as u64
    }

    /// Executes `substitute` on `window` with the guest's registers and arithmetic flags.
    ///
    /// Extended registers come from `guest.extended` and go there. On a fault nothing has changed but
    /// for MXCSR, see [`TrampolineFault`]. Not to be called by a handler that may have interrupted a call on the same trampoline, which `&mut`
    /// forbids anyway.
    ///
    /// An x87 instruction leaves the guest's addresses and opcode in FIP, FDP and FOP, not the
    /// hypervisor's.
    pub(super) fn run(
        &mut self,
        substitute: &Substitute,
        window: &mut Window<'_>,
        guest: &mut GuestRegisters<'_>,
    ) -> Result<(), TrampolineFault> {
        self.context.code = self.write_code(substitute.bytes());
        let pointer = substitute.pointer() as usize;
        let rsp = Register::Rsp as usize;
        self.context.registers = guest.registers.0;
        self.context.registers[pointer] = window.address();
        if let Some(stand_in) = substitute.stack_pointer() {
            self.context.registers[stand_in as usize] = guest.registers[Register::Rsp];
        }
        self.context.flags = *guest.rflags & ARITHMETIC_FLAGS;
        // FXSAVE's form is worked on as a copy, because its MXCSR may have to be mended. XSAVE's is
        // what this processor has stored; it is only written when the instruction has happened.
        let mut copy = None;
        let hide = substitute.is_x87();
        let addresses = guest.addresses;
        let mut opcode = 0;
        (self.context.guest, self.context.components) = match &mut guest.extended {
            _ if !substitute.is_extended() => (ptr::null_mut(), 0),
            Extended::Unused => panic!("an instruction gets the registers that it uses"),
            Extended::Fx(fx) => {
                let copy = copy.insert(**fx);
                mask_mxcsr(&mut copy.0, self.mxcsr_mask);
                if hide {
                    opcode = addresses.mark(&mut copy.0);
                }
                (copy.0.as_mut_ptr(), 0)
            }
            Extended::Xsave { area, components } => {
                if hide {
                    opcode = addresses.mark(&mut area.0);
                }
                (area.0.as_mut_ptr(), *components)
            }
        };
        // SAFETY: the context is filled in; its code is a substitute's, which accesses the window
        // and nothing else. The window's length is that of the store for which the substitute was
        // made (asserted by the caller), and its memory is writable.
        let faulted = unsafe { subpage_emulate_enter(&raw mut self.context) } != 0;
        if faulted {
            if let (true, Extended::Xsave { area, .. }) = (hide, &mut guest.extended) {
                addresses.unmark(&mut area.0, opcode);
            }
            let vector = self.context.vector.to_le_bytes()[0];
            if vector == SIMD_EXCEPTION {
                guest.extended.set_mxcsr(self.context.mxcsr);
            }
            return Err(TrampolineFault { vector });
        }
        // Those that the instruction does not have are as they were.
        let registers = &mut self.context.registers;
        registers[rsp] = guest.registers.0[rsp];
        registers[pointer] = guest.registers.0[pointer];
        if let Some(stand_in) = substitute.stack_pointer() {
            registers[rsp] = registers[stand_in as usize];
            registers[stand_in as usize] = guest.registers[stand_in];
        }
        guest.registers.0 = *registers;
        *guest.rflags = *guest.rflags & !ARITHMETIC_FLAGS | self.context.flags & ARITHMETIC_FLAGS;
        match (copy, &mut guest.extended) {
            (Some(mut fx), Extended::Fx(to)) => {
                if hide {
                    addresses.hide(&mut fx.0, opcode, |rip| self.contains(rip), window.address());
                }
                **to = fx;
            }
            (_, Extended::Xsave { area, .. }) if hide => {
                addresses.hide(&mut area.0, opcode, |rip| self.contains(rip), window.address());
            }
            _ => {}
        }
        Ok(())
    }

    /// Sees to it that `instruction` and a jump to the way back are in a slot; the slot's address.
    ///
    /// What is there is not written again: a processor that executes what it has just written starts
    /// over, which takes longer than all the rest.
    fn write_code(&mut self, instruction: &[u8]) -> u64 {
        let there = self.written.iter().position(|written| written.as_slice() == instruction);
        let number = there.unwrap_or(self.next);
        let slot = self.code.cast::<[u8; SLOT_BYTES]>().wrapping_add(number);
        if there.is_none() {
            let leave: unsafe extern "sysv64" fn() = subpage_emulate_leave;
            let mut code = [0xcc; SLOT_BYTES];
            let after = instruction.len();
            code[..after].copy_from_slice(instruction);
            code[after..after + 6].copy_from_slice(&JUMP);
            code[after + 6..after + 14].copy_from_slice(&(leave as usize as u64).to_le_bytes());
            // SAFETY: the memory is writable and this value's own. Volatile, because the compiler does
            // not see that it is executed; the processor does (SDM Vol. 3A, "Handling Self- and
            // Cross-Modifying Code": same linear address, then a jump).
            unsafe { slot.write_volatile(code) };
            self.written[number] =
                instruction.try_into().expect("an instruction is no longer than that");
            self.next = (number + 1) % SLOTS;
        }
        slot.expose_provenance() as u64
    }
}

/// The guest's registers, as far as an instruction of the allow list uses them.
pub(super) struct GuestRegisters<'a> {
    pub(super) registers: &'a mut GeneralRegisters,
    pub(super) rflags: &'a mut u64,
    pub(super) extended: Extended<'a>,
    /// What the x87 is to note of the instruction.
    pub(super) addresses: Addresses,
}
