//! Counts of what trapped.

use std::collections::BTreeMap;
use std::sync::Arc;

use subpage::access::{AccessMap, SUB_PAGE_BYTES};
use subpage::address::{ByteRange, Gfn, Gpa, PAGE_BYTES};
use subpage::domain::{Domain, WriteParts};
use subpage::frames::HeapFrames;
use subpage::rules::RuleId;
use subpage_trap::{Record, Verdict};

use super::SubPageCounts;

/// How many pages may have writes that are not yet attributed to rules: enough for the hot ones, little to
/// keep.
const MAX_UNATTRIBUTED: usize = 1024;

/// What one rule did, and what it cost. While a rule is not in force, nothing counts for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuleCounts {
    /// Writes that touched a page of the rule: what it cost. A write counts for each rule of its pages.
    pub exits: u64,
    /// Of these, writes that touched a page of no other rule: the run without the rule would not have had
    /// them.
    pub exits_alone: u64,
    /// Writes that touched a sub-page of the rule.
    pub checked: u64,
    /// Of these, writes to bytes of the rule about which another rule decided, a stronger one or an
    /// equally strong one before it, or an access map.
    pub overruled: u64,
    /// Of these, writes that took effect and were reported because of it.
    pub logged: u64,
    /// Of these, writes that had no effect because of it.
    pub denied: u64,
    /// The first of the denied.
    pub first_denial: Option<Arc<Record>>,
}

/// Counts since the guest was made.
#[derive(Debug, Clone, Default)]
pub struct TrapCounts {
    writes: u64,
    bytes: u64,
    guarded: u64,
    events: u64,
    rules: BTreeMap<u64, RuleCounts>,
    /// Writes by page, of pages with a rule, each under all its names. They have all that is attributed.
    pages: BTreeMap<Gfn, u64>,
    /// Writes to one page each, by page, since rules were last looked for there.
    unattributed: BTreeMap<Gfn, u64>,
    sub_pages: SubPageCounts,
    /// A rule that is none of the user's, and is not counted.
    hidden: Option<RuleId>,
    /// The rules that the last write touched; kept for its memory.
    touched: Vec<RuleId>,
}

impl TrapCounts {
    /// Writes that trapped.
    pub const fn writes(&self) -> u64 {
        self.writes
    }

    /// Bytes of those writes.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Of those writes, the ones that touched a sub-page with a rule, or one that an access map denies:
    /// what would still trap with sub-page permissions in the processor.
    pub const fn guarded(&self) -> u64 {
        self.guarded
    }

    /// Events so far.
    pub const fn events(&self) -> u64 {
        self.events
    }

    /// Every decided write by its sub-pages; a few did not trap, because this program makes them itself.
    pub const fn sub_pages(&self) -> &SubPageCounts {
        &self.sub_pages
    }

    /// Leaves this rule out of all counts.
    pub fn hide(&mut self, rule: RuleId) {
        self.hidden = Some(rule);
    }

    /// The page of these bytes that was written most, and its writes. None if none was.
    pub fn hottest_page(&self, range: ByteRange) -> Option<(Gfn, u64)> {
        let pages = self.pages.range(range.first().gfn()..=range.last().gfn());
        // Of several the first.
        pages.rev().max_by_key(|(_, writes)| **writes).map(|(gfn, writes)| (*gfn, *writes))
    }

    /// What a rule did.
    pub fn rule(&self, rule: u64) -> RuleCounts {
        self.rules.get(&rule).cloned().unwrap_or_default()
    }

    /// Counts a write that trapped.
    pub(super) fn count(&mut self, domain: &Domain<HeapFrames>, write: &WriteParts) {
        self.count_open(domain, write);
        self.touch(domain, write.runs().iter().map(|run| whole_sub_pages(*run)));
        for rule in &self.touched {
            self.rules.entry(rule.0).or_default().checked += 1;
        }
        self.guarded += u64::from(!self.touched.is_empty() || denied_by_maps(domain, write));
    }

