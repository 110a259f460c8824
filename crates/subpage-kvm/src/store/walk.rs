//! Page tables of the guest in pages that trap.
//!
//! Walking them is no store of the guest, but KVM or the processor writes accessed and dirty flags
//! there, and some processors treat every walk as a write. The flags are set here; if that does not
//! help, the page goes into a read-only slot, over which KVM walks without setting any.

use subpage::address::GfnRange;
use subpage_emulate::{Access, GuestInstruction, Translation, walk_entries, walk_marks};

use super::Next;
use crate::guard::SPACE;
use crate::trap::PageSet;
use crate::vcpu::Interrupted;
use crate::vm::Machine;

/// Attempts at a walk whose entries other processors change meanwhile.
const ATTEMPTS: u32 = 8;

/// What to do about an instruction that trapped and stores nothing to a page that traps, for the
/// `visits`th time in a row; none if nothing is left to be done.
pub(super) fn help(
    machine: &Machine,
    at: &Interrupted,
    code: Option<&GuestInstruction>,
    visits: u32,
) -> Option<Next> {
    let state = &at.state;
    let mut addresses = code.map(|code| code.accesses(state)).unwrap_or_default();
    if addresses.is_full() {
        addresses.pop();
    }
    addresses.push(state.segments.cs.base.wrapping_mul(u64::from(!state.is_64_bit())) + state.rip);
    // System tables that any instruction may need.
    let mut addresses = addresses.to_vec();
    addresses.extend([at.tables.gdtr.base, at.tables.idtr.base, at.tables.tr.base]);
    let mut guard = machine.guard();
    let mut tables = PageSet::new();
    for linear in addresses {
        for access in [Access::write_by(state), Access { write: true, ..Access::SYSTEM_READ }] {
            for _ in 0..ATTEMPTS {
                let marks = walk_marks(&machine.ram, machine.walks, state, linear, access);
                guard.domain_mut().note_logged(SPACE, marks.iter().map(|mark| mark.entry.gfn()));
                let gpa = subpage::address::Gpa::new(0);
                let walk = Translation { gpa, marks };
                if walk.mark_accessed(&machine.ram) != Ok(false) {
                    break;
                }
            }
        }
        let entries = walk_entries(&machine.ram, machine.walks, state, linear);
        let trapping = entries
            .iter()
            .filter(|entry| guard.traps().traps(entry.gfn()))
            .map(|entry| GfnRange::one(entry.gfn()));
        tables = tables.union(&trapping.collect());
    }
    match visits {
        // The flags are set: perhaps that was all.
        1 => Some(Next::Enter),
        _ if tables.is_empty() => None,
        2..=4 => Some(Next::HoldTables(tables)),
        _ => None,
    }
}
