//! Instructions that trapped lately.
//!
//! A counter beside guarded bytes traps at the same instruction again and again. Decoding it and
//! finding what executes in its place costs more than all the rest of completing its store, and
//! depends on nothing but its bytes: so both are kept for as long as the bytes stay the same.

use super::linear::read_linear;
use super::store::Refusal;
use super::store_template::StoreTemplate;
use super::{Access, Fault, GuestInstruction, MAX_INSTRUCTION_BYTES, PagingFeatures, Store};
use crate::guest::{PhysicalMemory, State};

/// How many are kept: a loop's worth.
const ENTRIES: usize = 8;

#[derive(Debug, Clone)]
struct Entry {
    rip: u64,
    instruction: GuestInstruction,
    template: StoreTemplate,
}

/// Decoded instructions of 64-bit code, by address.
#[derive(Debug, Clone, Default)]
pub struct DecodeCache {
    entries: [Option<Entry>; ENTRIES],
}

impl DecodeCache {
    /// Fetches the instruction at RIP and finds its store, as [`GuestInstruction::fetch`] and
    /// [`Store::of`] do.
    ///
    /// The bytes are read anew each time, through the guest's page tables as they are now.
    pub fn find<M: PhysicalMemory>(
        &mut self,
        memory: &M,
        paging: PagingFeatures,
        state: &State,
    ) -> Result<(GuestInstruction, Result<Store, Refusal>), Fault> {
        if !state.is_64_bit() {
            let instruction = GuestInstruction::fetch(memory, paging, state)?;
            let store = Store::of(&instruction, state);
            return Ok((instruction, store));
        }
        #[allow(clippy::cast_possible_truncation)] // Less than the number of entries.
        let slot = &mut self.entries[(state.rip ^ state.rip >> 4) as usize % ENTRIES];
        if let Some(entry) = slot
            && entry.rip == state.rip
            && super::is_canonical(state.rip)
        {
            let known = entry.instruction.bytes();
            let mut bytes = [0; MAX_INSTRUCTION_BYTES];
            let bytes = &mut bytes[..known.len()];
            let access = Access::fetch_by(state);
            read_linear(memory, paging, state, state.rip, access, bytes)?;
            if *bytes == *known {
                let store = match &entry.template {
                    StoreTemplate::Operand { store, operand } => store.of_operand(operand, state),
                    StoreTemplate::Substitute(substitute) => {
                        Store::with_substitute(&entry.instruction, state, Some(substitute))
                    }
                    StoreTemplate::Nothing => Store::of(&entry.instruction, state),
                };
                return Ok((entry.instruction, store));
            }
        }
        let instruction = GuestInstruction::fetch(memory, paging, state)?;
        let store = Store::of(&instruction, state);
        let template = store.as_ref().map_or(StoreTemplate::Nothing, StoreTemplate::of);
        *slot = Some(Entry { rip: state.rip, instruction, template });
        Ok((instruction, store))
    }
}
