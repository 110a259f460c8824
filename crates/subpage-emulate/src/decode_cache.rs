//! Instructions that trapped lately.
//!
//! A counter next to guarded bytes traps at the same instruction again and again. Decoding it and
//! finding what executes in its place costs more than all the rest of completing its store, and
//! depends on nothing but its bytes: so both are kept for as long as the bytes stay the same.

use alloc::boxed::Box;

use subpage::address::PAGE_BYTES;

use super::linear::read_linear;
use super::paging::translate_marked;
use super::store::Refusal;
use super::store_template::StoreTemplate;
use super::{Access, Fault, GuestInstruction, MAX_INSTRUCTION_BYTES, PagingFeatures, Store};
use crate::guest::{PhysicalMemory, State};

/// How many are kept: a loop's worth.
const ENTRIES: usize = 8;

/// An instruction of the guest and the store that it makes.
#[derive(Debug, Clone)]
pub struct Decoded {
    rip: u64,
    /// Only that is used again.
    is_64_bit: bool,
    instruction: GuestInstruction,
    /// Its bytes, the first one lowest, and how many bits above them do not count.
    code: u128,
    unused: u32,
    template: StoreTemplate,
    /// In the state for which it was looked up; of a refused one, in an older state or none.
    store: Option<Store>,
    refusal: Option<Refusal>,
}

impl Decoded {
    /// The instruction.
    pub const fn instruction(&self) -> &GuestInstruction {
        &self.instruction
    }

    /// Its store in the state for which it was looked up, as [`Store::of`] tells it.
    pub fn store(&self) -> Result<&Store, Refusal> {
        match (&self.store, self.refusal) {
            (_, Some(refusal)) => Err(refusal),
            (Some(store), None) => Ok(store),
            (None, None) => unreachable!("there is a store or a reason why not"),
        }
    }

    #[cold]
    #[inline(never)]
    fn fetch<M: PhysicalMemory>(
        memory: &M,
        paging: PagingFeatures,
        state: &State,
    ) -> Result<Box<Self>, Fault> {
        let instruction = GuestInstruction::fetch(memory, paging, state)?;
        let (store, refusal) = apart(Store::of(&instruction, state));
        let template = store.as_ref().map_or(StoreTemplate::Nothing, StoreTemplate::of);
        let (rip, is_64_bit) = (state.rip, state.is_64_bit());
        let bytes = instruction.bytes();
        let mut code = [0; 16];
        code[..bytes.len()].copy_from_slice(bytes);
        let (code, used) = (u128::from_le_bytes(code), instruction.instruction().len());
        let unused = u128::BITS - 8 * u32::try_from(used).expect("at most 15 bytes");
        let decoded = Self { rip, is_64_bit, instruction, code, unused, template, store, refusal };
        Ok(Box::new(decoded))
    }

    /// Whether its bytes are still there, through the guest's page tables as they are now.
    #[inline]
    fn is_there<M: PhysicalMemory>(
        &self,
        memory: &M,
        paging: PagingFeatures,
        state: &State,
    ) -> Result<bool, Fault> {
        if state.rip % PAGE_BYTES <= PAGE_BYTES - 16 {
            let access = Access::fetch_by(state);
            let gpa = translate_marked(memory, paging, state, state.rip, access);
            if let Some(Ok(code)) = gpa.map(|gpa| memory.read_code(gpa)) {
                return Ok((code ^ self.code) << self.unused == 0);
            }
        }
        self.is_there_by_bytes(memory, paging, state)
    }

    /// [`is_there`](Self::is_there) where bytes are not read at once.
    #[cold]
    #[inline(never)]
    fn is_there_by_bytes<M: PhysicalMemory>(
        &self,
        memory: &M,
        paging: PagingFeatures,
        state: &State,
    ) -> Result<bool, Fault> {
        let known = self.instruction.bytes();
        let mut bytes = [0; MAX_INSTRUCTION_BYTES];
        let bytes = &mut bytes[..known.len()];
        let access = Access::fetch_by(state);
        read_linear(memory, paging, state, state.rip, access, bytes)?;
        Ok(bytes.iter().eq(known))
    }

    /// Whether its store depends on nothing of the state but general registers, RIP and the bases of FS
    /// and GS: the instruction names its destination, in 64-bit code.
    pub const fn is_plain(&self) -> bool {
        self.is_64_bit && matches!(self.template, StoreTemplate::Operand(_))
    }

    /// Finds the store in another state.
    #[inline]
    pub fn renew(&mut self, state: &State) {
        match (&self.template, &mut self.store) {
            (StoreTemplate::Operand(operand), Some(store)) if self.is_64_bit => {
                self.refusal = store.move_operand(operand, state).err();
            }
            _ => self.renew_all(state),
        }
    }

    /// [`renew`](Self::renew) where more than the address is new.
    #[inline(never)]
    fn renew_all(&mut self, state: &State) {
        let known = match &self.template {
            StoreTemplate::Substitute(substitute) => Some(substitute),
            StoreTemplate::Operand(_) | StoreTemplate::Nothing => None,
        };
        (self.store, self.refusal) = apart(Store::with_substitute(&self.instruction, state, known));
    }
}

fn apart(store: Result<Store, Refusal>) -> (Option<Store>, Option<Refusal>) {
    match store {
        Ok(store) => (Some(store), None),
        Err(refusal) => (None, Some(refusal)),
    }
}

/// Decoded instructions of 64-bit code, by address.
#[derive(Debug, Clone, Default)]
pub struct DecodeCache {
    entries: [Option<Box<Decoded>>; ENTRIES],
}

impl DecodeCache {
    /// Fetches the instruction at RIP and finds its store, as [`GuestInstruction::fetch`] and
    /// [`Store::of`] do. To be [put](Self::put) back, or it is decoded anew the next time.
    ///
    /// The bytes are read anew each time, through the guest's page tables as they are now.
    pub fn take<M: PhysicalMemory>(
        &mut self,
        memory: &M,
        paging: PagingFeatures,
        state: &State,
    ) -> Result<Box<Decoded>, Fault> {
        let Some(mut decoded) = self.entries[slot(state.rip)].take() else {
            return Decoded::fetch(memory, paging, state);
        };
        let same = decoded.rip == state.rip && decoded.is_64_bit && state.is_64_bit();
        if same && super::is_canonical(state.rip) && decoded.is_there(memory, paging, state)? {
            decoded.renew(state);
        } else {
            return Decoded::fetch(memory, paging, state);
        }
        Ok(decoded)
    }

    /// Keeps an instruction that was taken.
    pub fn put(&mut self, decoded: Box<Decoded>) {
        let slot = slot(decoded.rip);
        self.entries[slot] = Some(decoded);
    }
}

#[allow(clippy::cast_possible_truncation)] // Less than the number of entries.
const fn slot(rip: u64) -> usize {
    (rip ^ rip >> 4) as usize % ENTRIES
}
