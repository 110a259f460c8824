//! The same guest as a map of bytes: no tables, no caches, every question answered byte by byte.

use std::collections::{BTreeMap, BTreeSet};

use subpage::address::{ByteRange, Gpa};
use subpage::domain::Decision;
use subpage::rules::{Action, RuleId};

#[derive(Debug, Clone)]
pub(crate) struct NaiveRule {
    pub(crate) id: RuleId,
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) action: Action,
    pub(crate) locked: bool,
    pub(crate) spent: bool,
}

impl NaiveRule {
    fn effect(&self) -> Action {
        if self.spent { Action::Deny } else { self.action }
    }

    fn holds(&self, byte: u64) -> bool {
        (self.first..=self.last).contains(&byte)
    }

    /// Whether the rule touches the sub-page of a byte.
    fn touches_sub_page(&self, byte: u64) -> bool {
        let start = byte / 128 * 128;
        self.first < start + 128 && self.last >= start
    }
}

/// Number of the slot that names memory again; its first page, its pages, and the first page of that
/// memory by its original name.
pub(crate) const ALIAS_SLOT: u8 = 3;
pub(crate) const ALIAS: u64 = 0x6_0000;
pub(crate) const ALIAS_PAGES: u64 = 0x30;
pub(crate) const ORIGINAL: u64 = 0x1_01f0;

#[derive(Debug, Clone, Copy)]
pub(crate) struct NaiveSlot {
    pub(crate) first: u64,
    pub(crate) pages: u64,
    pub(crate) read_only: bool,
    pub(crate) logging: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Naive {
    pub(crate) memory: BTreeMap<u64, u8>,
    pub(crate) maps: BTreeMap<u64, u32>,
    pub(crate) rules: Vec<NaiveRule>,
    pub(crate) slots: BTreeMap<u8, NaiveSlot>,
    /// Tracked ranges: number, first and last byte, written sub-pages by their first byte.
    pub(crate) tracked: Vec<(u64, u64, u64, BTreeSet<u64>)>,
    pub(crate) dirty: BTreeSet<(u8, u64)>,
}

impl Naive {
    pub(crate) fn slot_of(&self, page: u64) -> Option<(u8, NaiveSlot)> {
        let holds = |slot: &NaiveSlot| (slot.first..slot.first + slot.pages).contains(&page);
        self.slots.iter().find(|(_, slot)| holds(slot)).map(|(id, slot)| (*id, *slot))
    }

    /// The original address of a byte.
    pub(crate) fn original(&self, byte: u64) -> u64 {
        let (alias, bytes) = (ALIAS * 4096, ALIAS_PAGES * 4096);
        match byte.checked_sub(alias) {
            Some(offset) if offset < bytes && self.slots.contains_key(&ALIAS_SLOT) => {
                ORIGINAL * 4096 + offset
            }
            _ => byte,
        }
    }

    /// All addresses of a byte.
    fn names(&self, byte: u64) -> impl Iterator<Item = u64> {
        let original = self.original(byte);
        let offset = original.checked_sub(ORIGINAL * 4096);
        let offset = offset.filter(|offset| *offset < ALIAS_PAGES * 4096);
        let second = offset.filter(|_| self.slots.contains_key(&ALIAS_SLOT));
        [Some(original), second.map(|offset| ALIAS * 4096 + offset)].into_iter().flatten()
    }

    fn holds(&self, rule: &NaiveRule, byte: u64) -> bool {
        self.names(byte).any(|byte| rule.holds(byte))
    }

    /// The first byte of some that a rule holds.
    fn first_held(&self, rule: &NaiveRule, first: u64, end: u64) -> Gpa {
        Gpa::new((first..end).find(|byte| self.holds(rule, *byte)).expect("the rule is touched"))
    }

    fn map_permits(&self, byte: u64) -> bool {
        let byte = self.original(byte);
        let map = self.maps.get(&(byte / 4096)).copied().unwrap_or(u32::MAX);
        map >> (byte % 4096 / 128) & 1 == 1
    }

    /// What a page may be written to, as the interface reports it.
    pub(crate) fn access_map(&self, page: u64) -> u32 {
        (0..32).fold(0, |map, sub| {
            let byte = page * 4096 + sub * 128;
            let ruled = |rule: &NaiveRule| self.names(byte).any(|byte| rule.touches_sub_page(byte));
            let ruled = self.rules.iter().any(ruled);
            map | u32::from(self.map_permits(byte) && !ruled) << sub
        })
    }

