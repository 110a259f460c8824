//! Rules that are not yet in force.

use subpage::domain::DomainError;
use subpage::rules::{Action, Owner, RuleId};

use crate::guest::{BASE, Normal, bytes, done, get, guest, picture, rule, set};

const PAGE: u64 = BASE * 4096;

#[test]
fn an_unarmed_rule_neither_denies_nor_is_asked_for() {
    let (mut domain, _) = guest(1);
    let rules = [rule(bytes(PAGE, 8), Action::Deny), rule(bytes(PAGE + 4, 8), Action::AllowOnce)];
    let (first, token) =
        domain.add_some_armed(&rules.map(|rule| (rule, false))).expect("good rules");
    done(&mut domain, token);
    assert_eq!(get(&domain, BASE), u32::MAX);
    assert!(domain.authorize_write(Normal, bytes(PAGE, 8)).expect("memory").permits());
    assert_eq!(domain.rules().touching(bytes(PAGE, 4096)).count(), 0);
    assert_eq!(domain.rules().owners(bytes(PAGE, 1).first()), 0);
    assert_eq!(domain.rules().iter().count(), 2, "but it is there");
    assert!(!domain.rules().get(first).expect("a rule").armed);

    let token = domain.arm_rules(&[RuleId(first.0 + 1)]).expect("a rule");
    done(&mut domain, token);
    assert_eq!(get(&domain, BASE), !1);
    assert!(domain.check_write(Normal, bytes(PAGE, 4)).permits(), "the other is not armed");
    let once = |domain: &mut crate::guest::TestDomain| {
        domain.authorize_write(Normal, bytes(PAGE + 4, 1)).expect("memory").permits()
    };
    assert_eq!([once(&mut domain), once(&mut domain)], [true, false], "not spent before");
    // Again, with one that is armed already, and twice.
    let token = domain.arm_rules(&[first, RuleId(first.0 + 1), first]).expect("rules");
    done(&mut domain, token);
    assert!(!domain.check_write(Normal, bytes(PAGE, 4)).permits());
    let (next, token) = domain.add_rule(rule(bytes(PAGE, 1), Action::Log)).expect("a rule");
    done(&mut domain, token);
    assert_eq!(next.0, first.0 + 2);
}

#[test]
fn a_rule_over_an_access_map_arms_and_goes_like_any_other() {
    let (mut domain, _) = guest(1);
    set(&mut domain, BASE, &[!0b11]);
    let (id, token) = domain
        .add_some_armed(&[(rule(bytes(PAGE + 128, 256), Action::Deny), false)])
        .expect("a rule");
    done(&mut domain, token);
    assert_eq!(get(&domain, BASE), !0b11);
    let token = domain.arm_rules(&[id]).expect("a rule");
    done(&mut domain, token);
    assert_eq!(get(&domain, BASE), !0b111);
    let token = domain.remove_rule(id, Owner::HOST).expect("the host");
    done(&mut domain, token);
    assert_eq!(get(&domain, BASE), !0b11, "the map is as it was");
}

#[test]
fn an_unarmed_rule_can_be_removed_and_is_kept_if_it_is_locked() {
    let (mut domain, _) = guest(1);
    let rules = [rule(bytes(PAGE, 8), Action::Deny); 2];
    let (first, token) = domain.add_some_armed(&rules.map(|rule| (rule, false))).expect("rules");
    done(&mut domain, token);
    let token = domain.remove_rule(first, Owner::HOST).expect("the host");
    done(&mut domain, token);
    assert_eq!(get(&domain, BASE), u32::MAX);
    let other = RuleId(first.0 + 1);
    domain.lock_rule(other, Owner::HOST).expect("the host");
    assert_eq!(domain.remove_rule(other, Owner::HOST).err(), Some(DomainError::Locked(other)));
    set(&mut domain, BASE, &[u32::MAX]);
    let token = domain.arm_rules(&[other]).expect("a rule");
    done(&mut domain, token);
    assert_eq!(get(&domain, BASE), !1);
}

/// Contract C2.
#[test]
fn an_arming_that_fails_arms_nothing() {
    let (mut domain, failure) = guest(2);
    let rules = [rule(bytes(PAGE, 8), Action::Deny), rule(bytes(PAGE + 4096, 8), Action::Deny)];
    let (first, token) = domain.add_some_armed(&rules.map(|rule| (rule, false))).expect("rules");
    done(&mut domain, token);
    let before = picture(&domain);
    let all = [first, RuleId(first.0 + 1)];
    assert_eq!(
        domain.arm_rules(&[first, RuleId(99)]).err(),
        Some(DomainError::NoSuchRule(RuleId(99)))
    );
    for after in 0.. {
        failure.after(Some(after));
        let armed = domain.arm_rules(&all);
        failure.after(None);
        let Ok(token) = armed else {
            assert_eq!(picture(&domain), before);
            assert!(!domain.rules().get(first).expect("a rule").armed);
            continue;
        };
        assert!(after > 0, "something was needed");
        done(&mut domain, token);
        break;
    }
    assert_eq!((get(&domain, BASE), get(&domain, BASE + 1)), (!1, !1));
}

/// Contract C7.
#[test]
fn what_is_armed_outlives_export_and_import() {
    let (mut domain, _) = guest(1);
    let rules = [rule(bytes(PAGE, 8), Action::Deny), rule(bytes(PAGE + 128, 8), Action::Deny)];
    let (first, token) = domain.add_some_armed(&rules.map(|rule| (rule, false))).expect("rules");
    done(&mut domain, token);
    let token = domain.arm_rules(&[first]).expect("a rule");
    done(&mut domain, token);
    let state = domain.export().expect("memory");
    let (mut copy, _) = guest(1);
    let token = copy.import(&state, 1 << 20).expect("good state");
    done(&mut copy, token);
    assert_eq!((get(&copy, BASE), copy.export().expect("memory")), (!1, state));
    let token = copy.arm_rules(&[RuleId(first.0 + 1)]).expect("a rule");
    done(&mut copy, token);
    assert_eq!(get(&copy, BASE), !0b11);
}
