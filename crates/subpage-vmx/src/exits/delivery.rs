//! Delivering an interrupt or exception in software: its frame goes to a page whose tables cannot
//! express that it may.

use subpage::address::PAGE_BYTES;
use subpage::domain::{Decision, Denial, EptViolation};
use subpage::exit::{Delivery, VectoringInfo};

use super::store::Obstacle;
use super::violation::{OUT_OF_MEMORY, SPACE};
use crate::machine::Shared;
use crate::stop::Stop;
use crate::vcpu::Vcpu;
use crate::vcpu::setup::{SEGMENT_FIELDS, set_segment};
use crate::vmx::field::{ExitField, GuestField as G};
use subpage_emulate::guest::PhysicalMemory;
use subpage_emulate::{Access, Escalation, EventKind, Fault, VectoringEvent};

const EFER_LMA: u64 = 1 << 10;
const CS: usize = 1;
const SS: usize = 2;

impl Vcpu {
    /// Pushes the frame of the interrupted delivery, decided by its exact bytes, and starts the
    /// handler.
    pub(super) fn deliver_in_software(
        &mut self,
        shared: &mut Shared,
        delivery: Delivery,
        exit: &EptViolation,
    ) -> Result<(), Stop> {
        match self.try_deliver(shared, delivery, exit) {
            Ok(()) => Ok(()),
            Err(Obstacle::Again) => {
                self.fix_up_delivery(delivery.fixup(false));
                Ok(())
            }
            Err(Obstacle::Stop(stop)) => Err(stop),
            Err(Obstacle::Exception(exception)) => {
                match self.event_of(delivery).escalate(exception) {
                    Escalation::Deliver(exception) => {
                        self.inject(exception);
                        Ok(())
                    }
                    Escalation::Shutdown => Err(Stop::TripleFault),
                }
            }
        }
    }

    fn try_deliver(
        &mut self,
        shared: &mut Shared,
        delivery: Delivery,
        exit: &EptViolation,
    ) -> Result<(), Obstacle> {
        let state = self.state();
        if state.efer & EFER_LMA == 0 {
            return Err(Stop::CannotEmulate("it is a delivery outside of IA-32e mode").into());
        }
        let tables = self.system_tables();
        let event = self.event_of(delivery);
        let machine = self.machine;
        let planned =
            subpage_emulate::deliver(&machine.ram, machine.paging, &state, &tables, &event)?;
        let access = planned.access();
        let length = planned.frame.len() as u64;
        let pieces = self.find_pieces(shared, &state, planned.linear, length, access)?;
        for piece in &pieces {
            let decision = shared.domain.check_write(SPACE, piece.bytes);
            if let Decision::Denied { rule, at, stop } = decision {
                let denial = Denial {
                    gpa: piece.bytes.first(),
                    gla: Some(planned.linear),
                    length: Some(length),
                    at,
                    rule,
                    stop,
                    during_delivery: true,
                };
                let decision = shared.domain.authorize_write(SPACE, piece.bytes);
                let _ = decision.map_err(|_| OUT_OF_MEMORY)?;
                return Ok(self.deny_delivery(shared, &denial, exit)?);
            }
            if !decision.permits() {
                let at = piece.bytes.first().as_u64();
                return Err(Stop::NoMemory(at).into());
            }
        }
        let mut rest = planned.frame.as_slice();
        for piece in &pieces {
            let _ = shared.domain.authorize_write(SPACE, piece.bytes).map_err(|_| OUT_OF_MEMORY)?;
            let (now, later) =
                rest.split_at(usize::from(u16::try_from(piece.bytes.bytes()).unwrap_or(0)));
            rest = later;
            let at = piece.bytes.first();
            machine.ram.write(at, now).map_err(|_| Stop::NoMemory(at.as_u64()))?;
        }
        if let Some(descriptor) = planned.mark_descriptor {
            self.mark_descriptor(shared, descriptor)?;
        }
        self.start_handler(&planned.after, delivery.vectoring);
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

    /// Sets the accessed flag of a code descriptor, if it may be written; a processor would fail to
    /// deliver where it may not, but the flag tells nobody anything.
    fn mark_descriptor(&mut self, shared: &mut Shared, linear: u64) -> Result<(), Obstacle> {
        let access = Access { write: true, ..Access::SYSTEM_READ };
        let aligned = linear & !7;
        let state = self.state();
        let Ok(pieces) = self.find_pieces(shared, &state, linear, 1, access) else {
            return Ok(());
        };
        let bytes = pieces[0].bytes;
        if !shared.domain.check_write(SPACE, bytes).permits() {
            return Ok(());
        }
        let _ = shared.domain.authorize_write(SPACE, bytes).map_err(|_| OUT_OF_MEMORY)?;
        let page = bytes.first().as_u64() & !(PAGE_BYTES - 1);
        let unit = subpage::address::Gpa::new(page + aligned % PAGE_BYTES);
        let mut current = [0; 8];
        self.machine.ram.read(unit, &mut current).map_err(|_| Fault::NotMemory(unit.as_u64()))?;
        let bit = 1 << ((linear - aligned) * 8);
        // If another processor has changed the descriptor meanwhile, it is another one.
        let _ = self.machine.ram.set_bits(unit, u64::from_le_bytes(current), bit);
        Ok(())
    }

    fn start_handler(&mut self, after: &subpage_emulate::guest::State, vectoring: VectoringInfo) {
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
