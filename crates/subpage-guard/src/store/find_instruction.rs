//! Which instruction made a store that KVM reports after the fact.
//!
//! RIP is behind the instruction then, and x86 code cannot be read backwards for certain. What can be
//! checked is checked: an instruction that ends where RIP is (or is a repeated string instruction at
//! RIP, or a call whose return address was stored), whose destination and length are those of the
//! store, or of the part of it that goes to one of two pages. Among several the longest is taken,
//! since prefixes count. The result is for people: no decision depends on it.

use subpage::address::PAGE_BYTES;
use subpage::domain::WriteParts;
use subpage_emulate::bits::RFLAGS_DF;
use subpage_emulate::guest::{Register, State};
use subpage_emulate::{
    Access, GuestInstruction, MAX_INSTRUCTION_BYTES, Store, read_linear, translate,
};

use super::StoreContext;
use crate::memory::GuestMemory;
use crate::vcpu::Interrupted;

/// An instruction that was found.
pub(super) struct Found {
    /// Its address.
    pub(super) rip: u64,
    /// Linear address of the first byte that it stored.
    pub(super) linear: u64,
    /// The instruction.
    pub(super) instruction: GuestInstruction,
}

/// Finds the instruction that has just stored, or been told to have stored, `bytes` to `write`.
pub(super) fn find_before(
    context: StoreContext<'_, impl GuestMemory>,
    at: &Interrupted,
    write: &WriteParts,
    bytes: &[u8],
) -> Option<Found> {
    let after = &at.state;
    let search = Search { context, after, write };
    // What a call has stored is where it ends.
    let return_address = || Some(u64::from_le_bytes(bytes.try_into().ok()?));
    search
        .string_at_rip()
        .or_else(|| search.ending_at(after.rip))
        .or_else(|| search.ending_at(return_address()?))
}

struct Search<'a, M> {
    context: StoreContext<'a, M>,
    /// The state behind the instruction.
    after: &'a State,
    write: &'a WriteParts,
}

impl<M: GuestMemory> Search<'_, M> {
    /// A repeated string instruction with elements left to do is at RIP still.
    fn string_at_rip(&self) -> Option<Found> {
        let code = self.fetch(self.after.rip, MAX_INSTRUCTION_BYTES)?;
        let instruction = GuestInstruction::decode(self.after, &code)?;
        let linear = self.stores(&instruction, &self.before_string(&instruction))?;
        Some(Found { rip: self.after.rip, linear, instruction })
    }

    /// The longest instruction that ends at `end`.
    fn ending_at(&self, end: u64) -> Option<Found> {
        (1..=MAX_INSTRUCTION_BYTES).rev().find_map(|length| {
            let rip = end.wrapping_sub(length as u64);
            let code = self.fetch(rip, length).filter(|code| code.len() == length)?;
            let at = State { rip, ..*self.after };
            let instruction = GuestInstruction::decode(&at, &code)?;
            if instruction.bytes().len() != length {
                return None;
            }
            let before =
                [*self.after, self.before_push(&instruction), self.before_string(&instruction)];
            let linear = before
                .iter()
                .find_map(|before| self.stores(&instruction, &State { rip, ..*before }))?;
            Some(Found { rip, linear, instruction })
        })
    }

    /// The state before the instruction moved the stack pointer.
    fn before_push(&self, instruction: &GuestInstruction) -> State {
        let mut before = *self.after;
        let by = instruction.instruction().stack_pointer_increment();
        let pointer = &mut before.registers[Register::Rsp];
        *pointer = pointer.wrapping_sub(i64::from(by).cast_unsigned());
        before
    }

    /// The state before one element of a string instruction.
    fn before_string(&self, instruction: &GuestInstruction) -> State {
        let mut before = *self.after;
        let bytes = instruction.instruction().memory_size().size() as u64;
        let by = if before.rflags & RFLAGS_DF == 0 { bytes } else { bytes.wrapping_neg() };
        for register in [Register::Rdi, Register::Rsi] {
            before.registers[register] = before.registers[register].wrapping_sub(by);
        }
        let count = &mut before.registers[Register::Rcx];
        *count = count.wrapping_add(1);
        before
    }

    /// Where the instruction stores in `before`, if that is the store in question.
    ///
    /// Of a store to two pages KVM reports the part in the page that traps, if only one does.
    fn stores(&self, instruction: &GuestInstruction, before: &State) -> Option<u64> {
        let store = Store::of(instruction, before).ok()?;
        let (linear, length) = (store.linear(), store.length() as u64);
        let in_first = (PAGE_BYTES - linear % PAGE_BYTES).min(length);
        let second = linear.wrapping_add(in_first);
        [(linear, length), (linear, in_first), (second, length - in_first)]
            .into_iter()
            .find(|&(start, bytes)| bytes == self.write.bytes() && self.is_at(before, start))
            .map(|(start, _)| start)
    }

    /// Whether the write in question begins at a linear address.
    fn is_at(&self, before: &State, linear: u64) -> bool {
        let (context, access) = (self.context, Access::write_by(before));
        translate(context.ram, context.paging, before, linear, access)
            .is_ok_and(|to| to.gpa == self.write.first().first())
    }

    fn fetch(&self, rip: u64, length: usize) -> Option<Vec<u8>> {
        let mut code = vec![0; length];
        let linear = self.after.segments.cs.base.wrapping_add(rip);
        let linear = if self.after.is_64_bit() { rip } else { linear & 0xffff_ffff };
        let context = self.context;
        let access = Access::fetch_by(self.after);
        // The instruction may be the last one of its page: as much as there is.
        for bytes in (1..=length).rev() {
            let code = &mut code[..bytes];
            if read_linear(context.ram, context.paging, self.after, linear, access, code).is_ok() {
                return Some(code.to_vec());
            }
        }
        None
    }
}
