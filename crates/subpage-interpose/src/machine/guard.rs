//! What is guarded in a machine's memory, and what is closed for it: one lock around both.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use subpage::access::AccessMap;
use subpage::address::{ByteRange, Gfn, GfnRange, PAGE_BYTES, PhysicalWidth};
use subpage::domain::{Domain, DomainError, ProcessorUse};
use subpage::frames::HeapFrames;
use subpage::invalidate::Invalidation;
use subpage::rules::{Owner, Rule, RuleId};
use subpage::slots::{AddressSpace, SlotFlags, SlotId};

use crate::memory::{Memory, Name, Piece};

/// Rules hold whatever mode a processor is in: system-management mode has other names for memory, and
/// the same memory.
pub(crate) const SPACE: AddressSpace = AddressSpace::Normal;

/// How far a store reaches over a page end at most, in sub-pages: the longest that KVM carries out, page
/// by page, has 512 bytes.
const EDGE: u32 = 0b1111;

/// Why a change was refused. Nothing has changed, unless it is the host that refuses to close a neighbour of the
/// range: then the engine holds the change already.
#[derive(Debug)]
pub(crate) enum ChangeError {
    /// The engine refuses it.
    Domain(DomainError),
    /// The host cannot close the pages.
    Host(io::Error),
    /// The bytes are not all memory.
    NotMemory(ByteRange),
}

impl std::fmt::Display for ChangeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Domain(error) => error.fmt(f),
            Self::Host(error) if error.raw_os_error() == Some(libc::ENOMEM) => f.write_str(
                "the kernel has no more mappings for this process: too many separate runs of guarded \
                 pages (sysctl vm.max_map_count; each run needs two)",
            ),
            Self::Host(error) => write!(f, "cannot change the protection of pages: {error}"),
            Self::NotMemory(range) => write!(
                f,
                "bytes {:#x}..={:#x} are not all memory of the guest, and nothing else can be guarded",
                range.first().as_u64(),
                range.last().as_u64()
            ),
        }
    }
}

impl From<DomainError> for ChangeError {
    fn from(error: DomainError) -> Self {
        Self::Domain(error)
    }
}

/// What a rule did.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    /// Writes that it reported and let happen.
    pub(crate) logged: u64,
    /// Writes that it denied.
    pub(crate) denied: u64,
}

/// What is guarded. All addresses in the domain are places (see [`Memory`]).
pub(crate) struct Core {
    pub(crate) domain: Domain<HeapFrames>,
    pub(crate) memory: Memory,
    /// Frames whose pages are closed.
    closed: BTreeSet<u64>,
    /// How often what is closed has changed.
    changes: u64,
    /// Pages that were written here for the guest since their log was last read.
    pub(crate) dirty: BTreeSet<u64>,
    /// The VMM clears logs itself.
    pub(crate) clears_logs: bool,
    /// Writes that trapped.
    pub(crate) writes: u64,
    pub(crate) counts: BTreeMap<RuleId, Counts>,
}

impl Core {
    /// Nothing guarded, no memory.
    pub(crate) fn new(separate_view: bool) -> Self {
        let width = PhysicalWidth::try_new(52).expect("the widest");
        let mut domain = Domain::new(HeapFrames::new(), width);
        domain.enable().expect("an empty domain needs two frames");
        // No processor walks these tables.
        domain.set_processor_use(ProcessorUse {
            sub_page_permissions: false,
            ept_accessed_dirty: false,
        });
        Self {
            domain,
            memory: Memory::new(separate_view),
            closed: BTreeSet::new(),
            changes: 0,
            dirty: BTreeSet::new(),
            clears_logs: false,
            writes: 0,
            counts: BTreeMap::new(),
        }
    }

    /// Whether writes to a page, by place, trap.
    pub(crate) fn is_closed(&self, place: Gfn) -> bool {
        self.closed.contains(&place.as_u64())
    }

