//! The store of an instruction that has not happened.

use subpage::domain::{Decision, WriteParts};
use subpage_emulate::bits::RFLAGS_RF;
use subpage_emulate::guest::State;
use subpage_emulate::{Access, Exception, GuestInstruction, Moved, Progress, Scratch, Store};

use crate::report::{Account, Met, authorize, report};
use crate::{Backend, Located, Obstacle, Origin, Response, Wanted, locate};

/// An instruction and the store that it makes in the state of the exit.
#[derive(Debug, Clone, Copy)]
pub struct Trapped<'a> {
    /// The instruction.
    pub instruction: &'a GuestInstruction,
    /// Its store, or that of one element of a repeated string instruction or scatter.
    pub store: &'a Store,
}

/// What came of a store.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreOutcome<T> {
    /// The processor is behind the instruction.
    Done,
    /// It is at the same string instruction, with elements left.
    Repeats,
    /// The write is denied, and the guest receives this in place of the instruction.
    Refused(Exception),
    /// A rule stops the guest; the state is behind the instruction.
    Stopped(T),
}

/// The state after a store that was carried out on a copy of the guest's bytes.
struct Rehearsal<X> {
    scratch: Scratch,
    after: State,
    progress: Progress,
    /// Extended registers afterwards, if the instruction uses them. The backend has those before.
    extended: Option<X>,
}

impl<X> Rehearsal<X> {
    /// The instruction has happened, but memory has forgotten what it was told.
    fn adopt<B: Backend<Extended = X>>(self, backend: &mut B, state: &mut State) -> Progress {
        *state = self.after;
        if let Some(extended) = self.extended {
            *backend.extended() = extended;
        }
        self.progress
    }
}

/// What a store writes, known before it writes it.
trait Foreseen<B: Backend> {
    /// The bytes.
    fn bytes(&self) -> &[u8];

    /// Looks at what the store has written: its source may have changed since it was foreseen.
    fn look_again(&mut self, backend: &mut B, located: &Located, place: &B::Place);

    /// The instruction happens, but memory forgets what it was told, as a ROM does.
    fn forget(self, backend: &mut B, instruction: &GuestInstruction, state: &mut State)
    -> Progress;
}

impl<B: Backend> Foreseen<B> for Rehearsal<B::Extended> {
    fn bytes(&self) -> &[u8] {
        self.scratch.bytes()
    }

    fn look_again(&mut self, backend: &mut B, located: &Located, place: &B::Place) {
        let (linear, length) = (located.linear, self.scratch.bytes().len());
        // The lock is held, so what lies in pages that trap is what was written. It was read before; if it
        // cannot be now, the foreseen bytes are the best that is known.
        let read = |bytes: &mut [u8]| backend.read(&located.parts, place, bytes);
        if let Ok(written) = Scratch::filled(linear, length, read) {
            self.scratch = written;
        }
    }

    fn forget(self, backend: &mut B, _: &GuestInstruction, state: &mut State) -> Progress {
        self.adopt(backend, state)
    }
}

/// A MOV cannot fail, and its bytes are known without a rehearsal.
impl<B: Backend> Foreseen<B> for Moved {
    fn bytes(&self) -> &[u8] {
        Self::bytes(self)
    }

    /// It comes from a register, or from the instruction.
    fn look_again(&mut self, _: &mut B, _: &Located, _: &B::Place) {}

    fn forget(self, _: &mut B, instruction: &GuestInstruction, state: &mut State) -> Progress {
        skip(instruction, state);
        Progress::Done
    }
}

/// Locates the store, decides about it and carries it out, or denies it: the whole protocol.
///
/// `state` is that of the exit, and afterwards that with which the guest goes on. On an obstacle
/// neither it nor memory has changed.
pub fn store<B: Backend>(
    backend: &mut B,
    trapped: Trapped<'_>,
    state: &mut State,
) -> Result<StoreOutcome<B::Told>, Obstacle<B::Failure>> {
    // What traps may be the page where ENTER writes nothing.
    let probes = trapped.store.probes_stack();
    let wanted = if probes { Wanted::Anywhere } else { Wanted::InTraps };
    if trapped.store.is_open() {
        let Some(settled) = &settle(backend, trapped, state)? else {
            return Ok(StoreOutcome::Done);
        };
        // Elements of a scatter that come before the one that trapped may go anywhere.
        let wanted = if settled.is_element() { Wanted::Anywhere } else { wanted };
        let located = locate_store(backend, settled, state, wanted)?;
        return complete(backend, Trapped { store: settled, ..trapped }, &located, state);
    }
    let located = locate_store(backend, trapped.store, state, wanted)?;
    complete(backend, trapped, &located, state)
}

