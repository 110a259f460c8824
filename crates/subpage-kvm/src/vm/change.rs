//! Changing what is guarded while the guest runs. When a call returns, its change is in force.

use subpage::access::AccessMap;
use subpage::address::{ByteRange, Gfn, GfnRange};
use subpage::domain::{Domain, DomainError};
use subpage::frames::HeapFrames;
use subpage::invalidate::{Completed, Invalidation};
use subpage::rules::{Owner, Rule, RuleId};
use subpage::track::{TrackId, WrittenPage};
use subpage_emulate::guest::State;
use subpage_emulate::table_frames;

use super::{Paused, Vm, VmError, VmShared};
use crate::ending::{Ending, Failure};
use crate::guard::{ChangeError, Guard};
use crate::trap::{PageSet, TrapBy, pages_of};

/// How many tables of a processor are looked at for guarded ones: those of 64 GiB of memory.
const MAX_TABLES: usize = 1 << 15;

/// The pages that a change is about.
#[derive(Clone)]
pub(super) struct Touched {
    /// Pages that it may restrict.
    closes: PageSet,
    /// These, and those that it may release.
    pages: PageSet,
}

impl Touched {
    /// A change that may restrict pages.
    pub(super) fn closing(pages: PageSet) -> Self {
        Self { closes: pages.clone(), pages }
    }

    /// A change that restricts none.
    const fn opening(pages: PageSet) -> Self {
        Self { closes: PageSet::new(), pages }
    }
}

impl VmShared {
    /// Changes permissions of the pages that `touched` names, which is asked when no page can be
    /// opened any more, and may be asked before.
    ///
    /// Processors are stopped only if memory slots change. Otherwise they run, and a change waits for
    /// stores that are under way and take more than one decision.
    pub(super) fn change<T, E: Into<ChangeError>>(
        &self,
        touched: impl Fn(&Guard) -> Touched,
        change: impl FnOnce(&mut Domain<HeapFrames>) -> Result<(T, Invalidation), E>,
    ) -> Result<(T, Completed), ChangeError> {
        let alone = self.vcpus.exclude();
        let around = |guard: &Guard| {
            let Touched { closes, pages } = touched(guard);
            (guard.around(&self.ram, &closes), guard.around(&self.ram, &pages))
        };
        let mut guard = self.guard();
        let mut tables = PageSet::new();
        if guard.traps().by() == TrapBy::Mprotect && !self.native {
            let fresh = around(&guard).0.difference(guard.traps().trapped());
            if !fresh.is_empty() {
                drop(guard);
                tables = self.tables_among(&alone.states(), &fresh);
                guard = self.guard();
            }
        }
        let (closes, looked) = around(&guard);
        if guard.traps().need_slots(&looked) || !tables.is_empty() {
            drop(guard);
            let _paused = alone.pause();
            let mut guard = self.guard();
            // No store is under way: neighbours need not trap before the engine has decided.
            let closes = guard.within_memory(&self.ram, &touched(&guard).closes);
            let (_, looked) = around(&guard);
            let begun = guard.begin(&self.ram, &closes)?;
            let result = guard.change(&self.ram, begun, &looked, change)?;
            // Where that fails the tables trap as every other page does, which is no less guarded.
            let _ = guard.traps_mut().hold_tables(&self.ram, &tables);
            return Ok(result);
        }
        let begun = guard.begin(&self.ram, &closes)?;
        let all = guard.splits_at_page_end();
        if all || !guard.in_pieces().is_empty() {
            let waited_for: Vec<usize> = (0..self.vcpus.processors())
                .filter(|&number| {
                    let vcpu = u32::try_from(number).expect("a u32 was asked for");
                    all || guard.in_pieces().contains(&vcpu)
                })
                .collect();
            drop(guard);
            alone.wait_between_stores(&waited_for);
            guard = self.guard();
        }
        guard.change(&self.ram, begun, &looked, change)
    }

