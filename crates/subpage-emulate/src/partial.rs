//! Carrying out stores that write a part of their operand.
//!
//! The instruction runs on bytes of our own, where all of its operand is, and what it is to write goes on
//! from there element by element: what lies between may be denied, absent, or another processor's.

use super::extended::Addresses;
use super::extent::Extent;
use super::trampoline::GuestRegisters;
use super::{Executor, Incomplete, Progress, Refusal, Scratch, Store, Window};
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
        let result = self.trampoline.run(substitute, window, &mut guest);
        result.map_err(|fault| Incomplete::by(fault, state))
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

/// What FXSAVE stores in 64-bit mode, with room.
const FXSAVE_BYTES: usize = 512;

impl From<Refusal> for Incomplete {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Exception(exception) => Self::Fault(exception.into()),
            Refusal::Unsupported(_) => Self::Trampoline,
        }
    }
}
