//! The store of an instruction that exited: what the engine answers, and doing it.

use subpage::address::{ByteRange, PAGE_BYTES};
use subpage::domain::{Answer, AtOnce, Denial, EptViolation, WriteParts};
use subpage::exit::DeliveryFixup;
use subpage_emulate::bits::{DR6_BS, RFLAGS_TF};
use subpage_emulate::guest::State;
use subpage_emulate::{Access, Decoded, Exception, Fault, GuestInstruction, Refusal, Store};
use subpage_trap::{
    Located, Met, StoreOutcome, Trapped, Wanted, carry_out, complete, deny, deny_unknown,
    drop_store, locate, locate_marked, locate_store, settle, skip,
};

use super::backend::{Locked, Obstacle, Place};
use super::delivery::CS;
use super::violation::{OUT_OF_MEMORY, SPACE};
#[cfg(feature = "test-hooks")]
use crate::processor::control;
use crate::stop::Stop;
use crate::vcpu::Vcpu;
use crate::vcpu::setup::{SEGMENT_FIELDS, set_segment};

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
            let mut store = found.store().map_err(Obstacle::from)?;
            let settled;
            if store.is_open() {
                let trapped = Trapped { instruction: found.instruction(), store };
                match settle(locked, trapped, state)? {
                    None => return Ok(Some(StoreOutcome::Done)),
                    Some(known) => settled = known,
                }
                store = &settled;
            }
            let Some(located) = locked.locate_store(exit, store, state)? else { return Ok(None) };
            let trapped = Trapped { instruction: found.instruction(), store };
            complete(locked, trapped, &located, state).map(Some)
        })
    }

    /// Finds the instruction at RIP, lets `work` handle it with the lock held, and continues as that
    /// says.
    fn with_store(
        &mut self,
        exit: &EptViolation,
        fixup: DeliveryFixup,
        work: impl FnOnce(
            &mut Locked<'_>,
            &Decoded,
            &mut State,
        ) -> Result<Option<StoreOutcome<Stop>>, Obstacle>,
    ) -> Result<(), Stop> {
        self.fix_up_delivery(fixup);
        let machine = self.machine;
        // Most stores need little of the state, and reading all of it takes longer than deciding.
        let mut state = State::default();
        let is_plain = self.plain_state(&mut state);
        if !is_plain {
            state = self.state();
        }
        let mut found = match self.decode_cache.take(&machine.ram, machine.paging, &state) {
            Ok(found) => found,
            Err(fault) => return self.not_fetched(fault),
        };
        if is_plain && !found.is_plain() {
            state = self.state();
            found.renew(&state);
        }
        let code_segment = state.segments.cs;
        self.not_fetched_at = None;
        let mut shared = machine.lock();
        if machine.devices.is_some()
            && ByteRange::new(exit.gpa, 1).is_ok_and(|byte| shared.domain.is_open(SPACE, byte))
        {
            machine.costs.open_sub_page();
        }
        let qualification = Some(exit.qualification.into());
        let mut locked = Locked { vcpu: self, shared: &mut shared, qualification };
        let result = work(&mut locked, &found, &mut state);
        machine.arm(&mut shared, self.index).map_err(|_| OUT_OF_MEMORY)?;
        drop(shared);
        self.decode_cache.put(found);
        match result {
            Ok(Some(outcome)) => {
                let done = matches!(outcome, StoreOutcome::Done);
                if done && state.segments.cs != code_segment {
                    set_segment(&mut self.vmcs, SEGMENT_FIELDS[CS], &state.segments.cs);
                }
                self.go_on(outcome, &state)
            }
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
    fn go_on(&mut self, outcome: StoreOutcome<Stop>, state: &State) -> Result<(), Stop> {
        match outcome {
            StoreOutcome::Done | StoreOutcome::Repeats => {
                self.set_state(state);
                self.end_emulated(state);
                Ok(())
            }
            StoreOutcome::Refused(exception) => {
                self.inject(exception);
                Ok(())
            }
            StoreOutcome::Stopped(stop) => Err(stop),
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
                self.inject(Exception::INVALID_OPCODE);
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
        self.finish_instruction(state.rflags);
        if state.rflags & RFLAGS_TF != 0 {
            self.vmcs.set_guest(G::PENDING_DEBUG, DR6_BS);
        }
    }
}

impl Locked<'_> {
    /// Asks the engine about a write of an instruction, all its bytes at once, and does what it says.
    fn answer_store(
        &mut self,
        exit: &EptViolation,
        found: &Decoded,
        state: &mut State,
    ) -> Result<Option<StoreOutcome<Stop>>, Obstacle> {
        if let Ok(store) = found.store()
            && let Some((located, answer)) = self.answer_at_once(exit, store, state)
        {
            return match answer {
                AtOnce::Permitted(page) => {
                    carry_out(self, store, &located, &Place::of_page(page), state)
                }
                AtOnce::Denied(denial) => {
                    let trapped = Trapped { instruction: found.instruction(), store };
                    deny(self, trapped, &located, state, met(&denial))
                }
            }
            .map(Some);
        }
        self.answer_any_store(exit, found, state)
    }

    /// The common case of a write: all its bytes are known, lie in the page of the exit, and one look
    /// tells what to do.
    #[inline]
    fn answer_at_once(
        &mut self,
        exit: &EptViolation,
        store: &Store,
        state: &State,
    ) -> Option<(Located, AtOnce)> {
        if store.is_open() || store.written().is_some() {
            return None;
        }
        let (linear, length) = (store.linear(), store.length());
        let run = locate_marked(self, state, linear, length, Access::write_by(state))?;
        #[cfg(feature = "test-hooks")]
        let begin = control::time_stamp();
        let answer = self.shared.domain.decide_at_once(exit, run)?;
        #[cfg(feature = "test-hooks")]
        {
            self.vcpu.last_decision = control::time_stamp().wrapping_sub(begin);
        }
        Some((Located { linear, parts: WriteParts::one(run) }, answer))
    }

    /// [`answer_store`](Self::answer_store) where it takes a closer look.
    #[inline(never)]
    fn answer_any_store(
        &mut self,
        exit: &EptViolation,
        found: &Decoded,
        state: &mut State,
    ) -> Result<Option<StoreOutcome<Stop>>, Obstacle> {
        let instruction = found.instruction();
        let settled;
        let found = match found.store() {
            // All its bytes have to be known.
            Ok(store) if store.is_open() => {
                match settle(self, Trapped { instruction, store }, state) {
                    Ok(None) => {
                        self.shared.domain.note_violation();
                        return Ok(Some(StoreOutcome::Done));
                    }
                    Ok(Some(known)) => {
                        settled = known;
                        Ok(&settled)
                    }
                    // Like one that is unknown from the start: it may be denied.
                    Err(Obstacle::Unknown(why)) => Err(Refusal::Unsupported(why)),
                    Err(obstacle) => return Err(obstacle),
                }
            }
            found => found,
        };
        let located = match found {
            Ok(store) => match self.locate_store(exit, store, state)? {
                None => return Ok(None),
                located => located,
            },
            Err(Refusal::Exception(exception)) => return Err(Obstacle::Exception(exception)),
            Err(Refusal::Unsupported(_)) => self.locate_unknown(exit, instruction, state),
        };
        if let (Ok(store), Some(located)) = (found, &located)
            && !located.touches_page_of(exit.gpa)
        {
            // ENTER, which asks for a page and writes to another.
            self.shared.domain.note_violation();
            return complete(self, Trapped { instruction, store }, located, state).map(Some);
        }
        let (domain, retry) = (&mut self.shared.domain, &mut self.vcpu.retry);
        let (answer, _) = match &located {
            Some(located) => domain.ept_violation_by(retry, exit, &located.parts),
            None => domain.ept_violation(retry, exit),
        };
        match (answer, found, located) {
            (Answer::Deny(denial), store, located) => {
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
            (Answer::Emulate, Err(refusal), _) => Err(refusal.into()),
            (Answer::ReadOnlySlot(_), Ok(store), Some(located)) => {
                drop_store(self, store, &located, state).map(Some)
            }
            (Answer::ReadOnlySlot(_), ..) => {
                skip(instruction, state);
                Ok(Some(StoreOutcome::Done))
            }
            (answer, ..) => {
                self.vcpu.obey(self.shared, answer).map_err(Obstacle::Failed)?;
                Ok(None)
            }
        }
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
        if located.touches_page_of(exit.gpa) || store.probes_stack() {
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
            // Of XSAVE the decoder knows the address only: what trapped may come later.
            let holds = |run: &ByteRange| run.first() <= exit.gpa && exit.gpa <= run.last();
            located.parts.runs().iter().any(holds).then_some(located)
        })
    }
}

/// What a denied write met.
pub(super) const fn met(denial: &Denial) -> Met {
    Met::Forbidden { rule: denial.rule, at: denial.at, stop: denial.stop }
}
