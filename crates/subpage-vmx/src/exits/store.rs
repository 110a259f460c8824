//! Completing a store in software, exactly: the decision about every byte and the store itself under
//! one lock.

use subpage::address::{ByteRange, Gpa, Hpa, PAGE_BYTES};
use subpage::domain::{Decision, EptViolation, WriteParts};

use arrayvec::ArrayVec;

use super::INVALID_OPCODE;
use super::violation::{OUT_OF_MEMORY, SPACE};
use crate::event::Event;
use crate::machine::Shared;
use crate::stop::Stop;
use crate::vcpu::Vcpu;
use subpage_emulate::guest::State;
use subpage_emulate::{
    Access, Exception, Executor, Extended, Fault, FxArea, GuestInstruction, Incomplete, Refusal,
    Scratch, Store, Translation, Unsupported, Window,
};

/// The instruction that an exit interrupted, as far as it can be found out.
pub(super) struct Trapped {
    pub(super) state: State,
    pub(super) instruction: GuestInstruction,
    pub(super) store: Result<Store, Refusal>,
}

/// The part of a store in one page.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    pub(super) bytes: ByteRange,
    page: Hpa,
}

/// At most two: no store of the allow list is longer than a page.
pub(super) type Pieces = ArrayVec<Piece, 2>;

/// What came of carrying a store out on a copy.
pub(super) struct DryRun {
    pub(super) scratch: Scratch,
    pub(super) after: State,
    fx_after: FxArea,
    /// The first byte of the write.
    pub(super) gpa: Gpa,
}

impl Trapped {
    /// Fetches and decodes; none if even that fails, because other processors have changed the
    /// instruction or its mapping since.
    pub(super) fn find(vcpu: &mut Vcpu) -> Option<Self> {
        let state = vcpu.state();
        let machine = vcpu.machine;
        let found = vcpu.decode_cache.find(&machine.ram, machine.paging, &state);
        let (instruction, store) = found.ok()?;
        Some(Self { state, instruction, store })
    }

    /// How many bytes of the store lie from the trapped byte to the end of its page; none if it is
    /// not this store's.
    pub(super) fn length_from(&self, gla: u64, gpa: Gpa) -> Option<u64> {
        let store = self.store.as_ref().ok()?;
        let before = gla.checked_sub(store.linear())?;
        let rest = (store.length() as u64).checked_sub(before).filter(|&rest| rest > 0)?;
        Some(rest.min(PAGE_BYTES - u64::from(gpa.page_offset())))
    }
}

/// Why a store cannot go on as planned.
pub(super) enum Obstacle {
    /// The guest gets this instead.
    Exception(Exception),
    /// The machine stops.
    Stop(Stop),
    /// Nothing is as it was at the exit: the guest runs on, and traps again if it has to.
    Again,
}

impl From<Stop> for Obstacle {
    fn from(stop: Stop) -> Self {
        Self::Stop(stop)
    }
}

impl From<Fault> for Obstacle {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Exception(exception) => Self::Exception(exception),
            Fault::NotMemory(gpa) => Self::Stop(Stop::NoMemory(gpa)),
        }
    }
}

impl From<Incomplete> for Obstacle {
    fn from(incomplete: Incomplete) -> Self {
        match incomplete {
            Incomplete::Fault(fault) => fault.into(),
            Incomplete::Trampoline => {
                Self::Stop(Stop::CannotEmulate("it faults outside of the guest"))
            }
        }
    }
}

impl From<Refusal> for Obstacle {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Exception(exception) => Self::Exception(exception),
            // The instruction that trapped did store: another processor has exchanged it since.
            Refusal::Unsupported(Unsupported::NoStore) => Self::Again,
            Refusal::Unsupported(_) => Self::Stop(Stop::CannotEmulate("software does not know it")),
        }
    }
}

impl Vcpu {
    /// Completes the store of a trapped instruction, or denies it by its exact bytes.
    pub(super) fn complete_store(
        &mut self,
        shared: &mut Shared,
        trapped: &Trapped,
        exit: &EptViolation,
    ) -> Result<(), Stop> {
        match self.try_complete(shared, trapped, exit) {
            Ok(()) | Err(Obstacle::Again) => Ok(()),
            Err(Obstacle::Exception(exception)) => {
                self.inject(exception);
                Ok(())
            }
            // A program must not be able to stop the machine that its kernel runs on.
            Err(Obstacle::Stop(Stop::CannotEmulate(_))) if trapped.state.cpl == 3 => {
                self.inject(INVALID_OPCODE);
                Ok(())
            }
            Err(Obstacle::Stop(stop)) => Err(stop),
        }
    }

