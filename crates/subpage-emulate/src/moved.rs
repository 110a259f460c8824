//! MOV to memory, the most frequent store: what it stores is in the state and in the instruction, and
//! nothing of it can fail or depends on memory. So it needs neither to be executed nor to be rehearsed.

use iced_x86::{Code, Instruction, Register as Name};

use super::Store;
use super::bits::RFLAGS_RF;
use crate::guest::State;

/// Where the bytes of a MOV come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// A general register, or bits 15:8 of one.
    Register { number: u8, high: bool },
    /// A number, extended to 64 bits as the instruction does.
    Immediate(u64),
}

/// The bytes that a MOV stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    bytes: [u8; 8],
    length: usize,
}

impl Moved {
    /// The bytes: 1, 2, 4 or 8.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    pub(super) const fn number(&self) -> u64 {
        u64::from_le_bytes(self.bytes)
    }
}

impl Source {
    /// Of a MOV of a general register or a number to memory; `None` for any other instruction.
    pub(super) fn of(instruction: &Instruction) -> Option<Self> {
        Some(match instruction.code() {
            Code::Mov_rm8_r8
            | Code::Mov_rm16_r16
            | Code::Mov_rm32_r32
            | Code::Mov_rm64_r64
            | Code::Mov_moffs8_AL
            | Code::Mov_moffs16_AX
            | Code::Mov_moffs32_EAX
            | Code::Mov_moffs64_RAX => {
                let name = instruction.op1_register();
                let number = u8::try_from(name.full_register().number()).ok()?;
                let high = matches!(name, Name::AH | Name::CH | Name::DH | Name::BH);
                Self::Register { number, high }
            }
            Code::Mov_rm8_imm8
            | Code::Mov_rm16_imm16
            | Code::Mov_rm32_imm32
            | Code::Mov_rm64_imm32 => Self::Immediate(instruction.immediate(1)),
            _ => return None,
        })
    }

    #[inline]
    fn value(self, state: &State) -> u64 {
        match self {
            Self::Register { number, high } => {
                state.registers.0[usize::from(number)] >> if high { 8 } else { 0 }
            }
            Self::Immediate(value) => value,
        }
    }
}

impl Store {
    /// What the store would leave in memory if it is that of a MOV; `None` if it has to be carried out
    /// to find out.
    #[inline]
    pub fn moved(&self, state: &State) -> Option<Moved> {
        let value = self.source()?.value(state);
        Some(Moved { bytes: value.to_le_bytes(), length: self.length() })
    }
}

/// Moves the state behind a MOV: nothing else of it changes.
pub(super) const fn pass(next: u64, state: &mut State) {
    state.rip = next;
    state.rflags &= !RFLAGS_RF;
}
