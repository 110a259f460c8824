//! The rules in force and what makes them so: one lock around both.

mod ledger;

pub use ledger::{Ledger, RuleCounts};

use subpage::access::AccessMap;
use subpage::address::{ByteRange, Gfn, GfnRange, PAGE_BYTES, PhysicalWidth};
use subpage::domain::{Domain, DomainError, ImportError, ProcessorUse, WriteParts};
use subpage::frames::HeapFrames;
use subpage::invalidate::{Completed, Invalidation};
use subpage::slots::{AddressSpace, SlotFlags, SlotId};
use thiserror::Error;

use crate::memory::Ram;
use crate::trap::{PageSet, TrapError, Traps};

/// Guests have one address space: KVM keeps memory that only system-management mode sees apart, and
/// this VMM gives it none.
pub const SPACE: AddressSpace = AddressSpace::Normal;

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
    /// Writes to pages that trap although they need not, since such pages were last opened.
    idle: u32,
}

impl Guard {
    /// A guard over the guest's memory with no rule yet.
    pub fn new(ram: &Ram, width: PhysicalWidth, traps: Traps) -> Result<Self, ChangeError> {
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
        Ok(Self { domain, traps, ledger: Ledger::default(), idle: 0 })
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
            next = gfn.checked_add(1);
        }
        runs.into_iter().collect()
    }

    /// Changes permissions of pages in `touched`; in force when it returns.
    ///
    /// First every page of `touched` is made to trap, then the engine decides, then what need not
    /// trap is opened. So there is no moment in which a page that the engine restricts does not trap,
    /// and what fails leaves all as it was. If [`Traps::needs_pause`], no processor may be in the
    /// guest.
    pub(crate) fn change<T, E: Into<ChangeError>>(
        &mut self,
        ram: &Ram,
        touched: &PageSet,
        change: impl FnOnce(&mut Domain<HeapFrames>) -> Result<(T, Invalidation), E>,
    ) -> Result<(T, Completed), ChangeError> {
        let before = self.traps.trapped().clone();
        let memory: PageSet = ram.regions().iter().map(|region| region.pages).collect();
        self.traps.apply(ram, &before.union(&touched.intersection(&memory)))?;
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
                Err(error.into())
            }
        }
    }

    /// Takes in exported state, before the guest runs. On an error the guard is of no use any more.
    pub(crate) fn import(&mut self, ram: &Ram, state: &[u8]) -> Result<(), ChangeError> {
        let token = self.domain.import(state, ram.bytes() / PAGE_BYTES)?;
        let done = token.without_processors();
        self.domain.finish(&done);
        let memory: PageSet = ram.regions().iter().map(|region| region.pages).collect();
        let wanted = self.restricted().intersection(&memory);
        Ok(self.traps.apply(ram, &wanted)?)
    }

    /// Opens the pages that need not trap any more.
    pub(crate) fn settle(&mut self, ram: &Ram) {
        let memory: PageSet = ram.regions().iter().map(|region| region.pages).collect();
        let wanted = self.restricted().intersection(&memory);
        // A page that stays closed costs exits, and nothing else: its writes are let through.
        let _ = self.traps.apply(ram, &wanted);
    }

    /// Counts a write that trapped.
    pub(crate) fn ledger_count(&mut self, write: &WriteParts) {
        self.ledger.count(self.domain.rules(), write);
    }

    /// Whether one of the pages of a run traps.
    pub(crate) fn traps_write(&self, run: ByteRange) -> bool {
        self.traps.traps(run.first().gfn()) || self.traps.traps(run.last().gfn())
    }

    /// A permitted write has happened: opens its pages if nothing in them is restricted any more, as
    /// when the last tracked sub-page was written. True if the caller is to have that done where no
    /// processor is in the guest, which is asked for only when it has become worth it.
    pub(crate) fn after_write(&mut self, ram: &Ram, write: &WriteParts) -> bool {
        let mut settle = false;
        for run in write.runs() {
            for gfn in run.gfns().iter() {
                if !self.traps.traps(gfn) || self.domain.next_restricted(gfn) == Some(gfn) {
                    continue;
                }
                if !self.traps.needs_pause() {
                    let page = [GfnRange::one(gfn)].into_iter().collect();
                    let wanted = self.traps.trapped().difference(&page);
                    // A page that stays closed costs exits, and nothing else.
                    let _ = self.traps.apply(ram, &wanted);
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
