//! Stores that left the guest before they happened: carried out here, exactly.

use kvm_bindings::{KVM_VCPUEVENT_VALID_SHADOW, kvm_sync_regs};
use subpage::address::{ByteRange, Gpa};
use subpage::domain::WriteParts;
use subpage_emulate::bits::RFLAGS_TF;
use subpage_emulate::guest::State;
use subpage_emulate::{
    Access, EventKind, Exception, Fault, GuestInstruction, MAX_INSTRUCTION_BYTES, Refusal, Store,
    Translation, VectoringEvent, XsaveArea, walk_entries, walk_marks,
};
use subpage_guard::vcpu::registers;
use subpage_trap::{
    Delivered, Frame, Located, StoreOutcome, Trapped, Wanted, complete, locate_store, settle,
};

use super::seat::{Obstacle, Seat};
use super::{Inner, Next};
use crate::machine::Machine;

/// Elements of a repeated string instruction that are carried out before the processor is let go.
const ELEMENTS: u32 = 256;

/// How often the same place may trap without visible progress.
const PATIENCE: u32 = 64;

const NMI: u8 = 2;

/// Handles an exit from an instruction that has not happened. `fault`: some access of it needs a page
/// that may not be written; otherwise KVM's emulator failed.
pub(super) fn trapped(machine: &Machine, inner: &mut Inner, fault: bool) -> Next {
    if inner.page.load().errno != libc::EINTR {
        return Next::Yours;
    }
    let page = inner.page.registers();
    let state = registers::state(&page.regs, &page.sregs);
    let mode = inner.page.mode();
    if let Some(why) = unknown_mode(&state, mode) {
        crate::say::say(&format!(
            "processor {} at {:#x}: a store to a guarded page is not carried out: {why}",
            inner.number, state.rip
        ));
        return Next::Yours;
    }
    let mut core = machine.core();
    core.memory.names.space = super::space(inner);
    let visits = inner.stuck.visit(state.rip, core.changes());
    let mut extended = None;
    let mut work = Work { now: state, page, special: false, events: false };
    let mut seat = Seat {
        core: &mut core,
        publisher: &machine.publisher,
        page: &inner.page,
        trampoline: &mut inner.trampoline,
        number: inner.number,
        paging: machine.paging(),
        tables: registers::system_tables(&page.sregs),
        before: state,
        extended: &mut extended,
        components: inner.components,
    };
    let result = match pending(&page, fault) {
        Some(event) => deliver(&mut seat, &mut work, &event),
        None => instruction(&mut seat, &mut work),
    };
    let result = match result {
        Err(Obstacle::Exception(exception)) => {
            work.inject(exception);
            Ok(false)
        }
        // The processor's own walk may have wanted to mark an entry in a closed page.
        Err(Obstacle::NotOurs) if fault && mark_walks(&mut seat) => Err(Obstacle::Again),
        result => result,
    };
    drop(core);
    match result {
        Ok(stop) => {
            if let Some(area) = &extended
                && !inner.page.set_extended(area)
            {
                return Next::Yours;
            }
            inner.stuck.reset();
            work.finish(inner);
            if stop {
                machine.stop();
                return Next::Stop;
            }
            Next::Enter
        }
        // The page may have been opened since.
        Err(Obstacle::Again | Obstacle::NotOurs) if visits <= PATIENCE => {
            // The same registers: that takes back the #UD that KVM has queued where its emulator failed.
            inner.page.set_registers(&work.page, false, false);
            Next::Enter
        }
        Err(Obstacle::NotOurs) => Next::Yours,
        Err(obstacle) => {
            crate::say::say(&format!(
                "processor {} at {:#x}: a store to a guarded page is not carried out: {obstacle}",
                inner.number, state.rip
            ));
            Next::Yours
        }
    }
}

/// What of a processor's mode software here does not know; none if it knows all.
fn unknown_mode(state: &State, mode: u16) -> Option<&'static str> {
    const NESTED: u16 = 1 << 2;
    let cr4 = |bit: u32| state.cr4 >> bit & 1 != 0;
    if mode & NESTED != 0 {
        return Some("it runs a guest of its own");
    }
    match () {
        () if cr4(12) => Some("it has page tables of five levels"),
        () if cr4(22) || cr4(24) => Some("it uses protection keys"),
        () if cr4(23) => Some("it uses shadow stacks"),
        () if cr4(32) => Some("it uses FRED"),
        () if cr4(28) || state.cr3 >> 61 & 3 != 0 => Some("it masks linear addresses"),
        () => None,
    }
}

/// Registers for the next entry.
struct Work {
    now: State,
    page: kvm_sync_regs,
    special: bool,
    events: bool,
}

