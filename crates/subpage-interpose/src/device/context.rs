//! The registers of a thread that a signal has stopped.
//!
//! Unsafe because the kernel hands them over by pointer.
#![allow(unsafe_code)]

use std::ffi::c_void;

use subpage_emulate::XsaveArea;
use subpage_emulate::bits::SEGMENT_LONG;
use subpage_emulate::guest::{GeneralRegisters, State, Vendor};

use super::host_memory::TABLES;

/// Where the registers lie in the kernel's array, in the order of the instruction set.
const ORDER: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// Offset of what the kernel says about the area, in bytes of the area that software may use
/// (`struct _fpx_sw_bytes`), and what it begins with.
const SOFTWARE: usize = 464;
const MAGIC: u32 = 0x4650_5853;

/// The registers of a stopped thread.
pub(crate) struct Context(*mut libc::ucontext_t);

impl Context {
    /// Those that the kernel hands to a handler.
    ///
    /// # Safety
    /// `context` is the third argument of a signal handler that has not returned.
    pub(crate) const unsafe fn new(context: *mut c_void) -> Self {
        Self(context.cast())
    }

    fn get(&self, register: i32) -> u64 {
        // SAFETY: the handler's frame.
        let registers = unsafe { &(*self.0).uc_mcontext.gregs };
        registers[usize::try_from(register).expect("an index")].cast_unsigned()
    }

    fn set(&mut self, register: i32, value: u64) {
        // SAFETY: the handler's frame.
        let registers = unsafe { &mut (*self.0).uc_mcontext.gregs };
        registers[usize::try_from(register).expect("an index")] = value.cast_signed();
    }

    /// Address of the instruction.
    pub(crate) fn rip(&self) -> u64 {
        self.get(libc::REG_RIP)
    }

    /// Whether the fault was a write.
    pub(crate) fn is_write(&self) -> bool {
        self.get(libc::REG_TRAPNO) == 14 && self.get(libc::REG_ERR) & 2 != 0
    }

    /// Goes on at the recovery address of a substitute, with the vector of the exception.
    pub(crate) fn recover(&mut self, address: u64) {
        self.set(libc::REG_RIP, address);
        let vector = self.get(libc::REG_TRAPNO);
        self.set(libc::REG_RAX, vector);
    }

    /// The state of a program in 64-bit mode, with page tables that map every address to itself.
    pub(crate) fn state(&self) -> State {
        let mut state = State {
            registers: GeneralRegisters(ORDER.map(|register| self.get(register))),
            rip: self.rip(),
            rflags: self.get(libc::REG_EFL),
            // PE, ET, NE, WP, PG.
            cr0: 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 31,
            cr3: TABLES,
            // PAE, OSFXSR, OSXMMEXCPT, OSXSAVE.
            cr4: 1 << 5 | 1 << 9 | 1 << 10 | 1 << 18,
            // SCE, LME, LMA, NXE.
            efer: 1 | 1 << 8 | 1 << 10 | 1 << 11,
            cpl: 3,
            vendor: Vendor::Intel,
            ..State::default()
        };
        state.segments.cs.access = SEGMENT_LONG | 0xfb;
        state
    }

    /// The thread goes on with these.
    pub(crate) fn set_state(&mut self, state: &State) {
        for (register, value) in ORDER.into_iter().zip(state.registers.0) {
            self.set(register, value);
        }
        self.set(libc::REG_RIP, state.rip);
        self.set(libc::REG_EFL, state.rflags);
    }

    /// The extended registers, and how many bytes of them the kernel has saved.
    pub(crate) fn extended(&self) -> Option<(Box<XsaveArea>, usize)> {
        let (at, bytes) = self.area()?;
        let mut area = Box::new(XsaveArea::INITIAL);
        let kept = bytes.min(area.0.len());
        // SAFETY: the kernel has saved as many bytes there, in the handler's frame.
        unsafe { std::ptr::copy_nonoverlapping(at, area.0.as_mut_ptr(), kept) };
        // What the kernel says is no register, and XRSTOR does not want to see it.
        area.0[SOFTWARE..512].fill(0);
        area.0[528..576].fill(0);
        area.keep_mxcsr();
        Some((area, kept))
    }

    /// The thread goes on with these.
    pub(crate) fn set_extended(&mut self, area: &XsaveArea, kept: usize) {
        let Some((at, _)) = self.area() else { return };
        for (from, to) in [(0, SOFTWARE), (512, 528), (576, kept)] {
            if from < to {
                // SAFETY: inside of what the kernel has saved in the handler's frame.
                unsafe {
                    std::ptr::copy_nonoverlapping(
                        area.0.as_ptr().wrapping_add(from),
                        at.wrapping_add(from),
                        to - from,
                    );
                }
            }
        }
    }

    /// Where the kernel has saved extended registers in the format of XSAVE, and how many bytes.
    fn area(&self) -> Option<(*mut u8, usize)> {
        // SAFETY: the handler's frame.
        let at: *mut u8 = unsafe { (*self.0).uc_mcontext.fpregs }.cast();
        if at.is_null() {
            return None;
        }
        let word = |offset: usize| {
            // SAFETY: the first 512 bytes are always there.
            unsafe { at.wrapping_add(SOFTWARE + offset).cast::<u32>().read_unaligned() }
        };
        if word(0) != MAGIC {
            return None;
        }
        // `xstate_size`, behind `extended_size` and `xstate_bv`.
        Some((at, usize::try_from(word(16)).ok()?))
    }
}
