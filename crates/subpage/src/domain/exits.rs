//! What to do about an exit that EPT or the SPPT caused.
//!
//! Every answer makes progress (contract C8). A translation that is merely stale is retried once; if
//! the same instruction traps at the same address again, the write is emulated, which needs no
//! translation (D27, D33, D34). The vector decides, never the mere fact of an exit.

use super::tables::Tables;
use super::{Decision, Denial, Domain, DomainError, Observer, WriteParts};
use crate::access::{SppVector, SubPage};
use crate::address::{ByteRange, Gpa, Hpa};
use crate::exit::{Delivery, DeliveryFixup, EptQualification, SppQualification};
use crate::frames::TableFrames;
use crate::level::Level;
use crate::rules::RuleId;
use crate::slots::AddressSpace;
use crate::sppt::SpptEntry;

/// An EPT violation (exit reason 48) as the backend read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EptViolation {
    /// Exit qualification.
    pub qualification: EptQualification,
    /// Guest-physical address field.
    pub gpa: Gpa,
    /// Guest-linear address field; meaningful if the qualification says so.
    pub gla: u64,
    /// Instruction pointer of the guest, to tell a repeated trap from a new one.
    pub rip: u64,
    /// How many guest-physical bytes from `gpa` on the access has, if the backend has decoded the
    /// instruction.
    ///
    /// Cut it at the end of the page unless the access is known to continue in the next
    /// guest-physical page: what follows a linear page need not be its neighbour, and a permitted
    /// write would be denied for a page that it never touches. The part cut off has its own trap.
    pub length: Option<u64>,
    /// The address space the guest was in.
    pub space: AddressSpace,
    /// Event delivery in progress.
    pub delivery: Delivery,
}

/// An SPP-related event (exit reason 66) as the backend read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SppEvent {
    /// Exit qualification.
    pub qualification: SppQualification,
    /// Guest-physical address field.
    pub gpa: Gpa,
    /// Instruction pointer of the guest.
    pub rip: u64,
    /// The address space the guest was in.
    pub space: AddressSpace,
    /// Event delivery in progress.
    pub delivery: Delivery,
}

/// What a processor was last told to retry; one for each, kept by the backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RetryState {
    last: Option<(u64, Gpa)>,
}

impl RetryState {
    /// The state in which this trap is the last that was retried; `None` before the first. With
    /// [`last`](Self::last), for a backend that keeps it in a form of its own.
    pub const fn after(last: Option<(u64, Gpa)>) -> Self {
        Self { last }
    }

    /// Instruction and address of the trap that was last retried.
    pub const fn last(self) -> Option<(u64, Gpa)> {
        self.last
    }

    /// Whether this trap has not been retried yet; notes it as retried.
    fn may_retry(&mut self, rip: u64, gpa: Gpa) -> bool {
        self.last.replace((rip, gpa)) != Some((rip, gpa))
    }
}

/// Something the host, not the guest, has to answer for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostError {
    /// No memory for a table. Nothing has changed; free some and resume.
    OutOfMemory,
    /// An SPPT entry has reserved bits set: somebody else wrote the tables. Stop the guest.
    DamagedSppt {
        /// Level of the entry.
        level: Level,
        /// The entry.
        entry: u64,
    },
}

/// What a write that trapped comes to, where one look tells.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtOnce {
    /// It is permitted: the caller carries it out on this host page, under the lock that it holds.
    Permitted(Hpa),
    /// It is denied, as by [`Answer::Deny`].
    Denied(Denial),
}

/// What a denied write met.
#[derive(Clone, Copy)]
struct Met {
    rule: Option<RuleId>,
    at: Gpa,
    stop: bool,
}