/// Settles an [open](Store::is_open) store; `None` if its mask is zero. Then the instruction is over, and
/// `state` behind it.
pub fn settle<B: Backend>(
    backend: &mut B,
    trapped: Trapped<'_>,
    state: &mut State,
) -> Result<Option<Store>, Obstacle<B::Failure>> {
    match backend.settle(trapped.store, state) {
        Err(Obstacle::NotOurs) if trapped.store.may_be_nothing() => {
            skip(trapped.instruction, state);
            Ok(None)
        }
        settled => settled.map(Some),
    }
}

/// Where a store goes that is not [open](Store::is_open): those of its bytes that it writes.
pub fn locate_store<B: Backend>(
    backend: &mut B,
    store: &Store,
    state: &State,
    wanted: Wanted,
) -> Result<Located, Obstacle<B::Failure>> {
    let (linear, length) = (store.linear(), store.length());
    let located = locate(backend, state, linear, length, Access::write_by(state), wanted)?;
    Ok(match store.written() {
        None => located,
        Some(written) => Located { parts: located.parts.under_mask(written), ..located },
    })
}

/// Decides about a located store and carries it out, or denies it.
pub fn complete<B: Backend>(
    backend: &mut B,
    trapped: Trapped<'_>,
    located: &Located,
    state: &mut State,
) -> Result<StoreOutcome<B::Told>, Obstacle<B::Failure>> {
    if let &[run] = located.parts.runs()
        && backend.domain().is_open(B::SPACE, run)
    {
        backend.passed(&located.parts);
        let place = backend.ready(&located.parts)?;
        return carry_out(backend, trapped.store, located, &place, state);
    }
    backend.checked(&located.parts);
    let place = backend.ready(&located.parts)?;
    let considered = backend.domain_mut().consider_write(B::SPACE, &located.parts);
    let decision = considered.decision();
    if decision == Decision::Allowed {
        let committed = considered.commit().map_err(|_| Obstacle::OutOfMemory)?;
        debug_assert!(committed.permits(), "decided and committed in one borrow");
        return carry_out(backend, trapped.store, located, &place, state);
    }
    match decision {
        Decision::NotMapped { at } => Err(Obstacle::NotMemory(at.as_u64())),
        Decision::NotEligible { .. } => drop_at(backend, trapped.store, located, &place, state),
        decision => meet(backend, trapped, located, &place, state, decision),
    }
}

/// Carries out a store on the guest's own bytes that the engine has permitted, and noted, under the
/// lock that is held.
pub fn carry_out<B: Backend>(
    backend: &mut B,
    store: &Store,
    located: &Located,
    place: &B::Place,
    state: &mut State,
) -> Result<StoreOutcome<B::Told>, Obstacle<B::Failure>> {
    let progress = backend.with_window(&located.parts, place, |backend, window| {
        backend.carry_out(store, state, window)
    })??;
    backend.written(&located.parts);
    Ok(done(progress))
}

const fn done<T>(progress: Progress) -> StoreOutcome<T> {
    match progress {
        Progress::Done => StoreOutcome::Done,
        Progress::Repeats => StoreOutcome::Repeats,
    }
}

