//! Stores whose bytes are computed: pushes, calls, string instructions and stores of system
//! registers.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Deref;

use arrayvec::ArrayVec;
use iced_x86::{Instruction, OpKind, Register as Name};

use super::bits::{RFLAGS_DF, RFLAGS_RF, RFLAGS_VM};
use super::form::Form;
use super::linear::{read_linear, read_number};
use super::segment::{self, segment};
use super::store::{
    address_mask, count, effective_address, enter_slot, levels, register, repeats,
    set_stack_pointer, slot, stack_mask, stack_pointer,
};
use super::{
    Access, Exception, Fault, Incomplete, PagingFeatures, Store, SystemTables, is_canonical,
    translate,
};
use crate::guest::{PhysicalMemory, Register, State};

/// What is stored.
pub(super) enum Bytes {
    /// As much as PUSHAD stores.
    Short(ArrayVec<u8, 32>),
    /// ENTER with nesting, a line of 64 bytes.
    Long(Vec<u8>),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Short(bytes) => bytes,
            Self::Long(bytes) => bytes,
        }
    }
}

/// What an instruction does besides advancing RIP.
pub(super) struct Effect {
    /// What it stores, first byte first.
    pub(super) bytes: Bytes,
    /// The bytes are several stores of this many bytes each.
    pub(super) unit: usize,
    /// The state after it, but for RIP, unless `jumps`.
    pub(super) after: State,
    /// RIP of `after` is where the guest continues.
    pub(super) jumps: bool,
}

impl Effect {
    fn of_number(value: u64, bytes: usize, after: &State) -> Self {
        let bytes = Bytes::Short(value.to_le_bytes()[..bytes].iter().copied().collect());
        Self { bytes, unit: 1, after: *after, jumps: false }
    }
}

/// The system around an instruction.
pub(super) struct Surroundings<'a, M> {
    pub(super) memory: &'a M,
    pub(super) paging: PagingFeatures,
    pub(super) tables: &'a SystemTables,
}

