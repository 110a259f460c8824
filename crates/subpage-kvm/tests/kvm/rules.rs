//! Every kind of rule on stores of a guest.

use subpage::access::AccessMap;
use subpage::address::Gpa;
use subpage::domain::DomainError;
use subpage::rules::{Action, Owner, Rule};
use subpage_kvm::guard::ChangeError;
use subpage_kvm::vm::{Ending, VmError};
use subpage_trap::{Record, Verdict};

use crate::guest::{Guest, PAGE, both_ways, gfn, kvm, rule, stores};
use crate::privilege::{LEVELS, place_first};

/// Runs stores of 8 bytes under rules, both ways and at both levels, and looks at the guest.
fn each(addresses: &[u64], rules: &[Rule], look: impl Fn(&Guest, &Ending)) {
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        for level in LEVELS {
            println!("{:?} at {level:?}", configuration.trap);
            let mut guest = Guest::new(&configuration, |code| stores(code, addresses));
            place_first(&guest, level);
            guest.vm.add_rules(rules).unwrap();
            let ending = guest.run();
            look(&guest, &ending);
        }
    }
}

/// What is told of a write: the number in it, what became of it, because of which rule.
fn told(record: &Record) -> (u64, Verdict, &str) {
    let number = u64::from_le_bytes(record.event.bytes.as_slice().try_into().unwrap());
    (number, record.event.verdict, record.rule_or_map())
}

fn check(guest: &Guest, expected: &[(u64, Verdict, &str)]) {
    let events = guest.events();
    let events: Vec<_> = events.iter().map(|event| told(event)).collect();
    assert_eq!(events, expected);
}

const EXITED: Ending = Ending::Exited { code: 0 };

#[test]
fn logged_writes_take_effect_and_are_told() {
    each(&[PAGE, PAGE + 8, PAGE], &[rule("log", PAGE, 8, Action::Log)], |guest, ending| {
        assert_eq!(*ending, EXITED);
        check(guest, &[(1, Verdict::Logged, "log"), (3, Verdict::Logged, "log")]);
        assert_eq!([guest.word(PAGE), guest.word(PAGE + 8)], [3, 2]);
        let counts = guest.vm.trap_counts().rule(1);
        assert_eq!((counts.checked, counts.logged, counts.denied), (3, 2, 0));
    });
}

#[test]
fn the_first_write_is_allowed_once() {
    let once = rule("once", PAGE + 0x80, 0x10, Action::AllowOnce);
    each(&[PAGE + 0x88, PAGE + 0x80, PAGE + 0x88], &[once], |guest, ending| {
        assert_eq!(*ending, EXITED);
        check(
            guest,
            &[
                (1, Verdict::AllowedOnce, "once"),
                (2, Verdict::Denied, "once"),
                (3, Verdict::Denied, "once"),
            ],
        );
        assert_eq!([guest.word(PAGE + 0x80), guest.word(PAGE + 0x88)], [0, 1]);
    });
}

#[test]
fn a_stop_lets_nothing_follow() {
    let rules = [rule("stop", PAGE + 0x100, 1, Action::Stop)];
    each(&[PAGE, PAGE + 0x0fc, PAGE + 8], &rules, |guest, ending| {
        let Ending::Stopped { event } = ending else { panic!("{ending}") };
        let event = &event.event;
        assert_eq!((event.verdict, event.at.as_u64()), (Verdict::Stopped, PAGE + 0x100));
        assert_eq!([PAGE, PAGE + 8, PAGE + 0xfc].map(|at| guest.word(at)), [1, 0, 0]);
    });
}

#[test]
fn neighbours_of_a_fine_rule_are_let_through_and_counted() {
    let rules = [rule("fine", PAGE + 0x210, 4, Action::Deny)];
    let addresses = [0x208, 0x210, 0x20d, 0x214, 0x200, 0x280, 0x1f8].map(|offset| PAGE + offset);
    each(&addresses, &rules, |guest, ending| {
        assert_eq!(*ending, EXITED);
        check(guest, &[(2, Verdict::Denied, "fine"), (3, Verdict::Denied, "fine")]);
        assert_eq!([PAGE + 0x208, PAGE + 0x214, PAGE + 0x200].map(|at| guest.word(at)), [1, 4, 5]);
        assert_eq!(guest.read(PAGE + 0x210), [0; 4]);
        let trap_counts = guest.vm.trap_counts();
        assert_eq!((trap_counts.writes(), trap_counts.guarded()), (7, 5));
        assert_eq!((trap_counts.rule(1).checked, trap_counts.rule(1).denied), (5, 2));
    });
}