/// A store that is to be reported, denied or not. Apart, so that most stores need little stack.
#[cold]
#[inline(never)]
fn meet<B: Backend>(
    backend: &mut B,
    trapped: Trapped<'_>,
    located: &Located,
    place: &B::Place,
    state: &mut State,
    decision: Decision,
) -> Result<StoreOutcome<B::Told>, Obstacle<B::Failure>> {
    if let Some(moved) = trapped.store.moved(state) {
        return meet_foreseen(backend, trapped, located, place, state, decision, moved);
    }
    // First on a copy: what is reported is reported with its bytes, and "allow once" must not be
    // spent by a store that fails.
    match rehearse(backend, trapped.store, located, place, state) {
        Ok(rehearsal) => {
            meet_foreseen(backend, trapped, located, place, state, decision, rehearsal)
        }
        Err(Obstacle::Unknown(_))
            if !backend.steps() && matches!(decision, Decision::Denied { .. }) =>
        {
            let met = authorized(backend, located, decision)?;
            Ok(deny_located(backend, trapped, located, state, met))
        }
        Err(obstacle) => Err(obstacle),
    }
}

/// Commits a decision that is to be reported.
fn authorized<B: Backend>(
    backend: &mut B,
    located: &Located,
    decision: Decision,
) -> Result<Met, Obstacle<B::Failure>> {
    let committed = authorize(backend, &located.parts)?;
    assert_eq!(committed, decision, "nothing changes the domain while its lock is held");
    Ok(Met::of(decision).expect("all other decisions were handled"))
}

/// [`meet`] where it is known what the store writes.
fn meet_foreseen<B: Backend, K: Foreseen<B>>(
    backend: &mut B,
    trapped: Trapped<'_>,
    located: &Located,
    place: &B::Place,
    state: &mut State,
    decision: Decision,
    mut foreseen: K,
) -> Result<StoreOutcome<B::Told>, Obstacle<B::Failure>> {
    let met = authorized(backend, located, decision)?;
    if let Met::Forbidden { .. } = met {
        return Ok(conclude(backend, trapped, located, state, met, foreseen));
    }
    let before = *state;
    let outcome = carry_out(backend, trapped.store, located, place, state)?;
    foreseen.look_again(backend, located, place);
    let account = account(backend, trapped, located, &before, foreseen.bytes());
    report(backend, met, Response::Skip, &account);
    Ok(outcome)
}

/// Denies a located store that the engine has decided about and counted already: `met` says what
/// it met. One that software does not carry out is denied as by [`deny_unknown`].
///
/// # Panics
/// If `met` does not forbid it.
#[cold]
#[inline(never)]
pub fn deny<B: Backend>(
    backend: &mut B,
    trapped: Trapped<'_>,
    located: &Located,
    state: &mut State,
    met: Met,
) -> Result<StoreOutcome<B::Told>, Obstacle<B::Failure>> {
    assert!(matches!(met, Met::Forbidden { .. }), "what is not forbidden is not denied");
    backend.checked(&located.parts);
    if let Some(moved) = trapped.store.moved(state) {
        return Ok(conclude(backend, trapped, located, state, met, moved));
    }
    let place = backend.ready(&located.parts)?;
    match rehearse(backend, trapped.store, located, &place, state) {
        Ok(rehearsal) => Ok(conclude(backend, trapped, located, state, met, rehearsal)),
        Err(Obstacle::Unknown(_)) => Ok(deny_located(backend, trapped, located, state, met)),
        Err(obstacle) => Err(obstacle),
    }
}

/// [`deny_unknown`] of a store whose bytes are known.
fn deny_located<B: Backend>(
    backend: &mut B,
    trapped: Trapped<'_>,
    located: &Located,
    state: &mut State,
    met: Met,
) -> StoreOutcome<B::Told> {
    let (parts, gla) = (&located.parts, Some(located.linear));
    deny_unknown(backend, trapped.instruction, parts, gla, state, met)
}

/// Reports a denied store, and does what becomes of its instruction.
fn conclude<B: Backend, K: Foreseen<B>>(
    backend: &mut B,
    trapped: Trapped<'_>,
    located: &Located,
    state: &mut State,
    met: Met,
    foreseen: K,
) -> StoreOutcome<B::Told> {
    let (response, stop) = response_to(backend, met);
    let account = account(backend, trapped, located, state, foreseen.bytes());
    let told = report(backend, met, response, &account);
    if response == Response::Fault && !stop {
        return StoreOutcome::Refused(Exception::general_protection(0));
    }
    let progress = foreseen.forget(backend, trapped.instruction, state);
    if stop { StoreOutcome::Stopped(told) } else { done(progress) }
}

