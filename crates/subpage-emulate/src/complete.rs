//! Carrying a store out, on the guest's bytes or on a copy of them.

use super::bits::{CR4_OSXMMEXCPT, RFLAGS_RF};
use super::extended::Addresses;
use super::extent::Extent;
use super::form::Form;
use super::implied::{Surroundings, next_rip};
use super::moved::pass;
use super::store::{count, repeats};
use super::trampoline::{GuestRegisters, SIMD_EXCEPTION};
use super::{
    Exception, Extended, Fault, PagingFeatures, Refusal, Store, SystemTables, Trampoline,
    TrampolineFault, Unsupported, Window,
};
use crate::guest::{PhysicalMemory, State, Vendor};

/// Where the guest is after a completed store.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Behind the instruction (or at the target of a call). RFLAGS.RF is clear.
    ///
    /// What else ends with an instruction is the caller's: blocking by STI and MOV SS, and the
    /// single-step trap if RFLAGS.TF is set.
    Done,
    /// At the same string instruction or scatter, with elements left to do. RFLAGS.RF is as the processor saves
    /// it in an event's frame now.
    Repeats,
}

/// Why a store was not carried out. Neither the state nor the window has changed; of the extended
/// registers, #XM changes MXCSR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Incomplete {
    /// Reading the instruction's source failed, the target of a call is out of reach, or executing it
    /// gave an exception that the guest's processor would have given.
    Fault(Fault),
    /// The window cannot be written.
    Trampoline,
    /// What memory holds makes it an instruction that software does not carry out.
    Unsupported(Unsupported),
}

impl From<Fault> for Incomplete {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<Exception> for Incomplete {
    fn from(exception: Exception) -> Self {
        Self::Fault(exception.into())
    }
}

impl From<Refusal> for Incomplete {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Exception(exception) => Self::Fault(exception.into()),
            Refusal::Unsupported(why) => Self::Unsupported(why),
        }
    }
}

impl Incomplete {
    /// What an exception of an instruction in its window is for the guest in `state`.
    pub(super) const fn by(fault: TrampolineFault, state: &State) -> Self {
        const fn simple(vector: u8) -> Exception {
            Exception { vector, error_code: None, address: None }
        }
        Self::Fault(Fault::Exception(match fault.vector {
            SIMD_EXCEPTION if state.cr4 & CR4_OSXMMEXCPT == 0 => Exception::INVALID_OPCODE,
            // An unknown instruction, a pending x87 exception.
            vector @ (6 | 16 | SIMD_EXCEPTION) => simple(vector),
            // Alignment: the bytes themselves are there.
            13 => Exception::general_protection(0),
            _ => return Self::Trampoline,
        }))
    }
}

/// What completing an instruction needs besides the state.
#[derive(Debug)]
pub struct Executor<'a, M> {
    /// The guest's memory, for what an instruction reads besides its destination: sources, pointers,
    /// descriptors.
    pub memory: &'a M,
    /// What page walks go by.
    pub paging: PagingFeatures,
    /// For SGDT, SIDT, SLDT and STR, and for far calls.
    pub tables: &'a SystemTables,
    /// Of the processor that this runs on.
    pub trampoline: &'a mut Trampoline,
    /// The guest's extended registers at the exit. An instruction that uses them changes them, so they
    /// are to be loaded again before the guest continues.
    ///
    /// Also on a copy of the destination: FSTP pops. A caller that asks what an instruction would write
    /// and then does not let it happen, or does it again on the guest's bytes, passes a copy of these
    /// as well.
    pub extended: Extended<'a>,
}

impl Store {
    /// Carries out the store of a MOV, as [`Executor::complete`] does, which needs nothing but the
    /// state; `None` if it is another store.
    ///
    /// Panics if the window is not as long as the store.
    #[inline]
    pub fn complete_moved(&self, state: &mut State, window: &mut Window<'_>) -> Option<Progress> {
        let moved = self.moved(state)?;
        assert_eq!(window.length(), self.length(), "a window is as long as its store");
        window.store_number(moved.number());
        pass(next_rip(self.instruction(), state), state);
        Some(Progress::Done)
    }
}

impl<M: PhysicalMemory> Executor<'_, M> {
    /// Carries `store` out on `window`, and moves `state` behind it.
    ///
    /// `state` must be that for which the store was found. On the guest's own bytes the effect on
    /// memory is what the processor's would have been, including atomicity (a computed store is one
    /// instruction for up to 8 bytes). All else is read from `memory` without setting accessed flags,
    /// which the processor has done when it got as far as the write; and so are the bytes that XSAVE
    /// outside of 64-bit mode adds to.
    ///
    /// Panics if the window is not as long as the store, or the store is [open](Store::is_open).
    pub fn complete(
        &mut self,
        store: &Store,
        state: &mut State,
        window: &mut Window<'_>,
    ) -> Result<Progress, Incomplete> {
        assert_eq!(window.length(), store.length(), "a window is as long as its store");
        if let Some(progress) = store.complete_moved(state, window) {
            return Ok(progress);
        }
        let instruction = store.instruction();
        let next = next_rip(instruction, state);
        let mut jumps = false;
        let mut more = false;
        let in_part = matches!(store.form(), Form::SaveFirst(_) | Form::RealEnvironment);
        if store.extent() != Extent::Whole || in_part {
            more = self.store_part(store, state, window)? == Progress::Repeats;
        } else if let Some(substitute) = store.substitute() {
            let mut guest = GuestRegisters {
                addresses: Addresses {
                    rip: state.rip,
                    offset: store.offset(),
                    x87_opcode: store.x87_opcode(),
                },
                registers: &mut state.registers,
                rflags: &mut state.rflags,
                extended: self.extended.reborrow(),
            };
            let result = self.trampoline.run(substitute, window, &mut guest);
            result.map_err(|fault| Incomplete::by(fault, state))?;
        } else {
            let effect = self.surroundings().effect(store, state)?;
            window.store(&effect.bytes, effect.unit);
            *state = effect.after;
            jumps = effect.jumps;
        }
        more |= repeats(instruction) && store.is_string() && count(instruction, state) != 0;
        if more {
            state.rflags = match state.vendor {
                Vendor::Intel => state.rflags | RFLAGS_RF,
                Vendor::Amd => state.rflags & !RFLAGS_RF,
            };
            return Ok(Progress::Repeats);
        }
        state.rflags &= !RFLAGS_RF;
        if !jumps {
            state.rip = next;
        }
        Ok(Progress::Done)
    }

    pub(super) const fn surroundings(&self) -> Surroundings<'_, M> {
        Surroundings { memory: self.memory, paging: self.paging, tables: self.tables }
    }
}
