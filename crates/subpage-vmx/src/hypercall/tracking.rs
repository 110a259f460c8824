//! `Track`, `Harvest` and `Untrack`.

use alloc::vec::Vec;

use arrayvec::ArrayVec;

use subpage::address::{ByteRange, Gpa};
use subpage::domain::{Observer, Pending};
use subpage::frames::TableFrames;
use subpage::invalidate::Completed;
use subpage::track::{TrackId, WrittenPage};
use zerocopy::IntoBytes;

use crate::abi::WrittenRecord;
use crate::event::DATA_BYTES;
use subpage_emulate::guest::PhysicalMemory;
use subpage_trap::Origin;

use super::buffer::{SPACE, bytes_at};
use super::{CallContext, CallOutcome, Continuation, Errno, Refusal, after, done};

/// Most ranges that the guest tracks at a time. No page is in two and all are its memory, so their
/// bytes are at most those of its memory.
pub const MAX_TRACKED: usize = 16;

fn record_of(page: &WrittenPage) -> WrittenRecord {
    WrittenRecord {
        gfn: page.gfn.as_u64().into(),
        written: page.written.bits().into(),
        reserved: 0.into(),
    }
}

/// A harvest on its way to the guest.
#[derive(Debug)]
pub(super) struct Harvest {
    to: ByteRange,
    written: Pending<Vec<WrittenPage>>,
    origin: Origin,
}

impl Harvest {
    /// Writes the records where [`CallContext::harvest`] has found that they may be written.
    ///
    /// Now and not earlier: until `done`, a write could still fall into this harvest unseen by who
    /// reads it.
    pub(super) fn deliver<F, O, M>(self, done: &Completed, context: &mut CallContext<'_, F, O, M>)
    where
        F: TableFrames,
        O: Observer,
        M: PhysicalMemory,
    {
        let pages = self.written.ready(done).expect("the completed token is that of the harvest");
        let mut data = ArrayVec::<u8, DATA_BYTES>::new();
        for page in pages.iter().take(DATA_BYTES / size_of::<WrittenRecord>()) {
            data.extend(record_of(page).as_bytes().iter().copied());
        }
        context
            .authorize(self.to, &data, self.origin)
            .expect("nothing has changed since the buffer was checked");
        let mut at = Some(self.to.first());
        for page in &pages {
            let to = at.expect("the buffer has room for every record");
            context.store(to, record_of(page).as_bytes());
            at = to.checked_add(size_of::<WrittenRecord>() as u64);
        }
    }
}

impl<F: TableFrames, O: Observer, M: PhysicalMemory> CallContext<'_, F, O, M> {
    pub(super) fn track(&mut self, address: u64, bytes: u64) -> Result<CallOutcome, Refusal> {
        let range = Gpa::try_new(address)
            .and_then(|first| ByteRange::new(first, bytes))
            .map_err(|_| Errno::Invalid)?;
        self.check_memory(range)?;
        if self.ledger.tracked.is_full() {
            return Err(Errno::NoSpace.into());
        }
        let (id, token) = self.domain.track(range)?;
        self.ledger.tracked.push(id);
        Ok(after(token, id.0))
    }

    pub(super) fn harvest(
        &mut self,
        number: u64,
        address: u64,
        room: u64,
        origin: Origin,
    ) -> Result<CallOutcome, Refusal> {
        let id = self.own_tracking(number)?;
        let count = self.domain.written_pages(id)? as u64;
        if count > room {
            return Err(Errno::NoSpace.into());
        }
        if count == 0 {
            return Ok(done(0));
        }
        let length = count.checked_mul(size_of::<WrittenRecord>() as u64).ok_or(Errno::Fault)?;
        let to = bytes_at(address, length)?;
        self.check_present(to)?;
        // Writing a tracked page can need memory for tables, and fail when the harvest has been
        // taken. So where the records go, nothing is tracked, and no write can fail any more.
        if self.domain.tracked().any(|(_, range)| range.gfns().intersection(to.gfns()).is_some()) {
            return Err(Errno::Fault.into());
        }
        if !self.domain.check_write(SPACE, to).permits() {
            // Permission is refused, and what is refused is reported.
            return Err(match self.authorize(to, &[], origin) {
                Err(refusal) => refusal,
                Ok(()) => unreachable!("the same question has the same answer"),
            });
        }
        let (written, token) = self.domain.harvest_written(id)?;
        let harvest = Some(Harvest { to, written, origin });
        Ok(CallOutcome::Invalidate { token, then: Continuation { rax: count, harvest } })
    }

    pub(super) fn untrack(&mut self, number: u64) -> Result<CallOutcome, Refusal> {
        let id = self.own_tracking(number)?;
        let token = self.domain.untrack(id)?;
        self.ledger.tracked.retain(|tracked| *tracked != id);
        Ok(after(token, 0))
    }

    /// The tracking with this number, if the guest started it.
    fn own_tracking(&self, number: u64) -> Result<TrackId, Errno> {
        let id = TrackId(number);
        if self.ledger.tracked.contains(&id) { Ok(id) } else { Err(Errno::NoEntry) }
    }
}