    /// Whether writes to a guest-physical page trap.
    pub(crate) fn traps(&self, page: Gfn) -> bool {
        let place = self.memory.place(page.gpa().as_u64());
        place.is_some_and(|(place, _)| self.closed.contains(&(place / PAGE_BYTES)))
    }

    /// Pages that are closed.
    pub(crate) fn closed_pages(&self) -> u64 {
        self.closed.len() as u64
    }

    /// How often what is closed has changed.
    pub(crate) const fn changes(&self) -> u64 {
        self.changes
    }

    /// Whether one of so many bytes of the VMM lies in a closed page.
    pub(crate) fn closes_host(&self, host: u64, bytes: u64) -> bool {
        if self.closed.is_empty() {
            return false;
        }
        self.memory.pieces().iter().any(|piece| {
            let from = host.max(piece.host);
            let to = host.saturating_add(bytes).min(piece.host + piece.bytes);
            from < to && {
                let first = (piece.place + (from - piece.host)) / PAGE_BYTES;
                let last = (piece.place + (to - 1 - piece.host)) / PAGE_BYTES;
                self.closed.range(first..=last).next().is_some()
            }
        })
    }

    /// A slot is about to be made or changed: its memory is known afterwards.
    pub(crate) fn learn(&mut self, name: &Name) -> io::Result<()> {
        for piece in self.memory.learn(name.gpa, name.bytes, name.host)? {
            self.add_piece(&piece)?;
        }
        Ok(())
    }

    fn add_piece(&mut self, piece: &Piece) -> io::Result<()> {
        let Some(pages) = pages(piece) else {
            return Err(io::Error::other("memory beyond all guest-physical addresses"));
        };
        let taken = |id: &u16| self.domain.slots(SPACE).get(SlotId(*id)).is_ok();
        let slot = (0..u16::MAX).find(|id| !taken(id)).map(SlotId);
        let slot = slot.ok_or_else(|| io::Error::other("memory in more than 65,535 mappings"))?;
        let added = self.domain.add_slot(SPACE, slot, pages, SlotFlags::default());
        added.map_err(|error| io::Error::other(error.to_string()))?;
        // Rules of memory that was here before hold for it.
        let wanted = self.wanted(pages);
        self.close(&wanted).map(drop)
    }

    /// The VMM's mapping of these bytes is another now, or none.
    pub(crate) fn forget(&mut self, host: u64, bytes: u64) {
        let gone = self.memory.forget(host, bytes);
        if gone.is_empty() {
            return;
        }
        // What is left of memory that was one slot of the engine's becomes slots again.
        let slots: Vec<(SlotId, GfnRange)> =
            self.domain.slots(SPACE).iter().map(|slot| (slot.id(), slot.pages())).collect();
        for pages in gone.iter().filter_map(pages) {
            self.closed.retain(|gfn| !pages.contains(Gfn::new(*gfn)));
            for (id, _) in slots.iter().filter(|(_, slot)| overlap(*slot, pages)) {
                if let Ok(token) = self.domain.remove_slot(SPACE, *id) {
                    self.finish(token);
                }
            }
        }
        for piece in self.memory.pieces().to_vec() {
            let Some(pages) = pages(&piece) else { continue };
            if !self.domain.slots(SPACE).iter().any(|slot| overlap(slot.pages(), pages)) {
                // It was a slot before, so that it can be one again.
                let _ = self.add_piece(&piece);
            }
        }
        self.changes += 1;
    }

    fn finish(&mut self, token: Invalidation) {
        // No processor walks the engine's tables; what processors remember of pages, the kernel drops
        // when their protection changes.
        let done = token.without_processors();
        self.domain.finish(&done);
    }

