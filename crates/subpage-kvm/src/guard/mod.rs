//! The rules in force and what makes them so: one lock around both.

mod ledger;

pub use ledger::{Ledger, RuleCounts};

use subpage::access::AccessMap;
use subpage::address::{ByteRange, Gfn, GfnRange, PAGE_BYTES, PhysicalWidth};
use subpage::domain::{Decision, Domain, DomainError, ImportError, ProcessorUse, WriteParts};
use subpage::frames::HeapFrames;
use subpage::invalidate::{Completed, Invalidation};
use subpage::rules::Action;
use subpage::slots::{AddressSpace, SlotFlags, SlotId};
use thiserror::Error;

use crate::memory::Ram;
use crate::trap::{PageSet, TrapError, Traps};

/// Guests have one address space: KVM keeps memory that only system-management mode sees apart, and
/// this VMM gives it none.
pub const SPACE: AddressSpace = AddressSpace::Normal;

/// How far a store reaches over a page end at most: KVM's emulator has none of more than 64 bytes.
const EDGE_BYTES: u64 = 63;

/// How many writes to pages that need not trap are let through one by one before the guest is stopped
/// for as long as it takes to open those pages.
const IDLE_WRITES: u32 = 64;

/// Why a change of permissions was refused; nothing has changed.
#[derive(Debug, Error)]
pub enum ChangeError {
    /// The engine refuses it.
    #[error(transparent)]
    Domain(#[from] DomainError),
    /// Exported state was not taken in.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// Its pages cannot be made to trap.
    #[error(transparent)]
    Trap(#[from] TrapError),
    /// A rule lies outside of the guest's memory.
    #[error(
        "bytes {first:#x}..={last:#x} are not all memory of the guest: nothing there can be guarded"
    )]
    NotMemory {
        /// First byte.
        first: u64,
        /// Last byte.
        last: u64,
    },
}

/// What is guarded in a guest's memory, what traps for it, and what has happened.
pub struct Guard {
    domain: Domain<HeapFrames>,
    traps: Traps,
    /// What has happened.
    pub ledger: Ledger,
    /// Some page may trap although it need not.
    may_overtrap: bool,
    /// Writes to such pages since they were last opened.
    idle: u32,
    /// KVM carries stores to trapped pages out, page by page: of one that crosses a page end it does
    /// the part in a page that does not trap before it tells of the other. So neighbours of bytes that
    /// are denied at a page end have to trap, too.
    splits_at_page_end: bool,
}

impl Guard {
    /// A guard over the guest's memory with no rule yet.
    ///
    /// `splits_at_page_end`: KVM carries stores to trapped pages out by itself, one page after the other.
    pub fn new(
        ram: &Ram,
        width: PhysicalWidth,
        traps: Traps,
        splits_at_page_end: bool,
    ) -> Result<Self, ChangeError> {
        let mut domain = Domain::new(HeapFrames::new(), width);
        domain.enable()?;
        // No processor walks these tables.
        domain.set_processor_use(ProcessorUse {
            sub_page_permissions: false,
            ept_accessed_dirty: false,
        });
        for (number, region) in (0..).zip(ram.regions()) {
            domain.add_slot(SPACE, SlotId(number), region.pages, SlotFlags::default())?;
        }
        Ok(Self {
            domain,
            traps,
            ledger: Ledger::default(),
            may_overtrap: false,
            idle: 0,
            splits_at_page_end,
        })
    }

    /// Rules, maps, tracking and the decision about a write.
    pub const fn domain(&self) -> &Domain<HeapFrames> {
        &self.domain
    }

    /// For decisions that take effect; permissions are changed by [`change`](Self::change).
    pub(crate) const fn domain_mut(&mut self) -> &mut Domain<HeapFrames> {
        &mut self.domain
    }

    /// What traps.
    pub const fn traps(&self) -> &Traps {
        &self.traps
    }

    /// What traps, to be changed.
    pub(crate) const fn traps_mut(&mut self) -> &mut Traps {
        &mut self.traps
    }

    /// Pages whose writes have to trap.
    fn restricted(&self) -> PageSet {
        let mut runs: Vec<GfnRange> = Vec::new();
        let mut next = Some(Gfn::new(0));
        while let Some(gfn) = next.and_then(|from| self.domain.next_restricted(from)) {
            runs.push(GfnRange::one(gfn));
            if self.splits_at_page_end {
                let neighbours = [
                    gfn.as_u64().checked_sub(1).map(Gfn::new).filter(|_| self.denies_edge(gfn, 0)),
                    gfn.checked_add(1).filter(|_| self.denies_edge(gfn, PAGE_BYTES - EDGE_BYTES)),
                ];
                runs.extend(neighbours.into_iter().flatten().map(GfnRange::one));
            }
            next = gfn.checked_add(1);
        }
        runs.into_iter().collect()
    }

