//! The store of an instruction that exited: what the engine answers, and doing it.

use subpage::address::{ByteRange, PAGE_BYTES};
use subpage::domain::{Answer, Denial, EptViolation, WriteParts};
use subpage::exit::DeliveryFixup;
use subpage_emulate::guest::State;
use subpage_emulate::{Access, Fault, GuestInstruction, Refusal, Store};
use subpage_trap::{
    Backend as _, Located, Met, Outcome, Trapped, Wanted, complete, deny, deny_unknown, drop_store,
    locate, locate_store, skip,
};

use super::INVALID_OPCODE;
use super::backend::{Locked, Obstacle};
use super::violation::OUT_OF_MEMORY;
use crate::processor::control;
use crate::stop::Stop;
use crate::vcpu::Vcpu;

/// An instruction, and its store if software knows it.
struct Found {
    instruction: GuestInstruction,
    store: Result<Store, Refusal>,
}

impl Vcpu {
    /// Handles the exit from an instruction that was to write.
    pub(super) fn store_violation(&mut self, exit: &EptViolation) -> Result<(), Stop> {
        let fixup = exit.delivery.fixup(exit.qualification.nmi_unblocked());
        self.with_store(exit, fixup, |locked, found, state| locked.answer_store(exit, found, state))
    }

    /// The tables could not be walked for it, and a retry did not help: carries out the store of the
    /// instruction that exited.
    pub(super) fn complete_store(
        &mut self,
        exit: &EptViolation,
        fixup: DeliveryFixup,
    ) -> Result<(), Stop> {
        self.with_store(exit, fixup, |locked, found, state| {
            let store = found.store.as_ref().map_err(|&refusal| Obstacle::from(refusal))?;
            let Some(located) = locked.locate_store(exit, store, state)? else { return Ok(None) };
            let trapped = Trapped { instruction: &found.instruction, store };
            complete(locked, trapped, &located, state).map(Some)
        })
    }

    /// Finds the instruction at RIP, lets `work` handle it with the lock held, and goes on as that
    /// says.
    fn with_store(
        &mut self,
        exit: &EptViolation,
        fixup: DeliveryFixup,
        work: impl FnOnce(
            &mut Locked<'_>,
            &Found,
            &mut State,
        ) -> Result<Option<Outcome<Stop>>, Obstacle>,
    ) -> Result<(), Stop> {
        self.fix_up_delivery(fixup);
        let mut state = self.state();
        let machine = self.machine;
        let found = self.decode_cache.find(&machine.ram, machine.paging, &state);
        let found = match found {
            Ok((instruction, store)) => Found { instruction, store },
            Err(fault) => return self.not_fetched(fault),
        };
        self.not_fetched_at = None;
        let mut shared = machine.lock();
        let qualification = Some(exit.qualification.into());
        let mut locked = Locked { vcpu: self, shared: &mut shared, qualification };
        let found = match locked.settled(found, &state) {
            Ok(found) => found,
            Err(obstacle) => {
                drop(shared);
                return self.meet_obstacle(&obstacle, state.cpl);
            }
        };
        let result = work(&mut locked, &found, &mut state);
        drop(shared);
        match result {
            Ok(Some(outcome)) => self.go_on(outcome, &state),
            Ok(None) => Ok(()),
            Err(obstacle) => self.meet_obstacle(&obstacle, state.cpl),
        }
    }

    /// The instruction that exited cannot be fetched: another processor has changed it or its mapping.
    /// This one has to find that out itself; if it exits here once more, it gets what a fetch causes.
    fn not_fetched(&mut self, fault: Fault) -> Result<(), Stop> {
        let rip = self.vmcs.guest(crate::vmx::field::GuestField::RIP);
        if self.not_fetched_at.replace(rip) != Some(rip) {
            self.vmcs.invalidate_ept();
            return Ok(());
        }
        match fault {
            Fault::Exception(exception) => {
                self.inject(exception);
                Ok(())
            }
            Fault::NotMemory(gpa) => Err(Stop::NoMemory(gpa)),
        }
    }

    /// Does what came of a store.
    fn go_on(&mut self, outcome: Outcome<Stop>, state: &State) -> Result<(), Stop> {
        match outcome {
            Outcome::Done | Outcome::Repeats => {
                self.set_state(state);
                self.end_emulated(state);
                Ok(())
            }
            Outcome::Refused(exception) => {
                self.inject(exception);
                Ok(())
            }
            Outcome::Stopped(stop) => Err(stop),
        }
    }

    /// Does what an obstacle asks for.
    pub(super) fn meet_obstacle(&mut self, obstacle: &Obstacle, cpl: u8) -> Result<(), Stop> {
        let stop = match obstacle {
            Obstacle::Exception(exception) => {
                self.inject(*exception);
                return Ok(());
            }
            Obstacle::Again => return Ok(()),
            // The instruction that exited did store: another processor has exchanged it since.
            Obstacle::NotOurs => {
                self.vmcs.invalidate_ept();
                return Ok(());
            }
            // A program must not be able to stop the machine that its kernel runs on.
            Obstacle::Unknown(_) | Obstacle::Faulted if cpl == 3 => {
                self.inject(INVALID_OPCODE);
                return Ok(());
            }
            Obstacle::Unknown(_) => Stop::CannotEmulate("software does not know it"),
            Obstacle::Faulted => Stop::CannotEmulate("it faults outside of the guest"),
            Obstacle::LegacyDelivery => {
                Stop::CannotEmulate("it is a delivery outside of IA-32e mode")
            }
            Obstacle::NotMemory(gpa) => Stop::NoMemory(*gpa),
            Obstacle::OutOfMemory => OUT_OF_MEMORY,
            Obstacle::Failed(stop) => *stop,
        };
        Err(stop)
    }

