//! All rules of a domain, found by the bytes they guard.
//!
//! How many rules hold a sub-page is not stored: it is the number of rules whose range touches it,
//! asked when a rule goes. The counters that HVMI keeps for the same purpose can disagree with the
//! hooks they count (`docs/spp.md` 3, hazards (a) and (b)); a question cannot.

use alloc::vec::Vec;

use super::tree::Tree;
use super::{Action, Rule, RuleId};
use crate::access::AccessMap;
use crate::address::{ByteRange, Gfn, GfnRange, Gpa};
use crate::frames::OutOfFrames;

/// A rule that was added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ActiveRule {
    /// Its number.
    pub id: RuleId,
    /// What was added; `locked` may have been set since.
    pub rule: Rule,
    /// For [`Action::AllowOnce`]: the one write has been allowed.
    pub spent: bool,
    /// It is in force. Before that it neither denies nor counts, and nothing asks for it but by its
    /// number.
    pub armed: bool,
}

impl ActiveRule {
    /// What the next write that touches the rule meets.
    pub const fn effect(&self) -> Action {
        match self.rule.action {
            Action::AllowOnce if self.spent => Action::Deny,
            action => action,
        }
    }

    /// Order of strength: of equals the oldest is the greatest.
    pub(crate) const fn rank(&self) -> (Action, core::cmp::Reverse<RuleId>) {
        (self.effect(), core::cmp::Reverse(self.id))
    }
}

/// The rules, ascending by first byte and then by number.
#[derive(Debug, Default)]
pub struct RuleSet {
    rules: Tree,
    /// Number and first byte of each, ascending.
    numbers: Vec<(RuleId, Gpa)>,
}

impl RuleSet {
    /// A set of rules, each in force or not, with the numbers from `first` on.
    pub(crate) fn of(
        rules: impl ExactSizeIterator<Item = (Rule, bool)>,
        first: RuleId,
    ) -> Result<Self, OutOfFrames> {
        let mut set = Self::default();
        set.reserve(rules.len())?;
        // The rules come first: no number beyond the last one is made, which need not exist.
        for ((rule, armed), number) in rules.zip(first.0..) {
            set.insert(ActiveRule { id: RuleId(number), rule, spent: false, armed });
        }
        Ok(set)
    }

    pub(crate) fn reserve(&mut self, count: usize) -> Result<(), OutOfFrames> {
        self.rules.reserve(count)?;
        self.numbers.try_reserve(count).map_err(|_| OutOfFrames)
    }

    /// Takes in a rule with a number above all others, for which there is room.
    fn insert(&mut self, active: ActiveRule) {
        debug_assert!(self.numbers.last().is_none_or(|(last, _)| *last < active.id));
        self.numbers.push((active.id, active.rule.range.first()));
        self.rules.insert(active);
    }

    /// Takes over the rules of another set, whose numbers are higher, and for which room was reserved.
    pub(crate) fn absorb(&mut self, other: &Self) {
        for (id, first) in &other.numbers {
            self.insert(*other.rules.get(*first, *id).expect("a number of a rule"));
        }
    }

    /// Takes in a rule with any number; call [`has_twins`](Self::has_twins) before asking.
    pub(crate) fn push(&mut self, active: ActiveRule) -> Result<(), OutOfFrames> {
        self.reserve(1)?;
        self.numbers.push((active.id, active.rule.range.first()));
        self.rules.insert(active);
        Ok(())
    }

    /// Whether two rules have the same number.
    pub(crate) fn has_twins(&mut self) -> bool {
        self.numbers.sort_unstable();
        self.numbers.windows(2).any(|pair| pair[0].0 == pair[1].0)
    }

    /// Where the number of a rule is, and the rule's first byte.
    fn place(&self, id: RuleId) -> Option<(usize, Gpa)> {
        let at = self.numbers.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        Some((at, self.numbers[at].1))
    }

