//! The moments of a recorded machine's start: where its instructions lie tells them.

use crate::write::Write;

/// The first address of the upper half of linear addresses, where kernels run.
const UPPER_HALF: u64 = 1 << 63;
/// Below it firmware, its system-management code and the trampolines of further processors run, also
/// after the kernel has begun. No program lies there: Linux maps none below 64 KiB, and linkers none
/// below 4 MiB, or 128 MiB for 32 bits.
const FIRST_MEBIBYTE: u64 = 1 << 20;

/// A moment of a machine's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BootMoment {
    /// The kernel runs where it was linked for: in the upper half. Its own loader, which unpacks and moves
    /// it, is done.
    Entry,
    /// The first program runs: the kernel has left the upper half for an instruction above the first
    /// mebibyte.
    FirstProgram,
}

impl BootMoment {
    /// Whether a store of the instruction at `pc` shows that this moment has come, all earlier ones having
    /// come before.
    fn is_shown_by(self, pc: u64) -> bool {
        match self {
            Self::Entry => pc >= UPPER_HALF,
            Self::FirstProgram => (FIRST_MEBIBYTE..UPPER_HALF).contains(&pc),
        }
    }
}

/// Follows the writes of a recorded machine, in their order, and tells when a moment has come.
///
/// A kernel that does not run in the upper half (of 32 bits, for example) comes to none.
#[derive(Clone, Debug, Default)]
pub struct BootMoments {
    seen: usize,
}

impl BootMoments {
    const ORDER: [BootMoment; 2] = [BootMoment::Entry, BootMoment::FirstProgram];

    /// The next moment in these writes, with the place of the first write after it; `None` if none comes
    /// in all of them. The writes from there on are to be given next.
    pub fn next(&mut self, writes: &[Write]) -> Option<(usize, BootMoment)> {
        let moment = *Self::ORDER.get(self.seen)?;
        let at = writes.iter().position(|write| moment.is_shown_by(write.pc))?;
        self.seen += 1;
        Some((at, moment))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writes(pcs: &[u64]) -> Vec<Write> {
        pcs.iter().map(|&pc| Write { pc, address: 0x1000, size: 8 }).collect()
    }

    #[test]
    fn the_kernel_begins_in_the_upper_half_and_the_first_program_below_it() {
        // Firmware, the kernel's loader, the kernel, firmware called by it, a trampoline, the kernel.
        let kernel = writes(&[0xf_0000, 0x100_0200, 0, u64::MAX - 0xfff, 0xf_1234, 0x9_a000]);
        let program = writes(&[0xffff_ffff_8100_0000, 0x40_1000, u64::MAX, 0x40_1008]);
        let mut moments = BootMoments::default();
        assert_eq!(moments.next(&kernel[..3]), None);
        assert_eq!(moments.next(&kernel[3..]), Some((0, BootMoment::Entry)));
        assert_eq!(moments.next(&kernel[3..]), None);
        assert_eq!(moments.next(&program), Some((1, BootMoment::FirstProgram)));
        assert_eq!(moments.next(&program[1..]), None);
        assert_eq!(moments.next(&program), None);
    }

    #[test]
    fn both_moments_are_found_in_one_block() {
        let all = writes(&[0x7c00, 0xffff_ffff_8100_0000, 0x40_1000]);
        let mut moments = BootMoments::default();
        let (entry, moment) = moments.next(&all).expect("the kernel");
        assert_eq!((entry, moment), (1, BootMoment::Entry));
        assert_eq!(moments.next(&all[entry..]), Some((1, BootMoment::FirstProgram)));
    }

    #[test]
    fn a_program_comes_to_no_moment() {
        assert_eq!(BootMoments::default().next(&writes(&[0x40_1000, 0x7fff_f7dd_0000])), None);
    }
}