/// What the backend does about an exit.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The tables now permit the access: enter the guest again.
    Resume,
    /// The tables permitted it all along: invalidate this processor's translations, enter again.
    Retry,
    /// The tables cannot express that it is permitted, or a retry did not help: emulate the access; a
    /// write through [`Domain::authorize_write`], which also decides by the exact bytes.
    Emulate,
    /// The processor was updating accessed or dirty flags in a guest paging structure that lies in
    /// a restricted page. That is no write of the guest's: set the flags in software, or, if
    /// `on_every_walk`, step over the instruction, since the processor would trap on reads too.
    /// The page counts as dirty and the entry's sub-page as written.
    PageWalk {
        /// Address of the paging-structure entry.
        gpa: Gpa,
        /// Accessed and dirty flags for EPT are on: setting flags does not end the traps.
        on_every_walk: bool,
    },
    /// The write is denied. What becomes of the instruction is the backend's policy.
    Deny(Denial),
    /// No slot holds the address: a device, or nothing.
    NoSlot(Gpa),
    /// The guest fetched an instruction from a page that the host does not let it execute.
    NotExecutable(Gpa),
    /// The guest wrote to a read-only slot.
    ReadOnlySlot(Gpa),
    /// A slot holds it but nothing is mapped: map the page and enter again.
    Map(Gpa),
    /// The host page may not be written by the guest now: make it writable (break the sharing, copy
    /// it), [`protect`](Domain::protect) or map it anew, and enter again.
    MakeWritable(Gpa),
    /// The host has a problem.
    Host(HostError),
}

impl<F: TableFrames, O: Observer> Domain<F, O> {
    /// Answers an EPT violation, and says what event delivery needs before the next entry.
    pub fn ept_violation(
        &mut self,
        retry: &mut RetryState,
        exit: &EptViolation,
    ) -> (Answer, DeliveryFixup) {
        self.answer(retry, exit, None)
    }

    /// The common cases of a write that trapped, in one look: it is denied, or it is permitted, nothing
    /// is to be noted about it, and it can only be emulated. `None` if it is another case, or has to be
    /// looked at more closely; nothing has been counted or told then.
    ///
    /// `exit` is that of a write, and of no page walk; `write` is all of it. If it does not lie in the
    /// page of the exit, the answer is `None`.
    ///
    /// Either answer is given only if nothing is tracked, the slot neither logs nor is read-only, and
    /// the page is restricted. It is denied if a rule or a map forbids it, whatever the page is mapped
    /// to. It is permitted if no rule or map forbids or wants to know, the host may write the page, and
    /// either no processor has sub-page permissions or a rule finer than a sub-page is what made it trap.
    ///
    /// An answer is counted here as the violation that it is, and a denial is told to the observer, as
    /// by [`ept_violation`](Self::ept_violation).
    #[inline]
    pub fn decide_at_once(&mut self, exit: &EptViolation, write: ByteRange) -> Option<AtOnce> {
        debug_assert!(exit.qualification.write() && !exit.qualification.is_page_walk(), "a write");
        let gfn = exit.gpa.gfn();
        if write.first().gfn() != gfn {
            return None;
        }
        let vector = self.unrecorded(exit.space, write)?;
        if vector == SppVector::ALL {
            return None;
        }
        let denied = SppVector::touched_by(write).without(vector);
        if denied == SppVector::NONE {
            if self.processor.sub_page_permissions {
                return None;
            }
        } else {
            match self.decide(write, denied) {
                Decision::Allowed => {}
                Decision::Denied { rule, at, stop } => {
                    self.counters.ept_violations += 1;
                    let length = Some(write.bytes());
                    let met = Met { rule, at, stop };
                    return Some(AtOnce::Denied(self.deny(exit, write.first(), length, met)));
                }
                _ => return None,
            }
        }
        let place = self.mapping(exit.space, gfn)?;
        if !place.entry.host_writable() {
            return None;
        }
        self.counters.ept_violations += 1;
        self.counters.emulations += 1;
        Some(AtOnce::Permitted(place.host_frame(gfn)))
    }

    /// [`ept_violation`](Self::ept_violation) for a write of which all bytes are known, in whichever
    /// pages they are: they are decided about as one, so a denial in the page that trapped hides no
    /// stronger rule in the next.
    ///
    /// The violation's own `length` is not looked at. Its address lies in the write; if the write is
    /// permitted, what its page waits for is done, and what its other page waits for at the next trap.
    pub fn ept_violation_by(
        &mut self,
        retry: &mut RetryState,
        exit: &EptViolation,
        write: &WriteParts,
    ) -> (Answer, DeliveryFixup) {
        self.answer(retry, exit, Some(write))
    }

    /// Counts an EPT violation that the backend answers by itself: the instruction asks for a page and
    /// writes to another, as ENTER does, or writes nothing, as one whose mask is zero.
    pub fn note_violation(&mut self) {
        self.counters.ept_violations += 1;
    }