impl Work {
    /// Has the guest receive an exception in place of the instruction.
    fn inject(&mut self, exception: Exception) {
        if let Some(address) = exception.address {
            self.page.sregs.cr2 = address;
            self.special = true;
        }
        let to = &mut self.page.events.exception;
        (to.injected, to.pending, to.nr) = (1, 0, exception.vector);
        to.has_error_code = u8::from(exception.error_code.is_some());
        to.error_code = exception.error_code.unwrap_or(0);
        // What else is pending, others may have added to since it was read.
        self.page.events.flags = 0;
        self.events = true;
    }

    /// What ends with a completed instruction: blocking by STI and MOV SS.
    fn end_instruction(&mut self) {
        if self.page.events.interrupt.shadow != 0 {
            self.page.events.interrupt.shadow = 0;
            self.page.events.flags = KVM_VCPUEVENT_VALID_SHADOW;
            self.events = true;
        }
    }

    /// The event is not to be delivered by KVM any more.
    fn forget_event(&mut self, in_nmi: bool) {
        let events = &mut self.page.events;
        events.exception.injected = 0;
        events.interrupt.injected = 0;
        events.nmi.injected = 0;
        if in_nmi {
            events.nmi.masked = 1;
        }
        events.flags = 0;
        self.events = true;
    }

    /// Segments that a delivery or far call has loaded.
    fn take_segments(&mut self) {
        let segments = &self.now.segments;
        let to = &mut self.page.sregs;
        to.cs = registers::kvm_segment_of(&segments.cs);
        to.ss = registers::kvm_segment_of(&segments.ss);
        self.special = true;
    }

    fn finish(mut self, inner: &mut Inner) {
        self.page.regs = registers::general(&self.now);
        inner.page.set_registers(&self.page, self.special, self.events);
    }
}

/// The event that KVM was about to deliver, unless it is one of an instruction, which is at RIP still.
///
/// Where its emulator failed, KVM has queued #UD in place of the instruction, which is not to be had.
fn pending(page: &kvm_sync_regs, fault: bool) -> Option<VectoringEvent> {
    const BY_INSTRUCTION: [u8; 2] = [3, 4];
    const INVALID_OPCODE: u8 = 6;
    let events = &page.events;
    let exception = &events.exception;
    let is_queued = !fault && exception.nr == INVALID_OPCODE;
    if exception.injected != 0 && !is_queued && !BY_INSTRUCTION.contains(&exception.nr) {
        let error_code = (exception.has_error_code != 0).then_some(exception.error_code);
        return Some(VectoringEvent {
            vector: exception.nr,
            error_code,
            kind: EventKind::Exception,
        });
    }
    if events.nmi.injected != 0 {
        return Some(VectoringEvent { vector: NMI, error_code: None, kind: EventKind::Interrupt });
    }
    let interrupt = &events.interrupt;
    (interrupt.injected != 0 && interrupt.soft == 0).then_some(VectoringEvent {
        vector: interrupt.nr,
        error_code: None,
        kind: EventKind::Interrupt,
    })
}

/// Pushes the frame of an event; whether a rule stops the guest.
fn deliver(seat: &mut Seat<'_>, work: &mut Work, event: &VectoringEvent) -> Result<bool, Obstacle> {
    let frame = match Frame::plan(seat, &work.now, event, Wanted::InTraps) {
        Err(Obstacle::Exception(exception)) => {
            let Delivered::Inject(exception) = Frame::escalate::<()>(event, exception) else {
                return Err(Obstacle::LegacyDelivery);
            };
            work.forget_event(false);
            work.inject(exception);
            return Ok(false);
        }
        frame => frame?,
    };
    let parts = &frame.located().parts;
    if seat.core.memory.places_of(parts).as_ref() != Some(parts) {
        // A stack in memory whose place has another address.
        return Err(Obstacle::NotMemory(parts.first().first().as_u64()));
    }
    match frame.push(seat, &mut work.now)? {
        Delivered::Handler => {
            work.take_segments();
            work.forget_event(event.kind == EventKind::Interrupt && event.vector == NMI);
            Ok(false)
        }
        Delivered::Inject(exception) => {
            work.forget_event(false);
            work.inject(exception);
            Ok(false)
        }
        Delivered::TripleFault => Err(Obstacle::LegacyDelivery),
        Delivered::Stopped(_) => Ok(true),
    }
}