    /// Counts a write that trapped and touches no restricted sub-page, so none of a rule or a map.
    pub(super) fn count_open(&mut self, domain: &Domain<HeapFrames>, write: &WriteParts) {
        self.writes += 1;
        self.bytes += write.bytes();
        self.sub_pages.decided(write);
        let mut pages = write.runs().iter().flat_map(|run| run.gfns().iter());
        match (pages.next(), pages.next()) {
            // Looking for rules takes longer than to count.
            (Some(page), None) => {
                *self.unattributed.entry(page).or_default() += 1;
                if self.unattributed.len() > MAX_UNATTRIBUTED {
                    self.attribute(domain);
                }
            }
            _ => self.attribute_writes(
                domain,
                write.runs().iter().flat_map(|run| run.gfns().iter()),
                1,
            ),
        }
    }

    /// Counts a write that was decided about and did not trap.
    pub(super) fn count_untrapped(&mut self, write: &WriteParts) {
        self.sub_pages.decided(write);
    }

    /// Attributes writes that were counted by page alone to the rules that are in force now. To be called
    /// before that changes, and before counts of rules are read.
    pub(super) fn attribute(&mut self, domain: &Domain<HeapFrames>) {
        for (page, writes) in std::mem::take(&mut self.unattributed) {
            self.attribute_writes(domain, std::iter::once(page), writes);
        }
    }

    /// Attributes so many writes that each touched all of these pages.
    fn attribute_writes(
        &mut self,
        domain: &Domain<HeapFrames>,
        pages: impl Iterator<Item = Gfn> + Clone,
        writes: u64,
    ) {
        self.touch(domain, pages.clone().map(whole_page));
        let alone = self.touched.len() == 1;
        for rule in &self.touched {
            let counts = self.rules.entry(rule.0).or_default();
            counts.exits += writes;
            counts.exits_alone += if alone { writes } else { 0 };
        }
        if self.touched.is_empty() {
            return;
        }
        for name in pages.flat_map(|page| domain.names_of(whole_page(page))) {
            *self.pages.entry(name.first().gfn()).or_default() += writes;
        }
    }

    /// Finds the rules that guard bytes of these runs, each once.
    fn touch(&mut self, domain: &Domain<HeapFrames>, runs: impl Iterator<Item = ByteRange>) {
        self.touched.clear();
        for name in runs.flat_map(|run| domain.names_of(run)) {
            self.touched.extend(domain.rules().touching(name).map(|active| active.id));
        }
        self.touched.retain(|id| Some(*id) != self.hidden);
        self.touched.sort_unstable();
        self.touched.dedup();
    }

    /// Numbers the event of a write that was just decided about. Counts it for its rule, and for the
    /// rules that guard bytes of it and did not decide.
    pub(super) fn record(
        &mut self,
        domain: &Domain<HeapFrames>,
        mut record: Record,
        write: &WriteParts,
    ) -> Arc<Record> {
        write.with_written(|runs| self.touch(domain, runs.iter().copied()));
        for rule in self.touched.iter().filter(|rule| Some(**rule) != record.event.rule) {
            self.rules.entry(rule.0).or_default().overruled += 1;
        }
        if record.event.verdict.is_denial() {
            self.sub_pages.denied(write);
        }
        self.events += 1;
        record.seq = self.events;
        record.write = self.writes;
        let record = Arc::new(record);
        if let Some(RuleId(rule)) = record.event.rule {
            let counts = self.rules.entry(rule).or_default();
            match record.event.verdict {
                Verdict::Logged | Verdict::AllowedOnce => counts.logged += 1,
                Verdict::Denied | Verdict::Stopped => {
                    counts.denied += 1;
                    counts.first_denial.get_or_insert_with(|| Arc::clone(&record));
                }
            }
        }
        record
    }
}

/// Whether an access map denies a sub-page that the write touches.
fn denied_by_maps(domain: &Domain<HeapFrames>, write: &WriteParts) -> bool {
    write.runs().iter().flat_map(|run| run.pages()).any(|piece| {
        let map = domain.base_map(piece.first().gfn());
        !(AccessMap::touched_by(piece) & !map).is_empty()
    })
}

/// The bytes of a page.
fn whole_page(page: Gfn) -> ByteRange {
    ByteRange::new(page.gpa(), PAGE_BYTES).expect("a page of guest memory")
}

/// The bytes of all sub-pages that a run touches.
fn whole_sub_pages(run: ByteRange) -> ByteRange {
    let first = run.first().as_u64() / SUB_PAGE_BYTES * SUB_PAGE_BYTES;
    let last = run.last().as_u64() / SUB_PAGE_BYTES * SUB_PAGE_BYTES + SUB_PAGE_BYTES - 1;
    ByteRange::new(Gpa::new(first), last - first + 1).expect("sub-pages of guest memory")
}