    /// Closes pages that are open. Gives those.
    fn close(&mut self, pages: &BTreeSet<u64>) -> io::Result<BTreeSet<u64>> {
        let fresh: BTreeSet<u64> = pages.difference(&self.closed).copied().collect();
        for run in runs(&fresh) {
            if let Err(error) = self.memory.set_writable(run, false) {
                for run in runs(&fresh) {
                    // As it was: that needs no more mappings than there were.
                    let _ = self.memory.set_writable(run, true);
                }
                return Err(error);
            }
        }
        self.closed.extend(&fresh);
        self.changes += 1;
        Ok(fresh)
    }

    /// Opens those of some pages that need not be closed.
    fn settle(&mut self, pages: &BTreeSet<u64>) {
        let wanted: BTreeSet<u64> = runs(pages).iter().flat_map(|run| self.wanted(*run)).collect();
        let open: BTreeSet<u64> =
            pages.difference(&wanted).filter(|gfn| self.closed.contains(gfn)).copied().collect();
        for run in runs(&open) {
            // A page that stays closed costs exits, and nothing else: its writes are let through.
            if self.memory.set_writable(run, true).is_ok() {
                for gfn in run.iter() {
                    self.closed.remove(&gfn.as_u64());
                }
            }
        }
        self.changes += 1;
    }

    /// Those of some pages whose writes have to trap: pages with a guarded sub-page, and neighbours of
    /// bytes that are denied at a page end. Where KVM carries a store out by itself, it does the part in
    /// an open page before it tells of the other.
    fn wanted(&self, pages: GfnRange) -> BTreeSet<u64> {
        let around = |gfn: u64| {
            let permitted = |gfn: u64| {
                Gfn::try_new(gfn).map_or(AccessMap::ALL, |gfn| self.domain.permitted(gfn))
            };
            let after = permitted(gfn + 1).bits() & EDGE != EDGE;
            let before = gfn
                .checked_sub(1)
                .is_some_and(|gfn| permitted(gfn).bits() & EDGE << 28 != EDGE << 28);
            after || before
        };
        let restricted = self.domain.restricted_runs(pages).flat_map(GfnRange::iter);
        let mut wanted: BTreeSet<u64> = restricted.map(Gfn::as_u64).collect();
        if self.domain.next_restricted(Gfn::new(0)).is_some() {
            let first = pages.first().as_u64();
            let near = self.near(first, first + pages.pages());
            wanted.extend(near.into_iter().filter(|gfn| around(*gfn)));
        }
        wanted
    }

    /// Pages from `first` to before `end` next to restricted ones.
    fn near(&self, first: u64, end: u64) -> BTreeSet<u64> {
        let from = first.saturating_sub(1);
        let Ok(gfn) = Gfn::try_new(from) else { return BTreeSet::new() };
        let Ok(range) = GfnRange::new(gfn, end + 1 - from) else { return BTreeSet::new() };
        let restricted = self.domain.restricted_runs(range).flat_map(GfnRange::iter);
        restricted
            .flat_map(|gfn| [gfn.as_u64().wrapping_sub(1), gfn.as_u64() + 1])
            .filter(|gfn| (first..end).contains(gfn))
            .collect()
    }

    /// Changes permissions of pages, by place; in force when it returns.
    ///
    /// First every page is closed, then the engine decides, then what need not be closed is opened: there
    /// is no moment in which a guarded page is open.
    pub(crate) fn change<T>(
        &mut self,
        pages: GfnRange,
        change: impl FnOnce(&mut Domain<HeapFrames>) -> Result<(T, Invalidation), DomainError>,
    ) -> Result<T, ChangeError> {
        let around = around(pages);
        let own: BTreeSet<u64> = pages.iter().map(Gfn::as_u64).collect();
        let with_memory =
            own.into_iter().filter(|gfn| self.memory.at_place(gfn * PAGE_BYTES).is_some());
        let with_memory: BTreeSet<u64> = with_memory.collect();
        self.close(&with_memory).map_err(ChangeError::Host)?;
        let changed = change(&mut self.domain).map(|(result, token)| {
            self.finish(token);
            result
        });
        let wanted: BTreeSet<u64> =
            runs(&around).iter().flat_map(|run| self.wanted(*run)).collect();
        let closed = self.close(&wanted);
        self.settle(&around);
        let result = changed?;
        // The engine holds them already; only a neighbour may be open.
        closed.map_err(ChangeError::Host)?;
        Ok(result)
    }

