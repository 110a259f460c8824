//! Rules by the bytes they guard: a balanced tree in which each node knows how far its subtree reaches.
//!
//! Adding, removing and finding a rule cost a logarithm of their number. A search for the rules that
//! guard some bytes passes over subtrees that end before them, so it meets a logarithm of rules for
//! each that it finds, and one more, also where one long rule spans many short ones.
//!
//! The heights of two subtrees of a node differ by one at most (G. M. Adelson-Velsky and E. M. Landis,
//! "An algorithm for the organization of information", 1962).

use alloc::vec::Vec;

use arrayvec::ArrayVec;

use super::{ActiveRule, RuleId};
use crate::address::{ByteRange, Gpa};
use crate::frames::OutOfFrames;

/// Most nodes on a way down: a tree of `n` is less than 1.45 · log₂ n high, and `n` has 32 bits.
const MAX_HEIGHT: usize = 48;

/// The place of a node.
type Index = u32;

#[derive(Debug)]
struct Node {
    active: ActiveRule,
    /// The highest last byte of the rules of the subtree.
    reach: Gpa,
    left: Option<Index>,
    right: Option<Index>,
    height: u8,
}

/// Rules ascend by first byte and then by number.
type Key = (Gpa, RuleId);

const fn key(active: &ActiveRule) -> Key {
    (active.rule.range.first(), active.id)
}

/// The rules.
#[derive(Debug, Default)]
pub(super) struct Tree {
    nodes: Vec<Node>,
    root: Option<Index>,
}

impl Tree {
    /// Makes room for so many more.
    pub(super) fn reserve(&mut self, count: usize) -> Result<(), OutOfFrames> {
        let after = self.nodes.len().checked_add(count).ok_or(OutOfFrames)?;
        Index::try_from(after).map_err(|_| OutOfFrames)?;
        self.nodes.try_reserve(count).map_err(|_| OutOfFrames)
    }

    /// How many rules there are.
    pub(super) const fn len(&self) -> usize {
        self.nodes.len()
    }

    fn node(&self, at: Index) -> &Node {
        &self.nodes[at as usize]
    }

    fn node_mut(&mut self, at: Index) -> &mut Node {
        &mut self.nodes[at as usize]
    }

    /// Takes a rule in, for which there is room.
    pub(super) fn insert(&mut self, active: ActiveRule) {
        assert!(self.nodes.len() < self.nodes.capacity(), "a rule is added without room");
        let new = Index::try_from(self.nodes.len()).expect("room was made for it");
        let reach = active.rule.range.last();
        self.nodes.push(Node { active, reach, left: None, right: None, height: 1 });
        self.root = Some(self.insert_below(self.root, new, key(&active)));
    }

    /// Hangs a node into a subtree, whose root it returns.
    fn insert_below(&mut self, subtree: Option<Index>, new: Index, place: Key) -> Index {
        let Some(at) = subtree else { return new };
        if place < key(&self.node(at).active) {
            let left = self.insert_below(self.node(at).left, new, place);
            self.node_mut(at).left = Some(left);
        } else {
            let right = self.insert_below(self.node(at).right, new, place);
            self.node_mut(at).right = Some(right);
        }
        self.balance(at)
    }

    /// Takes the rule out that begins at `first` and has the number `id`.
    ///
    /// # Panics
    /// If there is none.
    pub(super) fn remove(&mut self, first: Gpa, id: RuleId) {
        let (rest, gone) = self.remove_below(self.root, (first, id));
        self.root = rest;
        let last = Index::try_from(self.nodes.len() - 1).expect("room was made for it");
        self.nodes.swap_remove(gone as usize);
        if gone != last {
            // The last node has the place of the one that is gone.
            self.relink(key(&self.node(gone).active), last, gone);
        }
    }