    /// Whether writes to a page have to trap.
    fn has_to_trap(&self, gfn: Gfn) -> bool {
        if self.domain.next_restricted(gfn) == Some(gfn) {
            return true;
        }
        let before = gfn.as_u64().checked_sub(1).map(Gfn::new);
        self.splits_at_page_end
            && (gfn.checked_add(1).is_some_and(|after| self.denies_edge(after, 0))
                || before.is_some_and(|it| self.denies_edge(it, PAGE_BYTES - EDGE_BYTES)))
    }

    /// Whether a store could be denied for its bytes from `offset` of a page on, as far as a store
    /// reaches over a page end; now, or after an "allow once" there has been spent.
    fn denies_edge(&self, gfn: Gfn, offset: u64) -> bool {
        let first = gfn.gpa().checked_add(offset);
        let edge = first.and_then(|first| ByteRange::new(first, EDGE_BYTES).ok());
        edge.is_some_and(|edge| match self.domain.check_write(SPACE, edge) {
            Decision::Denied { .. } => true,
            Decision::Reported { rule, .. } => {
                let named = self.domain.rules().get(rule);
                named.is_some_and(|active| active.rule.action == Action::AllowOnce)
            }
            _ => false,
        })
    }

    /// Changes permissions of pages in `touched`; in force when it returns.
    ///
    /// First every page of `touched` is made to trap, then the engine decides, then what need not
    /// trap is opened. So there is no moment in which a page that the engine restricts does not trap,
    /// and what fails leaves all as it was. No processor may be in the guest.
    pub(crate) fn change<T, E: Into<ChangeError>>(
        &mut self,
        ram: &Ram,
        touched: &PageSet,
        change: impl FnOnce(&mut Domain<HeapFrames>) -> Result<(T, Invalidation), E>,
    ) -> Result<(T, Completed), ChangeError> {
        let before = self.traps.trapped().clone();
        self.traps.apply(ram, &before.union(&touched.intersection(&memory(ram))))?;
        match change(&mut self.domain) {
            Ok((result, token)) => {
                // No processor walks the engine's tables: what the guest's processors remember was
                // invalidated when the pages were closed above.
                let done = token.without_processors();
                self.domain.finish(&done);
                self.settle(ram);
                Ok((result, done))
            }
            Err(error) => {
                // Opening what was closed cannot need more than there was before.
                let _ = self.traps.apply(ram, &before);
                self.may_overtrap = true;
                Err(error.into())
            }
        }
    }

    /// Takes in exported state, before the guest runs. On an error the guard is of no use any more.
    pub(crate) fn import(&mut self, ram: &Ram, state: &[u8]) -> Result<(), ChangeError> {
        let token = self.domain.import(state, ram.bytes() / PAGE_BYTES)?;
        let done = token.without_processors();
        self.domain.finish(&done);
        let wanted = self.restricted().intersection(&memory(ram));
        self.may_overtrap = true;
        Ok(self.traps.apply(ram, &wanted)?)
    }

    /// Makes exactly those pages trap that have to.
    pub(crate) fn settle(&mut self, ram: &Ram) {
        let wanted = self.restricted().intersection(&memory(ram));
        // A page that stays closed costs exits, and nothing else: its writes are let through. All pages
        // with a restricted sub-page trap already; what may be missing are their neighbours.
        let _ = self.traps.apply(ram, &wanted);
        self.may_overtrap = *self.traps.trapped() != wanted;
    }

    /// Counts a write that trapped.
    pub(crate) fn ledger_count(&mut self, write: &WriteParts) {
        self.ledger.count(self.domain.rules(), write);
    }

    /// A permitted write has happened: opens its pages if nothing in them is restricted any more, as
    /// when the last tracked sub-page was written. True if the caller is to have that done where no
    /// processor is in the guest, which is asked for only when it has become worth it.
    pub(crate) fn after_write(&mut self, ram: &Ram, write: &WriteParts) -> bool {
        // A write opens what was tracked, and nothing else: a spent "allow once" closes.
        self.may_overtrap |= self.domain.tracked().next().is_some();
        if !self.may_overtrap {
            return false;
        }
        let mut settle = false;
        for run in write.runs() {
            for gfn in run.gfns().iter() {
                if !self.traps.traps(gfn) || self.has_to_trap(gfn) {
                    continue;
                }
                if self.traps.traps_by_view(gfn) {
                    // A page that stays closed costs exits, and nothing else.
                    self.traps.open_page(ram, gfn);
                    continue;
                }
                self.idle += 1;
                if self.idle >= IDLE_WRITES {
                    self.idle = 0;
                    settle = true;
                }
            }
        }
        settle
    }

    /// The sub-pages that are denied in a page, rules and maps together.
    pub fn permitted(&self, gfn: Gfn) -> AccessMap {
        self.domain.permitted(gfn)
    }

    /// Refuses ranges that are not all memory.
    pub(crate) fn check_memory(ram: &Ram, range: ByteRange) -> Result<(), ChangeError> {
        if ram.holds(range) {
            return Ok(());
        }
        let (first, last) = (range.first().as_u64(), range.last().as_u64());
        Err(ChangeError::NotMemory { first, last })
    }
}

/// All pages of the guest's memory.
fn memory(ram: &Ram) -> PageSet {
    ram.regions().iter().map(|region| region.pages).collect()
}
