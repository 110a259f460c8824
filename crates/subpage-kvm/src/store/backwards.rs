//! Which instruction made a store that KVM reports after the fact.
//!
//! RIP is behind the instruction then, and x86 code cannot be read backwards for certain. What can be
//! checked is checked: an instruction that ends where RIP is (or is a repeated string instruction at
//! RIP, or a call whose return address was stored), whose destination and length are those of the
//! store. Among several the longest is taken, since prefixes count. The result is for people: no
//! decision depends on it.

use subpage::domain::WriteParts;
use subpage_emulate::guest::{Register, State};
use subpage_emulate::{
    Access, GuestInstruction, MAX_INSTRUCTION_BYTES, Store, read_linear, translate,
};

use crate::vcpu::Interrupted;
use crate::vm::Machine;

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
    machine: &Machine,
    at: &Interrupted,
    write: &WriteParts,
    bytes: &[u8],
) -> Option<Found> {
    let after = &at.state;
    let search = Search { machine, after, write };
    // What a call has stored is where it ends.
    let return_address = || Some(u64::from_le_bytes(bytes.try_into().ok()?));
    search
        .string_at_rip()
        .or_else(|| search.ending_at(after.rip))
        .or_else(|| search.ending_at(return_address()?))
}

struct Search<'a> {
    machine: &'a Machine,
    /// The state behind the instruction.
    after: &'a State,
    write: &'a WriteParts,
}

impl Search<'_> {
    /// A repeated string instruction with elements left to do is at RIP still.
    fn string_at_rip(&self) -> Option<Found> {
        let code = self.fetch(self.after.rip, MAX_INSTRUCTION_BYTES)?;
        let instruction = GuestInstruction::decode(self.after, &code)?;
        let linear = self.stores(&instruction, &self.before_string())?;
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
            let guesses =
                [at, State { rip, ..self.before_push() }, State { rip, ..self.before_string() }];
            let linear = guesses.iter().find_map(|before| self.stores(&instruction, before))?;
            Some(Found { rip, linear, instruction })
        })
    }

    /// The state before a push of as many bytes.
    fn before_push(&self) -> State {
        let mut before = *self.after;
        let pointer = &mut before.registers[Register::Rsp];
        *pointer = pointer.wrapping_add(self.write.bytes());
        before
    }

    /// The state before one element of a string instruction.
    fn before_string(&self) -> State {
        const DIRECTION: u64 = 1 << 10;
        let mut before = *self.after;
        let bytes = self.write.bytes();
        let by = if before.rflags & DIRECTION == 0 { bytes } else { bytes.wrapping_neg() };
        for register in [Register::Rdi, Register::Rsi] {
            before.registers[register] = before.registers[register].wrapping_sub(by);
        }
        let count = &mut before.registers[Register::Rcx];
        *count = count.wrapping_add(1);
        before
    }

    /// Where the instruction stores in `before`, if that is the store in question.
    fn stores(&self, instruction: &GuestInstruction, before: &State) -> Option<u64> {
        let store = Store::of(instruction, before).ok()?;
        if store.length() as u64 != self.write.bytes() {
            return None;
        }
        let access = Access::write_by(before);
        let machine = self.machine;
        let to = translate(&machine.ram, machine.walks, before, store.linear(), access).ok()?;
        (to.gpa == self.write.first().first()).then_some(store.linear())
    }

    fn fetch(&self, rip: u64, length: usize) -> Option<Vec<u8>> {
        let mut code = vec![0; length];
        let linear = self.after.segments.cs.base.wrapping_add(rip);
        let linear = if self.after.is_64_bit() { rip } else { linear & 0xffff_ffff };
        let machine = self.machine;
        let access = Access::fetch_by(self.after);
        // The instruction may be the last one of its page: as much as there is.
        for bytes in (1..=length).rev() {
            let code = &mut code[..bytes];
            if read_linear(&machine.ram, machine.walks, self.after, linear, access, code).is_ok() {
                return Some(code.to_vec());
            }
        }
        None
    }
}
