//! The ways of remembering agree wherever the architecture leaves no choice.

use subpage::level::Level;
use subpage_model::{Access, AccessKind, Staleness};

use crate::guest::{Guest, P, R, SPP, W, X, access};

/// A repeatable row of numbers.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

const PAGES: u64 = 16;

fn any_access(numbers: &mut Numbers) -> Access {
    let kind = match numbers.below(8) {
        0 => AccessKind::Read,
        1 => AccessKind::ReadModifyWrite,
        2 => AccessKind::WalkRead,
        3 => AccessKind::WalkUpdate,
        4 => AccessKind::Fetch,
        _ => AccessKind::Write,
    };
    access(kind, P + numbers.below((PAGES << 12) - 64), 1 + numbers.below(64))
}

fn change(guest: &mut Guest, numbers: &mut Numbers) {
    let page = P + (numbers.below(PAGES) << 12);
    let map = match numbers.below(3) {
        0 => 0,
        1 => u32::MAX,
        _ => u32::try_from(numbers.below(1 << 32)).expect("32 bits"),
    };
    match numbers.below(6) {
        0 => guest.set_leaf(page, R | W | X),
        1 => guest.set_leaf(page, R | X),
        2 => guest.set_ept(page, Level::L1, 0),
        3 => guest.set_leaf(page, X | SPP),
        _ => guest.restrict(page, map),
    }
}

/// A processor that is told of each change at once answers like one that remembers nothing, in every bit of
/// every exit, and leaves the same flags behind.
#[test]
fn after_invept_all_policies_are_one() {
    for flags in [false, true] {
        let policies = [
            Staleness::None,
            Staleness::UntilExit,
            Staleness::UntilEvicted,
            Staleness::Longest,
            Staleness::Random(7),
        ];
        let mut guests = policies.map(Guest::with);
        for guest in &mut guests {
            guest.roots.ept_accessed_dirty = flags;
        }
        for round in 0..400 {
            for guest in &mut guests {
                change(guest, &mut Numbers(round * 2 + 1));
                guest.invept(0);
            }
            let mut numbers = Numbers(round * 2 + 2);
            for _ in 0..50 {
                let access = any_access(&mut numbers);
                let [first, rest @ ..] = &mut guests;
                let fresh = first.access(0, &access);
                for (guest, policy) in rest.iter_mut().zip(&policies[1..]) {
                    assert_eq!(guest.access(0, &access), fresh, "{policy:?} {access:?}");
                }
            }
            for page in 0..PAGES {
                let fresh = guests[0].ept(P + (page << 12), Level::L1);
                for guest in &guests {
                    assert_eq!(guest.ept(P + (page << 12), Level::L1), fresh);
                }
            }
        }
    }
}

/// A CPU that is not told of a change answers as before it or as after it, whatever it remembers;
/// both answers come up; and repeating a refused access always gets to the new answer.
#[test]
fn without_invept_an_answer_is_old_or_new() {
    let (mut old_answers, mut new_answers) = (0, 0);
    for seed in 1..300 {
        let mut numbers = Numbers(seed);
        let mut guest = Guest::with(Staleness::Random(seed));
        let mut fresh = Guest::plain();
        let page = P + (numbers.below(PAGES) << 12);
        let touch = access(AccessKind::Write, page + numbers.below(4088), 8);
        for map in [u32::MAX, 0x0F0F_0F0F, 0, !1] {
            let old = fresh.access(0, &touch);
            fresh.restrict(page, map);
            guest.restrict(page, map);
            let new = fresh.access(0, &touch);
            let seen = guest.access(0, &touch);
            assert!(seen == new || seen.is_ok() || seen == old, "{seen:?}");
            if old != new {
                old_answers += u32::from(seen == old);
                new_answers += u32::from(seen == new);
            }
            if new.is_ok() {
                // The refusal, if it was one, has forgotten what it came from.
                let again = guest.access(0, &touch);
                assert_eq!(again, new, "a refused access makes progress");
            }
        }
    }
    assert!(old_answers > 20 && new_answers > 20, "{old_answers} old, {new_answers} new");
}
