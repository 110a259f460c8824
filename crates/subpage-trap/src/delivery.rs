//! Interrupts and exceptions whose frame goes to a page that traps.

use subpage::address::{ByteRange, Gpa};
use subpage::domain::{Decision, WriteParts};
use subpage_emulate::bits::EFER_LMA;
use subpage_emulate::guest::{PhysicalMemory, State};
use subpage_emulate::{
    Access, Escalation, EventKind, Exception, GuestInstruction, PlannedDelivery, VectoringEvent,
    deliver as plan,
};

use crate::report::{Account, Met, authorize, report};
use crate::store::response_to;
use crate::{Backend, Located, Obstacle, Origin, Response, Wanted, locate};

const DOUBLE_FAULT: Exception = Exception { vector: 8, error_code: Some(0), address: None };

/// What came of a delivery.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivered<T> {
    /// The frame is pushed: the state is that in which the handler starts, with a new CS and SS.
    Handler,
    /// The event is over; the guest receives this instead.
    Inject(Exception),
    /// It could not be delivered, nor could what came in its place.
    TripleFault,
    /// A rule stops the guest.
    Stopped(T),
}

/// The event of INT n, INT3 or INTO; `None` for any other instruction.
pub fn software_interrupt(code: &GuestInstruction) -> Option<VectoringEvent> {
    if !code.is_software_interrupt() {
        return None;
    }
    let bytes = code.bytes();
    // Prefixes mean nothing here.
    let vector = match *bytes {
        [.., 0xcd, vector] => vector,
        [.., 0xcc] => 3,
        [.., 0xce] => 4,
        _ => return None,
    };
    let instruction_bytes = u8::try_from(bytes.len()).expect("at most 15");
    let kind = EventKind::Software { instruction_bytes };
    Some(VectoringEvent { vector, error_code: None, kind })
}

/// An event and the frame that it would push, located and not pushed yet.
#[derive(Debug)]
pub struct Frame {
    event: VectoringEvent,
    planned: PlannedDelivery,
    located: Located,
}

impl Frame {
    /// Where the frame goes.
    pub const fn located(&self) -> &Located {
        &self.located
    }

    /// Plans the delivery of `event` in `state` and finds out where its frame goes.
    ///
    /// [`Obstacle::Exception`] is what the delivery itself causes: see
    /// [`escalate`](Self::escalate).
    pub fn plan<B: Backend>(
        backend: &mut B,
        state: &State,
        event: &VectoringEvent,
        wanted: Wanted,
    ) -> Result<Self, Obstacle<B::Failure>> {
        if state.efer & EFER_LMA == 0 {
            return Err(Obstacle::LegacyDelivery);
        }
        let tables = backend.tables();
        let planned = plan(backend.memory(), backend.paging(), state, &tables, event)?;
        // The frame's pages are accessed with the privilege of the handler.
        let (access, length) = (planned.access(), planned.frame.len());
        let located = locate(backend, &planned.after, planned.linear, length, access, wanted)?;
        Ok(Self { event: *event, planned, located })
    }

    /// What becomes of an exception that comes up while `event` is being delivered.
    pub const fn escalate<T>(event: &VectoringEvent, exception: Exception) -> Delivered<T> {
        match event.escalate(exception) {
            Escalation::Deliver(exception) => Delivered::Inject(exception),
            Escalation::Shutdown => Delivered::TripleFault,
        }
    }

    /// Plans and pushes: the whole protocol for an event in `state`.
    pub fn deliver<B: Backend>(
        backend: &mut B,
        state: &mut State,
        event: &VectoringEvent,
    ) -> Result<Delivered<B::Told>, Obstacle<B::Failure>> {
        let frame = match Self::plan(backend, state, event, Wanted::InTraps) {
            Err(Obstacle::Exception(exception)) => return Ok(Self::escalate(event, exception)),
            result => result?,
        };
        frame.push(backend, state)
    }

    /// Decides about all bytes of the frame as one write, and pushes it or denies it.
    pub fn push<B: Backend>(
        self,
        backend: &mut B,
        state: &mut State,
    ) -> Result<Delivered<B::Told>, Obstacle<B::Failure>> {
        backend.checked(&self.located.parts);
        let decision = authorize(backend, &self.located.parts)?;
        let met = match decision {
            Decision::NotEligible { at } | Decision::NotMapped { at } => {
                return Err(Obstacle::NotMemory(at.as_u64()));
            }
            decision => Met::of(decision),
        };
        if let Some(met @ Met::Forbidden { .. }) = met {
            return Ok(self.conclude(backend, state, met));
        }
        // Eight bytes at a time, the highest first, as a processor pushes them.
        const UNIT: usize = 8;
        let (parts, frame) = (&self.located.parts, &self.planned.frame);
        let place = backend.ready(parts)?;
        backend.with_window(parts, &place, |_, window| window.store(frame, UNIT))?;
        if let Some(met) = met {
            self.report(backend, state, met, Response::Skip);
        }
        backend.written(&self.located.parts);
        if let Some(descriptor) = self.planned.mark_descriptor {
            mark_descriptor(backend, state, descriptor);
        }
        *state = self.planned.after;
        Ok(Delivered::Handler)
    }

