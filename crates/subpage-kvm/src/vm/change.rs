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

use super::{Machine, Paused, Vm, VmError};
use crate::ending::{Ending, Failure};
use crate::guard::{ChangeError, Guard};
use crate::trap::{PageSet, TrapBy, pages_of};

/// How many tables of a processor are looked at for guarded ones: those of 64 GiB of memory.
const MAX_TABLES: usize = 1 << 15;

impl Machine {
    /// Changes permissions of the pages in `touched`.
    pub(crate) fn change<T, E: Into<ChangeError>>(
        &self,
        touched: &PageSet,
        change: impl FnOnce(&mut Domain<HeapFrames>) -> Result<(T, Invalidation), E>,
    ) -> Result<(T, Completed), ChangeError> {
        // Also where no slot changes: a store of which a part is done finds the rules that it began
        // with, because its thread holds the processor.
        let paused = self.vcpus.pause();
        let mut guard = self.guard();
        let before = guard.traps().trapped().clone();
        let result = guard.change(&self.ram, touched, change)?;
        let fresh = guard.traps().trapped().difference(&before);
        if guard.traps().by() == TrapBy::View && !self.native && !fresh.is_empty() {
            let tables = self.tables_among(&paused, &fresh);
            // Where that fails the tables trap as every other page does, which is no less guarded.
            let _ = guard.traps_mut().hold_tables(&self.ram, &tables);
        }
        Ok(result)
    }

    /// Those of the pages that hold page tables of a processor.
    ///
    /// Where KVM walks page tables itself it sets accessed flags through the host's mapping, and gives
    /// the guest a page fault if it cannot; in a read-only slot it sets none.
    fn tables_among(&self, paused: &Paused<'_>, pages: &PageSet) -> PageSet {
        // A processor that cannot be asked has other troubles, which its exits tell.
        let mut states: Vec<_> = paused
            .processors
            .iter()
            .filter_map(|processor| Some(processor.interrupted().ok()?.state))
            .collect();
        let root = |state: &State| (state.cr3, state.cr0, state.cr4, state.efer);
        states.sort_unstable_by_key(root);
        states.dedup_by_key(|state| root(state));
        let found =
            states.iter().flat_map(|state| table_frames(&self.ram, self.paging, state, MAX_TABLES));
        pages_of(found.map(GfnRange::one)).intersection(pages)
    }

    /// Opens pages that need not trap any more.
    pub(crate) fn settle(&self) {
        let _paused = self.vcpus.pause();
        self.guard().settle(&self.ram);
    }

    /// Puts trapping pages that hold page tables of the guest into read-only slots.
    pub(crate) fn hold_tables(&self, pages: &PageSet) {
        let _paused = self.vcpus.pause();
        let result = self.guard().traps_mut().hold_tables(&self.ram, pages);
        if let Err(error) = result {
            self.end(Ending::Failed(Failure {
                vcpu: 0,
                rip: None,
                instruction: Vec::new(),
                reason: format!("page tables lie in guarded pages, and {error}"),
            }));
        }
    }

    pub(crate) fn add_rules(&self, rules: &[Rule]) -> Result<RuleId, ChangeError> {
        for rule in rules {
            Guard::check_memory(&self.ram, rule.range)?;
        }
        let touched = pages_of(rules.iter().map(|rule| rule.range.gfns()));
        let (first, _) = self.change(&touched, |domain| domain.add_rules(rules))?;
        for rule in rules {
            self.metrics.rule_added(rule.name.as_str());
        }
        Ok(first)
    }

    pub(crate) fn remove_rule(&self, rule: RuleId, by: Owner) -> Result<(), ChangeError> {
        let ((), _) = self.change(&PageSet::new(), |domain| {
            domain.remove_rule(rule, by).map(|token| ((), token))
        })?;
        Ok(())
    }

    pub(crate) fn lock_rule(&self, rule: RuleId, by: Owner) -> Result<(), ChangeError> {
        Ok(self.guard().domain_mut().lock_rule(rule, by)?)
    }

    pub(crate) fn set_access(&self, first: Gfn, maps: &[AccessMap]) -> Result<(), ChangeError> {
        let range = GfnRange::new(first, maps.len() as u64).map_err(DomainError::from)?;
        let touched = pages_of([range]);
        let ((), _) = self
            .change(&touched, |domain| domain.set_access(first, maps).map(|token| ((), token)))?;
        Ok(())
    }

    pub(crate) fn track(&self, range: ByteRange) -> Result<TrackId, ChangeError> {
        Guard::check_memory(&self.ram, range)?;
        let (track, _) = self.change(&pages_of([range.gfns()]), |domain| domain.track(range))?;
        Ok(track)
    }

    pub(crate) fn harvest(&self, track: TrackId) -> Result<Vec<WrittenPage>, ChangeError> {
        let touched = {
            let guard = self.guard();
            let tracked = guard.domain().tracked().find(|(id, _)| *id == track);
            pages_of(tracked.map(|(_, range)| range.gfns()))
        };
        // The pages were closed before the engine was asked: no processor writes through an old
        // translation.
        let (pending, done) = self.change(&touched, |domain| domain.harvest_written(track))?;
        Ok(pending.ready(&done).expect("the harvest's own change is complete"))
    }

    pub(crate) fn untrack(&self, track: TrackId) -> Result<(), ChangeError> {
        let ((), _) =
            self.change(&PageSet::new(), |domain| domain.untrack(track).map(|token| ((), token)))?;
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