    /// What goes with the end of an emulated instruction.
    fn end_emulated(&mut self, state: &State) {
        use crate::vmx::field::GuestField as G;
        const TF: u64 = 1 << 8;
        const SINGLE_STEP: u64 = 1 << 14;
        self.finish_instruction();
        if state.rflags & TF != 0 {
            self.vmcs.set_guest(G::PENDING_DEBUG, SINGLE_STEP);
        }
    }
}

impl Locked<'_> {
    /// Asks the engine about a write of an instruction, all its bytes at once, and does what it says.
    fn answer_store(
        &mut self,
        exit: &EptViolation,
        found: &Found,
        state: &mut State,
    ) -> Result<Option<Outcome<Stop>>, Obstacle> {
        let instruction = &found.instruction;
        let located = match &found.store {
            Ok(store) => match self.locate_store(exit, store, state)? {
                None => return Ok(None),
                located => located,
            },
            Err(Refusal::Exception(exception)) => return Err(Obstacle::Exception(*exception)),
            Err(Refusal::Unsupported(_)) => self.locate_unknown(exit, instruction, state),
        };
        let begin = control::time_stamp();
        let (domain, retry) = (&mut self.shared.domain, &mut self.vcpu.retry);
        let (answer, _) = match &located {
            Some(located) => domain.ept_violation_by(retry, exit, &located.parts),
            None => domain.ept_violation(retry, exit),
        };
        let end = control::time_stamp();
        match (answer, &found.store, located) {
            (Answer::Deny(denial), store, located) => {
                self.vcpu.last_decision = end.wrapping_sub(begin);
                let met = met(&denial);
                let (Ok(store), Some(located)) = (store, &located) else {
                    let one = ByteRange::new(exit.gpa, 1).expect("one byte");
                    let gla = exit.qualification.linear_valid().then_some(exit.gla);
                    let (parts, gla) = match located {
                        Some(located) => (located.parts, Some(located.linear)),
                        None => (WriteParts::one(one), gla),
                    };
                    return Ok(Some(deny_unknown(self, instruction, &parts, gla, state, met)));
                };
                deny(self, Trapped { instruction, store }, located, state, met).map(Some)
            }
            (Answer::Emulate, Ok(store), Some(located)) => {
                complete(self, Trapped { instruction, store }, &located, state).map(Some)
            }
            (Answer::Emulate, Err(refusal), _) => Err((*refusal).into()),
            (Answer::ReadOnlySlot(_), Ok(store), Some(located)) => {
                drop_store(self, store, &located, state).map(Some)
            }
            (Answer::ReadOnlySlot(_), ..) => {
                skip(instruction, state);
                Ok(Some(Outcome::Done))
            }
            (answer, ..) => {
                self.vcpu.obey(self.shared, answer).map_err(Obstacle::Failed)?;
                Ok(None)
            }
        }
    }

    /// The same with all bytes of the store known.
    fn settled(&mut self, found: Found, state: &State) -> Result<Found, Obstacle> {
        Ok(match &found.store {
            Ok(store) if store.is_open() => {
                Found { store: Ok(self.settle(store, state)?), ..found }
            }
            _ => found,
        })
    }

    /// Where a store goes; `None` if no byte goes to the page that the exit is about any more: the
    /// guest's tables have changed, and the processor forgets what it remembers of them.
    fn locate_store(
        &mut self,
        exit: &EptViolation,
        store: &Store,
        state: &State,
    ) -> Result<Option<Located>, Obstacle> {
        let located = locate_store(self, store, state, Wanted::Anywhere)?;
        if located.touches_page_of(exit.gpa) {
            return Ok(Some(located));
        }
        self.vcpu.vmcs.invalidate_ept();
        Ok(None)
    }

    /// The bytes that an instruction writes which software does not carry out, if the decoder tells
    /// its destination; with them, a denial in the first page hides no stronger rule in the next.
    fn locate_unknown(
        &mut self,
        exit: &EptViolation,
        instruction: &GuestInstruction,
        state: &State,
    ) -> Option<Located> {
        let access = Access::write_by(state);
        let operands = instruction.accesses(state);
        let written = operands.iter().filter(|(_, bytes, write)| *write && *bytes <= PAGE_BYTES);
        written.into_iter().find_map(|&(linear, bytes, _)| {
            let length = usize::try_from(bytes).ok()?;
            let located = locate(self, state, linear, length, access, Wanted::Anywhere).ok()?;
            located.touches_page_of(exit.gpa).then_some(located)
        })
    }
}

/// What a denied write met.
pub(super) const fn met(denial: &Denial) -> Met {
    Met::Forbidden { rule: denial.rule, at: denial.at, stop: denial.stop }
}
