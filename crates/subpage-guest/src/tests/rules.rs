//! Rules: actions, rules finer than a sub-page, overlaps, locks, owners, responses.

use crate::hypervisor::test_hooks::{self, Counter, growth};
use crate::hypervisor::{
    Action, Events, Response, Rule, add_rule, drain_events, errno, get_access, has_spp, lock_rule,
    remove_rule, set_access, set_maps,
};
use crate::memory::frames;
use crate::processor::exception::{self, Exception};
use crate::test;

/// Deny, log, allow once: what becomes of memory and what is reported.
fn actions() {
    let page = frames::page();
    let events = Events::with_room(8);
    let deny = add_rule(&Rule::new("deny", page.part(0x00, 8), Action::Deny));
    let log = add_rule(&Rule::new("log", page.part(0x80, 8), Action::Log));
    let once = add_rule(&Rule::new("once", page.part(0x100, 8), Action::AllowOnce));
    drain_events();

    page.increment(0);
    assert_eq!(page.read::<u64>(0), 0);
    let event = events.only();
    assert_eq!((event.rule.get(), event.outcome.get()), (deny, 1));

    let reported = growth(Counter::Reported, || {
        for _ in 0..3 {
            page.increment(0x80);
        }
    });
    assert_eq!((reported, page.read::<u64>(0x80)), (3, 3));
    assert_eq!(events.take(), 3);
    for index in 0..3 {
        let event = events.get(index);
        assert_eq!((event.rule.get(), event.outcome.get()), (log, 0));
        assert_eq!(event.data[..8], (index + 1).to_le_bytes());
    }

    for _ in 0..3 {
        page.increment(0x100);
    }
    assert_eq!(page.read::<u64>(0x100), 1);
    assert_eq!(events.take(), 3);
    let outcomes = core::array::from_fn(|index| events.get(index as u64).outcome.get());
    assert_eq!(outcomes, [0, 1, 1]);
    assert_eq!(events.get(2).rule.get(), once);
    assert_eq!(page.read::<u64>(8), 0);
}
test!(actions);

/// A write next to a rule's bytes in the same sub-page takes effect exactly once and is no event.
fn finer_than_a_sub_page() {
    let page = frames::page();
    add_rule(&Rule::new("fine", page.part(0x188, 8), Action::Deny));
    assert_eq!(get_access(page), !(1 << 3));
    drain_events();
    let emulations = growth(Counter::Emulations, || {
        page.increment(0x180);
        page.increment(0x190);
        page.increment(0x1f8);
    });
    assert_eq!(emulations, 3);
    let denied = growth(Counter::Denied, || {
        page.increment(0x188);
        // One byte of the rule is enough, at either end.
        page.write(0x181, !0_u64);
        page.write(0x18f, !0_u64);
    });
    assert_eq!(denied, 3);
    let words = [0x180, 0x188, 0x190, 0x1f8].map(|offset| page.read::<u64>(offset));
    assert_eq!(words, [1, 0, 1, 1]);
    assert_eq!(Events::with_room(8).take(), 3);
    let violations = growth(Counter::Exits(48), || page.write(0x200, 1_u64));
    assert_eq!(violations, u64::from(!has_spp()));
}
test!(finer_than_a_sub_page);

/// Where rules overlap, the strongest of those that the write touches decides.
fn overlapping_rules() {
    let page = frames::page();
    let events = Events::with_room(8);
    let log = add_rule(&Rule::new("log", page.part(0x100, 0x40), Action::Log));
    let deny = add_rule(&Rule::new("deny", page.part(0x120, 8), Action::Deny));
    drain_events();
    page.write(0x118, 1_u64);
    page.write(0x120, 2_u64);
    page.write(0x11c, 3_u64);
    page.write(0x140, 4_u64);
    assert_eq!(page.read::<u64>(0x118), 1);
    assert_eq!(page.read::<u64>(0x120), 0);
    assert_eq!(page.read::<u64>(0x140), 4);
    assert_eq!(events.take(), 3);
    let seen = core::array::from_fn(|index| {
        let event = events.get(index as u64);
        (event.rule.get(), event.outcome.get(), event.at.get() - page.address())
    });
    assert_eq!(seen, [(log, 0, 0x118), (deny, 1, 0x120), (deny, 1, 0x120)]);
    // Without the stronger one the weaker decides; the map underneath comes back with the last.
    assert_eq!(remove_rule(deny), 0);
    page.write(0x120, 5_u64);
    assert_eq!(page.read::<u64>(0x120), 5);
    assert_eq!(events.only().rule.get(), log);
    set_access(page, 0);
    assert_eq!(remove_rule(log), 0);
    assert_eq!(get_access(page), 0);
    page.write(0x120, 6_u64);
    assert_eq!(page.read::<u64>(0x120), 5);
    set_access(page, !0);
    page.write(0x120, 6_u64);
    assert_eq!(page.read::<u64>(0x120), 6);
}
test!(overlapping_rules);

