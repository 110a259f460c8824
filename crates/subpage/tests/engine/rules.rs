//! Rules over vectors: overlap, counting, removal, ownership, locks.

use subpage::access::AccessMap;
use subpage::domain::DomainError;
use subpage::rules::{Action, Owner, RuleId};

use crate::guest::{BASE, Normal, bytes, done, get, gfn, guest, map, picture, rule, set};

const PAGE: u64 = BASE * 4096;

#[test]
fn a_sub_page_opens_when_its_last_rule_goes() {
    let (mut domain, _) = guest(2);
    let spans = [(0, 128), (100, 200), (64, 4096), (0, 1)];
    let rules = spans.map(|(first, length)| rule(bytes(PAGE + first, length), Action::Deny));
    let (first, token) = domain.add_rules(&rules).expect("good rules");
    done(&mut domain, token);
    assert_eq!(domain.rules().owners(bytes(PAGE + 127, 1).first()), 4);
    assert_eq!((get(&domain, BASE), get(&domain, BASE + 1)), (0, !1));
    for (n, page, next) in
        [(2, !7u32, u32::MAX), (0, !7, u32::MAX), (1, !1, u32::MAX), (3, u32::MAX, u32::MAX)]
    {
        let token = domain.remove_rule(RuleId(first.0 + n), Owner(7)).expect("its owner");
        done(&mut domain, token);
        assert_eq!((get(&domain, BASE), get(&domain, BASE + 1)), (page, next), "after {n}");
    }
    assert_eq!(domain.frames().heap.frames_in_use(), 1);
}

#[test]
fn an_access_map_outlives_the_rules_above_it() {
    let (mut domain, _) = guest(1);
    set(&mut domain, BASE, &[!0b11]);
    let (id, token) = domain.add_rule(rule(bytes(PAGE + 128, 256), Action::Deny)).expect("a rule");
    done(&mut domain, token);
    assert_eq!(get(&domain, BASE), !0b111);
    set(&mut domain, BASE, &[!0b1000]);
    assert_eq!(get(&domain, BASE), !0b1110, "the map cannot open what the rule denies");
    let token = domain.remove_rule(id, Owner::HOST).expect("the host");
    done(&mut domain, token);
    assert_eq!(get(&domain, BASE), !0b1000, "the last map set is in force");
}

/// What a map denies under rules comes to light as they go, whichever goes first.
#[test]
fn a_map_set_under_two_rules_outlives_both() {
    for order in [[0, 1, 2], [1, 2, 0], [2, 0, 1]] {
        let (mut domain, _) = guest(1);
        let spans = [(0, 128), (64, 128), (7 * 128, 8)];
        let rules = spans.map(|(first, length)| rule(bytes(PAGE + first, length), Action::Deny));
        let (first, token) = domain.add_rules(&rules).expect("good rules");
        done(&mut domain, token);
        let denied = 0b10_0011;
        set(&mut domain, BASE, &[!denied]);
        assert_eq!(get(&domain, BASE), !(denied | 1 << 7));
        for (at, gone) in order.into_iter().enumerate() {
            let token = domain.remove_rule(RuleId(first.0 + gone), Owner(7)).expect("its owner");
            done(&mut domain, token);
            let last = if order[at + 1..].contains(&2) { 1 << 7 } else { 0 };
            assert_eq!(get(&domain, BASE), !(denied | last), "{gone} is gone, of {order:?}");
        }
    }
}

#[test]
fn rules_hold_where_no_memory_is_yet() {
    let (mut domain, _) = guest(1);
    let range = bytes((BASE + 5) * 4096 + 8, 8);
    let (_, token) = domain.add_rule(rule(range, Action::Deny)).expect("a rule");
    done(&mut domain, token);
    domain
        .add_slot(
            Normal,
            subpage::slots::SlotId(9),
            crate::guest::gfns(BASE + 5, 1),
            subpage::slots::SlotFlags::default(),
        )
        .expect("a free place");
    assert_eq!(get(&domain, BASE + 5), !1);
    assert!(!domain.check_write(Normal, range).permits());
}

