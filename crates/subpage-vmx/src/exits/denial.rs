//! A denied write: the event, and what becomes of the instruction.

use subpage::domain::{Denial, EptViolation};

use super::store::{Obstacle, Trapped};
use crate::denied::Denied;
use crate::event::{Event, EventOutcome, Origin};
use crate::machine::Shared;
use crate::stop::Stop;
use crate::vcpu::Vcpu;
use subpage_emulate::Exception;
use subpage_emulate::guest::State;

/// #DF.
const DOUBLE_FAULT: Exception = Exception { vector: 8, error_code: Some(0), address: None };

impl Vcpu {
    /// Who writes, in `state`.
    #[allow(clippy::cast_possible_truncation)] // There are at most 16.
    pub(super) const fn origin(&self, state: &State) -> Origin {
        Origin::of(state, self.index as u32)
    }

    /// Does what follows from a denial. Memory has not changed, and does not.
    pub(super) fn deny(
        &mut self,
        shared: &mut Shared,
        trapped: Option<&Trapped>,
        denial: &Denial,
        exit: &EptViolation,
    ) -> Result<(), Stop> {
        if denial.during_delivery {
            return self.deny_delivery(shared, denial, exit);
        }
        // A copy takes the write: that shows its bytes, and what else the instruction does.
        let dry = match trapped.map(|trapped| self.try_dry(shared, trapped)) {
            Some(Ok(dry)) => Some(dry),
            // The instruction does not even get as far as its write.
            Some(Err(Obstacle::Exception(exception))) => {
                self.inject(exception);
                return Ok(());
            }
            Some(Err(Obstacle::Stop(_) | Obstacle::Again)) | None => None,
        };
        let response = shared.response(denial.rule);
        let outcome = match response {
            _ if denial.stop => EventOutcome::Stopped,
            Denied::Skip => EventOutcome::Skipped,
            Denied::Fault => EventOutcome::GeneralProtection,
        };
        let state = trapped.map_or_else(|| self.state(), |trapped| trapped.state);
        let mut event = Event::denied(denial, self.origin(&state), outcome)
            .with_qualification(exit.qualification.into());
        if let Some(trapped) = trapped {
            event = event.with_instruction(trapped.instruction.bytes());
            if let Ok(store) = &trapped.store {
                event.length = Some(store.length() as u64);
                event.gla = Some(store.linear());
            }
        }
        if let Some(dry) = &dry {
            event = event.with_data(dry.scratch.bytes());
            event.gpa = dry.gpa;
        }
        // In software, what the processor could not have decided by its tables.
        event.software = self.machine.tables.sppt.is_none();
        shared.record(&event, self.machine.settings);
        if denial.stop {
            return Err(denial.rule.map_or(Stop::NoMemory(denial.at.as_u64()), Stop::Rule));
        }
        match (response, dry) {
            (Denied::Fault, _) => self.inject(Exception::general_protection(0)),
            (Denied::Skip, Some(dry)) => self.take_dry_run(&dry),
            (Denied::Skip, None) => self.skip_or_fault(),
        }
        Ok(())
    }

    /// The frame of an event may not be pushed: there is no instruction to skip, and repeating would
    /// loop. The guest gets a double fault, as for any event that cannot be delivered; if that
    /// cannot be delivered either, it is a triple fault.
    pub(super) fn deny_delivery(
        &mut self,
        shared: &mut Shared,
        denial: &Denial,
        exit: &EptViolation,
    ) -> Result<(), Stop> {
        let outcome =
            if denial.stop { EventOutcome::Stopped } else { EventOutcome::GeneralProtection };
        let event = Event::denied(denial, self.origin(&self.state()), outcome)
            .with_qualification(exit.qualification.into());
        let event = Event { during_delivery: true, ..event };
        shared.record(&event, self.machine.settings);
        if denial.stop {
            return Err(denial.rule.map_or(Stop::NoMemory(denial.at.as_u64()), Stop::Rule));
        }
        let vectoring = exit.delivery.vectoring;
        const HARDWARE_EXCEPTION: u8 = 3;
        if vectoring.kind() == HARDWARE_EXCEPTION && vectoring.vector() == DOUBLE_FAULT.vector {
            return Err(Stop::TripleFault);
        }
        self.inject(DOUBLE_FAULT);
        Ok(())
    }
}
