//! Memory slots: as many as the guarded pages need, and a clear word when there are too few.

use subpage::rules::{Action, Owner, Rule};
use subpage_kvm::guard::ChangeError;
use subpage_kvm::trap::{SlotError, TrapBy, TrapError};
use subpage_kvm::vm::{Configuration, TrapChoice, VmError};

use crate::guest::{Guest, PAGE, both_ways, kvm, rule, small, stores};

/// A rule on every second page.
fn separate(pages: u64) -> Vec<Rule> {
    (0..pages).map(|page| rule("page", PAGE + page * 0x2000 + 0x800, 8, Action::Deny)).collect()
}

/// Whether slots are what traps where they are asked for. Tells the reason if not.
fn slots_trap(guest: &Guest) -> bool {
    let slots = guest.vm.traps_by() == TrapBy::Slots;
    if !slots {
        println!("skipped: this KVM runs a guest's kernel itself, where mprotect makes pages trap");
    }
    slots
}

#[test]
fn too_many_separate_pages_are_a_clear_error_and_change_nothing() {
    if !kvm() {
        return;
    }
    let configuration = Configuration { trap: TrapChoice::Slots, slots: Some(8), ..small() };
    let mut guest = Guest::new(&configuration, |code| stores(code, &[PAGE + 0x800, PAGE + 0x6800]));
    if !slots_trap(&guest) {
        return;
    }
    // A slot for each page and for each gap: three pages need seven.
    guest.vm.add_rules(&separate(3)).unwrap();
    assert_eq!(guest.vm.slot_count(), 7);
    let refused = guest.vm.add_rules(&[rule("one more", PAGE + 0x6800, 8, Action::Deny)]);
    let Err(VmError::Change(ChangeError::Trap(TrapError::Slot(SlotError::TooMany {
        needed: 9,
        limit: 8,
    })))) = &refused
    else {
        panic!("{refused:?}")
    };
    let message = refused.err().unwrap().to_string();
    assert!(message.contains("9 memory slots are needed, KVM has 8"), "{message}");
    assert_eq!((guest.vm.slot_count(), guest.vm.trapped_pages()), (7, 3));
    guest.run_well();
    assert_eq!([guest.word(PAGE + 0x800), guest.word(PAGE + 0x6800)], [0, 2]);
    assert_eq!(guest.events().len(), 1);
}

#[test]
fn slots_merge_when_their_rules_go() {
    if !kvm() {
        return;
    }
    let configuration = Configuration { trap: TrapChoice::Slots, ..small() };
    let guest = Guest::new(&configuration, |code| stores(code, &[]));
    if !slots_trap(&guest) {
        return;
    }
    assert_eq!(guest.vm.slot_count(), 1);
    let first = guest.vm.add_rules(&separate(10)).unwrap();
    assert_eq!((guest.vm.slot_count(), guest.vm.trapped_pages()), (21, 10));
    // The page between two guarded ones is one slot with them.
    let between = guest.vm.add_rules(&[rule("between", PAGE + 0x1000, 8, Action::Deny)]).unwrap();
    assert_eq!((guest.vm.slot_count(), guest.vm.trapped_pages()), (19, 11));
    guest.vm.remove_rule(between, Owner::HOST).unwrap();
    for rule in 0..10 {
        guest.vm.remove_rule(subpage::rules::RuleId(first.0 + rule), Owner::HOST).unwrap();
    }
    assert_eq!((guest.vm.slot_count(), guest.vm.trapped_pages()), (1, 0));
}

#[test]
fn a_thousand_rules_on_separate_pages_hold() {
    const PAGES: u64 = 1000;
    if !kvm() {
        return;
    }
    let denied = [0, 1, 499, 999].map(|page| PAGE + page * 0x2000 + 0x800);
    let between = [0, 499].map(|page| PAGE + page * 0x2000 + 0x1800);
    let addresses = [&denied[..], &between, &between].concat();
    for configuration in both_ways() {
        let mut guest = Guest::new(&configuration, |code| stores(code, &addresses));
        guest.vm.add_rules(&separate(PAGES)).unwrap();
        assert_eq!(guest.vm.trapped_pages(), PAGES);
        guest.run_well();
        assert_eq!(denied.map(|at| guest.word(at)), [0; 4]);
        assert_eq!(between.map(|at| guest.word(at)), [7, 8]);
        assert_eq!(guest.events().len(), denied.len());
        assert_eq!(guest.vm.trap_counts().writes(), 4, "pages without rules do not trap");
    }
}