    /// Takes a node out of a subtree: the root that is left, and the node.
    fn remove_below(&mut self, subtree: Option<Index>, place: Key) -> (Option<Index>, Index) {
        let at = subtree.expect("the rule is in the tree");
        let Node { left, right, .. } = *self.node(at);
        match place.cmp(&key(&self.node(at).active)) {
            core::cmp::Ordering::Less => {
                let (rest, gone) = self.remove_below(left, place);
                self.node_mut(at).left = rest;
                (Some(self.balance(at)), gone)
            }
            core::cmp::Ordering::Greater => {
                let (rest, gone) = self.remove_below(right, place);
                self.node_mut(at).right = rest;
                (Some(self.balance(at)), gone)
            }
            core::cmp::Ordering::Equal => match (left, right) {
                (None, other) | (other, None) => (other, at),
                (Some(_), Some(right)) => {
                    let (rest, next) = self.take_first(right);
                    let node = self.node_mut(next);
                    (node.left, node.right) = (left, rest);
                    (Some(self.balance(next)), at)
                }
            },
        }
    }

    /// Takes the first node out of a subtree: the root that is left, and the node.
    fn take_first(&mut self, at: Index) -> (Option<Index>, Index) {
        let Node { left, right, .. } = *self.node(at);
        let Some(left) = left else { return (right, at) };
        let (rest, first) = self.take_first(left);
        self.node_mut(at).left = rest;
        (Some(self.balance(at)), first)
    }

    /// Has the link to the node with a key, which says `old`, say `new`.
    fn relink(&mut self, place: Key, old: Index, new: Index) {
        if self.root == Some(old) {
            self.root = Some(new);
            return;
        }
        let mut at = self.root.expect("the node is in the tree");
        loop {
            let node = &mut self.nodes[at as usize];
            let less = place < key(&node.active);
            let link = if less { &mut node.left } else { &mut node.right };
            match link {
                Some(below) if *below == old => {
                    *below = new;
                    return;
                }
                below => at = below.expect("the node is in the tree"),
            }
        }
    }

    fn height(&self, subtree: Option<Index>) -> u8 {
        subtree.map_or(0, |at| self.node(at).height)
    }

    fn reach(&self, subtree: Option<Index>) -> Gpa {
        subtree.map_or_else(Gpa::default, |at| self.node(at).reach)
    }

    /// Computes what a node says of its subtree.
    fn measure(&mut self, at: Index) {
        let Node { left, right, .. } = *self.node(at);
        let height = 1 + self.height(left).max(self.height(right));
        let reach = self.reach(left).max(self.reach(right));
        let node = self.node_mut(at);
        node.height = height;
        node.reach = reach.max(node.active.rule.range.last());
    }

    /// Balances a node whose subtrees are balanced; the root of the result.
    fn balance(&mut self, at: Index) -> Index {
        let Node { left, right, .. } = *self.node(at);
        let (lower, higher) = (self.height(left), self.height(right));
        if lower > higher + 1 {
            let left = left.expect("it is higher than another");
            if self.height(self.node(left).left) < self.height(self.node(left).right) {
                let turned = self.turn_left(left);
                self.node_mut(at).left = Some(turned);
            }
            return self.turn_right(at);
        }
        if higher > lower + 1 {
            let right = right.expect("it is higher than another");
            if self.height(self.node(right).right) < self.height(self.node(right).left) {
                let turned = self.turn_right(right);
                self.node_mut(at).right = Some(turned);
            }
            return self.turn_left(at);
        }
        self.measure(at);
        at
    }

    /// Puts the right child of a node in its place.
    fn turn_left(&mut self, at: Index) -> Index {
        let up = self.node(at).right.expect("a higher subtree");
        self.node_mut(at).right = self.node(up).left;
        self.node_mut(up).left = Some(at);
        self.measure(at);
        self.measure(up);
        up
    }

    /// Puts the left child of a node in its place.
    fn turn_right(&mut self, at: Index) -> Index {
        let up = self.node(at).left.expect("a higher subtree");
        self.node_mut(at).left = self.node(up).right;
        self.node_mut(up).right = Some(at);
        self.measure(at);
        self.measure(up);
        up
    }