    pub(crate) fn remove(&mut self, id: RuleId) {
        if let Some((at, first)) = self.place(id) {
            self.numbers.remove(at);
            self.rules.remove(first, id);
        }
    }

    /// How many rules there are.
    pub const fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All rules, ascending by first byte.
    pub fn iter(&self) -> impl Iterator<Item = &ActiveRule> {
        self.rules.iter()
    }

    /// The rule with a number.
    pub fn get(&self, id: RuleId) -> Option<&ActiveRule> {
        self.place(id).and_then(|(_, first)| self.rules.get(first, id))
    }

    pub(crate) fn get_mut(&mut self, id: RuleId) -> Option<&mut ActiveRule> {
        let (_, first) = self.place(id)?;
        self.rules.get_mut(first, id)
    }

    /// The rules in force that guard at least one byte of `range`, in no particular order.
    pub fn touching(&self, range: ByteRange) -> impl Iterator<Item = &ActiveRule> {
        self.rules.touching(range).filter(|active| active.armed)
    }

    /// Whether a rule in force guards at least one byte of `range`.
    pub(crate) fn touches(&self, range: ByteRange) -> bool {
        self.touching(range).next().is_some()
    }

    /// Calls `each` with the rules of [`touching`](Self::touching): without the list that an iterator
    /// carries with it, which costs a decision more than its search.
    #[inline]
    fn visit<'a>(&'a self, range: ByteRange, each: &mut impl FnMut(&'a ActiveRule)) {
        self.rules.visit(range, &mut |active| {
            if active.armed {
                each(active);
            }
        });
    }

    /// What the rules leave writable of a page: the AND over all of them.
    pub fn permitted(&self, gfn: Gfn) -> AccessMap {
        self.permitted_but(gfn, None)
    }

    /// The same without the rule `but`.
    pub(crate) fn permitted_but(&self, gfn: Gfn, but: Option<RuleId>) -> AccessMap {
        let mut map = AccessMap::ALL;
        self.visit(ByteRange::of_pages(GfnRange::one(gfn)), &mut |active| {
            if Some(active.id) != but
                && let Some(bytes) = active.rule.range.in_page(gfn)
            {
                map = map & !AccessMap::touched_by(bytes);
            }
        });
        map
    }

    /// How many rules hold the sub-page that contains `gpa`.
    pub fn owners(&self, gpa: Gpa) -> usize {
        let first = Gpa::new(gpa.as_u64() & !(crate::access::SUB_PAGE_BYTES - 1));
        let sub_page = ByteRange::new(first, crate::access::SUB_PAGE_BYTES).expect("128 bytes");
        self.touching(sub_page).count()
    }

    /// The sub-pages of a page that a locked rule holds, with one such rule.
    pub(crate) fn locked(&self, gfn: Gfn) -> (AccessMap, Option<RuleId>) {
        let page = ByteRange::of_pages(GfnRange::one(gfn));
        self.touching(page)
            .filter(|active| active.rule.locked)
            .filter_map(|active| Some((active.rule.range.in_page(gfn)?, active.id)))
            .fold((AccessMap::NONE, None), |(map, _), (bytes, id)| {
                (map | AccessMap::touched_by(bytes), Some(id))
            })
    }

    /// Spends every "allow once" rule that guards one of the bytes.
    pub(crate) fn spend(&mut self, bytes: ByteRange) {
        self.rules.visit_mut(bytes, &mut |active| {
            active.spent |= active.armed && active.rule.action == Action::AllowOnce;
        });
    }

    /// The strongest rule that guards one of the bytes; among equals the oldest.
    pub(crate) fn strongest(&self, bytes: ByteRange) -> Option<&ActiveRule> {
        let mut strongest: Option<&ActiveRule> = None;
        self.visit(bytes, &mut |active| {
            if strongest.is_none_or(|best| best.rank() < active.rank()) {
                strongest = Some(active);
            }
        });
        strongest
    }
}
