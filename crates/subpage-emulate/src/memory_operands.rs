//! What an instruction touches, for finding out whose page walk trapped.

use arrayvec::ArrayVec;
use iced_x86::{InstructionInfoFactory, Mnemonic, OpAccess};

use super::segment;
use super::store::register;
use super::{GuestInstruction, MAX_ACCESSES};
use crate::guest::State;

impl GuestInstruction {
    /// The instruction's accesses to memory, implied ones included: linear address, bytes, and whether
    /// they are written. At most [`MAX_ACCESSES`], and only those whose segment permits a read; of
    /// scattered ones the first.
    pub fn accesses(&self, state: &State) -> ArrayVec<(u64, u64, bool), MAX_ACCESSES> {
        let mut factory = InstructionInfoFactory::new();
        let info = factory.info(self.instruction());
        let value = |name: iced_x86::Register, _, _| {
            Some(if name.is_segment_register() { 0 } else { register(state, name) })
        };
        info.used_memory()
            .iter()
            .filter_map(|memory| {
                let offset = memory.virtual_address(0, value)?;
                let linear = segment::linear(state, memory.segment(), offset, 1, false).ok()?;
                let reads = matches!(
                    memory.access(),
                    OpAccess::None | OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess
                );
                Some((linear, memory.memory_size().size().max(1) as u64, !reads))
            })
            .take(MAX_ACCESSES)
            .collect()
    }

    /// Whether it is INT n, INT3 or INTO.
    pub fn is_software_interrupt(&self) -> bool {
        matches!(self.instruction().mnemonic(), Mnemonic::Int | Mnemonic::Int3 | Mnemonic::Into)
    }
}