    /// The rule that begins at `first` and has the number `id`.
    pub(super) fn get(&self, first: Gpa, id: RuleId) -> Option<&ActiveRule> {
        self.find((first, id)).map(|at| &self.node(at).active)
    }

    /// The same, to be changed; where it begins and ends must stay.
    pub(super) fn get_mut(&mut self, first: Gpa, id: RuleId) -> Option<&mut ActiveRule> {
        self.find((first, id)).map(|at| &mut self.node_mut(at).active)
    }

    fn find(&self, place: Key) -> Option<Index> {
        let mut at = self.root?;
        loop {
            let node = self.node(at);
            at = match place.cmp(&key(&node.active)) {
                core::cmp::Ordering::Less => node.left?,
                core::cmp::Ordering::Greater => node.right?,
                core::cmp::Ordering::Equal => return Some(at),
            };
        }
    }

    /// All rules, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = &ActiveRule> {
        let mut above = ArrayVec::new();
        self.push_left(self.root, &mut above);
        Ascending { tree: self, above }
    }

    fn push_left(&self, mut subtree: Option<Index>, above: &mut ArrayVec<Index, MAX_HEIGHT>) {
        while let Some(at) = subtree {
            above.push(at);
            subtree = self.node(at).left;
        }
    }

    /// Calls `each` with the rules that guard at least one byte of `range`, ascending.
    #[inline]
    pub(super) fn visit<'a>(&'a self, range: ByteRange, each: &mut impl FnMut(&'a ActiveRule)) {
        match self.nodes.as_slice() {
            [] => {}
            [node] => {
                if node.active.rule.range.intersection(range).is_some() {
                    each(&node.active);
                }
            }
            _ => self.visit_below(self.root, range, each),
        }
    }

    fn visit_below<'a>(
        &'a self,
        subtree: Option<Index>,
        range: ByteRange,
        each: &mut impl FnMut(&'a ActiveRule),
    ) {
        let Some(at) = subtree else { return };
        let node = self.node(at);
        if node.reach < range.first() {
            return;
        }
        self.visit_below(node.left, range, each);
        if node.active.rule.range.first() <= range.last() {
            if node.active.rule.range.last() >= range.first() {
                each(&node.active);
            }
            self.visit_below(node.right, range, each);
        }
    }

    /// The same, to be changed; where the rules begin and end must stay.
    pub(super) fn visit_mut(&mut self, range: ByteRange, each: &mut impl FnMut(&mut ActiveRule)) {
        self.visit_mut_below(self.root, range, each);
    }

    fn visit_mut_below(
        &mut self,
        subtree: Option<Index>,
        range: ByteRange,
        each: &mut impl FnMut(&mut ActiveRule),
    ) {
        let Some(at) = subtree else { return };
        let Node { reach, left, right, .. } = *self.node(at);
        if reach < range.first() {
            return;
        }
        self.visit_mut_below(left, range, each);
        let active = &mut self.node_mut(at).active;
        if active.rule.range.first() <= range.last() {
            if active.rule.range.last() >= range.first() {
                each(active);
            }
            self.visit_mut_below(right, range, each);
        }
    }

    /// The rules that guard at least one byte of `range`, in no particular order.
    pub(super) fn touching(&self, range: ByteRange) -> impl Iterator<Item = &ActiveRule> {
        Touching { tree: self, range, subtrees: self.root.into_iter().collect() }
    }
}

/// All rules, ascending.
struct Ascending<'a> {
    tree: &'a Tree,
    /// The next node, and below it those whose left subtrees it is in.
    above: ArrayVec<Index, MAX_HEIGHT>,
}

impl<'a> Iterator for Ascending<'a> {
    type Item = &'a ActiveRule;

