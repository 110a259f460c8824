//! Model-specific registers: all are the guest's but those that are named here.

use crate::processor::msr::Msr;

/// Why a register is not left to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// What the guest reads and writes is not the processor's.
    Virtual,
    /// Reading is free, and a write is looked at.
    Written,
    /// Reading is free, and what is written is dropped: it is the whole machine's.
    Constant,
    /// It belongs to what guests are not offered.
    Hidden,
}

/// What becomes of a register; `None` if it is the guest's alone.
pub const fn kept(msr: Msr) -> Option<Kept> {
    match msr {
        // The guest's EFER and PAT are in the control structure; features are locked without VMX.
        Msr::EFER | Msr::PAT | Msr::FEATURE_CONTROL => Some(Kept::Virtual),
        // What XSAVES saves: components by which a trace could be switched on, none of which is offered.
        Msr::APIC_BASE | Msr::XSS => Some(Kept::Written),
        _ => match msr.0 {
            // Microcode, which would change what VMX can do; memory types, which EPT repeats.
            0x79 | 0x200..=0x21F | 0x250 | 0x258 | 0x259 | 0x268..=0x26F | 0x2FF => {
                Some(Kept::Constant)
            }
            // System-management mode's monitor and memory; enclaves; records of stores and branches, which
            // are written to linear addresses, of the hypervisor's if it runs; VMX; traces and hardware
            // feedback, which write to physical memory; shadow stacks; protection keys.
            0x8C..=0x8F
            | 0x9B
            | 0x1F2
            | 0x1F3
            | 0x3F1
            | 0x480..=0x493
            | 0x560..=0x58F
            | 0x600
            | 0x6A0..=0x6A8
            | 0x6E1
            | 0x17D0
            | 0x17D1 => Some(Kept::Hidden),
            _ => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_kernel_uses_all_the_time_is_its_own() {
        // TSC, deadline, x2APIC's end of interrupt and commands, system calls, FS and GS, predictors, the
        // counters of events behind the registers of VMX.
        for number in
            [0x10, 0x6E0, 0x80B, 0x830, 0xC000_0082, 0xC000_0100, 0xC000_0101, 0x48, 0x49, 0x4C1]
        {
            assert_eq!(kept(Msr(number)), None, "{number:#x}");
        }
    }

    #[test]
    fn what_could_reach_the_hypervisor_is_not() {
        for (number, expected) in [
            (0x1B, Kept::Written),
            (0x3A, Kept::Virtual),
            (0xC000_0080, Kept::Virtual),
            (0x277, Kept::Virtual),
            (0x79, Kept::Constant),
            (0x2FF, Kept::Constant),
            (0x480, Kept::Hidden),
            (0x48B, Kept::Hidden),
            (0x560, Kept::Hidden),
            (0xDA0, Kept::Written),
            (0x3F1, Kept::Hidden),
            (0x600, Kept::Hidden),
            (0x17D0, Kept::Hidden),
        ] {
            assert_eq!(kept(Msr(number)), Some(expected), "{number:#x}");
        }
    }
}
