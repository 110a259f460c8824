//! The calls above an instruction of a running kernel.

mod call;
mod frames;
mod orc;

use crate::address::{RuntimeAddress, Slide};
use crate::image::KernelImage;
use crate::kallsyms::{Kallsyms, Symbol};
use crate::memory::Memory;
use orc::{Orc, Step};

/// Most calls that are told.
pub const MAX_CALLS: usize = 32;

/// Farthest that the stack pointer moves from one call to the next, in bytes: a kernel's stack has 16 KiB.
const MAX_FRAME: u64 = 16 << 10;

/// Registers that a walk of the stack begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registers {
    /// Of the instruction.
    pub rip: u64,
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub general: [u64; 16],
}

/// Numbers of registers, as instructions have them.
const RDX: usize = 2;
const RSP: usize = 4;
const RBP: usize = 5;
const RDI: usize = 7;
const R10: usize = 10;
const R13: usize = 13;

/// What a kernel's image says about its stacks.
#[derive(Debug)]
pub struct Unwinder(Means);

/// How the caller of a function is found.
#[derive(Debug)]
enum Means {
    Orc(Orc),
    Frames,
    /// There are tables, but they cannot be read: the frame pointer is a register like others.
    None,
}

/// Where a walk is.
#[derive(Debug, Clone, Copy)]
struct Place {
    rip: u64,
    rsp: u64,
    rbp: u64,
    /// All registers, where they are known: at the beginning, and behind an interrupt.
    all: Option<[u64; 16]>,
    /// `rip` is an instruction, and not where a call returns to.
    exact: bool,
}

impl Unwinder {
    /// With the image's ORC tables (CONFIG_UNWINDER_ORC); in an image without any, by frame pointers.
    pub fn of(image: &KernelImage, kallsyms: &Kallsyms) -> Self {
        Self(match Orc::read(image, kallsyms) {
            Some(orc) => Means::Orc(orc),
            None if Orc::is_in(image, kallsyms) => Means::None,
            None => Means::Frames,
        })
    }

    /// Whether the image has ORC tables that can be read.
    pub const fn has_orc(&self) -> bool {
        matches!(self.0, Means::Orc(_))
    }

    /// The calls above an instruction, the nearest first: of each the function that it returns to, and how far
    /// behind its beginning. Each has been checked: it lies in the kernel's code, behind an instruction that
    /// calls. The walk ends before the first one that is not certain, at [`MAX_CALLS`], and where a program
    /// was interrupted.
    pub fn calls<'k>(
        &self,
        kallsyms: &'k Kallsyms,
        memory: &dyn Memory,
        slide: Slide,
        from: Registers,
    ) -> Vec<(Symbol<'k>, u64)> {
        let mut calls = Vec::new();
        let mut place = Place {
            rip: from.rip,
            rsp: from.general[RSP],
            rbp: from.general[RBP],
            all: Some(from.general),
            exact: true,
        };
        while calls.len() < MAX_CALLS {
            let Some(next) = self.above(memory, slide, &place) else { break };
            let Some(found) = function(kallsyms, slide, next.rip, next.exact) else { break };
            if !next.exact && !call::is_before(memory, next.rip) {
                break;
            }
            calls.push(found);
            place = next;
        }
        calls
    }

    fn above(&self, memory: &dyn Memory, slide: Slide, place: &Place) -> Option<Place> {
        let orc = match &self.0 {
            Means::Orc(orc) => orc,
            Means::Frames => return frames::above(memory, place),
            Means::None => return None,
        };
        // Behind a call that does not return another function may begin.
        let rip = if place.exact { place.rip } else { place.rip.checked_sub(1)? };
        let linked = RuntimeAddress::new(rip).linked(slide)?;
        let (next, step) = orc.at(linked)?.above(memory, place)?;
        // Only an interrupt changes the stack.
        let moved = next.rsp.checked_sub(place.rsp);
        match step {
            Step::Call if moved.is_none_or(|bytes| bytes == 0 || bytes > MAX_FRAME) => None,
            _ => Some(next),
        }
    }
}

/// The function of the kernel's code that holds an address, or of a return address the call before it.
fn function(kallsyms: &Kallsyms, slide: Slide, rip: u64, exact: bool) -> Option<(Symbol<'_>, u64)> {
    let before = u64::from(!exact);
    let linked = RuntimeAddress::new(rip.checked_sub(before)?).linked(slide)?;
    let (symbol, offset) = kallsyms.function_at(linked)?;
    Some((symbol, offset + before))
}