/// A locked rule cannot be removed, loosened by a map, or unlocked.
fn locked_rules() {
    let page = frames::page();
    let bytes = page.part(0x200, 16);
    let late = add_rule(&Rule::new("late", bytes, Action::Deny));
    assert_eq!(lock_rule(late), 0);
    let early = Rule { locked: true, ..Rule::new("early", page.part(0x400, 16), Action::Deny) };
    let early = add_rule(&early);
    for rule in [late, early] {
        assert_eq!(remove_rule(rule), errno::EPERM);
        assert_eq!(test_hooks::host_remove_rule(rule), errno::EPERM);
        assert_eq!(lock_rule(rule), 0);
    }
    assert_eq!(set_maps(page.gfn(), &[!0]), errno::EPERM);
    let held = 1 << 4 | 1 << 8;
    assert_eq!(get_access(page), !held);
    // What it does not hold may be tightened and loosened.
    set_access(page, !held & !1);
    assert_eq!(get_access(page), !held & !1);
    set_access(page, !held);
    let denied = growth(Counter::Denied, || {
        page.write(0x200, 1_u64);
        page.write(0x408, 1_u64);
        page.write(0, 1_u64);
    });
    assert_eq!(denied, 2);
    assert_eq!(page.read::<u64>(0), 1);
}
test!(locked_rules);

/// A guest can neither remove a rule of the host nor loosen what it holds.
fn rules_of_the_host() {
    let page = frames::page();
    let rule = Rule::new("host", page.part(0, 64), Action::Deny).add_as_host();
    assert_eq!(remove_rule(rule), errno::EPERM);
    set_access(page, !1);
    let result = set_maps(page.gfn(), &[!0]);
    assert!(result == 1 || result == errno::EPERM, "{result}");
    assert_eq!(get_access(page) & 1, 0, "the guest has opened what the host closed");
    // A rule of its own on top, even one that only logs, weakens nothing.
    add_rule(&Rule::new("mine", page.part(0, 64), Action::Log));
    add_rule(&Rule::new("mine too", page.part(0, 64), Action::AllowOnce));
    let denied = growth(Counter::Denied, || page.write(0, 1_u64));
    assert_eq!((denied, page.read::<u64>(0)), (1, 0));
    assert_eq!(test_hooks::host_remove_rule(rule), 0);
    page.write(0, 2_u64);
    assert_eq!(page.read::<u64>(0), 2);
}
test!(rules_of_the_host);

/// The response #GP: a rule's own, and the default.
fn responses() {
    let page = frames::page();
    let fault =
        Rule { response: Response::Fault, ..Rule::new("gp", page.part(0, 8), Action::Deny) };
    let skip =
        Rule { response: Response::Skip, ..Rule::new("rom", page.part(0x80, 8), Action::Deny) };
    add_rule(&fault);
    add_rule(&skip);
    add_rule(&Rule::new("default", page.part(0x100, 8), Action::Deny));
    let events = Events::with_room(8);
    drain_events();
    let write = |offset: u64| exception::catch(|| page.write(offset, 1_u64));
    let is_gp = |caught: Option<Exception>| {
        caught.is_some_and(|exception| exception.vector == 13 && exception.error == 0)
    };
    let caught = write(0);
    assert!(is_gp(caught), "{caught:?}");
    let event = events.only();
    assert_eq!(event.outcome.get(), 2);
    assert_eq!(Some(event.rip.get()), caught.map(|exception| exception.rip));
    assert_eq!(write(0x80), None);
    assert_eq!(events.only().outcome.get(), 1);
    assert_eq!(write(0x100), None);
    assert_eq!(events.only().outcome.get(), 1);
    test_hooks::set_response(true);
    assert!(is_gp(write(0x100)));
    assert_eq!(events.only().outcome.get(), 2);
    assert_eq!(write(0x80), None);
    assert_eq!(events.only().outcome.get(), 1);
    test_hooks::set_response(false);
    assert_eq!(write(0x100), None);
    for offset in [0, 0x80, 0x100] {
        assert_eq!(page.read::<u64>(offset), 0);
    }
}
test!(responses);