#[test]
fn the_strongest_of_overlapping_rules_decides() {
    let rules = [
        rule("all", PAGE, 0x1000, Action::Log),
        rule("part", PAGE + 0x100, 0x100, Action::Deny),
        rule("core", PAGE + 0x180, 8, Action::Stop),
        rule("other page", PAGE + 0x1000, 0x80, Action::Deny),
    ];
    // The fourth touches the last byte of "all" and the first of "other page".
    let addresses = [0x80, 0xfc, 0x1f8, 0xffc, 0x1080, 0x17c].map(|offset| PAGE + offset);
    each(&addresses, &rules, |guest, ending| {
        assert!(matches!(ending, Ending::Stopped { .. }), "{ending}");
        check(
            guest,
            &[
                (1, Verdict::Logged, "all"),
                (2, Verdict::Denied, "part"),
                (3, Verdict::Denied, "part"),
                (4, Verdict::Denied, "other page"),
                (6, Verdict::Stopped, "core"),
            ],
        );
        let words = addresses.map(|at| guest.word(at));
        assert_eq!(words, [1, 0, 0, 0, 5, 0]);
        let trap_counts = guest.vm.trap_counts();
        let counts = [1, 2, 3, 4].map(|rule| {
            let counts = trap_counts.rule(rule);
            [counts.checked, counts.overruled, counts.logged, counts.denied]
        });
        assert_eq!(counts, [[5, 4, 1, 0], [3, 1, 0, 2], [2, 0, 0, 1], [1, 0, 0, 1]]);
        // All rules but the last share a page; the fourth write touches both pages, the fifth the second.
        let costs = [1, 2, 3, 4].map(|rule| {
            let counts = trap_counts.rule(rule);
            [counts.exits, counts.exits_alone]
        });
        assert_eq!(costs, [[5, 0], [5, 0], [5, 0], [2, 1]]);
        let hottest = [0, 3].map(|rule| trap_counts.hottest_page(rules[rule].range));
        let page = Gpa::new(PAGE).gfn();
        assert_eq!(hottest, [Some((page, 5)), Some((page.checked_add(1).unwrap(), 2))]);
    });
}

#[test]
fn access_maps_and_rules_hold_together() {
    if !kvm() {
        return;
    }
    let addresses = [0x0, 0x80, 0x100, 0x180].map(|offset| PAGE + offset);
    for configuration in both_ways() {
        for level in LEVELS {
            let mut guest = Guest::new(&configuration, |code| stores(code, &addresses));
            place_first(&guest, level);
            guest.guard(PAGE + 0x80, 0x80, Action::Deny);
            guest.map(PAGE, !0b101);
            let mut maps = [AccessMap::ALL];
            guest.vm.get_access(gfn(PAGE), &mut maps).unwrap();
            assert_eq!(maps[0].bits(), !0b111, "both deny");
            guest.run_well();
            check(
                &guest,
                &[
                    (1, Verdict::Denied, "(access map)"),
                    (2, Verdict::Denied, "rule"),
                    (3, Verdict::Denied, "(access map)"),
                ],
            );
            assert_eq!(addresses.map(|at| guest.word(at)), [0, 0, 0, 4]);
        }
    }
}

#[test]
fn a_locked_rule_stays() {
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        let mut guest = Guest::new(&configuration, |code| stores(code, &[PAGE]));
        let id = guest.vm.add_rules(&[rule("locked", PAGE, 8, Action::Deny)]).unwrap();
        guest.vm.lock_rule(id, Owner::HOST).unwrap();
        let refused = guest.vm.remove_rule(id, Owner::HOST);
        let locked = |error| matches!(error, Err(VmError::Change(ChangeError::Domain(DomainError::Locked(rule)))) if rule == id);
        assert!(locked(refused));
        assert!(locked(guest.vm.set_access(gfn(PAGE), &[AccessMap::ALL])));
        guest.run_well();
        check(&guest, &[(1, Verdict::Denied, "locked")]);
    }
}

#[test]
fn rules_outside_of_memory_are_refused_and_change_nothing() {
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        let mut guest = Guest::new(&configuration, |code| stores(code, &[PAGE]));
        let rules = [rule("in", PAGE, 8, Action::Deny), rule("out", 1 << 30, 8, Action::Deny)];
        let refused = guest.vm.add_rules(&rules);
        assert!(matches!(refused, Err(VmError::Change(ChangeError::NotMemory { .. }))));
        assert_eq!(guest.vm.trapped_pages(), 0);
        guest.run_well();
        assert_eq!(guest.word(PAGE), 1);
    }
}
