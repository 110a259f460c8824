//! `ReadEvents`.

use subpage::domain::Observer;
use subpage::frames::TableFrames;
use zerocopy::IntoBytes;

use crate::abi::EventRecord;
use crate::event::DATA_BYTES;
use subpage_emulate::guest::PhysicalMemory;
use subpage_trap::Origin;

use super::buffer::bytes_at;
use super::{CallContext, CallOutcome, Errno, Refusal, done};

const RECORD_BYTES: u64 = size_of::<EventRecord>() as u64;

impl<F: TableFrames, O: Observer, M: PhysicalMemory> CallContext<'_, F, O, M> {
    pub(super) fn read_events(
        &mut self,
        address: u64,
        room: u64,
        origin: Origin,
    ) -> Result<CallOutcome, Refusal> {
        let count = usize::try_from(room).unwrap_or(usize::MAX).min(self.ledger.events.len());
        let Some(oldest) = self.ledger.events.iter().take(count).next().copied() else {
            return Ok(done(0));
        };
        let to = bytes_at(address, count as u64 * RECORD_BYTES)?;
        self.check_present(to)?;
        self.authorize(to, &oldest.as_bytes()[..DATA_BYTES], origin)?;
        for (number, record) in (0_u64..).zip(self.ledger.events.iter().take(count)) {
            let at = to.first().checked_add(number * RECORD_BYTES).ok_or(Errno::Fault)?;
            self.store(at, record.as_bytes());
        }
        self.ledger.events.consume(count);
        Ok(done(count as u64))
    }
}