    fn try_complete(
        &mut self,
        shared: &mut Shared,
        trapped: &Trapped,
        exit: &EptViolation,
    ) -> Result<(), Obstacle> {
        let store = trapped.store.as_ref().map_err(|&refusal| Obstacle::from(refusal))?;
        let access = Access::write_by(&trapped.state);
        let length = store.length() as u64;
        let pieces = self.find_pieces(shared, &trapped.state, store.linear(), length, access)?;
        let parts = parts_of(&pieces);
        let decision = shared.domain.check_write_parts(SPACE, &parts);
        match decision {
            Decision::Denied { rule, at, stop } => {
                let denial = denial_of(&pieces, exit, length, (rule, at, stop));
                // Counts and reports it.
                let _ = authorize(shared, &parts)?;
                return Ok(self.deny(shared, Some(trapped), &denial, exit)?);
            }
            Decision::NotEligible { .. } => {
                return Ok(self.drop_store(shared, trapped)?);
            }
            Decision::NotMapped { at } => return Err(Stop::NoMemory(at.as_u64()).into()),
            Decision::Allowed | Decision::Reported { .. } => {}
        }
        // What is reported is reported with its bytes, and must not fail once it is spent.
        let reported = match decision {
            Decision::Reported { rule, at } => {
                let dry = self.dry_run(trapped, &pieces)?;
                Some((rule, at, dry))
            }
            _ => None,
        };
        let authorized = authorize(shared, &parts)?;
        assert!(authorized.permits(), "decided and authorized under one lock");
        let mut state = trapped.state;
        self.run_store(store, &pieces, &mut state)?;
        self.set_state(&state);
        self.end_emulated(&state);
        if let Some((rule, at, dry)) = reported {
            let event = Event::reported(rule, at, parts.first(), self.origin(&trapped.state))
                .with_data(dry.scratch.bytes())
                .with_instruction(trapped.instruction.bytes())
                .with_qualification(exit.qualification.into());
            let event = Event { gla: Some(store.linear()), ..event };
            shared.record(&event, self.machine.settings);
        }
        Ok(())
    }

    /// Translates a store and makes its pages ready: mapped, and writable for the host.
    ///
    /// The walk marks the guest's page tables as a processor's would. Those marks are no writes of the
    /// guest, so rules do not forbid them, wherever the tables lie; their pages count as dirty.
    pub(super) fn find_pieces(
        &mut self,
        shared: &mut Shared,
        state: &State,
        linear: u64,
        length: u64,
        access: Access,
    ) -> Result<Pieces, Obstacle> {
        let mut pieces = Pieces::new();
        let in_first = (PAGE_BYTES - linear % PAGE_BYTES).min(length);
        for (start, bytes) in
            [(linear, in_first), (linear.wrapping_add(in_first), length - in_first)]
        {
            if bytes == 0 {
                continue;
            }
            let walk = self.marked_walk(shared, state, start, access)?;
            let page = self.ready_page(shared, walk.gpa)?;
            let bytes =
                ByteRange::new(walk.gpa, bytes).map_err(|_| Stop::NoMemory(walk.gpa.as_u64()))?;
            if pieces.try_push(Piece { bytes, page }).is_err() {
                return Err(Stop::CannotEmulate("it is longer than two pages").into());
            }
        }
        Ok(pieces)
    }

    /// Walks the guest's page tables and marks them.
    ///
    /// Other processors may change the entries between the walk and the marks, again and again. They
    /// must not keep the machine's lock that way: after some attempts the guest runs on, and traps
    /// again.
    fn marked_walk(
        &mut self,
        shared: &mut Shared,
        state: &State,
        linear: u64,
        access: Access,
    ) -> Result<Translation, Obstacle> {
        const ATTEMPTS: u32 = 8;
        for _ in 0..ATTEMPTS {
            let walk = self.translate(state, linear, access)?;
            let marked = walk.marks.iter().map(|mark| mark.entry.gfn());
            shared.domain.note_logged(SPACE, marked);
            if walk.mark_accessed(&self.machine.ram)? {
                return Ok(walk);
            }
        }
        Err(Obstacle::Again)
    }

    /// Carries a store out on the guest's bytes.
    fn run_store(
        &mut self,
        store: &Store,
        pieces: &Pieces,
        state: &mut State,
    ) -> Result<(), Obstacle> {
        let first = self.window.open(pieces[0].page, pieces.get(1).map(|piece| piece.page));
        let offset = usize::from(pieces[0].bytes.first().page_offset());
        let mut window = guest_window(first, offset, store.length());
        let result = self.emulation(|machine| machine.complete(store, state, &mut window));
        self.window.close();
        let _ = result?;
        Ok(())
    }

    /// Carries a store out on a copy of its bytes.
    pub(super) fn dry_run(
        &mut self,
        trapped: &Trapped,
        pieces: &Pieces,
    ) -> Result<DryRun, Obstacle> {
        let store = trapped.store.as_ref().map_err(|&refusal| Obstacle::from(refusal))?;
        let mut current = [0; subpage_emulate::MAX_STORE_BYTES];
        let current = &mut current[..store.length()];
        self.window.open(pieces[0].page, pieces.get(1).map(|piece| piece.page));
        self.window.read(pieces[0].bytes.first().page_offset().into(), current);
        self.window.close();
        let mut scratch = Scratch::new(store.linear(), current);
        let mut after = trapped.state;
        let fx = self.context.fx;
        let result =
            self.emulation(|machine| machine.complete(store, &mut after, &mut scratch.window()));
        // The instruction has not happened, unless it is decided that it has.
        let fx_after = core::mem::replace(&mut self.context.fx, fx);
        let _ = result?;
        Ok(DryRun { scratch, after, fx_after, gpa: pieces[0].bytes.first() })
    }