#[test]
fn only_the_owner_or_the_host_removes_a_rule() {
    let (mut domain, _) = guest(1);
    let (id, token) = domain.add_rule(rule(bytes(PAGE, 1), Action::Deny)).expect("a rule");
    done(&mut domain, token);
    let before = picture(&domain);
    let error = domain.remove_rule(id, Owner(8)).err();
    assert_eq!(error, Some(DomainError::NotOwner { rule: id, owner: Owner(7) }));
    assert_eq!(domain.lock_rule(id, Owner(8)).err(), error);
    assert_eq!(
        domain.remove_rule(RuleId(99), Owner::HOST).err(),
        Some(DomainError::NoSuchRule(RuleId(99)))
    );
    assert_eq!(picture(&domain), before);
}

#[test]
fn nothing_loosens_a_locked_rule() {
    let (mut domain, _) = guest(2);
    let (id, token) = domain.add_rule(rule(bytes(PAGE + 4090, 16), Action::Deny)).expect("a rule");
    done(&mut domain, token);
    domain.lock_rule(id, Owner(7)).expect("its owner");
    let before = picture(&domain);
    let locked = Some(DomainError::Locked(id));
    assert_eq!(domain.remove_rule(id, Owner(7)).err(), locked);
    assert_eq!(domain.remove_rule(id, Owner::HOST).err(), locked);
    assert_eq!(domain.set_access(gfn(BASE), &[map(1 << 31)]).err(), locked);
    assert_eq!(domain.set_access(gfn(BASE), &[AccessMap::NONE, AccessMap::ALL]).err(), locked);
    assert_eq!(picture(&domain), before);
    set(&mut domain, BASE, &[0, !1]);
    assert_eq!((get(&domain, BASE), get(&domain, BASE + 1)), (0, !1), "tightening is allowed");
    assert!(!domain.check_write(Normal, bytes(PAGE + 4095, 1)).permits());
}

#[test]
fn numbers_are_never_used_twice() {
    let (mut domain, _) = guest(1);
    let (first, token) = domain.add_rule(rule(bytes(PAGE, 1), Action::Deny)).expect("a rule");
    done(&mut domain, token);
    let token = domain.remove_rule(first, Owner::HOST).expect("the host");
    done(&mut domain, token);
    let (second, token) = domain.add_rule(rule(bytes(PAGE, 1), Action::Deny)).expect("a rule");
    done(&mut domain, token);
    assert!(second > first);
}

/// Searches among many rules, long and short, against looking at each.
#[test]
fn a_search_finds_every_rule_that_touches() {
    let mut state = 1u64;
    let mut next = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) % below
    };
    let rules: Vec<_> = (0..500)
        .map(|number| {
            let length = if number % 50 == 0 { 1 + next(60_000) } else { 1 + next(200) };
            rule(bytes(PAGE + next(16 * 4096), length), Action::Log)
        })
        .collect();
    let (mut domain, _) = guest(32);
    let (_, token) = domain.add_rules(&rules).expect("good rules");
    done(&mut domain, token);
    for _ in 0..5000 {
        let asked = bytes(PAGE + next(17 * 4096), 1 + next(300));
        let mut found: Vec<u64> = domain.rules().touching(asked).map(|rule| rule.id.0).collect();
        found.sort_unstable();
        let expected: Vec<u64> = (1..)
            .zip(&rules)
            .filter(|(_, rule)| rule.range.intersection(asked).is_some())
            .map(|(number, _)| number)
            .collect();
        assert_eq!(found, expected, "{asked:?}");
    }
}

/// Policies, events and requests spell actions alike.
#[test]
fn each_action_has_its_own_word() {
    for action in Action::ALL {
        assert_eq!(Action::from_word(action.word()), Some(action));
    }
    assert!(Action::ALL.is_sorted(), "in ascending order of strength");
    assert_eq!(Action::ALL.map(Action::word), ["log", "allow-once", "deny", "stop"]);
    for other in ["", "Deny", "deny ", "allow_once", "block"] {
        assert_eq!(Action::from_word(other), None, "{other:?}");
    }
}
