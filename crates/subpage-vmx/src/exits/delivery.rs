//! Interrupts and exceptions whose frame exited: what the engine answers, and pushing the frame in
//! software where the tables cannot express that it may be.

use subpage::domain::{Answer, EptViolation};
use subpage::exit::{Delivery, VectoringInfo};
use subpage_emulate::guest::State;
use subpage_emulate::{EventKind, VectoringEvent};
use subpage_trap::{Delivered, Frame, Wanted, deny_unplanned};

use super::backend::{Locked, Obstacle};
use super::store::met;
use crate::stop::Stop;
use crate::vcpu::Vcpu;
use crate::vcpu::setup::{SEGMENT_FIELDS, set_segment};
use crate::vmx::field::{ExitField, GuestField as G};

pub(super) const CS: usize = 1;
const SS: usize = 2;

impl Vcpu {
    /// Handles the exit from a delivery that was to write.
    pub(super) fn frame_violation(&mut self, exit: &EptViolation) -> Result<(), Stop> {
        self.with_delivery(exit, |locked, event, state| locked.answer_frame(exit, event, state))
    }

    /// Pushes the frame of the interrupted delivery, decided by its exact bytes, and starts the
    /// handler.
    pub(super) fn deliver_in_software(&mut self, exit: &EptViolation) -> Result<(), Stop> {
        self.with_delivery(exit, |locked, event, state| {
            let frame = Frame::plan(locked, state, event, Wanted::Anywhere)?;
            frame.push(locked, state).map(Some)
        })
    }

    fn with_delivery(
        &mut self,
        exit: &EptViolation,
        work: impl FnOnce(
            &mut Locked<'_>,
            &VectoringEvent,
            &mut State,
        ) -> Result<Option<Delivered<Stop>>, Obstacle>,
    ) -> Result<(), Stop> {
        let delivery = exit.delivery;
        let event = self.event_of(delivery);
        let mut state = self.state();
        let machine = self.machine;
        let mut shared = machine.lock();
        let qualification = Some(exit.qualification.into());
        let mut locked = Locked { vcpu: self, shared: &mut shared, qualification };
        let delivered = match work(&mut locked, &event, &mut state) {
            Ok(Some(delivered)) => delivered,
            // The processor tries again.
            Ok(None) | Err(Obstacle::Again) => {
                self.fix_up_delivery(delivery.fixup(exit.qualification.nmi_unblocked()));
                return Ok(());
            }
            Err(Obstacle::Exception(exception)) => Frame::escalate(&event, exception),
            // A program cannot make its kernel's stack one that software cannot push to.
            Err(obstacle) => return self.meet_obstacle(&obstacle, 0),
        };
        match delivered {
            Delivered::Handler => self.start_handler(&state, delivery.vectoring),
            Delivered::Inject(exception) => self.inject(exception),
            Delivered::TripleFault => return Err(Stop::TripleFault),
            Delivered::Stopped(stop) => return Err(stop),
        }
        Ok(())
    }

    fn event_of(&self, delivery: Delivery) -> VectoringEvent {
        let vectoring = delivery.vectoring;
        let length = self.vmcs.exit(ExitField::INSTRUCTION_LENGTH);
        let kind = match vectoring.kind() {
            0 | 2 => EventKind::Interrupt,
            3 => EventKind::Exception,
            _ => EventKind::Software { instruction_bytes: length.to_le_bytes()[0] },
        };
        let error_code = vectoring.error_code().then_some(delivery.error_code);
        VectoringEvent { vector: vectoring.vector(), error_code, kind }
    }

    fn start_handler(&mut self, after: &State, vectoring: VectoringInfo) {
        const NMI: u8 = 2;
        const BLOCKING_BY_NMI: u64 = 1 << 3;
        self.set_state(after);
        set_segment(&mut self.vmcs, SEGMENT_FIELDS[CS], &after.segments.cs);
        set_segment(&mut self.vmcs, SEGMENT_FIELDS[SS], &after.segments.ss);
        let blocking = if vectoring.kind() == NMI { BLOCKING_BY_NMI } else { 0 };
        let old = self.vmcs.guest(G::INTERRUPTIBILITY) & BLOCKING_BY_NMI;
        self.vmcs.set_guest(G::INTERRUPTIBILITY, old | blocking);
    }
}

impl Locked<'_> {
    /// Asks the engine about the frame of an event, all its bytes at once, and does what it says.
    fn answer_frame(
        &mut self,
        exit: &EptViolation,
        event: &VectoringEvent,
        state: &mut State,
    ) -> Result<Option<Delivered<Stop>>, Obstacle> {
        let frame = match Frame::plan(self, state, event, Wanted::Anywhere) {
            Ok(frame) => Some(frame),
            Err(Obstacle::LegacyDelivery) => None,
            Err(obstacle) => return Err(obstacle),
        };
        // Other writes of a delivery go to descriptors.
        let ours = frame.as_ref().filter(|frame| frame.located().touches_page_of(exit.gpa));
        let (domain, retry) = (&mut self.shared.domain, &mut self.vcpu.retry);
        let (answer, _) = match ours {
            Some(frame) => domain.ept_violation_by(retry, exit, &frame.located().parts),
            None => domain.ept_violation(retry, exit),
        };
        match answer {
            Answer::Deny(denial) => Ok(Some(if let Some(frame) = ours {
                frame.deny(self, state, met(&denial))
            } else {
                let gla = exit.qualification.linear_valid().then_some(exit.gla);
                deny_unplanned(self, state, event, exit.gpa, gla, met(&denial))
            })),
            Answer::Emulate => frame.ok_or(Obstacle::LegacyDelivery)?.push(self, state).map(Some),
            answer => {
                self.vcpu.obey(self.shared, answer).map_err(Obstacle::Failed)?;
                Ok(None)
            }
        }
    }
}