#[cfg(test)]
mod tests {
    use subpage::address::{Gfn, GfnRange, PhysicalWidth};
    use subpage::rules::{Action, Owner, Rule, RuleName};
    use subpage::slots::{SlotFlags, SlotId};
    use subpage_trap::Event;

    use super::*;
    use crate::guard::SPACE;

    fn bytes(first: u64, length: u64) -> ByteRange {
        ByteRange::new(Gpa::new(first), length).expect("a range")
    }

    /// Rules 1, 2 and so on over 2,048 pages.
    fn domain(rules: &[(ByteRange, Action)]) -> Domain<HeapFrames> {
        let mut domain = Domain::new(HeapFrames::new(), PhysicalWidth::MAX);
        domain.enable().expect("memory");
        let pages = GfnRange::new(Gfn::new(0), 2048).expect("pages");
        domain.add_slot(SPACE, SlotId(0), pages, SlotFlags::default()).expect("memory");
        let rule = |&(range, action): &(ByteRange, Action)| Rule {
            name: RuleName::new("rule").expect("a name"),
            range,
            owner: Owner::HOST,
            action,
            locked: false,
        };
        let rules: Vec<_> = rules.iter().map(rule).collect();
        let (_, token) = domain.add_rules(&rules).expect("memory");
        domain.finish(&token.without_processors());
        domain
    }

    /// Checked, overruled, logged and denied of a rule.
    fn of(counts: &TrapCounts, rule: u64) -> [u64; 4] {
        let RuleCounts { checked, overruled, logged, denied, .. } = counts.rule(rule);
        [checked, overruled, logged, denied]
    }

    fn denied_by(rule: Option<u64>, write: &WriteParts) -> Record {
        let event = Event {
            rule: rule.map(RuleId),
            ..Event::bare(Verdict::Denied, Action::Deny, write.first())
        };
        Record::new(0, 0, event)
    }

    #[test]
    fn a_write_to_two_pages_counts_once_for_a_rule() {
        let all = bytes(0x1000, 0x4000);
        let domain = domain(&[(all, Action::Log), (bytes(0x4000, 4), Action::Deny)]);
        let write = WriteParts::two(bytes(0x1ffc, 4), bytes(0x4000, 4));
        let mut counts = TrapCounts::default();
        counts.count(&domain, &write);
        counts.record(&domain, denied_by(Some(2), &write), &write);
        assert_eq!(of(&counts, 1), [1, 1, 0, 0]);
        assert_eq!(of(&counts, 2), [1, 0, 0, 1]);
        assert_eq!((counts.writes(), counts.guarded(), counts.events()), (1, 1, 1));
    }

    /// The exits of a rule, those of it alone, and its sub-pages' writes.
    fn cost(counts: &TrapCounts, rule: u64) -> [u64; 3] {
        let RuleCounts { exits, exits_alone, checked, .. } = counts.rule(rule);
        [exits, exits_alone, checked]
    }

    fn finished(counts: &mut TrapCounts, domain: &Domain<HeapFrames>) -> Vec<[u64; 3]> {
        counts.attribute(domain);
        (1..=3).map(|rule| cost(counts, rule)).collect()
    }

    #[test]
    fn a_page_costs_each_of_its_rules_and_only_one_of_them_alone() {
        let rules = [bytes(0x1000, 4), bytes(0x1f80, 0x100), bytes(0x5000, 4)];
        let domain = domain(&rules.map(|range| (range, Action::Deny)));
        let mut counts = TrapCounts::default();
        // In the page of rules 1 and 2, beside both; in that of rule 2 alone; in one without a rule.
        for (at, times) in [(0x1800, 3), (0x2800, 5), (0x4000, 7)] {
            for _ in 0..times {
                counts.count_open(&domain, &WriteParts::one(bytes(at, 8)));
            }
        }
        // To a sub-page of rule 1, and not to its bytes.
        counts.count(&domain, &WriteParts::one(bytes(0x1010, 8)));
        // One write over two pages of the same rules counts once.
        counts.count(&domain, &WriteParts::two(bytes(0x1ffc, 4), bytes(0x2000, 4)));
        assert_eq!(finished(&mut counts, &domain), [[5, 0, 1], [10, 5, 1], [0, 0, 0]]);
        assert_eq!(counts.hottest_page(rules[0]), Some((Gfn::new(1), 5)));
        assert_eq!(counts.hottest_page(rules[1]), Some((Gfn::new(2), 6)));
        assert_eq!(counts.hottest_page(rules[2]), None);
    }

