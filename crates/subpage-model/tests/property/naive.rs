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

    fn map_permits(&self, byte: u64) -> bool {
        let map = self.maps.get(&(byte / 4096)).copied().unwrap_or(u32::MAX);
        map >> (byte % 4096 / 128) & 1 == 1
    }

    /// What a page may be written to, as the interface reports it.
    pub(crate) fn access_map(&self, page: u64) -> u32 {
        (0..32).fold(0, |map, sub| {
            let byte = page * 4096 + sub * 128;
            let ruled = self.rules.iter().any(|rule| rule.touches_sub_page(byte));
            map | u32::from(self.map_permits(byte) && !ruled) << sub
        })
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
        let touched =
            self.rules.iter().filter(|rule| rule.first < first + length && rule.last >= first);
        let strongest = touched.max_by_key(|r| (r.effect(), std::cmp::Reverse(r.id)));
        match (answer, strongest) {
            (Decision::Denied { .. } | Decision::Reported { .. }, Some(rule))
                if rule.effect() >= Action::Deny =>
            {
                let stop = rule.effect() == Action::Stop;
                let at = Gpa::new(rule.first.max(first));
                Decision::Denied { rule: Some(rule.id), at, stop }
            }
            (Decision::Reported { .. }, Some(rule)) => {
                Decision::Reported { rule: rule.id, at: Gpa::new(rule.first.max(first)) }
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
            self.rules.iter().filter(|rule| (first..end).any(|b| rule.holds(b))).collect();
        let strongest = touched.iter().max_by_key(|r| (r.effect(), std::cmp::Reverse(r.id)));
        if let Some(rule) = strongest
            && rule.effect() >= Action::Deny
        {
            let stop = rule.effect() == Action::Stop;
            return Decision::Denied { rule: Some(rule.id), at: at(rule.first.max(first)), stop };
        }
        if let Some(byte) = (first..end).find(|byte| !self.map_permits(*byte)) {
            return Decision::Denied { rule: None, at: at(byte), stop: false };
        }
        match strongest {
            Some(rule) => Decision::Reported { rule: rule.id, at: at(rule.first.max(first)) },
            None => Decision::Allowed,
        }
    }

    /// Makes a permitted write.
    pub(crate) fn write(&mut self, first: u64, bytes: &[u8]) {
        for (byte, value) in (first..).zip(bytes) {
            self.memory.insert(byte, *value);
            for rule in &mut self.rules {
                rule.spent |= rule.holds(byte) && rule.action == Action::AllowOnce;
            }
            for (_, from, to, written) in &mut self.tracked {
                let sub = byte / 128 * 128;
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
