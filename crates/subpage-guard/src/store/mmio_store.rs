//! Stores that KVM has carried out but for memory.
//!
//! KVM's emulator reads the operands, changes the registers, advances RIP, and reports what memory is
//! to get in exits of at most eight bytes each. One store may take several: all are collected before
//! the first byte is decided about, by letting KVM complete the exit without entering the guest.
//! A denied write is then simply not done: the registers are what a ROM would have left.

use arrayvec::ArrayVec;
use kvm_ioctls::VcpuExit;
use subpage::address::{ByteRange, Gpa, PAGE_BYTES};
use subpage::domain::{Decision, WriteParts};

use subpage_trap::{Account, Met, Origin, Response, report};

use super::backend::{Backend, Before};
use super::find_instruction::find_before;
use super::{Next, StoreContext};
use crate::failure::Failure;
use crate::guard::SPACE;
use crate::memory::GuestMemory;
use crate::vcpu::{Kick, Processor};

/// Bytes of the longest store that KVM's emulator makes (one of AVX), and room beyond.
const MAX_BYTES: usize = 64;

/// Exits of one store at most.
const MAX_PIECES: usize = MAX_BYTES / 8 + 2;

/// One store as KVM reports it: pieces in the order of the exits.
#[derive(Debug, Clone)]
struct Reported {
    pieces: ArrayVec<(Gpa, ArrayVec<u8, 8>), MAX_PIECES>,
}

/// Why the rest of a store could not be collected.
enum Broken {
    /// KVM reports more than one store can have.
    TooLong,
    /// Another exit where the rest of a store was to come.
    Unexpected,
}

impl Reported {
    /// The first piece; none if KVM reports an address or length that no store has.
    fn new(address: u64, data: &[u8]) -> Option<Self> {
        let mut reported = Self { pieces: ArrayVec::new() };
        reported.push(address, data).ok()?;
        Some(reported)
    }

    fn push(&mut self, address: u64, data: &[u8]) -> Result<(), Broken> {
        let gpa = Gpa::try_new(address).map_err(|_| Broken::TooLong)?;
        let bytes: ArrayVec<u8, 8> = data.try_into().map_err(|_| Broken::TooLong)?;
        if bytes.is_empty() {
            return Err(Broken::Unexpected);
        }
        self.pieces.try_push((gpa, bytes)).map_err(|_| Broken::TooLong)
    }

    /// Whether KVM may have more of this store to report: it cuts after eight bytes and at page ends.
    fn may_go_on(&self) -> bool {
        self.pieces.last().is_some_and(|(gpa, bytes)| {
            bytes.len() == 8 || (gpa.as_u64() + bytes.len() as u64).is_multiple_of(PAGE_BYTES)
        })
    }

    /// Lets KVM complete the exit and takes in what it has more of the same store.
    fn collect(&mut self, processor: &mut Processor, kick: Kick) -> Result<(), Broken> {
        // What goes on longer than any store is a repeated INS, whose bytes are elements of their own.
        while self.may_go_on() && !self.pieces.is_full() {
            kick.raise();
            match processor.fd.run() {
                Err(error) if error.errno() == libc::EINTR => return Ok(()),
                Ok(VcpuExit::MmioWrite(address, data)) => {
                    let mut copy = [0; 8];
                    let length = data.len().min(8);
                    copy[..length].copy_from_slice(&data[..length]);
                    self.push(address, &copy[..length])?;
                }
                _ => return Err(Broken::Unexpected),
            }
        }
        Ok(())
    }

    /// All bytes for the decision; none if they are not one or two runs.
    fn parts(&self) -> Option<WriteParts> {
        let mut runs: ArrayVec<ByteRange, 2> = ArrayVec::new();
        for (gpa, bytes) in &self.pieces {
            let piece = ByteRange::new(*gpa, bytes.len() as u64).ok()?;
            match runs.last_mut() {
                Some(run) if run.last().checked_add(1) == Some(piece.first()) => {
                    *run = ByteRange::new(run.first(), run.bytes() + piece.bytes()).ok()?;
                }
                _ => runs.try_push(piece).ok()?,
            }
        }
        match *runs.as_slice() {
            [one] => Some(WriteParts::one(one)),
            [first, second] => Some(WriteParts::two(first, second)),
            _ => None,
        }
    }

