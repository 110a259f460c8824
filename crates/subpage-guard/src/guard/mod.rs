//! The rules in force and what makes them so: one lock around both.

mod sub_page_counts;
mod trap_counts;
mod watched;

pub use sub_page_counts::{PageCounts, SubPageCounts};
pub use trap_counts::{RuleCounts, TrapCounts};
use watched::Watched;

use std::collections::BTreeSet;
use std::sync::Arc;

use subpage::access::AccessMap;
use subpage::address::{ByteRange, Gfn, GfnRange, PAGE_BYTES, PhysicalWidth};
use subpage::domain::{Decision, Domain, DomainError, ImportError, ProcessorUse, WriteParts};
use subpage::frames::HeapFrames;
use subpage::invalidate::{Completed, Invalidation};
use subpage::rules::{Action, RuleId};
use subpage::slots::{AddressSpace, SlotFlags, SlotId};
use subpage_trap::Record;
use thiserror::Error;

use crate::memory::GuestMemory;
use crate::trap::{PageSet, TrapError, Traps};

/// Guests have one address space: KVM keeps memory that only system-management mode sees apart, and
/// this VMM gives it none.
pub const SPACE: AddressSpace = AddressSpace::Normal;

/// How far a store reaches over a page end at most: the longest that KVM's emulator carries out, page by
/// page, is FXSAVE.
const EDGE_BYTES: u64 = 512 - 1;

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
        "bytes {first:#x}..={last:#x} are not all memory of the guest, and nothing else can be \
         guarded: {remedy}"
    )]
    NotMemory {
        /// First byte.
        first: u64,
        /// Last byte.
        last: u64,
        /// What it would take.
        remedy: String,
    },
}

/// What is guarded in a guest's memory, what traps for it, and what has happened.
pub struct Guard {
    domain: Domain<HeapFrames>,
    traps: Traps,
    trap_counts: TrapCounts,
    /// Some page may trap although it need not.
    may_overtrap: bool,
    /// Such pages, if they cannot be opened while the guest runs, that were written.
    idle: PageSet,
    /// Writes to them since they were last opened.
    idle_writes: u32,
    /// A change has begun.
    changing: bool,
    /// Processors in the middle of a store that takes several decisions.
    in_pieces: BTreeSet<u32>,
    /// What a debugger watches.
    watched: Watched,
    /// KVM carries stores to trapped pages out, page by page: of one that crosses a page end it does
    /// the part in a page that does not trap before it tells of the other. So neighbours of bytes that
    /// are denied at a page end have to trap, too.
    splits_at_page_end: bool,
}

impl Guard {
    /// A guard without memory, and with no rule yet.
    ///
    /// `splits_at_page_end`: KVM carries stores to trapped pages out by itself, one page after the other.
    pub fn new(
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
        Ok(Self {
            domain,
            traps,
            trap_counts: TrapCounts::default(),
            may_overtrap: false,
            idle: PageSet::new(),
            idle_writes: 0,
            changing: false,
            in_pieces: BTreeSet::new(),
            watched: Watched::default(),
            splits_at_page_end,
        })
    }

    /// Takes memory in; rules of its addresses hold from now on. Its pages trap from
    /// [`close_wanted`](Self::close_wanted) on.
    pub fn add_memory(&mut self, id: SlotId, pages: GfnRange) -> Result<(), ChangeError> {
        Ok(self.domain.add_slot(SPACE, id, pages, SlotFlags::default())?)
    }

    /// Takes in that memory has a second name: that of the pages from `original` on. What is guarded
    /// under one is guarded under both from now on.
    pub fn add_alias(
        &mut self,
        id: SlotId,
        pages: GfnRange,
        original: Gfn,
    ) -> Result<(), ChangeError> {
        let token = self.domain.add_alias(SPACE, id, pages, SlotFlags::default(), original)?;
        // No processor walks these tables.
        self.domain.finish(&token.without_processors());
        Ok(())
    }

