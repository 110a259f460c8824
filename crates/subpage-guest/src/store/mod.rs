//! Stores in every form: instructions that write, with known registers before and after.
//!
//! Unsafe in one place: where a form, which is assembly, is called.

// Each form is a piece of assembly.
#[allow(unsafe_code)]
mod forms;

pub use forms::{AVX, AVX512, ENTER_ROOM, FAR_CALLS, INTEGER, LOCKED, SSE, STACK, STRING, X87};

use crate::memory::Bytes;

/// The registers that a form takes and leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Registers {
    /// Accumulator.
    pub rax: u64,
    /// Source of most forms.
    pub rbx: u64,
    /// Count.
    pub rcx: u64,
    /// Data.
    pub rdx: u64,
    /// Source of string forms.
    pub rsi: u64,
    /// Destination; afterwards relative to what it was.
    pub rdi: u64,
    /// Arithmetic flags, and the direction flag.
    pub rflags: u64,
    /// RSP of forms that push, relative to the destination; 0 for others.
    pub rsp: u64,
}

/// CF, PF, AF, ZF, SF and OF.
const ARITHMETIC: u64 = 0x8d5;
/// DF.
const DIRECTION: u64 = 0x400;

/// An instruction that stores.
#[derive(Debug, Clone, Copy)]
pub struct Form {
    /// How it is written.
    pub name: &'static str,
    /// How many bytes one of its stores has.
    pub length: u64,
    /// How many stores it does, one behind the other (more than one with REP).
    pub count: u64,
    /// From the highest address down.
    pub backwards: bool,
    /// Its destination must be a multiple of this.
    pub alignment: u64,
    /// The store is this far behind the address in RDI.
    pub displacement: u64,
    /// Some processors store it in pieces, so that a denial of the end may come too late for the
    /// beginning (`docs/conformance.md`).
    pub in_pieces: bool,
    /// It is several stores, the last bytes first.
    pub last_first: bool,
    /// The first 64 bytes of one of its stores, one bit each: those that it writes.
    pub written: u64,
    code: unsafe extern "sysv64" fn(u64, *mut Registers),
}

impl Form {
    /// All bytes that it stores.
    pub const fn span(&self) -> u64 {
        self.length * self.count
    }

    /// Whether one of its stores writes its byte `at`.
    pub const fn writes(&self, at: u64) -> bool {
        at >= 64 || self.written >> at & 1 == 1
    }

    /// Whether an address lies in the form's code.
    pub fn has_instruction(&self, rip: u64) -> bool {
        let first = self.code as *const () as u64;
        (first..first + 0x200).contains(&rip)
    }

    /// Stores to the bytes at the beginning of `to`, which are [`span`](Self::span) long; a string
    /// move takes them from `source`. Returns the registers afterwards, with RDI, RSI and RSP
    /// relative to what they were.
    ///
    /// # Panics
    /// If `to` or `source` are too short, or `to` is not aligned.
    pub fn run(&self, to: Bytes, source: Bytes) -> Registers {
        let to = to.part(0, self.span());
        let source = source.part(0, self.span());
        assert!(to.address().is_multiple_of(self.alignment), "{}: unaligned", self.name);
        let at = |bytes: Bytes| {
            let last = if self.backwards { self.span() - self.length } else { 0 };
            bytes.address() + last
        };
        let destination = at(to).wrapping_sub(self.displacement);
        let mut registers = Registers {
            rax: 0x0123_4567_89ab_cdef,
            rbx: 0xfedc_ba98_7654_3210,
            rcx: self.count,
            rdx: 0x0f1e_2d3c_4b5a_6978,
            rsi: at(source),
            rdi: destination,
            rflags: 2 | if self.backwards { DIRECTION } else { 0 } | 1,
            rsp: 0,
        };
        // SAFETY: the form stores to `to`, reads `source`, and changes no register that it does not
        // save; `forms` is where that is kept.
        #[allow(unsafe_code)]
        unsafe {
            (self.code)(destination, &raw mut registers);
        }
        registers.rdi = registers.rdi.wrapping_sub(destination);
        registers.rsi = registers.rsi.wrapping_sub(at(source));
        if registers.rsp != 0 {
            registers.rsp = registers.rsp.wrapping_sub(destination);
        }
        registers.rflags &= ARITHMETIC;
        registers
    }
}
