//! What the guest does: instructions that access memory, by what they access.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Bytes of a general-register operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Size {
    /// 1.
    Byte,
    /// 2.
    Word,
    /// 4.
    Double,
    /// 8.
    Quad,
}

impl Size {
    /// Every size.
    pub(crate) const ALL: [Self; 4] = [Self::Byte, Self::Word, Self::Double, Self::Quad];

    /// In bytes.
    pub(crate) const fn bytes(self) -> u64 {
        1 << self as u64
    }

    /// The low bits that an operand has.
    pub(crate) const fn mask(self) -> u64 {
        u64::MAX >> (64 - 8 * self.bytes())
    }
}

/// Bytes of a vector-register operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Wide {
    /// 16: MOVUPS.
    Xmm,
    /// 32: VMOVUPS.
    Ymm,
}

impl Wide {
    /// In bytes.
    pub(crate) const fn bytes(self) -> u64 {
        match self {
            Self::Xmm => 16,
            Self::Ymm => 32,
        }
    }
}

/// A read-modify-write of a general register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Modify {
    /// ADD.
    Add,
    /// LOCK ADD.
    LockAdd,
    /// XCHG, locked by itself.
    Exchange,
    /// LOCK CMPXCHG; what it compares with may or may not be there.
    CompareExchange,
}

/// One instruction with its operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Instruction {
    /// MOV from memory.
    Load {
        /// Linear address.
        at: u64,
        /// Operand size.
        size: Size,
    },
    /// MOV to memory.
    Store {
        /// Linear address.
        at: u64,
        /// Operand size.
        size: Size,
        /// What is stored.
        value: u64,
    },
    /// A read-modify-write.
    Modify {
        /// Linear address.
        at: u64,
        /// Operand size.
        size: Size,
        /// Which.
        kind: Modify,
        /// The source operand.
        value: u64,
        /// What CMPXCHG compares with.
        compare: u64,
    },
    /// LOCK CMPXCHG16B of a zero with `value`.
    CompareExchange16 {
        /// Linear address, a multiple of 16.
        at: u64,
        /// What is stored if the memory is zero, twice.
        value: u64,
    },
    /// MOVUPS or VMOVUPS from memory, and then to the scratch page.
    LoadWide {
        /// Linear address.
        at: u64,
        /// Operand size.
        size: Wide,
    },
    /// MOVUPS or VMOVUPS from the source page, and then to memory.
    StoreWide {
        /// Linear address.
        at: u64,
        /// Operand size.
        size: Wide,
        /// Offset in the source page.
        source: u16,
    },
    /// FXRSTOR64 of an image in the source page, then FXSAVE64.
    SaveState {
        /// Linear address, a multiple of 16.
        at: u64,
    },
    /// PUSH.
    Push {
        /// RSP before it.
        stack: u64,
        /// What is pushed.
        value: u64,
    },
    /// CALL to the next instruction.
    Call {
        /// RSP before it.
        stack: u64,
    },
    /// INT with the handler at the end of the code page.
    Interrupt {
        /// RSP before it.
        stack: u64,
    },
    /// REP STOS.
    Fill {
        /// Linear address in RDI.
        at: u64,
        /// Operand size.
        size: Size,
        /// RCX.
        count: u16,
        /// What is stored.
        value: u64,
        /// RFLAGS.DF.
        backward: bool,
    },
    /// REP MOVS.
    Copy {
        /// Linear address in RSI.
        from: u64,
        /// Linear address in RDI.
        to: u64,
        /// Operand size.
        size: Size,
        /// RCX.
        count: u16,
        /// RFLAGS.DF.
        backward: bool,
    },
    /// INVLPG.
    Invalidate {
        /// Linear address.
        at: u64,
    },
    /// JMP to a VMCALL, which a store of the step has put there.
    Jump {
        /// Linear address.
        to: u64,
    },
}

impl Instruction {
    /// Whether what follows it is still reached if it does not exit.
    pub(crate) const fn continues(&self) -> bool {
        !matches!(self, Self::Jump { .. } | Self::Interrupt { .. })
    }

    /// Whether it must be the first of its step: it stores RFLAGS, which others change.
    pub(crate) const fn needs_initial_flags(&self) -> bool {
        matches!(self, Self::Interrupt { .. })
    }