    /// Denies a frame that the engine has decided about and counted already.
    ///
    /// # Panics
    /// If `met` does not forbid it.
    pub fn deny<B: Backend>(&self, backend: &mut B, state: &State, met: Met) -> Delivered<B::Told> {
        assert!(matches!(met, Met::Forbidden { .. }), "what is not forbidden is not denied");
        backend.checked(&self.located.parts);
        self.conclude(backend, state, met)
    }

    /// There is no instruction to skip, and repeating would loop. The guest gets a double fault, as
    /// for any event that cannot be delivered; if that is the event, it is a triple fault.
    fn conclude<B: Backend>(&self, backend: &mut B, state: &State, met: Met) -> Delivered<B::Told> {
        let (_, stop) = response_to(backend, met);
        let told = self.report(backend, state, met, Response::Fault);
        if stop {
            return Delivered::Stopped(told);
        }
        denied(&self.event)
    }

    fn report<B: Backend>(
        &self,
        backend: &mut B,
        state: &State,
        met: Met,
        response: Response,
    ) -> B::Told {
        let account = Account {
            origin: Origin::of(state, backend.vcpu()),
            when: backend.when(),
            parts: &self.located.parts,
            gla: Some(self.located.linear),
            length: Some(self.located.parts.bytes()),
            bytes: &self.planned.frame,
            instruction: &[],
            during_delivery: true,
            qualification: backend.qualification(),
            in_software: backend.in_software(),
        };
        report(backend, met, response, &account)
    }
}

/// Denies a write of a delivery that is not planned here, such as one outside of IA-32e mode: of its
/// bytes only the one at `gpa`, which trapped, is known.
#[cold]
pub fn deny_unplanned<B: Backend>(
    backend: &mut B,
    state: &State,
    event: &VectoringEvent,
    gpa: Gpa,
    gla: Option<u64>,
    met: Met,
) -> Delivered<B::Told> {
    let (_, stop) = response_to(backend, met);
    let account = Account {
        origin: Origin::of(state, backend.vcpu()),
        when: backend.when(),
        parts: &WriteParts::one(ByteRange::new(gpa, 1).expect("a byte of memory")),
        gla,
        length: None,
        bytes: &[],
        instruction: &[],
        during_delivery: true,
        qualification: backend.qualification(),
        in_software: backend.in_software(),
    };
    let told = report(backend, met, Response::Fault, &account);
    if stop { Delivered::Stopped(told) } else { denied(event) }
}

/// What the guest gets in place of an event that may not be delivered.
fn denied<T>(event: &VectoringEvent) -> Delivered<T> {
    if event.kind == EventKind::Exception && event.vector == DOUBLE_FAULT.vector {
        return Delivered::TripleFault;
    }
    Delivered::Inject(DOUBLE_FAULT)
}

/// Sets the accessed flag of a code descriptor, if it may be written. A processor would fail to
/// deliver where it may not; but nothing reads this flag.
fn mark_descriptor<B: Backend>(backend: &mut B, state: &State, linear: u64) {
    let access = Access { write: true, ..Access::SYSTEM_READ };
    let Ok(located) = locate(backend, state, linear, 1, access, Wanted::Anywhere) else { return };
    let parts = &located.parts;
    if !backend.domain().check_write_parts(B::SPACE, parts).permits() {
        return;
    }
    let Ok(decision) = authorize(backend, parts) else { return };
    let byte = parts.first().first().as_u64();
    let unit = Gpa::new(byte & !7);
    let mut current = [0; 8];
    if backend.memory().read(unit, &mut current).is_err() {
        return;
    }
    let shift = (byte % 8) * 8;
    // If another processor has changed the descriptor meanwhile, it is another one.
    let _ = backend.memory().set_bits(unit, u64::from_le_bytes(current), 1 << shift);
    if let Some(met) = Met::of(decision) {
        backend.checked(parts);
        let stored = [current[usize::try_from(byte % 8).expect("less than 8")] | 1];
        let account = Account {
            origin: Origin::of(state, backend.vcpu()),
            when: backend.when(),
            parts,
            gla: Some(linear),
            length: Some(1),
            bytes: &stored,
            instruction: &[],
            during_delivery: true,
            qualification: backend.qualification(),
            in_software: backend.in_software(),
        };
        report(backend, met, Response::Skip, &account);
    }
    backend.written(parts);
}