    /// The sub-pages of a page that a locked rule holds under any name.
    pub(crate) fn locked(&self, page: u64) -> u32 {
        let holds = |byte: u64| {
            let mut locked = self.rules.iter().filter(|rule| rule.locked);
            locked.any(|rule| self.names(byte).any(|byte| rule.touches_sub_page(byte)))
        };
        (0..32).fold(0, |map, sub| map | u32::from(holds(page * 4096 + sub * 128)) << sub)
    }

    pub(crate) fn decide(&self, first: u64, length: u64) -> Decision {
        let mut answer = Decision::Allowed;
        let mut from = first;
        while from < first + length {
            let end = (from / 4096 * 4096 + 4096).min(first + length);
            let part = self.decide_in_page(from, end);
            answer = match (answer, part) {
                (Decision::Allowed | Decision::Reported { .. }, part) if !part.permits() => part,
                (Decision::Allowed, part) => part,
                (answer, _) => answer,
            };
            from = end;
        }
        if first / 4096 == (first + length - 1) / 4096 {
            return answer;
        }
        let end = first + length;
        let touched =
            self.rules.iter().filter(|rule| (first..end).any(|byte| self.holds(rule, byte)));
        let strongest = touched.max_by_key(|r| (r.effect(), std::cmp::Reverse(r.id)));
        match (answer, strongest) {
            (Decision::Denied { .. } | Decision::Reported { .. }, Some(rule))
                if rule.effect() >= Action::Deny =>
            {
                let stop = rule.effect() == Action::Stop;
                let at = self.first_held(rule, first, end);
                Decision::Denied { rule: Some(rule.id), at, stop }
            }
            (Decision::Reported { .. }, Some(rule)) => {
                Decision::Reported { rule: rule.id, at: self.first_held(rule, first, end) }
            }
            _ => answer,
        }
    }

    fn decide_in_page(&self, first: u64, end: u64) -> Decision {
        let at = |byte| Gpa::new(byte);
        match self.slot_of(first / 4096) {
            None => return Decision::NotMapped { at: at(first) },
            Some((_, slot)) if slot.read_only => return Decision::NotEligible { at: at(first) },
            Some(_) => {}
        }
        let touched: Vec<_> =
            self.rules.iter().filter(|rule| (first..end).any(|b| self.holds(rule, b))).collect();
        let strongest = touched.iter().max_by_key(|r| (r.effect(), std::cmp::Reverse(r.id)));
        if let Some(rule) = strongest
            && rule.effect() >= Action::Deny
        {
            let stop = rule.effect() == Action::Stop;
            let at = self.first_held(rule, first, end);
            return Decision::Denied { rule: Some(rule.id), at, stop };
        }
        if let Some(byte) = (first..end).find(|byte| !self.map_permits(*byte)) {
            return Decision::Denied { rule: None, at: at(byte), stop: false };
        }
        match strongest {
            Some(rule) => {
                Decision::Reported { rule: rule.id, at: self.first_held(rule, first, end) }
            }
            None => Decision::Allowed,
        }
    }

    /// Makes a permitted write.
    pub(crate) fn write(&mut self, first: u64, bytes: &[u8]) {
        for (byte, value) in (first..).zip(bytes) {
            let (original, names) = (self.original(byte), self.names(byte).collect::<Vec<_>>());
            self.memory.insert(original, *value);
            for rule in &mut self.rules {
                let held = names.iter().any(|byte| rule.holds(*byte));
                rule.spent |= held && rule.action == Action::AllowOnce;
            }
            for (_, from, to, written) in &mut self.tracked {
                let sub = original / 128 * 128;
                if *from < sub + 128 && *to >= sub {
                    written.insert(sub);
                }
            }
            if let Some((id, slot)) = self.slot_of(byte / 4096)
                && slot.logging
            {
                self.dirty.insert((id, byte / 4096));
            }
        }
    }

    pub(crate) fn range(first: u64, length: u64) -> ByteRange {
        ByteRange::new(Gpa::new(first), length).expect("inside the address space")
    }
}
