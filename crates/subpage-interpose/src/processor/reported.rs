//! Stores that KVM has carried out but for memory (`KVM_EXIT_MMIO` to memory).
//!
//! KVM tells the bytes in pieces of at most eight. All are collected before the first is decided about:
//! KVM completes each exit without entering the guest.

use subpage::address::ByteRange;
use subpage::domain::{Decision, WriteParts};
use subpage_guard::vcpu::registers;
use subpage_trap::{Account, Met, Origin, Response, report};

use super::seat::Seat;
use super::{Inner, Next, space};
use crate::kvm;
use crate::machine::{Machine, SPACE};

/// Bytes of the longest store that KVM's emulator makes (one of AVX), and room beyond.
const MAX_BYTES: usize = 64;

/// One run of bytes.
struct Run {
    gpa: u64,
    bytes: Vec<u8>,
}

/// Whether KVM may have more of this store to report: it cuts after eight bytes and at page ends.
fn may_go_on(gpa: u64, length: usize) -> bool {
    length == 8 || (gpa + length as u64).is_multiple_of(4096)
}

/// Decides about a store that KVM reports, by its first piece, and does it or not. `Yours` if it is none
/// to writable memory; then nothing has happened.
pub(super) fn reported(machine: &Machine, inner: &mut Inner) -> Next {
    let Some((gpa, bytes, length)) = inner.page.device_write() else { return Next::Yours };
    {
        let mut core = machine.core();
        core.memory.names.space = space(inner);
        let name = core.memory.names.at(gpa);
        if name.is_none_or(|name| name.read_only) || length == 0 {
            return Next::Yours;
        }
    }
    let mut runs = vec![Run { gpa, bytes: bytes[..length].to_vec() }];
    let (mut total, mut last) = (length, (gpa, length));
    let mut again = Next::Enter;
    // What goes on longer than any store is a repeated INS, whose bytes are elements of their own.
    while may_go_on(last.0, last.1) && total < MAX_BYTES {
        let given = inner.page.complete();
        if given.result < 0 {
            break;
        }
        let piece = inner.page.device_write().filter(|_| inner.page.reason() == kvm::KVM_EXIT_MMIO);
        let in_memory = piece.filter(|piece| {
            let mut core = machine.core();
            core.memory.names.space = space(inner);
            core.memory.names.at(piece.0).is_some_and(|name| !name.read_only)
        });
        let Some((gpa, bytes, length)) = in_memory.filter(|piece| piece.2 > 0) else {
            // Another exit: it is looked at as such when this store is done.
            again = Next::Look;
            break;
        };
        match runs.last_mut() {
            Some(run) if run.gpa + run.bytes.len() as u64 == gpa => {
                run.bytes.extend_from_slice(&bytes[..length]);
            }
            _ => runs.push(Run { gpa, bytes: bytes[..length].to_vec() }),
        }
        total += length;
        last = (gpa, length);
    }
    if decide(machine, inner, &runs) {
        machine.stop();
        return Next::Stop;
    }
    again
}

/// Decides about all bytes and writes them or not; whether a rule stops the guest.
fn decide(machine: &Machine, inner: &mut Inner, runs: &[Run]) -> bool {
    let mut core = machine.core();
    core.memory.names.space = space(inner);
    let places = |run: &Run| {
        let gpa = crate::memory::gpa(run.gpa)?;
        core.memory.places(ByteRange::new(gpa, run.bytes.len() as u64).ok()?)
    };
    let places: Option<Vec<ByteRange>> = runs.iter().map(places).collect();
    let parts = match places.as_deref() {
        Some(&[one]) => WriteParts::one(one),
        Some(&[first, second]) => WriteParts::two(first, second),
        // One store to three places, or across the end of memory.
        _ => {
            crate::say::say("KVM reports a store to more than two places, which is not done");
            return false;
        }
    };
    core.writes += 1;
    let Ok(decision) = core.domain.authorize_write_parts(SPACE, &parts) else {
        crate::say::say("no memory left for the record of a write, which is not done");
        return false;
    };
    debug_assert!(!matches!(decision, Decision::NotEligible { .. }), "no slot here is read-only");
    if decision.permits() {
        for (run, place) in runs.iter().zip(places.iter().flatten()) {
            core.memory.write_places(place.first().as_u64(), &run.bytes);
        }
        core.note_dirty(parts.runs());
    }
    let Some(met) = Met::of(decision) else { return false };
    // The last exit is complete, or is completed now.
    let _ = inner.page.load();
    let page = inner.page.registers();
    let state = registers::state(&page.regs, &page.sregs);
    let bytes: Vec<u8> = runs.iter().flat_map(|run| run.bytes.iter().copied()).collect();
    let account = Account {
        origin: Origin { rip: None, rip_exact: false, ..Origin::of(&state, inner.number) },
        when: machine.publisher.when(),
        parts: &parts,
        gla: None,
        length: Some(parts.bytes()),
        bytes: &bytes,
        instruction: &[],
        during_delivery: false,
        qualification: None,
        in_software: true,
    };
    let mut seat = Seat {
        core: &mut core,
        publisher: &machine.publisher,
        page: &inner.page,
        trampoline: &mut inner.trampoline,
        number: inner.number,
        paging: machine.paging(),
        tables: registers::system_tables(&page.sregs),
        before: state,
        extended: &mut None,
        components: inner.components,
    };
    let _ = report(&mut seat, met, Response::Skip, &account);
    matches!(met, Met::Forbidden { stop: true, .. })
}
