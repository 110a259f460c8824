//! Every address that an instruction touches, for finding out whose page walk trapped.

use arrayvec::ArrayVec;
use iced_x86::InstructionInfoFactory;

use super::segment;
use super::store::register;
use super::{GuestInstruction, MAX_ACCESSES};
use crate::guest::State;

impl GuestInstruction {
    /// Linear addresses of the instruction's accesses to memory, reads and writes, implied ones
    /// included; at most [`MAX_ACCESSES`], and only those whose segment permits a read.
    pub fn accesses(&self, state: &State) -> ArrayVec<u64, MAX_ACCESSES> {
        let mut factory = InstructionInfoFactory::new();
        let info = factory.info(self.instruction());
        let value = |name: iced_x86::Register, _, _| {
            Some(if name.is_segment_register() { 0 } else { register(state, name) })
        };
        info.used_memory()
            .iter()
            .filter_map(|memory| {
                let offset = memory.virtual_address(0, value)?;
                segment::linear(state, memory.segment(), offset, 1, false).ok()
            })
            .take(MAX_ACCESSES)
            .collect()
    }
}