    /// Adds a rule, whose range is guest-physical; it belongs to the memory that is there now.
    pub(crate) fn add_rule(&mut self, rule: &Rule, armed: bool) -> Result<RuleId, ChangeError> {
        let places = self.memory.places(rule.range).ok_or(ChangeError::NotMemory(rule.range))?;
        let rule = Rule { range: places, ..*rule };
        self.change(places.gfns(), |domain| domain.add_some_armed(&[(rule, armed)]))
    }

    /// Removes a rule.
    pub(crate) fn remove_rule(&mut self, id: RuleId) -> Result<(), ChangeError> {
        let active = self.domain.rules().get(id).ok_or(DomainError::NoSuchRule(id))?;
        let pages = active.rule.range.gfns();
        self.change(pages, |domain| Ok(((), domain.remove_rule(id, Owner::HOST)?)))
    }

    /// Puts a rule in force that waits; false if it was.
    pub(crate) fn arm(&mut self, id: RuleId) -> Result<bool, ChangeError> {
        let active = self.domain.rules().get(id).ok_or(DomainError::NoSuchRule(id))?;
        if active.armed {
            return Ok(false);
        }
        let pages = active.rule.range.gfns();
        self.change(pages, |domain| Ok(((), domain.arm_rules(&[id])?)))?;
        Ok(true)
    }

    /// Whether KVM keeps a log of some slot.
    pub(crate) fn logs(&self) -> bool {
        self.memory.names.iter().any(|name| name.logs)
    }

    /// A permitted write of the guest has happened here: KVM does not know of it.
    pub(crate) fn note_dirty(&mut self, written: &[ByteRange]) {
        if self.logs() {
            let gfns = written.iter().flat_map(|run| run.gfns().iter());
            self.dirty.extend(gfns.map(Gfn::as_u64));
        }
    }

    /// The VMM has changed the protection of pages of its own: what has to be closed is closed again.
    pub(crate) fn close_again(&mut self, host: u64, bytes: u64) {
        let (first, end) = (host, host.saturating_add(bytes));
        let closed: Vec<u64> = self.closed.iter().copied().collect();
        for gfn in closed {
            let Some(piece) = self.memory.at_place(gfn * PAGE_BYTES) else { continue };
            let at = piece.host + (gfn * PAGE_BYTES - piece.place);
            if at < end && at + PAGE_BYTES > first {
                let page = GfnRange::one(Gfn::new(gfn));
                if self.memory.set_writable(page, false).is_err() {
                    crate::say::give_up(
                        "cannot close a guarded page again that the VMM has opened",
                    );
                }
            }
        }
    }
}

fn pages(piece: &Piece) -> Option<GfnRange> {
    let first = crate::memory::gpa(piece.place)?.gfn();
    GfnRange::new(first, piece.bytes / PAGE_BYTES).ok()
}

fn overlap(one: GfnRange, other: GfnRange) -> bool {
    one.contains(other.first()) || other.contains(one.first())
}

/// The pages and their neighbours.
fn around(pages: GfnRange) -> BTreeSet<u64> {
    let first = pages.first().as_u64();
    (first.saturating_sub(1)..=first + pages.pages()).collect()
}

/// The runs of a set of frames.
fn runs(pages: &BTreeSet<u64>) -> Vec<GfnRange> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for gfn in pages {
        match runs.last_mut() {
            Some((first, count)) if *first + *count == *gfn => *count += 1,
            _ => runs.push((*gfn, 1)),
        }
    }
    let range = |(first, count)| GfnRange::new(Gfn::try_new(first).ok()?, count).ok();
    runs.into_iter().filter_map(range).collect()
}