    /// Lets memory go that [`add_memory`](Self::add_memory) or [`add_alias`](Self::add_alias) took in, and
    /// its pages be written. Its rules stay, for memory that comes there again.
    pub fn remove_memory(
        &mut self,
        ram: &impl GuestMemory,
        id: SlotId,
        pages: GfnRange,
    ) -> Result<(), ChangeError> {
        let is_alias = self.domain.original(pages.first()) != pages.first();
        let token = self.domain.remove_slot(SPACE, id)?;
        // No processor walks these tables.
        self.domain.finish(&token.without_processors());
        let pages = [pages].into_iter().collect();
        if is_alias {
            // By their other names they trap as before.
            self.traps.forget(&pages);
        } else {
            self.traps.open(ram, &pages);
        }
        Ok(())
    }

    /// Makes those pages of memory trap that have to. If slots change, no processor may be in the guest.
    pub fn close_wanted(&mut self, ram: &impl GuestMemory) -> Result<(), ChangeError> {
        self.traps.close(ram, &self.wanted(&memory(ram)))?;
        Ok(())
    }

    /// Rules, maps, tracking and the decision about a write.
    pub const fn domain(&self) -> &Domain<HeapFrames> {
        &self.domain
    }

    /// For decisions that take effect; permissions are changed by [`change`](Self::change).
    pub const fn domain_mut(&mut self) -> &mut Domain<HeapFrames> {
        &mut self.domain
    }

    /// What traps.
    pub const fn traps(&self) -> &Traps {
        &self.traps
    }

    /// What traps, to be changed.
    pub const fn traps_mut(&mut self) -> &mut Traps {
        &mut self.traps
    }

    /// Those of the pages of `looked` whose writes have to trap.
    fn wanted(&self, looked: &PageSet) -> PageSet {
        let mut wanted = PageSet::new();
        for run in looked.runs() {
            wanted.extend(self.domain.restricted_runs(run));
            wanted.extend(self.watched.pages().runs_in(run));
            if self.splits_at_page_end {
                for gfn in self.domain.denying_pages(with_neighbours(run)) {
                    let before = gfn.as_u64().checked_sub(1).map(Gfn::new);
                    let neighbours = [
                        before.filter(|_| self.denies_edge(gfn, 0)),
                        gfn.checked_add(1)
                            .filter(|_| self.denies_edge(gfn, PAGE_BYTES - EDGE_BYTES)),
                    ];
                    wanted.extend(neighbours.into_iter().flatten().map(GfnRange::one));
                }
            }
        }
        // Of memory with several names, a page traps by all of them.
        self.named(&wanted).intersection(looked)
    }

