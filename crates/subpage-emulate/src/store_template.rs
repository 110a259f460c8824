//! A store whose instruction has been looked at before.
//!
//! Where the operand lies, how long it is and what executes in the instruction's place are found in
//! the decoder's tables, which are large and out of the processor's caches at an exit. For most
//! stores all of that depends on the instruction alone, and only registers are new.

use iced_x86::{Instruction, Register as Name};

use super::form::Form;
use super::store::{Refusal, Store, address_mask};
use super::{Substitute, segment};
use crate::guest::State;

/// What of a store depends on its instruction alone.
#[derive(Debug, Clone)]
pub(super) enum StoreTemplate {
    /// All but its address: the instruction names the destination, and uses general registers only.
    Operand(Operand),
    /// What executes in its place.
    Substitute(Substitute),
    /// Nothing that is worth keeping.
    Nothing,
}

/// A memory operand of 64-bit code.
#[derive(Debug, Clone, Copy)]
pub(super) struct Operand {
    segment: Name,
    /// Numbers of general registers.
    base: Option<u8>,
    index: Option<u8>,
    /// Power of two.
    scale: u32,
    displacement: u64,
    mask: u64,
}

impl Operand {
    /// Operand 0 of an instruction. What it is relative to RIP has been added to the displacement.
    fn of(instruction: &Instruction) -> Self {
        #[allow(clippy::cast_possible_truncation)] // One of sixteen.
        let number = |name: Name| {
            let full = name.full_register();
            full.is_gpr64().then(|| full.number() as u8)
        };
        Self {
            segment: instruction.memory_segment(),
            base: number(instruction.memory_base()),
            index: number(instruction.memory_index()),
            scale: instruction.memory_index_scale().trailing_zeros(),
            displacement: instruction.memory_displacement64(),
            mask: address_mask(instruction),
        }
    }

    /// The offset in its segment.
    #[inline]
    fn offset(&self, state: &State) -> u64 {
        let value =
            |number: Option<u8>| number.map_or(0, |number| state.registers.0[usize::from(number)]);
        // Registers of 32 bits are the low halves of these: the mask cuts the sum.
        let index = value(self.index) << self.scale;
        self.displacement.wrapping_add(value(self.base)).wrapping_add(index) & self.mask
    }
}

impl StoreTemplate {
    /// What can be kept of a store of 64-bit code.
    pub(super) fn of(store: &Store) -> Self {
        match (store.form(), store.substitute()) {
            (Form::Operand { extended: false }, _) => {
                Self::Operand(Operand::of(store.instruction()))
            }
            (Form::Operand { extended: true }, Some(substitute)) => {
                Self::Substitute(substitute.clone())
            }
            _ => Self::Nothing,
        }
    }
}

impl Store {
    /// Makes it the store of an operand that is known, in another state of 64-bit code.
    #[inline]
    pub(super) fn move_operand(&mut self, operand: &Operand, state: &State) -> Result<(), Refusal> {
        let offset = operand.offset(state);
        let bytes = self.length() as u64;
        let linear = segment::linear_of_64_bits(state, operand.segment, offset, bytes)?;
        self.move_to(linear, offset);
        Ok(())
    }
}
