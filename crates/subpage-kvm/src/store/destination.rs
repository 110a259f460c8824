//! Where a store goes: from a linear address to guest-physical bytes.

use arrayvec::ArrayVec;
use subpage::address::{ByteRange, Gpa, PAGE_BYTES};
use subpage::domain::WriteParts;
use subpage_emulate::guest::{PhysicalMemory as _, State};
use subpage_emulate::{Access, Fault, Translation, translate, translate_span};

use super::obstacle::Obstacle;
use crate::guard::{Guard, SPACE};
use crate::vm::Machine;

/// Whether a store goes to a page that traps. Marks nothing: an instruction that is not carried out here
/// leaves no trace.
pub(super) fn goes_to_traps(
    machine: &Machine,
    guard: &Guard,
    state: &State,
    linear: u64,
    length: u64,
    access: Access,
) -> Result<bool, Obstacle> {
    let bytes = usize::try_from(length).expect("at most MAX_STORE_BYTES");
    let parts = translate_span(&machine.ram, machine.walks, state, linear, bytes, access)?;
    Ok(parts.iter().any(|part| guard.traps().traps(part.translation.gpa.gfn())))
}

/// Translates a store and marks the page tables as a processor's walk would.
///
/// Those marks are no writes of the guest, so rules do not forbid them, wherever the tables lie.
pub(super) fn find_parts(
    machine: &Machine,
    guard: &mut Guard,
    state: &State,
    linear: u64,
    length: u64,
    access: Access,
) -> Result<WriteParts, Obstacle> {
    let in_first = (PAGE_BYTES - linear % PAGE_BYTES).min(length);
    let mut runs: ArrayVec<ByteRange, 2> = ArrayVec::new();
    for (start, bytes) in [(linear, in_first), (linear.wrapping_add(in_first), length - in_first)] {
        if bytes == 0 {
            continue;
        }
        let walk = marked_walk(machine, guard, state, start, access)?;
        let gpa = walk.gpa;
        let beyond = || Obstacle::Cannot(format!("there is no memory at {:#x}", gpa.as_u64()));
        let run = ByteRange::new(gpa, bytes).map_err(|_| beyond())?;
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

/// Other processors may change the entries between the walk and the marks, again and again. They must
/// not keep the guard's lock that way: after some attempts the guest runs on, and traps again.
fn marked_walk(
    machine: &Machine,
    guard: &mut Guard,
    state: &State,
    linear: u64,
    access: Access,
) -> Result<Translation, Obstacle> {
    const ATTEMPTS: u32 = 8;
    for _ in 0..ATTEMPTS {
        let walk = translate(&machine.ram, machine.walks, state, linear, access)?;
        let marked = walk.marks.iter().map(|mark| mark.entry.gfn());
        guard.domain_mut().note_logged(SPACE, marked);
        if walk.mark_accessed(&machine.ram)? {
            return Ok(walk);
        }
    }
    Err(Obstacle::Again)
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
