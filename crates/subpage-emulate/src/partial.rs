//! Carrying out stores that write a part of their operand.
//!
//! The instruction runs on bytes of our own that hold its whole operand. From there the elements that it writes
//! are copied one by one: what lies between may be denied, absent, or another processor's.

use alloc::vec;

use arrayvec::ArrayVec;

use super::extended::Addresses;
use super::extent::Extent;
use super::form::Form;
use super::linear::read_linear;
use super::trampoline::GuestRegisters;
use super::{Access, Executor, Incomplete, Progress, Scratch, Store, Window, xsave};
use crate::guest::{PhysicalMemory, Register, State};

impl<M: PhysicalMemory> Executor<'_, M> {
    /// A store that is not simply its instruction executed on its window.
    pub(super) fn store_part(
        &mut self,
        store: &Store,
        state: &State,
        window: &mut Window<'_>,
    ) -> Result<Progress, Incomplete> {
        match store.extent() {
            Extent::Whole if store.form() == Form::RealEnvironment => {
                self.save_environment(store, state, window)?;
            }
            Extent::Whole => self.save_first(store, state, window)?,
            Extent::Open => panic!("an open store is settled before it is done"),
            Extent::Elements { .. } => self.store_elements(store, state, window)?,
            Extent::Scattered { .. } => return self.scatter(store, state, window),
            Extent::Components(_) => self.save_state(store, state, window)?,
        }
        Ok(Progress::Done)
    }

    /// Elements under a mask, side by side after a compression or where they were.
    fn store_elements(
        &mut self,
        store: &Store,
        state: &State,
        window: &mut Window<'_>,
    ) -> Result<(), Incomplete> {
        let Extent::Elements { unit, which, skipped } = store.extent() else {
            unreachable!("the store has elements")
        };
        let operand = store.operand_bytes();
        let start = skipped as usize * unit;
        let at = store.linear().wrapping_sub(start as u64);
        let mut scratch = Scratch::new(at, &[0; 64][..operand]);
        let substitute = store.substitute().expect("what has elements is executed");
        let result = self.run_on(substitute, &mut scratch, state);
        result.map_err(|fault| Incomplete::by(fault, state))?;
        for element in (0..store.length() / unit).filter(|element| which >> element & 1 != 0) {
            let from = start + element * unit;
            window.store_element(element * unit, &scratch.bytes()[from..from + unit]);
        }
        Ok(())
    }

    /// The next element of a scatter, whose bit in the mask is then cleared, as an event between two
    /// elements finds it.
    fn scatter(
        &mut self,
        store: &Store,
        state: &State,
        window: &mut Window<'_>,
    ) -> Result<Progress, Incomplete> {
        let Extent::Scattered { element, mask } = store.extent() else {
            unreachable!("the store is an element of a scatter")
        };
        let instruction = store.instruction();
        let data = self.vector(instruction.op1_register(), state).map_err(Incomplete::from)?;
        let at = element as usize * store.length();
        window.store(&data[at..at + store.length()], store.length());
        let left = mask & !(1 << element);
        let result = self.set_opmask(instruction.op_mask(), left, state);
        result.map_err(|fault| Incomplete::by(fault, state))?;
        Ok(if left == 0 { Progress::Done } else { Progress::Repeats })
    }

    /// XSAVE and its kin: of the components that were asked for, those that the guest has enabled.
    fn save_state(
        &mut self,
        store: &Store,
        state: &State,
        window: &mut Window<'_>,
    ) -> Result<(), Incomplete> {
        let Extent::Components(components) = store.extent() else {
            unreachable!("the store has state components")
        };
        let (mut registers, mut rflags) = (state.registers, state.rflags);
        registers[Register::Rax] = components & 0xffff_ffff;
        registers[Register::Rdx] = components >> 32;
        let mut guest = GuestRegisters {
            addresses: Addresses { rip: state.rip, offset: store.offset(), x87_opcode: None },
            registers: &mut registers,
            rflags: &mut rflags,
            extended: self.extended.reborrow(),
        };
        let substitute = store.substitute().expect("what saves state is executed");
        if state.is_64_bit() {
            let result = self.trampoline.run(substitute, window, &mut guest);
            return result.map_err(|fault| Incomplete::by(fault, state));
        }
        // What it leaves as it is and what it adds to is read first.
        let mut current = vec![0; store.length()];
        let access = Access::read_by(state);
        read_linear(self.memory, self.paging, state, store.linear(), access, &mut current)?;
        let mut scratch = Scratch::new(store.linear(), &current);
        let result = self.trampoline.run(substitute, &mut scratch.window(), &mut guest);
        result.map_err(|fault| Incomplete::by(fault, state))?;
        // What it does not write may be another processor's by now.
        for at in (0..store.length()).step_by(WORD) {
            let word = at..store.length().min(at + WORD);
            let left_out = xsave::LEFT_OUT.iter().any(|range| range.contains(&at));
            if !left_out && scratch.bytes()[word.clone()] != current[word.clone()] {
                window.store_element(at, &scratch.bytes()[word]);
            }
        }
        Ok(())
    }

    /// FNSTENV and FNSAVE outside of protected mode: the x87's pointers are linear addresses (SDM Vol. 1,
    /// "x87 State", the formats of real-address mode). Selectors are not known: an exit forgets them.
    fn save_environment(
        &mut self,
        store: &Store,
        state: &State,
        window: &mut Window<'_>,
    ) -> Result<(), Incomplete> {
        let [opcode, instruction, operand] = self.extended.x87_pointers();
        let mut scratch = Scratch::new(store.linear(), &[0; 108][..store.length()]);
        let substitute = store.substitute().expect("what saves state is executed");
        let result = self.run_on(substitute, &mut scratch, state);
        result.map_err(|fault| Incomplete::by(fault, state))?;
        let mut bytes = ArrayVec::<u8, 108>::new();
        bytes.extend(scratch.bytes().iter().copied());
        let unit = if matches!(bytes.len(), 28 | 108) { 4 } else { 2 };
        let high = |pointer: u32| pointer >> 16 << 12;
        let fields = [
            instruction & 0xffff | RESERVED,
            opcode | high(instruction),
            operand & 0xffff | RESERVED,
            high(operand),
        ];
        for (field, to) in fields.into_iter().zip(bytes[3 * unit..].chunks_exact_mut(unit)) {
            to.copy_from_slice(&field.to_le_bytes()[..unit]);
        }
        window.store(&bytes, unit);
        Ok(())
    }

    /// FXSAVE where it leaves out registers: those behind the first bytes.
    fn save_first(
        &mut self,
        store: &Store,
        state: &State,
        window: &mut Window<'_>,
    ) -> Result<(), Incomplete> {
        let mut scratch = Scratch::new(store.linear(), &[0; FXSAVE_BYTES]);
        let substitute = store.substitute().expect("FXSAVE is executed");
        let result = self.run_on(substitute, &mut scratch, state);
        result.map_err(|fault| Incomplete::by(fault, state))?;
        window.store(&scratch.bytes()[..store.length()], 8);
        Ok(())
    }
}

/// Bytes of the elements in which an area is stored.
const WORD: usize = 8;

/// What processors store next to half of a pointer.
const RESERVED: u32 = 0xffff_0000;

/// What FXSAVE stores in 64-bit mode, with room.
const FXSAVE_BYTES: usize = 512;
