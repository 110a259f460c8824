//! Page tables of the guest in pages that trap.
//!
//! Walking them is no store of the guest, but KVM or the processor writes accessed and dirty flags
//! there, and some processors treat every walk as a write. The flags are set here; if that does not
//! help, the page goes into a read-only slot, over which KVM walks without setting any.

use subpage::address::{GfnRange, Gpa};
use subpage_emulate::{
    Access, GuestInstruction, MAX_INSTRUCTION_BYTES, Mark, Translation, walk_entries, walk_marks,
};

use super::{Next, StoreContext};
use crate::guard::{Guard, SPACE};
use crate::memory::GuestMemory;
use crate::trap::PageSet;
use crate::vcpu::Interrupted;

/// Attempts at a walk whose entries other processors change meanwhile.
const ATTEMPTS: u32 = 8;

/// Bytes of an event's frame, but for the last.
const FRAME_BYTES: u64 = 47;

/// What to do about an instruction that trapped and stores nothing to a page that traps, for the
/// `visits`th time in a row; `None` if nothing is left to be done.
///
/// `frame`: where an event that is being delivered pushes its frame.
pub(super) fn help(
    context: StoreContext<'_, impl GuestMemory>,
    at: &Interrupted,
    code: Option<&GuestInstruction>,
    frame: Option<u64>,
    visits: u32,
) -> Option<Next> {
    let (_, held) = mark(context, &mut context.guard(), at, code, frame);
    match visits {
        // The flags are set: perhaps that was all.
        1 => Some(Next::Enter),
        // Where the processor walks, KVM would take an entry in such a slot for the operand.
        _ if held.is_empty() || context.native => None,
        2..=4 => Some(Next::HoldTables(held)),
        _ => None,
    }
}

/// Sets the flags that the walks of an instruction would set. Whether any was clear, and the pages that
/// trap and hold entries of these walks.
pub fn mark(
    context: StoreContext<'_, impl GuestMemory>,
    guard: &mut Guard,
    at: &Interrupted,
    code: Option<&GuestInstruction>,
    frame: Option<u64>,
) -> (bool, PageSet) {
    let state = &at.state;
    let base = if state.is_64_bit() { 0 } else { state.segments.cs.base };
    let rip = base.wrapping_add(state.rip);
    let read = Access::read_by(state);
    // The instruction itself, to its last byte.
    let mut walks = vec![(rip, read), (rip.wrapping_add(MAX_INSTRUCTION_BYTES as u64 - 1), read)];
    if let Some(code) = code {
        for (linear, bytes, write) in code.accesses(state) {
            let access = Access { write, ..read };
            walks.push((linear, access));
            walks.push((linear.wrapping_add(bytes.saturating_sub(1)), access));
        }
    }
    let system = Access::SYSTEM_READ;
    if let Some(frame) = frame {
        let access = Access { write: true, ..system };
        walks.extend([(frame, access), (frame.wrapping_add(FRAME_BYTES), access)]);
    }
    // System tables that any instruction or event may need.
    let tables = &at.tables;
    for (table, limit) in
        [(tables.gdtr.base, tables.gdtr.limit), (tables.idtr.base, tables.idtr.limit)]
    {
        walks.extend([(table, system), (table.wrapping_add(limit.into()), system)]);
    }
    walks.extend([(tables.tr.base, system), (tables.ldtr.base, system)]);
    let (mut set, mut held) = (false, PageSet::new());
    for (linear, access) in walks {
        for _ in 0..ATTEMPTS {
            let marks = walk_marks(context.ram, context.paging, state, linear, access);
            let noted = |mark: &Mark| guard.domain_mut().note_marked(SPACE, mark.entry).is_ok();
            // Without memory for the record nothing is set here.
            if !marks.iter().all(noted) {
                break;
            }
            set |= !marks.is_empty();
            let walk = Translation { gpa: Gpa::new(0), marks };
            if walk.mark_accessed(context.ram) != Ok(false) {
                break;
            }
        }
        let entries = walk_entries(context.ram, context.paging, state, linear);
        let trapping = entries
            .iter()
            .filter(|entry| guard.traps().traps(entry.gfn()))
            .map(|entry| GfnRange::one(entry.gfn()));
        held.extend(trapping);
    }
    (set, held)
}