    fn answer(
        &mut self,
        retry: &mut RetryState,
        exit: &EptViolation,
        write: Option<&WriteParts>,
    ) -> (Answer, DeliveryFixup) {
        self.counters.ept_violations += 1;
        let answer = match self.answer_violation(retry, exit, write) {
            Ok(answer) => answer,
            Err(error) => host_error(error),
        };
        self.count(&answer);
        (answer, exit.delivery.fixup(exit.qualification.nmi_unblocked()))
    }

    fn answer_violation(
        &mut self,
        retry: &mut RetryState,
        exit: &EptViolation,
        whole: Option<&WriteParts>,
    ) -> Result<Answer, DomainError> {
        let gpa = exit.gpa;
        let gfn = gpa.gfn();
        let Some(slot) = self.slots[exit.space.index()].find(gfn) else {
            return Ok(Answer::NoSlot(gpa));
        };
        let read_only = slot.read_only;
        let stores = exit.qualification.write() && !exit.qualification.is_page_walk();
        let mut decided = None;
        if stores && !read_only {
            // Without a decoded length only the addressed byte is certain to be written.
            let Ok(write) = ByteRange::new(gpa, exit.length.unwrap_or(1).max(1)) else {
                return Ok(Answer::NoSlot(Gpa::MAX));
            };
            let decision = match whole {
                Some(parts) => self.check_write_parts(exit.space, parts),
                None if write.last().gfn() == gfn => self.check_in_slot(write),
                None => self.check_write(exit.space, write),
            };
            if let Decision::Denied { rule, at, stop } = decision {
                // Whatever the page is mapped to: that is not looked at.
                let (first, length) = match whole {
                    Some(parts) => (parts.first().first(), Some(parts.bytes())),
                    None => (exit.gpa, exit.length),
                };
                let denial = self.deny(exit, first, length, Met { rule, at, stop });
                return Ok(Answer::Deny(denial));
            }
            let in_page = |parts: &WriteParts| parts.runs().iter().find_map(|run| run.in_page(gfn));
            decided = Some((whole.and_then(in_page).unwrap_or(write), decision));
        }
        let Some(place) = self.mapping(exit.space, gfn) else { return Ok(Answer::Map(gpa)) };
        if !exit.qualification.write() {
            // A leaf of this engine is readable, so a read or a fetch that trapped met a stale
            // entry, or a page the host does not let the guest execute.
            let executable = place.entry.execute() || !exit.qualification.fetch();
            return Ok(if !executable {
                Answer::NotExecutable(gpa)
            } else if retry.may_retry(exit.rip, gpa) {
                Answer::Retry
            } else {
                Answer::Emulate
            });
        }
        let host_writable = place.entry.host_writable();
        match decided {
            None if read_only => Ok(Answer::ReadOnlySlot(gpa)),
            None if !host_writable => Ok(Answer::MakeWritable(gpa)),
            None => self.answer_page_walk(retry, exit),
            Some((_, Decision::NotMapped { at })) => Ok(Answer::NoSlot(at)),
            Some((_, Decision::NotEligible { at })) => Ok(Answer::ReadOnlySlot(at)),
            // Also before an emulation, which would write the shared page itself (D9).
            Some(_) if !host_writable => Ok(Answer::MakeWritable(gpa)),
            Some((write, Decision::Allowed)) => self.open_for(retry, exit, write),
            Some((_, Decision::Reported { .. } | Decision::Denied { .. })) => Ok(Answer::Emulate),
        }
    }

    /// Denies a write of `length` bytes from `gpa`.
    #[inline]
    fn deny(&mut self, exit: &EptViolation, gpa: Gpa, length: Option<u64>, met: Met) -> Denial {
        let told = exit.qualification.linear_valid() && gpa == exit.gpa;
        let denial = Denial {
            gpa,
            gla: told.then_some(exit.gla),
            length,
            at: met.at,
            rule: met.rule,
            stop: met.stop,
            during_delivery: exit.delivery.vectoring.valid(),
        };
        self.report(&denial);
        denial
    }