    fn emulation<T>(
        &mut self,
        work: impl FnOnce(&mut Executor<'_, crate::memory::ram::GuestRam>) -> T,
    ) -> T {
        let tables = self.system_tables();
        let mut executor = Executor {
            memory: &self.machine.ram,
            paging: self.machine.paging,
            tables: &tables,
            trampoline: &mut self.trampoline,
            extended: Extended::Fx(&mut self.context.fx),
        };
        work(&mut executor)
    }

    /// What goes with the end of an emulated instruction.
    pub(super) fn end_emulated(&mut self, state: &State) {
        use crate::vmx::field::GuestField as G;
        const TF: u64 = 1 << 8;
        const SINGLE_STEP: u64 = 1 << 14;
        self.finish_instruction();
        if state.rflags & TF != 0 {
            self.vmcs.set_guest(G::PENDING_DEBUG, SINGLE_STEP);
        }
    }

    /// A write to a read-only slot: the instruction completes, memory does not change.
    pub(super) fn drop_write(
        &mut self,
        shared: &mut Shared,
        trapped: Option<&Trapped>,
    ) -> Result<(), Stop> {
        if let Some(trapped) = trapped {
            return self.drop_store(shared, trapped);
        }
        self.skip_or_fault();
        Ok(())
    }

    fn drop_store(&mut self, shared: &mut Shared, trapped: &Trapped) -> Result<(), Stop> {
        match self.try_dry(shared, trapped) {
            Ok(dry) => {
                self.take_dry_run(&dry);
                Ok(())
            }
            Err(Obstacle::Exception(exception)) => {
                self.inject(exception);
                Ok(())
            }
            Err(Obstacle::Stop(Stop::CannotEmulate(_))) => {
                self.skip_or_fault();
                Ok(())
            }
            Err(Obstacle::Again) => Ok(()),
            Err(Obstacle::Stop(stop)) => Err(stop),
        }
    }

    /// The instruction has happened, but memory has forgotten what it was told, as a ROM does.
    pub(super) fn take_dry_run(&mut self, dry: &DryRun) {
        self.context.fx = dry.fx_after;
        self.set_state(&dry.after);
        self.end_emulated(&dry.after);
    }

    /// Finds a store's bytes and carries it out on a copy of them.
    pub(super) fn try_dry(
        &mut self,
        shared: &mut Shared,
        trapped: &Trapped,
    ) -> Result<DryRun, Obstacle> {
        let store = trapped.store.as_ref().map_err(|&refusal| Obstacle::from(refusal))?;
        let access = Access::write_by(&trapped.state);
        let length = store.length() as u64;
        let pieces = self.find_pieces(shared, &trapped.state, store.linear(), length, access)?;
        self.dry_run(trapped, &pieces)
    }

    /// Goes behind an instruction that software cannot complete, by the length that the exit told;
    /// where it told none, skipping would loop, so the guest gets #UD.
    pub(super) fn skip_or_fault(&mut self) {
        use crate::vmx::field::ExitField;
        match self.vmcs.exit(ExitField::INSTRUCTION_LENGTH) {
            length @ 1..=15 => self.skip(length),
            _ => self.inject(INVALID_OPCODE),
        }
    }
}

/// The guest's bytes in the hypervisor's window.
#[allow(unsafe_code)]
fn guest_window(first: *mut u8, offset: usize, length: usize) -> Window<'static> {
    // SAFETY: the window was opened over the one or two pages that hold the bytes, stays open until
    // the store is done, and no reference covers guest memory.
    unsafe { Window::new(first.wrapping_add(offset), length) }
}

/// All bytes of a store, for the decision.
fn parts_of(pieces: &Pieces) -> WriteParts {
    match pieces.get(1) {
        None => WriteParts::one(pieces[0].bytes),
        Some(second) => WriteParts::two(pieces[0].bytes, second.bytes),
    }
}

/// Takes note of a write that is decided, and spends what it spends.
fn authorize(shared: &mut Shared, parts: &WriteParts) -> Result<Decision, Stop> {
    shared.domain.authorize_write_parts(SPACE, parts).map_err(|_| OUT_OF_MEMORY)
}

fn denial_of(
    pieces: &Pieces,
    exit: &EptViolation,
    length: u64,
    (rule, at, stop): (Option<subpage::rules::RuleId>, Gpa, bool),
) -> subpage::domain::Denial {
    subpage::domain::Denial {
        gpa: pieces[0].bytes.first(),
        gla: exit.qualification.linear_valid().then_some(exit.gla),
        length: Some(length),
        at,
        rule,
        stop,
        during_delivery: false,
    }
}