/// Carries out the instruction at RIP; whether a rule stops the guest.
fn instruction(seat: &mut Seat<'_>, work: &mut Work) -> Result<bool, Obstacle> {
    let single_step = work.now.rflags & RFLAGS_TF != 0;
    for element in 0..ELEMENTS {
        let fetched = GuestInstruction::fetch(&seat.core.memory, seat.paging, &work.now);
        let code = match fetched {
            Ok(code) => code,
            Err(_) if element != 0 => break,
            Err(Fault::Exception(exception)) => return Err(Obstacle::Exception(exception)),
            Err(_) => return Err(Obstacle::NotOurs),
        };
        let outcome = match Store::of(&code, &work.now) {
            Ok(store) => one_store(seat, &code, &store, &mut work.now),
            Err(Refusal::Exception(exception)) => Err(Obstacle::Exception(exception)),
            Err(refusal) => Err(refusal.into()),
        };
        match outcome {
            Ok(StoreOutcome::Done) => break,
            Ok(StoreOutcome::Repeats) if single_step => break,
            Ok(StoreOutcome::Repeats) => {}
            Ok(StoreOutcome::Refused(exception)) => return Err(Obstacle::Exception(exception)),
            Ok(StoreOutcome::Stopped(_)) => {
                work.end_instruction();
                return Ok(true);
            }
            // What has been done stays done; the rest is found out when the guest gets there.
            Err(_) if element > 0 => break,
            Err(obstacle) => return Err(obstacle),
        }
    }
    if work.now.segments.cs != registers::state(&work.page.regs, &work.page.sregs).segments.cs {
        work.take_segments();
    }
    work.end_instruction();
    Ok(false)
}

/// One store: located by guest-physical addresses, decided about by places.
fn one_store(
    seat: &mut Seat<'_>,
    code: &GuestInstruction,
    store: &Store,
    state: &mut State,
) -> Result<StoreOutcome<std::sync::Arc<subpage_trap::Record>>, Obstacle> {
    if store.uses_extended() && seat.extended.is_none() {
        let area: Box<XsaveArea> =
            seat.page.extended().ok_or(Obstacle::Failed(super::seat::HostFailure::NoExtended))?;
        *seat.extended = Some(area);
    }
    let probes = store.probes_stack();
    let mut wanted = if probes { Wanted::Anywhere } else { Wanted::InTraps };
    let trapped = Trapped { instruction: code, store };
    let settled;
    let trapped = if store.is_open() {
        let Some(now) = settle(seat, trapped, state)? else {
            return Ok(StoreOutcome::Done);
        };
        if now.is_element() {
            wanted = Wanted::Anywhere;
        }
        settled = now;
        Trapped { store: &settled, ..trapped }
    } else {
        trapped
    };
    let located = locate_store(seat, trapped.store, state, wanted)?;
    note_walk(seat, state, trapped.store.linear());
    note_walk(seat, state, trapped.store.linear().wrapping_add(trapped.store.length() as u64 - 1));
    let parts: Option<WriteParts> = seat.core.memory.places_of(&located.parts);
    let parts = parts.ok_or(Obstacle::NotMemory(located.parts.first().first().as_u64()))?;
    // Under another name it is the same bytes that are left alone.
    let parts = match trapped.store.written() {
        Some(written) => parts.under_mask(written),
        None => parts,
    };
    complete(seat, trapped, &Located { parts, ..located }, state)
}

/// Sets the flags that walks of the instruction at RIP would set; whether any was clear.
fn mark_walks(seat: &mut Seat<'_>) -> bool {
    let state = seat.before;
    let base = if state.is_64_bit() { 0 } else { state.segments.cs.base };
    let rip = base.wrapping_add(state.rip);
    let read = Access::read_by(&state);
    let mut walks = vec![(rip, read), (rip.wrapping_add(MAX_INSTRUCTION_BYTES as u64 - 1), read)];
    if let Ok(code) = GuestInstruction::fetch(&seat.core.memory, seat.paging, &state) {
        for (linear, bytes, write) in code.accesses(&state) {
            let access = Access { write, ..read };
            walks.push((linear, access));
            walks.push((linear.wrapping_add(bytes.saturating_sub(1)), access));
        }
    }
    let mut set = false;
    for (linear, access) in walks {
        let marks = walk_marks(&seat.core.memory, seat.paging, &state, linear, access);
        if !marks.is_empty() {
            note_walk(seat, &state, linear);
            let walk = Translation { gpa: Gpa::new(0), marks };
            set |= walk.mark_accessed(&seat.core.memory) == Ok(true);
        }
    }
    set
}

/// A walk may have set flags in the guest's page tables here: their pages are written, too.
fn note_walk(seat: &mut Seat<'_>, state: &State, linear: u64) {
    if !seat.core.logs() {
        return;
    }
    for entry in walk_entries(&seat.core.memory, seat.paging, state, linear) {
        if let Ok(entry) = ByteRange::new(entry, 8)
            && let Some(place) = seat.core.memory.places(entry)
        {
            seat.core.note_dirty(&[place]);
        }
    }
}