    /// Whether writes to a page have to trap.
    fn has_to_trap(&self, gfn: Gfn) -> bool {
        !self.wanted(&[GfnRange::one(gfn)].into_iter().collect()).is_empty()
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

    /// Those of the pages that are memory, under all names.
    pub fn within_memory(&self, ram: &impl GuestMemory, pages: &PageSet) -> PageSet {
        self.named(pages).intersection(&memory(ram))
    }

    /// The pages under all names.
    fn named(&self, pages: &PageSet) -> PageSet {
        pages.runs().flat_map(|run| self.domain.names_of_pages(run)).collect()
    }

    /// The pages that a change of the permissions of `pages` may close or open.
    pub fn around(&self, ram: &impl GuestMemory, pages: &PageSet) -> PageSet {
        let (memory, pages) = (memory(ram), self.named(pages));
        if !self.splits_at_page_end {
            return pages.intersection(&memory);
        }
        let around: PageSet = pages.runs().map(with_neighbours).collect();
        self.named(&around).intersection(&memory)
    }

    /// Begins a change: makes every page that it may restrict, of `pages`, trap. No page is opened until
    /// the change [ends](Self::change). On an error nothing has changed.
    ///
    /// If slots change, no processor may be in the guest.
    pub fn begin(&mut self, ram: &impl GuestMemory, pages: &PageSet) -> Result<Begun, ChangeError> {
        let fresh = self.traps.close(ram, pages)?;
        self.changing = true;
        Ok(Begun { fresh })
    }

    /// Changes permissions, and lets those of the pages `looked` be written that need not trap; in
    /// force when it returns.
    ///
    /// First every page was made to trap, now the engine decides, then what need not trap is opened. So
    /// there is no moment in which a page that the engine restricts does not trap, and what fails
    /// leaves all as it was.
    pub fn change<T, E: Into<ChangeError>>(
        &mut self,
        ram: &impl GuestMemory,
        begun: Begun,
        looked: &PageSet,
        change: impl FnOnce(&mut Domain<HeapFrames>) -> Result<(T, Invalidation), E>,
    ) -> Result<(T, Completed), ChangeError> {
        self.changing = false;
        self.trap_counts.attribute(&self.domain);
        match change(&mut self.domain) {
            Ok((result, token)) => {
                // No processor walks the engine's tables: what the guest's processors remember was
                // invalidated when the pages were closed above.
                let done = token.without_processors();
                self.domain.finish(&done);
                self.settle(ram, looked);
                Ok((result, done))
            }
            Err(error) => {
                // What was closed need not be, unless a write since then has made it so.
                let Begun { fresh } = begun;
                self.settle(ram, &fresh);
                Err(error.into())
            }
        }
    }

    /// Takes in exported state, before the guest runs. On an error the guard is of no use any more.
    pub fn import(&mut self, ram: &impl GuestMemory, state: &[u8]) -> Result<(), ChangeError> {
        let most = memory(ram).pages();
        let token = self.domain.import(state, most)?;
        let done = token.without_processors();
        self.domain.finish(&done);
        self.traps.close(ram, &self.wanted(&memory(ram)))?;
        Ok(())
    }

    /// Makes exactly those of some pages trap that have to.
    ///
    /// If slots change, no processor may be in the guest.
    fn settle(&mut self, ram: &impl GuestMemory, looked: &PageSet) {
        let wanted = self.wanted(looked);
        // All pages with a restricted sub-page trap already; what may be missing are neighbours that
        // the change has closed before, so that this fails where the host does.
        let _ = self.traps.close(ram, &wanted);
        // A page that stays closed costs exits, and nothing else: its writes are let through.
        let left = self.traps.open(ram, &looked.difference(&wanted));
        self.may_overtrap |= !left.is_empty();
    }

    /// Opens pages that trap and need not, which [`after_write`](Self::after_write) has found. No
    /// processor may be in the guest.
    pub fn settle_idle(&mut self, ram: &impl GuestMemory) {
        let idle = std::mem::take(&mut self.idle);
        self.idle_writes = 0;
        self.settle(ram, &idle);
    }

    /// Whether a change has begun and not ended: no store is to begin that takes several decisions.
    pub const fn is_changing(&self) -> bool {
        self.changing
    }

    /// A store of which a part is done goes on under the rules that it began with.
    pub fn store_begins(&mut self, vcpu: u32) {
        self.in_pieces.insert(vcpu);
    }

    /// That store has ended.
    pub fn store_ended(&mut self, vcpu: u32) {
        self.in_pieces.remove(&vcpu);
    }

    /// The processors in the middle of such a store.
    pub const fn in_pieces(&self) -> &BTreeSet<u32> {
        &self.in_pieces
    }

    /// Whether a change may have to wait for every processor: KVM may be carrying out a store to two
    /// pages, one after the other.
    pub const fn splits_at_page_end(&self) -> bool {
        self.splits_at_page_end
    }

    /// Counts of what trapped so far, beside what they are about.
    pub fn counted(&mut self) -> (&Domain<HeapFrames>, &TrapCounts) {
        self.trap_counts.attribute(&self.domain);
        (&self.domain, &self.trap_counts)
    }

    /// What access maps deny beside rules, by page, ascending; an alias tells it again.
    pub fn map_denials(&self) -> impl Iterator<Item = (Gfn, AccessMap)> {
        let domain = &self.domain;
        let everywhere = GfnRange::new(Gfn::new(0), Gfn::MAX.as_u64() + 1).expect("every page");
        domain
            .denying_pages(everywhere)
            .map(|gfn| (gfn, !domain.base_map(gfn)))
            .filter(|(_, denied)| !denied.is_empty())
    }

    /// Leaves a rule out of all counts.
    pub fn hide(&mut self, rule: RuleId) {
        self.trap_counts.hide(rule);
    }

    /// Counts a write that trapped and touches no restricted sub-page.
    pub fn count_open(&mut self, write: &WriteParts) {
        self.trap_counts.count_open(&self.domain, write);
    }

    /// Counts a write that trapped.
    pub fn count_trapped(&mut self, write: &WriteParts) {
        self.trap_counts.count(&self.domain, write);
    }

    /// Counts a write that did not trap, and was decided about.
    pub fn count_untrapped(&mut self, write: &WriteParts) {
        self.trap_counts.count_untrapped(write);
    }

    /// Numbers the event of a write that was just decided about, and counts it for the rules that guard
    /// bytes of it.
    pub fn record(&mut self, record: Record, write: &WriteParts) -> Arc<Record> {
        self.trap_counts.record(&self.domain, record, write)
    }

    /// A permitted write has happened: opens its pages if nothing in them is restricted any more, as
    /// when the last tracked sub-page was written. True if the caller is to have that done where no
    /// processor is in the guest, which is asked for only when it has become worth it.
    pub fn after_write(&mut self, ram: &impl GuestMemory, write: &WriteParts) -> bool {
        // A write opens what was tracked, and nothing else: a spent "allow once" closes.
        self.may_overtrap |= self.domain.tracked().next().is_some();
        if !self.may_overtrap || self.changing {
            return false;
        }
        let mut settle = false;
        for run in write.runs() {
            for gfn in run.gfns().iter() {
                if !self.traps.traps(gfn) || self.has_to_trap(gfn) {
                    continue;
                }
                if self.traps.traps_by_mprotect(gfn) {
                    // A page that stays closed costs exits, and nothing else.
                    self.traps.open(ram, &[GfnRange::one(gfn)].into_iter().collect());
                    continue;
                }
                self.idle.insert(GfnRange::one(gfn));
                self.idle_writes += 1;
                settle |= self.idle_writes >= IDLE_WRITES;
            }
        }
        settle
    }

    /// The sub-pages that are denied in a page, rules and maps together.
    pub fn permitted(&self, gfn: Gfn) -> AccessMap {
        self.domain.permitted(gfn)
    }

    /// Refuses ranges that are not all memory.
    pub fn check_memory(ram: &impl GuestMemory, range: ByteRange) -> Result<(), ChangeError> {
        if ram.holds(range) {
            return Ok(());
        }
        let (first, last) = (range.first().as_u64(), range.last().as_u64());
        Err(ChangeError::NotMemory { first, last, remedy: ram.remedy(range) })
    }
}

/// A change that has begun: what it had to close.
#[must_use = "a change that has begun must end"]
pub struct Begun {
    fresh: PageSet,
}

/// Pages and the one before and behind them.
fn with_neighbours(pages: GfnRange) -> GfnRange {
    let first = pages.first().as_u64().saturating_sub(1);
    let last = pages.last().checked_add(1).unwrap_or(pages.last());
    GfnRange::new(Gfn::new(first), last.as_u64() - first + 1).expect("pages around others")
}

/// All pages of the guest's memory, under all names.
fn memory(ram: &impl GuestMemory) -> PageSet {
    ram.runs().collect()
}