impl<M: PhysicalMemory> Surroundings<'_, M> {
    /// The effect of a store whose form is computed.
    ///
    /// Panics for a form that is executed.
    pub(super) fn effect(&self, store: &Store, state: &State) -> Result<Effect, Incomplete> {
        let instruction = store.instruction();
        let length = store.length();
        let mut after = *state;
        Ok(match store.form() {
            Form::Push => {
                let value = self.operand(instruction, state, length)?;
                push(&mut after, slot(instruction));
                Effect::of_number(value, length, &after)
            }
            Form::PushFlags => {
                push(&mut after, slot(instruction));
                Effect::of_number(state.rflags & !(RFLAGS_VM | RFLAGS_RF), length, &after)
            }
            Form::PushAll => {
                push(&mut after, slot(instruction));
                let unit = length / 8;
                // (E)DI is pushed last and lies lowest.
                let mut bytes = ArrayVec::new();
                for value in state.registers.0[..8].iter().rev() {
                    bytes.extend(value.to_le_bytes().into_iter().take(unit));
                }
                Effect { bytes: Bytes::Short(bytes), unit, after, jumps: false }
            }
            Form::Call => self.call(instruction, state, length)?,
            Form::FarCall => self.far_call(store, state)?,
            Form::Enter => self.enter(store, state)?,
            Form::ZeroLine => {
                Effect { bytes: Bytes::Long(vec![0; length]), unit: 8, after, jumps: false }
            }
            Form::CopyLine => {
                if !store.linear().is_multiple_of(length as u64) {
                    return Err(Exception::general_protection(0).into());
                }
                let offset = effective_address(instruction, 1, state);
                let name = instruction.memory_segment();
                let from = segment::linear(state, name, offset, length as u64, false)?;
                let mut line = vec![0; length];
                let access = Access::read_by(state);
                read_linear(self.memory, self.paging, state, from, access, &mut line)?;
                Effect { bytes: Bytes::Long(line), unit: 8, after, jumps: false }
            }
            Form::PopMemory => {
                let offset = stack_pointer(state);
                let from = segment::linear(state, Name::SS, offset, length as u64, false)?;
                let value = self.read(state, from, length)?;
                let by = instruction.stack_pointer_increment();
                set_stack_pointer(&mut after, offset.wrapping_add_signed(by.into()));
                Effect::of_number(value, length, &after)
            }
            Form::StoreString => {
                step(instruction, &mut after, length, &[Name::RDI]);
                Effect::of_number(state.registers[Register::Rax], length, &after)
            }
            Form::MoveString => {
                let offset = effective_address(instruction, 1, state);
                let name = instruction.memory_segment();
                let from = segment::linear(state, name, offset, length as u64, false)?;
                let value = self.read(state, from, length)?;
                step(instruction, &mut after, length, &[Name::RSI, Name::RDI]);
                Effect::of_number(value, length, &after)
            }
            Form::StoreSelector => {
                let selector = match instruction.mnemonic() {
                    iced_x86::Mnemonic::Sldt => self.tables.ldtr.selector,
                    iced_x86::Mnemonic::Str => self.tables.tr.selector,
                    _ => segment(state, instruction.op1_register()).selector,
                };
                Effect::of_number(selector.into(), length, &after)
            }
            Form::StoreMachineStatus => Effect::of_number(state.cr0, length, &after),
            Form::StoreTableRegister => {
                let table = match instruction.mnemonic() {
                    iced_x86::Mnemonic::Sgdt => self.tables.gdtr,
                    _ => self.tables.idtr,
                };
                let mut bytes = ArrayVec::new();
                bytes.extend(table.limit.to_le_bytes());
                bytes.extend(table.base.to_le_bytes().into_iter().take(length - 2));
                Effect { bytes: Bytes::Short(bytes), unit: 1, after, jumps: false }
            }
            Form::Operand { .. }
            | Form::BitString
            | Form::Masked(_)
            | Form::Compress
            | Form::Scatter
            | Form::SaveState
            | Form::SaveFirst(_)
            | Form::RealEnvironment => unreachable!("this form is executed, not computed"),
        })
    }

    fn read(&self, state: &State, linear: u64, bytes: usize) -> Result<u64, Fault> {
        let access = Access::read_by(state);
        read_number(self.memory, self.paging, state, linear, access, bytes)
    }

    /// The value of operand 0 as a source of `bytes` bytes.
    fn operand(
        &self,
        instruction: &Instruction,
        state: &State,
        bytes: usize,
    ) -> Result<u64, Fault> {
        Ok(match instruction.op0_kind() {
            OpKind::Register => {
                let name = instruction.op0_register();
                if name.is_segment_register() {
                    segment(state, name).selector.into()
                } else {
                    register(state, name)
                }
            }
            OpKind::Memory => {
                let offset = effective_address(instruction, 0, state);
                let name = instruction.memory_segment();
                let from = segment::linear(state, name, offset, bytes as u64, false)?;
                self.read(state, from, bytes)?
            }
            _ => instruction.immediate(0),
        })
    }

    /// ENTER: pushes (R|E)BP, the frame pointers of the levels around this one and its own, points
    /// (R|E)BP at the first of them, and makes room (SDM Vol. 2, "ENTER").
    fn enter(&self, store: &Store, state: &State) -> Result<Effect, Fault> {
        let (instruction, length) = (store.instruction(), store.length());
        let unit = enter_slot(instruction);
        let slot = unit as usize;
        let name = match unit {
            2 => Name::BP,
            4 => Name::EBP,
            _ => Name::RBP,
        };
        let mut after = *state;
        push(&mut after, unit);
        let frame = stack_pointer(&after);
        // From the last slot, the highest, to the first.
        let mut bytes = vec![0; length];
        let mut free = length - slot;
        bytes[free..].copy_from_slice(&register(state, name).to_le_bytes()[..slot]);
        let levels = levels(instruction);
        for level in 1..levels {
            let below = state.registers[Register::Rbp].wrapping_sub((level * unit).into());
            let offset = below & stack_mask(state);
            let from = segment::linear(state, Name::SS, offset, unit.into(), false)?;
            let mut value = self.read(state, from, slot)?.to_le_bytes();
            // What has been pushed just now is read back.
            for (byte, at) in value[..slot].iter_mut().zip(0..) {
                let place = usize::try_from(from.wrapping_add(at).wrapping_sub(store.linear()));
                if let Some(place) = place.ok().filter(|place| (free..length).contains(place)) {
                    *byte = bytes[place];
                }
            }
            free -= slot;
            bytes[free..free + slot].copy_from_slice(&value[..slot]);
        }
        if levels > 0 {
            bytes[..slot].copy_from_slice(&frame.to_le_bytes()[..slot]);
        }
        let room = u64::from(instruction.immediate16());
        let below = stack_pointer(state).wrapping_sub(length as u64).wrapping_sub(room);
        set_stack_pointer(&mut after, below);
        let end = segment::linear(state, Name::SS, stack_pointer(&after), 1, true)?;
        translate(self.memory, self.paging, state, end, Access::write_by(state))?;
        set_part(&mut after, name, frame);
        Ok(Effect { bytes: Bytes::Long(bytes), unit: slot, after, jumps: false })
    }

    fn call(
        &self,
        instruction: &Instruction,
        state: &State,
        bytes: usize,
    ) -> Result<Effect, Fault> {
        let target = match instruction.op0_kind() {
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
                instruction.near_branch_target()
            }
            _ => self.operand(instruction, state, bytes)?,
        };
        let target = match bytes {
            2 => target & 0xffff,
            4 => target & 0xffff_ffff,
            _ => target,
        };
        let reachable = if state.is_64_bit() {
            is_canonical(target)
        } else {
            target <= state.segments.cs.limit.into()
        };
        if !reachable {
            return Err(Exception::general_protection(0).into());
        }
        let mut after = *state;
        push(&mut after, slot(instruction));
        after.rip = target;
        let mut effect = Effect::of_number(next_rip(instruction, state), bytes, &after);
        effect.jumps = true;
        Ok(effect)
    }
}

