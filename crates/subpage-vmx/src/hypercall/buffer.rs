//! Reading arguments from guest memory, and writing results into it.

use subpage::address::{ByteRange, Gpa};
use subpage::domain::{Decision, Observer, WriteParts};
use subpage::frames::TableFrames;
use subpage::slots::AddressSpace;

use crate::event::Event;
use subpage_emulate::guest::PhysicalMemory;
use subpage_trap::{Account, Met, Origin, Response, describe};

use super::{CallContext, Errno, Refusal};

/// Which memory a guest's addresses mean.
pub(super) const SPACE: AddressSpace = AddressSpace::Normal;

/// `bytes` from `address`; a fault if there are none or they are no guest-physical addresses.
pub(super) fn bytes_at(address: u64, bytes: u64) -> Result<ByteRange, Errno> {
    Gpa::try_new(address).and_then(|first| ByteRange::new(first, bytes)).map_err(|_| Errno::Fault)
}

impl<F: TableFrames, O: Observer, M: PhysicalMemory> CallContext<'_, F, O, M> {
    /// Copies an argument out of guest memory, once.
    pub(super) fn read<const N: usize>(&self, address: u64) -> Result<[u8; N], Errno> {
        let first = Gpa::try_new(address).map_err(|_| Errno::Fault)?;
        let mut bytes = [0; N];
        self.memory.read(first, &mut bytes).map_err(|_| Errno::Fault)?;
        Ok(bytes)
    }

    /// Finds out whether the hypervisor could store to every byte: memory of the guest, mapped, and
    /// neither shared nor read-only on the host's side now. Says nothing about permission.
    pub(super) fn check_present(&self, bytes: ByteRange) -> Result<(), Errno> {
        for part in bytes.pages() {
            let place = self.domain.mapping(SPACE, part.first().gfn()).ok_or(Errno::Fault)?;
            let held = self.memory.read(part.first(), &mut [0]);
            if !place.entry.host_writable() || held.is_err() {
                return Err(Errno::Fault);
            }
        }
        Ok(())
    }

    /// Writes a result of `origin`'s call, if every byte may be written; else none is.
    pub(super) fn write_result(
        &mut self,
        to: ByteRange,
        result: &[u8],
        origin: Origin,
    ) -> Result<(), Refusal> {
        self.check_present(to)?;
        self.authorize(to, result, origin)?;
        self.store(to.first(), result);
        Ok(())
    }

    /// Asks the domain for a write that follows at once, and reports what is to be reported; `data`
    /// is what the write stores, as far as it is known.
    pub(super) fn authorize(
        &mut self,
        write: ByteRange,
        data: &[u8],
        origin: Origin,
    ) -> Result<(), Refusal> {
        let decision = self.domain.authorize_write(SPACE, write)?;
        if let Some(met) = Met::of(decision) {
            let account = Account {
                origin,
                when: self.when,
                parts: &WriteParts::one(write),
                gla: None,
                length: Some(write.bytes()),
                bytes: data,
                instruction: &[],
                during_delivery: false,
                qualification: None,
                in_software: true,
            };
            let event = describe(self.domain, met, Response::Skip, &account);
            self.tell(&event);
        }
        match decision {
            Decision::Allowed | Decision::Reported { .. } => Ok(()),
            Decision::Denied { rule: Some(rule), stop: true, .. } => Err(Refusal::Stop(rule)),
            Decision::Denied { .. } | Decision::NotEligible { .. } | Decision::NotMapped { .. } => {
                Err(Errno::Fault.into())
            }
        }
    }

    /// Stores bytes that were authorised and are present.
    pub(super) fn store(&self, to: Gpa, bytes: &[u8]) {
        self.memory.write(to, bytes).expect("memory that was just read can be written");
    }

    fn tell(&mut self, event: &Event<'_>) {
        let (sequence, met) = self.ledger.record(self.domain.rules(), event);
        (self.heard)(sequence, event, met);
    }
}