/// What becomes of the instruction, and whether the guest stops.
pub(crate) fn response_to<B: Backend>(backend: &B, met: Met) -> (Response, bool) {
    match met {
        Met::Watched { .. } => (Response::Skip, false),
        Met::Forbidden { rule, stop, .. } => (backend.response(rule), stop),
    }
}

/// A store to memory that is read-only for the guest whatever the rules say: as over a ROM, without
/// an event.
#[cold]
pub fn drop_store<B: Backend>(
    backend: &mut B,
    store: &Store,
    located: &Located,
    state: &mut State,
) -> Result<StoreOutcome<B::Told>, Obstacle<B::Failure>> {
    let place = backend.ready(&located.parts)?;
    drop_at(backend, store, located, &place, state)
}

fn drop_at<B: Backend>(
    backend: &mut B,
    store: &Store,
    located: &Located,
    place: &B::Place,
    state: &mut State,
) -> Result<StoreOutcome<B::Told>, Obstacle<B::Failure>> {
    let rehearsal = rehearse(backend, store, located, place, state)?;
    Ok(done(rehearsal.adopt(backend, state)))
}

/// Denies the write of an instruction that software cannot carry out: its bytes are not known, and of
/// its other effects none happens.
///
/// `parts` are its bytes as far as they are known, at least the one that trapped; `gla` is the linear
/// address of the first of them.
#[cold]
#[inline(never)]
pub fn deny_unknown<B: Backend>(
    backend: &mut B,
    instruction: &GuestInstruction,
    parts: &WriteParts,
    gla: Option<u64>,
    state: &mut State,
    met: Met,
) -> StoreOutcome<B::Told> {
    let (response, stop) = response_to(backend, met);
    let account = Account {
        origin: Origin::of(state, backend.vcpu()),
        when: backend.when(),
        parts,
        gla,
        length: Some(parts.bytes()),
        bytes: &[],
        instruction: instruction.bytes(),
        during_delivery: false,
        qualification: backend.qualification(),
        in_software: backend.in_software(),
    };
    let told = report(backend, met, response, &account);
    if response == Response::Fault && !stop {
        return StoreOutcome::Refused(Exception::general_protection(0));
    }
    // By the length that was decoded: exits for this reason do not define theirs (D37).
    skip(instruction, state);
    if stop { StoreOutcome::Stopped(told) } else { StoreOutcome::Done }
}

/// Moves `state` behind an instruction of which nothing happens.
pub fn skip(instruction: &GuestInstruction, state: &mut State) {
    let next = state.rip.wrapping_add(instruction.bytes().len() as u64);
    state.rip = if state.is_64_bit() { next } else { next & 0xffff_ffff };
    state.rflags &= !RFLAGS_RF;
}

fn account<'a, B: Backend>(
    backend: &B,
    trapped: Trapped<'a>,
    located: &'a Located,
    before: &State,
    bytes: &'a [u8],
) -> Account<'a> {
    Account {
        origin: Origin::of(before, backend.vcpu()),
        when: backend.when(),
        parts: &located.parts,
        gla: Some(located.linear),
        length: Some(located.parts.bytes()),
        bytes,
        instruction: trapped.instruction.bytes(),
        during_delivery: false,
        qualification: backend.qualification(),
        in_software: backend.in_software(),
    }
}

/// Carries a store out on a copy of the guest's bytes. The backend's extended registers stay as they
/// are.
fn rehearse<B: Backend>(
    backend: &mut B,
    store: &Store,
    located: &Located,
    place: &B::Place,
    before: &State,
) -> Result<Rehearsal<B::Extended>, Obstacle<B::Failure>> {
    let mut scratch = Scratch::filled(store.linear(), store.length(), |bytes| {
        backend.read(&located.parts, place, bytes)
    })?;
    let mut after = *before;
    let kept = store.uses_extended().then(|| backend.extended().clone());
    let progress = backend.carry_out(store, &mut after, &mut scratch.window())?;
    let extended = kept.map(|kept| core::mem::replace(backend.extended(), kept));
    Ok(Rehearsal { scratch, after, progress, extended })
}