/// RIP after the instruction.
pub(super) fn next_rip(instruction: &Instruction, state: &State) -> u64 {
    let next = state.rip.wrapping_add(instruction.len() as u64);
    if state.is_64_bit() { next } else { next & 0xffff_ffff }
}

fn push(state: &mut State, bytes: u32) {
    set_stack_pointer(state, stack_pointer(state).wrapping_sub(bytes.into()));
}

/// Moves the pointers of a string instruction by one element, and counts it if it repeats.
fn step(instruction: &Instruction, state: &mut State, bytes: usize, pointers: &[Name]) {
    let mask = address_mask(instruction);
    let by =
        if state.rflags & RFLAGS_DF == 0 { bytes as u64 } else { (bytes as u64).wrapping_neg() };
    for &pointer in pointers {
        let moved = register(state, pointer).wrapping_add(by);
        set_masked(state, pointer, mask, moved);
    }
    if repeats(instruction) {
        let left = count(instruction, state).wrapping_sub(1);
        set_masked(state, Name::RCX, mask, left);
    }
}

/// Writes a register through a part of it as wide as `mask`: 32 bits clear the upper half.
fn set_masked(state: &mut State, full: Name, mask: u64, value: u64) {
    let kept = if mask == 0xffff { !mask } else { 0 };
    let register = &mut state.registers.0[full.number()];
    *register = *register & kept | value & mask;
}

fn set_part(state: &mut State, name: Name, value: u64) {
    let mask = match name.size() {
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => u64::MAX,
    };
    set_masked(state, name.full_register(), mask, value);
}