    /// A permitted write trapped: find out what it waits for.
    fn open_for(
        &mut self,
        retry: &mut RetryState,
        exit: &EptViolation,
        write: ByteRange,
    ) -> Result<Answer, DomainError> {
        let gfn = exit.gpa.gfn();
        if !self.permitted(gfn).contains(SubPage::of(exit.gpa)) {
            // The rule is finer than the sub-page, and this write misses the rule's bytes.
            return Ok(Answer::Emulate);
        }
        let before = (self.counters.dirtied, self.counters.tracked);
        if self.slots[exit.space.index()].find(gfn).is_some_and(|slot| slot.dirty.is_some()) {
            self.split_for_dirty(exit.space, gfn)?;
        }
        // The part of a write in the next page traps by itself when the processor gets there.
        self.note_written(exit.space, write.in_page(gfn).unwrap_or(write))?;
        Ok(if before != (self.counters.dirtied, self.counters.tracked) {
            Answer::Resume
        } else if !self.processor.sub_page_permissions && !self.permitted(gfn).is_unrestricted() {
            Answer::Emulate
        } else if retry.may_retry(exit.rip, exit.gpa) {
            Answer::Retry
        } else {
            Answer::Emulate
        })
    }

    fn answer_page_walk(
        &mut self,
        retry: &mut RetryState,
        exit: &EptViolation,
    ) -> Result<Answer, DomainError> {
        let gfn = exit.gpa.gfn();
        if self.slots[exit.space.index()].find(gfn).is_some_and(|slot| slot.dirty.is_some()) {
            self.split_for_dirty(exit.space, gfn)?;
        }
        // The flags lie in the addressed byte or in one of the same entry, so of its sub-page.
        let entry = ByteRange::new(exit.gpa, 1).expect("one byte");
        self.note_written(exit.space, entry)?;
        let Some(place) = self.mapping(exit.space, gfn) else { return Ok(Answer::Map(exit.gpa)) };
        if place.entry.write() {
            let fresh = retry.may_retry(exit.rip, exit.gpa);
            return Ok(if fresh { Answer::Retry } else { Answer::Emulate });
        }
        Ok(Answer::PageWalk { gpa: exit.gpa, on_every_walk: self.processor.ept_accessed_dirty })
    }

    /// Answers an SPP miss or misconfiguration, and says what event delivery needs.
    ///
    /// A miss cannot come from the tables of a domain at rest (design decision 2). It comes from a
    /// translation that was cached before the last restricted page of a region became unrestricted,
    /// and so does no harm: the leaf is computed again and the access retried.
    pub fn spp_event(
        &mut self,
        retry: &mut RetryState,
        exit: &SppEvent,
    ) -> (Answer, DeliveryFixup) {
        self.observer.spp_event(exit.gpa, exit.qualification);
        if exit.qualification.miss() {
            self.counters.spp_misses += 1;
        } else {
            self.counters.spp_misconfigurations += 1;
        }
        let answer = if let Some((level, entry)) = self.tables.damaged_entry(exit.gpa) {
            Answer::Host(HostError::DamagedSppt { level, entry })
        } else if retry.may_retry(exit.rip, exit.gpa) {
            if let Some(leaves) = self.tables.leaf_table(exit.space, exit.gpa.gfn()) {
                self.tables.refresh_leaf(exit.space, leaves, &self.slots, exit.gpa.gfn());
            }
            Answer::Retry
        } else {
            Answer::Emulate
        };
        self.count(&answer);
        (answer, exit.delivery.fixup(exit.qualification.nmi_unblocked()))
    }

    fn count(&mut self, answer: &Answer) {
        match answer {
            Answer::Retry => self.counters.retries += 1,
            Answer::Emulate => self.counters.emulations += 1,
            _ => {}
        }
    }
}

fn host_error(error: DomainError) -> Answer {
    assert!(
        matches!(error, DomainError::OutOfMemory),
        "handling an exit can only fail for want of memory: {error}"
    );
    Answer::Host(HostError::OutOfMemory)
}

impl<F: TableFrames> Tables<F> {
    /// The first entry on the way to `gpa`'s vector that has reserved bits set.
    fn damaged_entry(&self, gpa: Gpa) -> Option<(Level, u64)> {
        let mut table = self.sppt?.root();
        for level in [Level::L4, Level::L3, Level::L2] {
            let raw = self.frames.load(table, level.index(gpa.gfn()));
            let entry = SpptEntry::from(raw);
            let next = entry.table()?;
            if entry.has_reserved_bits(self.width) {
                return Some((level, raw));
            }
            table = next;
        }
        let raw = self.frames.load(table, Level::L1.index(gpa.gfn()));
        crate::access::SppVector::try_from_bits(raw).is_err().then_some((Level::L1, raw))
    }
}