    /// The bytes, first byte first.
    fn bytes(&self) -> ArrayVec<u8, { MAX_PIECES * 8 }> {
        self.pieces.iter().flat_map(|(_, bytes)| bytes.iter().copied()).collect()
    }
}

/// Decides about a store that KVM reports, by its first piece, and does it or not.
pub fn mmio_store(
    context: StoreContext<'_, impl GuestMemory>,
    processor: &mut Processor,
    kick: Kick,
    address: u64,
    data: &[u8],
) -> Result<Next, Failure> {
    // Beyond what can be memory.
    let Some(mut reported) = Reported::new(address, data) else { return Ok(Next::Enter) };
    if let Some(parts) = reported.parts()
        && reported.may_go_on()
        && let Some(next) = at_once(context, processor.number, &reported, &parts)
    {
        processor.store_may_go_on = true;
        processor.in_pieces = true;
        return Ok(next);
    }
    let vcpu = processor.number;
    let failed = |reason: &str| Failure::new(vcpu, reason.to_owned());
    match reported.collect(processor, kick) {
        Ok(()) => {}
        Err(Broken::TooLong) => return Err(failed("KVM reports a store that is longer than any")),
        Err(Broken::Unexpected) => {
            return Err(failed("KVM reports something else in the middle of a store"));
        }
    }
    processor.store_may_go_on = reported.may_go_on() && reported.pieces.is_full();
    let parts = reported.parts().ok_or_else(|| failed("KVM reports one store to three places"))?;
    if !parts.runs().iter().all(|run| context.ram.holds(*run)) {
        // A device that is not there.
        return Ok(Next::Enter);
    }
    let mut guard = context.guard();
    guard.count_trapped(&parts);
    context.metrics.checks(1);
    let decision = guard
        .domain_mut()
        .authorize_write_parts(SPACE, &parts)
        .map_err(|_| failed("the engine has no memory left for a record of a write"))?;
    if let Decision::NotEligible { .. } | Decision::NotMapped { .. } = decision {
        unreachable!("all memory lies in slots that may be written");
    }
    if decision.permits() {
        for (gpa, bytes) in &reported.pieces {
            store(context, *gpa, bytes);
        }
    }
    if let Some(met) = Met::of(decision) {
        let (at, _) = processor.at_exit()?;
        let bytes = reported.bytes();
        let found = find_before(context, &at, &parts, &bytes);
        let rip = found.as_ref().map(|found| found.rip);
        let account = Account {
            origin: Origin { rip, rip_exact: false, ..Origin::of(&at.state, vcpu) },
            when: context.events.when(),
            parts: &parts,
            gla: found.as_ref().map(|found| found.linear),
            length: Some(parts.bytes()),
            bytes: &bytes,
            instruction: found.as_ref().map_or(&[], |found| found.instruction.bytes()),
            during_delivery: false,
            qualification: None,
            in_software: true,
        };
        let (guard, extended) = (&mut *guard, &mut None);
        let (tables, before) = (&at.tables, Before::Known(&at.state));
        let mut backend =
            Backend { context, guard, processor, tables, before, extended, settle: false };
        let event = report(&mut backend, met, Response::Skip, &account);
        if let Met::Forbidden { stop: true, .. } = met {
            return Ok(Next::Stopped(event));
        }
    }
    if decision.permits() {
        guard.note_write(vcpu, &parts);
    }
    let settle = decision.permits() && guard.after_write(context.ram, &parts);
    Ok(if settle { Next::Settle } else { Next::Enter })
}