    /// After a restore: what was in read-only slots when the guest was saved, and the tables of its
    /// processors, are put there again, if it is KVM that walks page tables.
    pub(crate) fn hold_again(&self, paused: &Paused<'_>, held: &[(u64, u64)]) {
        let mut guard = self.guard();
        let trapped = guard.traps().trapped().clone();
        if guard.traps().by() != TrapBy::Mprotect || self.native || trapped.is_empty() {
            return;
        }
        let known = held
            .iter()
            .filter_map(|(first, pages)| GfnRange::new(Gfn::try_new(*first).ok()?, *pages).ok());
        let known = trapped.intersection(&pages_of(known));
        // A processor that cannot be asked has other troubles, which its exits tell.
        let states: Vec<State> = paused
            .processors
            .iter()
            .filter_map(|processor| Some(processor.interrupted().ok()?.state))
            .collect();
        let mut tables = self.tables_among(&states, &trapped);
        known.runs().for_each(|run| tables.insert(run));
        // Where that fails the tables trap as every other page does, which is no less guarded.
        let _ = guard.traps_mut().hold_tables(&self.ram, &tables);
    }

    /// Those of the pages that hold page tables of a processor.
    ///
    /// Where KVM walks page tables itself it sets accessed flags through the host's mapping, and gives
    /// the guest a page fault if it cannot; in a read-only slot it sets none.
    pub(super) fn tables_among(&self, states: &[State], pages: &PageSet) -> PageSet {
        let root = |state: &State| (state.cr3, state.cr0, state.cr4, state.efer);
        let mut states = states.to_vec();
        states.sort_unstable_by_key(root);
        states.dedup_by_key(|state| root(state));
        let found =
            states.iter().flat_map(|state| table_frames(&self.ram, self.paging, state, MAX_TABLES));
        found.filter(|gfn| pages.contains(*gfn)).map(GfnRange::one).collect()
    }

    /// Opens pages that need not trap any more.
    pub(crate) fn settle(&self) {
        let _paused = self.vcpus.pause();
        self.guard().settle_idle(&self.ram);
    }

    /// Puts trapping pages that hold page tables of the guest into read-only slots.
    pub(crate) fn hold_tables(&self, pages: &PageSet) {
        let _paused = self.vcpus.pause();
        let result = self.guard().traps_mut().hold_tables(&self.ram, pages);
        if let Err(error) = result {
            let reason = format!("page tables lie in guarded pages, and {error}");
            self.end(Ending::Failed(Failure::new(0, reason)));
        }
    }

    pub(crate) fn add_rules(&self, rules: &[Rule]) -> Result<RuleId, ChangeError> {
        for rule in rules {
            Guard::check_memory(&self.ram, rule.range)?;
        }
        let touched = Touched::closing(pages_of(rules.iter().map(|rule| rule.range.gfns())));
        let (first, _) = self.change(|_| touched.clone(), |domain| domain.add_rules(rules))?;
        for rule in rules {
            self.metrics.rule_added(rule.name.as_str());
        }
        Ok(first)
    }

    pub(crate) fn remove_rule(&self, rule: RuleId, by: Owner) -> Result<(), ChangeError> {
        let range = self.guard().domain().rules().get(rule).map(|active| active.rule.range);
        let touched = Touched::opening(pages_of(range.map(ByteRange::gfns)));
        let ((), _) = self.change(
            |_| touched.clone(),
            |domain| domain.remove_rule(rule, by).map(|token| ((), token)),
        )?;
        self.waiting().forget(rule);
        Ok(())
    }

    pub(crate) fn lock_rule(&self, rule: RuleId, by: Owner) -> Result<(), ChangeError> {
        Ok(self.guard().domain_mut().lock_rule(rule, by)?)
    }

