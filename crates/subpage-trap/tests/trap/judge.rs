//! The naive judgement: every byte by itself, then all together.

use subpage::rules::Action;
use subpage_trap::{Origin, Verdict};

use crate::guest::{CODE, EDGE, Guest, NOW};

/// What lies at the end of the first page and at the beginning of the second.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) neighbours: bool,
    /// Actions of rules: on the last `RULE` bytes of the first page, on the first of the second.
    pub(crate) rules: [Option<Action>; 2],
    /// Whether a map denies the last sub-page of the first page, and the first of the second.
    pub(crate) maps: [bool; 2],
}

/// Bytes of each rule.
pub(crate) const RULE: u64 = 4;

const ACTIONS: [Option<Action>; 5] =
    [None, Some(Action::Log), Some(Action::AllowOnce), Some(Action::Deny), Some(Action::Stop)];

impl Setup {
    /// All 200 of them.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        (0..200_usize).map(|number| Self {
            neighbours: number % 2 == 0,
            rules: [ACTIONS[number / 2 % 5], ACTIONS[number / 10 % 5]],
            maps: [number / 50 % 2 == 1, number / 100 % 2 == 1],
        })
    }

    /// A guest with these rules and maps, and the judge over it.
    pub(crate) fn build(self) -> (Guest, Judge) {
        let mut guest = Guest::new(self.neighbours);
        for (side, page) in guest.pages.into_iter().enumerate() {
            if self.maps[side] {
                guest.deny_by_map(page, if side == 0 { 31 } else { 0 });
            }
            if let Some(action) = self.rules[side] {
                let first = page + if side == 0 { 4096 - RULE } else { 0 };
                guest.add_rule(["before", "after"][side], action, first, RULE);
            }
        }
        (guest, Judge { setup: self, spent: [false; 2] })
    }
}

/// Knows the rules and which of them are spent.
pub(crate) struct Judge {
    setup: Setup,
    spent: [bool; 2],
}

/// What is to come of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Expected {
    /// Whether every byte, or none, is stored.
    pub(crate) stored: bool,
    /// The verdict of its one event, if it has one, and which side's rule decided; none for a map.
    pub(crate) event: Option<(Verdict, Option<usize>)>,
}

impl Judge {
    /// Judges a write of the linear bytes, and spends what it spends.
    pub(crate) fn judge(&mut self, linear: u64, length: u64) -> Expected {
        let touches = |first: u64, bytes: u64| linear < first + bytes && first < linear + length;
        let by_map = [(EDGE - 128, 0), (EDGE, 1)]
            .into_iter()
            .any(|(first, side)| self.setup.maps[side] && touches(first, 128));
        let mut strongest: Option<(u8, usize)> = None;
        let mut touched = [false; 2];
        for (side, first) in [(0, EDGE - RULE), (1, EDGE)] {
            let Some(action) = self.setup.rules[side].filter(|_| touches(first, RULE)) else {
                continue;
            };
            touched[side] = true;
            let effect = match action {
                Action::Log => 0,
                Action::AllowOnce if self.spent[side] => 2,
                Action::AllowOnce => 1,
                Action::Deny => 2,
                Action::Stop => 3,
            };
            if strongest.is_none_or(|(other, _)| effect > other) {
                strongest = Some((effect, side));
            }
        }
        let denied = |verdict, side| Expected { stored: false, event: Some((verdict, side)) };
        match strongest {
            Some((3, side)) => denied(Verdict::Stopped, Some(side)),
            Some((2, side)) => denied(Verdict::Denied, Some(side)),
            _ if by_map => denied(Verdict::Denied, None),
            Some((effect, side)) => {
                for side in [0, 1] {
                    self.spent[side] |= touched[side];
                }
                let verdict = if effect == 1 { Verdict::AllowedOnce } else { Verdict::Logged };
                Expected { stored: true, event: Some((verdict, Some(side))) }
            }
            None => Expected { stored: true, event: None },
        }
    }

    /// Checks that the guest has exactly the event that was expected since the last check.
    pub(crate) fn check_event(
        &self,
        guest: &mut Guest,
        expected: Expected,
        linear: u64,
        bytes: &[u8],
    ) {
        let events = std::mem::take(&mut guest.events);
        let setup = self.setup;
        let Some((verdict, side)) = expected.event else {
            assert!(events.is_empty(), "{setup:?} at {linear:#x}: {events:?}");
            return;
        };
        assert_eq!(events.len(), 1, "{setup:?} at {linear:#x}: one write, one event");
        let event = &events[0];
        assert_eq!(event.verdict, verdict, "{setup:?} at {linear:#x}");
        assert_eq!(event.bytes, bytes, "{setup:?} at {linear:#x}");
        assert_eq!(event.length, Some(bytes.len() as u64));
        assert_eq!((event.gla, event.gpa.as_u64()), (Some(linear), guest.physical(linear)));
        let (rip, cr3, cpl) = (Some(CODE), Some(0x1000), Some(0));
        let origin = Origin { vcpu: 3, rip, rip_exact: true, cr3, cpl };
        assert_eq!((event.origin, event.when), (origin, NOW));
        let named = event.rule.and_then(|rule| guest.domain.rules().get(rule));
        let named = named.map(|active| active.rule.name.as_str());
        assert_eq!(named, side.map(|side| ["before", "after"][side]), "{setup:?} at {linear:#x}");
        let action = side.and_then(|side| setup.rules[side]).unwrap_or(Action::Deny);
        assert_eq!(event.action, action);
    }
}