    fn next(&mut self) -> Option<&'a ActiveRule> {
        let node = self.tree.node(self.above.pop()?);
        self.tree.push_left(node.right, &mut self.above);
        Some(&node.active)
    }
}

/// The rules that guard a byte of a range.
struct Touching<'a> {
    tree: &'a Tree,
    range: ByteRange,
    /// Subtrees that are still to be searched: at most one for each level of the tree, and one more.
    subtrees: ArrayVec<Index, { MAX_HEIGHT + 1 }>,
}

impl<'a> Iterator for Touching<'a> {
    type Item = &'a ActiveRule;

    fn next(&mut self) -> Option<&'a ActiveRule> {
        while let Some(at) = self.subtrees.pop() {
            let node = self.tree.node(at);
            if node.reach < self.range.first() {
                continue;
            }
            self.subtrees.extend(node.left);
            if node.active.rule.range.first() <= self.range.last() {
                self.subtrees.extend(node.right);
                if node.active.rule.range.last() >= self.range.first() {
                    return Some(&node.active);
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rules::{Action, Owner, Rule, RuleName};

    fn active(id: u64, first: u64, bytes: u64) -> ActiveRule {
        let rule = Rule {
            name: RuleName::new("rule").expect("a name"),
            range: ByteRange::new(Gpa::new(first), bytes).expect("a range"),
            owner: Owner::HOST,
            action: Action::Deny,
            locked: false,
        };
        ActiveRule { id: RuleId(id), rule, spent: false, armed: true }
    }

    /// Height and reach of a subtree by looking at all of it.
    fn check(tree: &Tree, subtree: Option<Index>) -> (u8, Gpa) {
        let Some(at) = subtree else { return (0, Gpa::default()) };
        let node = tree.node(at);
        let ((left, a), (right, b)) = (check(tree, node.left), check(tree, node.right));
        let measured = (1 + left.max(right), a.max(b).max(node.active.rule.range.last()));
        assert_eq!((node.height, node.reach), measured);
        assert!(left.abs_diff(right) <= 1, "balanced");
        measured
    }

    proptest! {
        /// The tree answers as a list does.
        #[test]
        fn a_tree_is_a_list(
            steps in proptest::collection::vec((0..4_u8, 0..60_u64, 1..40_u64), 1..120),
            asked in (0..80_u64, 1..20_u64),
        ) {
            let (mut tree, mut list) = (Tree::default(), Vec::<ActiveRule>::new());
            for (id, (what, first, bytes)) in (1..).zip(steps) {
                if what == 0 && !list.is_empty() {
                    let at = usize::try_from(first).expect("small") % list.len();
                    let gone = list.remove(at);
                    tree.remove(gone.rule.range.first(), gone.id);
                } else {
                    tree.reserve(1).expect("memory");
                    tree.insert(active(id, first, bytes));
                    list.push(active(id, first, bytes));
                }
                check(&tree, tree.root);
            }
            list.sort_unstable_by_key(key);
            prop_assert_eq!(tree.iter().copied().collect::<Vec<_>>(), list.clone());
            for rule in &list {
                prop_assert_eq!(tree.get(rule.rule.range.first(), rule.id), Some(rule));
            }
            let range = ByteRange::new(Gpa::new(asked.0), asked.1).expect("a range");
            let touched = |rule: &&ActiveRule| rule.rule.range.intersection(range).is_some();
            let expected: Vec<_> = list.iter().filter(touched).copied().collect();
            let mut visited = Vec::new();
            tree.visit(range, &mut |rule| visited.push(*rule));
            prop_assert_eq!(&visited, &expected);
            let mut found: Vec<_> = tree.touching(range).copied().collect();
            found.sort_unstable_by_key(key);
            prop_assert_eq!(&found, &expected);
            let mut changed = Vec::new();
            tree.visit_mut(range, &mut |rule| changed.push(*rule));
            prop_assert_eq!(&changed, &expected);
        }
    }
}
