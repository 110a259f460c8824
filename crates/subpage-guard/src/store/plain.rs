//! The store that traps most often: of 64-bit code, by general registers, to a place that the instruction
//! names, while nothing else is going on.
//!
//! It needs little of the processor's state, and an exit costs a microsecond or two where the processor
//! helps: so what is not needed is not taken over.

use subpage_emulate::guest::{Segment, State};
use subpage_emulate::{Decoded, GuestInstruction, SystemTables, TableRegister};
use subpage_trap::{StoreOutcome, Trapped, store as carry_out};

use super::backend::{Backend, Before, Obstacle};
use super::trapped::failed;
use super::{Next, StoreContext};
use crate::memory::GuestMemory;
use crate::vcpu::Processor;

/// No plain store asks for the system tables.
const NO_TABLES: SystemTables = {
    let none = TableRegister { base: 0, limit: 0 };
    let nothing = Segment { selector: 0, base: 0, limit: 0, access: 0 };
    SystemTables { gdtr: none, idtr: none, ldtr: nothing, tr: nothing }
};

/// What came of an exit whose instruction was looked at as a plain store.
pub(super) enum Plain {
    /// It was one, and is done or denied.
    Done(Next),
    /// It was one, and could not be carried out; nothing has changed.
    Failed(GuestInstruction, Obstacle),
    /// It was another instruction, decoded if that is so.
    Other(Option<Box<Decoded>>),
}

/// Carries out the store at RIP, if it is plain.
pub(super) fn plain(
    context: StoreContext<'_, impl GuestMemory>,
    processor: &mut Processor,
) -> Plain {
    let mut state = State::default();
    if !processor.at_plain_exit(&mut state) {
        return Plain::Other(None);
    }
    let found = processor.decode_cache.take(context.ram, context.paging, &state);
    let Ok(decoded) = found else { return Plain::Other(None) };
    let Some(store) = decoded.store().ok().filter(|_| decoded.is_plain()) else {
        return Plain::Other(Some(decoded));
    };
    let mut guard = context.guard();
    let mut backend = Backend {
        context,
        guard: &mut guard,
        processor,
        tables: &NO_TABLES,
        before: Before::Shared,
        extended: &mut None,
        settle: false,
    };
    let trapped = Trapped { instruction: decoded.instruction(), store };
    let outcome = carry_out(&mut backend, trapped, &mut state);
    let settle = backend.settle;
    drop(guard);
    let next = match outcome {
        // A plain store has one element.
        Ok(StoreOutcome::Done | StoreOutcome::Repeats) if settle => Ok(Next::Settle),
        Ok(StoreOutcome::Done | StoreOutcome::Repeats) => Ok(Next::Enter),
        Ok(StoreOutcome::Stopped(event)) => Ok(Next::Stopped(event)),
        Ok(StoreOutcome::Refused(exception)) => Err(Obstacle::Exception(exception)),
        Err(obstacle) => Err(obstacle),
    };
    let next = next.and_then(|next| {
        processor.stuck.reset();
        processor.go_on_at_entry(&state).map(|()| next).map_err(failed)
    });
    let result = match next {
        Ok(next) => Plain::Done(next),
        Err(obstacle) => Plain::Failed(*decoded.instruction(), obstacle),
    };
    processor.decode_cache.put(decoded);
    result
}
