//! Memory that the guest finds at two addresses: what is guarded or tracked by one is so by the other.

use iced_x86::code_asm::{qword_ptr, rax, rbx};
use kvm_bindings::kvm_regs;
use subpage::address::{ByteRange, GfnRange, Gpa};
use subpage::rules::{Action, Owner, RuleId};
use subpage_emulate::XsaveArea;
use subpage_kvm::memory::MemoryAlias;
use subpage_kvm::vm::Configuration;

use crate::guest::{PAGE, assemble, both_ways, gfn, kvm};
use crate::privilege::{FLAGS, LEVELS, Level};
use crate::stepper::{Registers, Stepper};

/// The second address of two pages, of which the guarded page is the first.
const ALIAS: u64 = 0x200_0000;
const PAGES: u64 = 2;

const NONE: [u64; 0] = [];

const CODE_AT: u64 = 0x21_0000;

/// Both addresses of a byte.
const fn names(offset: u64) -> [u64; 2] {
    [PAGE + offset, ALIAS + offset]
}

fn with_alias(configuration: &Configuration) -> Configuration {
    let pages = GfnRange::new(gfn(ALIAS), PAGES).unwrap();
    Configuration {
        alias: Some(MemoryAlias { pages, original: gfn(PAGE) }),
        ..configuration.clone()
    }
}

/// Has the guest store `value` at an address.
fn store(stepper: &Stepper, at: u64, value: u64) {
    let code = assemble(CODE_AT, |code| {
        code.mov(rbx, at).unwrap();
        code.mov(rax, value).unwrap();
        code.mov(qword_ptr(rbx), rax).unwrap();
    });
    let general = kvm_regs { rip: CODE_AT, rflags: FLAGS, ..kvm_regs::default() };
    stepper.step(&code, &Registers { general, extended: Box::new(XsaveArea::INITIAL) }).unwrap();
}

/// Stores a new value by each name; the stores that were denied, and where their events say.
fn denied(stepper: &Stepper, offset: u64, value: &mut u64) -> Vec<u64> {
    let guest = &stepper.guest;
    let mut denied = Vec::new();
    for at in names(offset) {
        *value += 1;
        let before = guest.word(PAGE + offset);
        store(stepper, at, *value);
        let events = guest.events();
        let expected = if events.is_empty() { *value } else { before };
        assert_eq!(names(offset).map(|name| guest.word(name)), [expected; 2], "{at:#x}");
        denied.extend(events.iter().map(|event| event.event.gpa.as_u64()));
    }
    denied
}

fn rules_hold_by_both(configuration: &Configuration, level: Level) {
    let stepper = Stepper::new(&with_alias(configuration), level, &[]);
    let guest = &stepper.guest;
    let mut value = 0;
    for (number, named) in (1..).zip(names(0x1100)) {
        let context = format!("{:?}, {level:?}, a rule at {named:#x}", configuration.trap);
        guest.guard(named, 8, Action::Deny);
        assert_eq!(denied(&stepper, 0x1100, &mut value), names(0x1100), "{context}");
        assert_eq!(denied(&stepper, 0x1108, &mut value), NONE, "its neighbours, {context}");
        assert_eq!(denied(&stepper, 0x10fc, &mut value), names(0x10fc), "its start, {context}");
        let counts = guest.vm.trap_counts().rule(number);
        assert_eq!((counts.checked, counts.denied), (6, 4), "{context}");
        guest.vm.remove_rule(RuleId(number), Owner::HOST).unwrap();
        let trapped = guest.vm.trap_counts().writes();
        assert_eq!(denied(&stepper, 0x1100, &mut value), NONE, "after its rule, {context}");
        assert_eq!(guest.vm.trap_counts().writes(), trapped, "no page traps, {context}");
    }
    // The guard of memory that a store by the other name enters from the page before.
    guest.guard(PAGE + 0x1000, 4, Action::Deny);
    let before = guest.word(PAGE + 0xffc);
    store(&stepper, ALIAS + 0xffc, !0);
    assert_eq!(guest.word(PAGE + 0xffc), before, "across a page end: all of it or nothing");
    assert_eq!(guest.events().len(), 1);
}

#[test]
fn a_rule_by_one_address_denies_stores_by_the_other() {
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        for level in LEVELS {
            rules_hold_by_both(&configuration, level);
        }
    }
}

#[test]
fn a_harvest_tells_of_stores_by_both_addresses() {
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        for tracked in [PAGE, ALIAS] {
            let stepper = Stepper::new(&with_alias(&configuration), Level::User, &[]);
            let guest = &stepper.guest;
            let range = ByteRange::new(Gpa::new(tracked), 0x2000).unwrap();
            let track = guest.vm.track(range).unwrap();
            let harvest = || -> Vec<_> {
                let pages = guest.vm.harvest(track).unwrap();
                pages.iter().map(|page| (page.gfn, page.written.bits())).collect()
            };
            for round in 0..3 {
                let [first, second] = [PAGE, ALIAS].map(|name| name + 0x80 * round);
                store(&stepper, first + 0x100, 1);
                store(&stepper, second + 0x1800, 1);
                let expected =
                    [(gfn(PAGE), 1 << 2 << round), (gfn(PAGE + 0x1000), 1 << 16 << round)];
                assert_eq!(harvest(), expected, "{:?}", configuration.trap);
                assert_eq!(harvest(), [], "each is told once");
            }
            // All of a page by the alias alone, which then need not trap; and armed again.
            for _ in 0..12 {
                (0..32).for_each(|sub_page| store(&stepper, ALIAS + sub_page * 0x80, 1));
            }
            assert_eq!(harvest(), [(gfn(PAGE), u32::MAX)]);
            store(&stepper, ALIAS, 1);
            assert_eq!(harvest(), [(gfn(PAGE), 1)]);
        }
    }
}

#[test]
fn a_restored_guest_finds_its_memory_at_both_addresses() {
    if !kvm() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("guest.snapshot");
    let configuration = with_alias(&crate::guest::small());
    let guest = crate::guest::Guest::new(&configuration, |code| {
        crate::guest::stores(code, &[PAGE + 0x100, ALIAS + 0x100, ALIAS + 0x108]);
    });
    guest.guard(ALIAS + 0x100, 8, Action::Deny);
    guest.vm.save(&path).unwrap();
    drop(guest);
    let restored =
        subpage_kvm::vm::Vm::restore(&path, &crate::guest::small(), subpage_kvm::vm::nowhere());
    let mut guest = crate::guest::Guest::of(restored.unwrap());
    guest.run_well();
    assert_eq!(guest.events().len(), 2);
    assert_eq!([guest.word(PAGE + 0x100), guest.word(PAGE + 0x108)], [0, 3]);
}