    /// Whether the operands are ones that the prediction knows what to do with: addresses that no
    /// length carries out of the lower half of the linear-address space, and aligned where the
    /// instruction demands it.
    pub(crate) fn is_sound(&self) -> bool {
        let inside = |address: u64| (1 << 20..1 << 46).contains(&address);
        match *self {
            Self::Load { at, .. }
            | Self::Store { at, .. }
            | Self::Modify { at, .. }
            | Self::LoadWide { at, .. }
            | Self::Invalidate { at }
            | Self::Fill { at, .. } => inside(at),
            Self::CompareExchange16 { at, .. } | Self::SaveState { at } => {
                inside(at) && at.is_multiple_of(16)
            }
            Self::StoreWide { at, source, .. } => inside(at) && source <= 0x1000 - 32,
            Self::Push { stack, .. } | Self::Call { stack } | Self::Interrupt { stack } => {
                inside(stack)
            }
            Self::Copy { from, to, .. } => inside(from) && inside(to),
            Self::Jump { to } => inside(to),
        }
    }

    /// Name of the kind, to tell disagreements apart.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Load { .. } => "load",
            Self::Store { .. } => "store",
            Self::Modify { kind: Modify::Add, .. } => "add",
            Self::Modify { kind: Modify::LockAdd, .. } => "lock add",
            Self::Modify { kind: Modify::Exchange, .. } => "xchg",
            Self::Modify { kind: Modify::CompareExchange, .. } => "lock cmpxchg",
            Self::CompareExchange16 { .. } => "lock cmpxchg16b",
            Self::LoadWide { size: Wide::Xmm, .. } => "movups load",
            Self::LoadWide { size: Wide::Ymm, .. } => "vmovups load",
            Self::StoreWide { size: Wide::Xmm, .. } => "movups store",
            Self::StoreWide { size: Wide::Ymm, .. } => "vmovups store",
            Self::SaveState { .. } => "fxsave64",
            Self::Push { .. } => "push",
            Self::Call { .. } => "call",
            Self::Interrupt { .. } => "int",
            Self::Fill { .. } => "rep stos",
            Self::Copy { .. } => "rep movs",
            Self::Invalidate { .. } => "invlpg",
            Self::Jump { .. } => "jump",
        }
    }
}

impl fmt::Display for Instruction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name();
        let direction = |backward| if backward { " backward" } else { "" };
        match *self {
            Self::Load { at, size } => write!(f, "{name} {} bytes at {at:#x}", size.bytes()),
            Self::Store { at, size, value } => {
                write!(f, "{name} {} bytes at {at:#x}: {:#x}", size.bytes(), value & size.mask())
            }
            Self::Modify { at, size, value, compare, kind } => {
                let mask = size.mask();
                write!(f, "{name} {} bytes at {at:#x}: {:#x}", size.bytes(), value & mask)?;
                match kind {
                    Modify::CompareExchange => write!(f, " if {:#x}", compare & mask),
                    _ => Ok(()),
                }
            }
            Self::CompareExchange16 { at, value } => {
                write!(f, "{name} at {at:#x}: {value:#x} if 0")
            }
            Self::LoadWide { at, size } => write!(f, "{name} {} bytes at {at:#x}", size.bytes()),
            Self::StoreWide { at, size, source } => {
                write!(f, "{name} {} bytes at {at:#x} from source+{source:#x}", size.bytes())
            }
            Self::SaveState { at } | Self::Invalidate { at } => write!(f, "{name} at {at:#x}"),
            Self::Push { stack, value } => write!(f, "{name} {value:#x} with RSP {stack:#x}"),
            Self::Call { stack } | Self::Interrupt { stack } => {
                write!(f, "{name} with RSP {stack:#x}")
            }
            Self::Fill { at, size, count, value, backward } => {
                let (bytes, value) = (size.bytes(), value & size.mask());
                let direction = direction(backward);
                write!(f, "{name} {count} x {bytes} bytes at {at:#x}{direction}: {value:#x}")
            }
            Self::Copy { from, to, size, count, backward } => {
                let (bytes, direction) = (size.bytes(), direction(backward));
                write!(f, "{name} {count} x {bytes} bytes from {from:#x} to {to:#x}{direction}")
            }
            Self::Jump { to } => write!(f, "{name} to {to:#x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operands_from_a_file_are_judged() {
        let store = |at| Instruction::Store { at, size: Size::Quad, value: 0 }.is_sound();
        assert!(store(1 << 39));
        assert!(!store(0) && !store(u64::MAX) && !store(1 << 46));
        assert!(Instruction::SaveState { at: 1 << 39 }.is_sound());
        assert!(!Instruction::SaveState { at: (1 << 39) + 8 }.is_sound());
        let wide = |source| Instruction::StoreWide { at: 1 << 39, size: Wide::Ymm, source };
        assert!(wide(0xFE0).is_sound() && !wide(0xFE1).is_sound());
    }
}
