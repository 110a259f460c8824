//! Where a store goes: from a linear address to guest-physical bytes.

use arrayvec::ArrayVec;
use subpage::address::{ByteRange, Gpa};
use subpage::domain::WriteParts;
use subpage_emulate::guest::{PhysicalMemory as _, State};
use subpage_emulate::{Access, Fault, Part, translate_span};

use super::obstacle::Obstacle;
use crate::guard::{Guard, SPACE};
use crate::vm::Machine;

/// Which stores are of interest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Those of which some byte goes to a page that traps. Others are [`Obstacle::NotOurs`].
    InTraps,
    /// All.
    Anywhere,
}

/// Where an access that writes goes; marks the page tables as a processor's walk would.
///
/// What is not wanted leaves no mark, unless another processor changes the tables meanwhile. The marks
/// are no writes of the guest, so rules do not forbid them, wherever the tables lie.
///
/// Other processors may change the entries between the walk and the marks, again and again. They must
/// not keep the guard's lock that way: after some attempts the guest runs on, and traps again.
pub(super) fn destination(
    machine: &Machine,
    guard: &mut Guard,
    state: &State,
    linear: u64,
    length: usize,
    access: Access,
    wanted: Wanted,
) -> Result<WriteParts, Obstacle> {
    const ATTEMPTS: u32 = 8;
    for _ in 0..ATTEMPTS {
        let parts = translate_span(&machine.ram, machine.paging, state, linear, length, access)?;
        let traps = |part: &Part| guard.traps().traps(part.translation.gpa.gfn());
        if wanted == Wanted::InTraps && !parts.iter().any(traps) {
            return Err(Obstacle::NotOurs);
        }
        if mark(machine, guard, &parts)? {
            return write_parts(machine, &parts);
        }
    }
    Err(Obstacle::Again)
}

/// Marks the entries of the walks; false if one of them is no longer what it was.
fn mark(machine: &Machine, guard: &mut Guard, parts: &[Part]) -> Result<bool, Obstacle> {
    for Part { translation, .. } in parts {
        let marked = translation.marks.iter().map(|mark| mark.entry.gfn());
        guard.domain_mut().note_logged(SPACE, marked);
        if !translation.mark_accessed(&machine.ram)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The bytes of a store for the decision.
fn write_parts(machine: &Machine, parts: &[Part]) -> Result<WriteParts, Obstacle> {
    let mut runs: ArrayVec<ByteRange, 2> = ArrayVec::new();
    for part in parts {
        let gpa = part.translation.gpa;
        let beyond = || Obstacle::Cannot(format!("there is no memory at {:#x}", gpa.as_u64()));
        let run = ByteRange::new(gpa, part.bytes).map_err(|_| beyond())?;
        if !machine.ram.holds(run) {
            return Err(beyond());
        }
        runs.push(run);
    }
    Ok(match *runs.as_slice() {
        [one] => WriteParts::one(one),
        [first, second] => WriteParts::two(first, second),
        _ => unreachable!("a store has bytes"),
    })
}

/// Reads the bytes that a write goes to.
pub(super) fn read(
    machine: &Machine,
    parts: &WriteParts,
    buffer: &mut [u8],
) -> Result<(), Obstacle> {
    let mut rest = buffer;
    for run in parts.runs() {
        let bytes = usize::try_from(run.bytes()).expect("at most MAX_STORE_BYTES");
        let (now, later) = rest.split_at_mut(bytes);
        let at: Gpa = run.first();
        machine.ram.read(at, now).map_err(|_| Obstacle::from(Fault::NotMemory(at.as_u64())))?;
        rest = later;
    }
    Ok(())
}