/// Does a piece of a store of which every byte is permitted, however it goes on; none if that is not so.
fn at_once(
    context: StoreContext<'_, impl GuestMemory>,
    vcpu: u32,
    reported: &Reported,
    parts: &WriteParts,
) -> Option<Next> {
    let piece = parts.first();
    let whole = ByteRange::new(piece.first(), MAX_BYTES as u64).ok()?;
    if whole.last().gfn() != piece.first().gfn() || !context.ram.holds(whole) {
        return None;
    }
    let whole = WriteParts::one(whole);
    let mut guard = context.guard();
    if guard.is_changing() {
        return None;
    }
    let considered = guard.domain_mut().consider_write(SPACE, &whole);
    if considered.decision() != Decision::Allowed {
        return None;
    }
    // Without memory for its records, the engine says so once more on the long way.
    considered.commit_part(piece).ok()?;
    guard.store_begins(vcpu);
    guard.count_trapped(parts);
    context.metrics.checks(1);
    for (gpa, bytes) in &reported.pieces {
        store(context, *gpa, bytes);
    }
    guard.note_write(vcpu, parts);
    let settle = guard.after_write(context.ram, parts);
    Some(if settle { Next::Settle } else { Next::Enter })
}

/// Lets KVM report what is left of a store whose first piece was done at once.
///
/// To be called before the processor is let go of, or passes for a change that waits.
pub fn finish(
    context: StoreContext<'_, impl GuestMemory>,
    processor: &mut Processor,
    kick: Kick,
) -> Result<(), Failure> {
    while std::mem::take(&mut processor.store_may_go_on) {
        kick.raise();
        let (address, data) = match processor.fd.run() {
            Ok(VcpuExit::MmioWrite(address, data)) => {
                (address, data.iter().copied().take(8).collect::<ArrayVec<u8, 8>>())
            }
            // Nothing was left.
            _ => return Ok(()),
        };
        // It is permitted as its first piece was; whether pages are opened can wait.
        let _ = mmio_store(context, processor, kick, address, &data)?;
    }
    Ok(())
}

/// Stores one piece, with one instruction if it has 1, 2, 4 or 8 bytes.
fn store(context: StoreContext<'_, impl GuestMemory>, gpa: Gpa, bytes: &[u8]) {
    let range = ByteRange::new(gpa, bytes.len() as u64).expect("a piece was a range before");
    context
        .ram
        .with_window(&WriteParts::one(range), |window| window.store(bytes, 1))
        .expect("what is permitted lies in a slot, which is memory");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reported(pieces: &[(u64, usize)]) -> Reported {
        let mut reported = Reported { pieces: ArrayVec::new() };
        for (at, length) in pieces {
            assert!(reported.push(*at, &[7; 8][..*length]).is_ok());
        }
        reported
    }

    #[test]
    fn pieces_that_adjoin_are_one_run() {
        let parts = reported(&[(0x1ff8, 8), (0x2000, 8), (0x2008, 2)]).parts().expect("one run");
        assert_eq!((parts.runs().len(), parts.bytes()), (1, 18));
        let parts = reported(&[(0x1ffc, 4), (0x9000, 4)]).parts().expect("two runs");
        assert_eq!((parts.runs().len(), parts.bytes()), (2, 8));
        assert_eq!(reported(&[(0x1000, 8), (0x3000, 8), (0x5000, 8)]).parts(), None);
    }

    #[test]
    fn only_full_pieces_and_those_at_a_page_end_may_go_on() {
        assert!(reported(&[(0x1000, 8)]).may_go_on());
        assert!(reported(&[(0x1ffd, 3)]).may_go_on());
        assert!(!reported(&[(0x1000, 4)]).may_go_on());
        assert!(!reported(&[(0x1000, 8), (0x1008, 2)]).may_go_on());
    }

    #[test]
    fn what_no_store_has_is_refused() {
        assert!(Reported::new(1 << 48, &[0]).is_none());
        assert!(Reported::new(0, &[]).is_none());
        assert!(Reported::new(0, &[0; 9]).is_none());
    }
}