    /// On a processor with SPP, too, each would leave the guest.
    #[test]
    fn a_write_to_a_sub_page_that_a_map_denies_counts_as_one_to_guarded_bytes() {
        let mut domain = domain(&[(bytes(0x5000, 4), Action::Deny)]);
        let token = domain.set_access(Gfn::new(1), &[!AccessMap::from_bits(1 << 4)]);
        domain.finish(&token.expect("memory").without_processors());
        let mut counts = TrapCounts::default();
        counts.count(&domain, &WriteParts::one(bytes(0x1280, 8)));
        // Beside it, and a sub-page of a rule.
        counts.count(&domain, &WriteParts::one(bytes(0x1200, 8)));
        counts.count(&domain, &WriteParts::one(bytes(0x5010, 8)));
        assert_eq!((counts.writes(), counts.guarded()), (3, 2));
    }

    /// What comes later is not counted for what came before, nor the other way round.
    #[test]
    fn writes_count_for_the_rules_of_their_time() {
        let mut domain = domain(&[(bytes(0x1000, 4), Action::Deny)]);
        let mut counts = TrapCounts::default();
        let beside = WriteParts::one(bytes(0x1800, 8));
        counts.count_open(&domain, &beside);
        counts.attribute(&domain);
        let later = Rule {
            name: RuleName::new("later").expect("a name"),
            range: bytes(0x1008, 4),
            owner: Owner::HOST,
            action: Action::Deny,
            locked: false,
        };
        let (_, token) = domain.add_rules(&[later]).expect("memory");
        domain.finish(&token.without_processors());
        counts.count_open(&domain, &beside);
        counts.attribute(&domain);
        let token = domain.remove_rule(RuleId(1), Owner::HOST).expect("it is there");
        domain.finish(&token.without_processors());
        counts.count_open(&domain, &beside);
        assert_eq!(finished(&mut counts, &domain), [[2, 1, 0], [2, 1, 0], [0, 0, 0]]);
    }

    #[test]
    fn a_hidden_rule_costs_nothing_and_leaves_others_alone() {
        let domain = domain(&[(bytes(0x1000, 4), Action::Deny), (bytes(0x1008, 4), Action::Log)]);
        let mut counts = TrapCounts::default();
        counts.hide(RuleId(2));
        counts.count_open(&domain, &WriteParts::one(bytes(0x1800, 8)));
        assert_eq!(finished(&mut counts, &domain), [[1, 1, 0], [0, 0, 0], [0, 0, 0]]);
    }

    #[test]
    fn many_pages_are_attributed_before_they_take_much_room() {
        let pages = u64::try_from(MAX_UNATTRIBUTED).expect("a small number") + 1;
        let domain = domain(&[(bytes(0, pages * PAGE_BYTES), Action::Log)]);
        let mut counts = TrapCounts::default();
        for page in 0..pages {
            counts.count_open(&domain, &WriteParts::one(bytes(page * PAGE_BYTES, 8)));
        }
        assert_eq!(counts.unattributed.len(), 0);
        assert_eq!(cost(&counts, 1), [pages, pages, 0]);
    }

    #[test]
    fn a_map_overrules_and_a_byte_that_is_not_written_does_not_count() {
        let domain = domain(&[(bytes(0x1000, 4), Action::Log), (bytes(0x1008, 4), Action::Log)]);
        let write = WriteParts::one(bytes(0x1000, 16)).under_mask(0xff0f);
        let mut counts = TrapCounts::default();
        counts.count(&domain, &write);
        counts.record(&domain, denied_by(None, &write), &write);
        assert_eq!([of(&counts, 1), of(&counts, 2)], [[1, 1, 0, 0]; 2]);
        let write = WriteParts::one(bytes(0x1000, 16)).under_mask(0xf00f);
        counts.count(&domain, &write);
        counts.record(&domain, denied_by(Some(1), &write), &write);
        assert_eq!([of(&counts, 1), of(&counts, 2)], [[2, 1, 0, 1], [2, 1, 0, 0]]);
    }
}