    pub(crate) fn set_access(&self, first: Gfn, maps: &[AccessMap]) -> Result<(), ChangeError> {
        let range = GfnRange::new(first, maps.len() as u64).map_err(DomainError::from)?;
        let restricted = range.iter().zip(maps).filter(|(_, map)| !map.is_unrestricted());
        let touched = Touched {
            closes: restricted.map(|(gfn, _)| GfnRange::one(gfn)).collect(),
            pages: pages_of([range]),
        };
        let ((), _) = self.change(
            |_| touched.clone(),
            |domain| domain.set_access(first, maps).map(|token| ((), token)),
        )?;
        Ok(())
    }

    pub(crate) fn track(&self, range: ByteRange) -> Result<TrackId, ChangeError> {
        Guard::check_memory(&self.ram, range)?;
        let touched = Touched::closing(pages_of([range.gfns()]));
        let (track, _) = self.change(|_| touched.clone(), |domain| domain.track(range))?;
        Ok(track)
    }

    pub(crate) fn harvest(&self, track: TrackId) -> Result<Vec<WrittenPage>, ChangeError> {
        // A tracked page that traps continues to trap, whatever was written of it.
        let open = |guard: &Guard| {
            let tracked = guard.domain().tracked().find(|(id, _)| *id == track);
            let range = tracked.map(|(_, range)| range.gfns());
            let named = range.into_iter().flat_map(|range| guard.domain().names_of_pages(range));
            let gaps = |range| guard.traps().trapped().gaps_in(range);
            Touched::closing(named.flat_map(gaps).collect())
        };
        // The pages were closed before the engine was asked: no processor writes through an old
        // translation.
        let (pending, done) = self.change(open, |domain| domain.harvest_written(track))?;
        Ok(pending.ready(&done).expect("the harvest's own change is complete"))
    }

    pub(crate) fn untrack(&self, track: TrackId) -> Result<(), ChangeError> {
        let range = self.guard().domain().tracked().find(|(id, _)| *id == track);
        let touched = Touched::opening(pages_of(range.map(|(_, range)| range.gfns())));
        let ((), _) = self
            .change(|_| touched.clone(), |domain| domain.untrack(track).map(|token| ((), token)))?;
        Ok(())
    }
}

impl Vm {
    /// Adds rules, all or none; the number of the first, which the others follow.
    pub fn add_rules(&self, rules: &[Rule]) -> Result<RuleId, VmError> {
        Ok(self.machine.add_rules(rules)?)
    }

    /// Removes a rule.
    pub fn remove_rule(&self, rule: RuleId, by: Owner) -> Result<(), VmError> {
        Ok(self.machine.remove_rule(rule, by)?)
    }

    /// Locks a rule: nothing can loosen it any more.
    pub fn lock_rule(&self, rule: RuleId, by: Owner) -> Result<(), VmError> {
        Ok(self.machine.lock_rule(rule, by)?)
    }

    /// Sets the access maps of pages, all or none.
    pub fn set_access(&self, first: Gfn, maps: &[AccessMap]) -> Result<(), VmError> {
        Ok(self.machine.set_access(first, maps)?)
    }

    /// Reads what may be written of pages.
    pub fn get_access(&self, first: Gfn, maps: &mut [AccessMap]) -> Result<(), VmError> {
        let guard = self.machine.guard();
        Ok(guard.domain().get_access(first, maps).map_err(ChangeError::from)?)
    }

    /// Starts tracking which sub-pages of a range are written.
    pub fn track(&self, range: ByteRange) -> Result<TrackId, VmError> {
        Ok(self.machine.track(range)?)
    }

    /// The pages written since the last harvest, which are armed again.
    pub fn harvest(&self, track: TrackId) -> Result<Vec<WrittenPage>, VmError> {
        Ok(self.machine.harvest(track)?)
    }

    /// Stops tracking.
    pub fn untrack(&self, track: TrackId) -> Result<(), VmError> {
        Ok(self.machine.untrack(track)?)
    }
}
