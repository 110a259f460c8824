//! D11 to D14, D30 to D32: what roots, processors and slots must not have to do with permissions.

use subpage::access::AccessMap;
use subpage::address::Gpa;
use subpage::domain::DomainError;
use subpage::level::PageSize;
use subpage::rules::Action;
use subpage::slots::{SlotFlags, SlotId};
use subpage_model::{AccessOutcome, Setup};

use crate::guest::{
    BASE, EVERY_STALENESS, Guest, Normal, REGION, SLOT, Smm, at, bytes, gfn, gfns, host_page, rule,
    stale, write_of,
};

/// Freeing any vCPU's root, which a guest causes by a write to CR0 or by a reset, switched the VM's
/// protection off.
#[test]
fn d11_no_root_that_goes_takes_the_protection_along() {
    let mut guest = Guest::new(stale(), 16);
    guest.add_rule(rule(bytes(at(1, 0), 128), Action::Deny));
    guest.set(BASE, &[!1]);
    guest.warm(BASE);
    let sppt = guest.domain().sppt();
    let maps = [guest.get(BASE), guest.get(BASE + 1)];
    // All that a processor's reset, a mode change or a reclaim does: exits, an empty EPT, new tables.
    for cpu in 0..3 {
        guest.vcpu_mut(cpu).other_exit();
        guest.change(|domain| domain.unmap(Normal, gfns(0, 1 << 36)).expect("memory"));
        guest.vcpu_mut(cpu).invept();
        for writer in 0..3 {
            guest.denies(writer, at(0, 0));
            guest.denies(writer, at(1, 0));
            guest.permits(writer, at(0, 128));
        }
    }
    assert_eq!(guest.domain().sppt(), sppt);
    assert_eq!([guest.get(BASE), guest.get(BASE + 1)], maps);
    guest.set(BASE + 2, &[0]);
}

/// Removing any slot (a device's BAR moves) disabled protection for the whole VM, and enabling it
/// again forgot all rules.
#[test]
fn d12_a_slot_that_goes_touches_nothing_else() {
    let mut guest = Guest::new(stale(), 16);
    guest.add_rule(rule(bytes(at(1, 5), 1), Action::Deny));
    guest.set(BASE, &[!1]);
    let bar = SlotId(7);
    for first in [0x2000, 0x3000, BASE + 16] {
        let domain = guest.domain_mut();
        domain.add_slot(Normal, bar, gfns(first, 4), SlotFlags::default()).expect("free");
        guest.set(first, &[0]);
        guest.warm(first);
        guest.warm(BASE);
        guest.change(|domain| domain.remove_slot(Normal, bar).expect("there is one"));
        for gone in [first << 12, (first + 1) << 12] {
            assert_eq!(guest.write(0, gone), AccessOutcome::NoSlot(Gpa::new(gone)));
        }
        for cpu in 0..3 {
            guest.denies(cpu, at(0, 0));
            guest.denies(cpu, at(1, 0));
            guest.permits(cpu, at(0, 128));
        }
    }
    guest.domain_mut().enable().expect("nothing to do");
    assert_eq!((guest.get(BASE), guest.domain().rules().len()), (!1, 1));
}

/// vCPUs in different modes got different roots, and only one of the trees was kept up to date.
#[test]
fn d13_every_processor_and_mode_has_the_one_root() {
    let mut guest = Guest::new(stale(), 16);
    guest.domain_mut().add_slot(Smm, SLOT, gfns(BASE, 16), SlotFlags::default()).expect("free");
    guest.domain_mut().map(Smm, gfn(BASE), host_page(BASE, PageSize::Size4K)).expect("memory");
    // The second page keeps the region's tables in place while the first is open.
    guest.set(BASE + 1, &[0]);
    guest.set(BASE, &[!1]);
    guest.warm(BASE);
    for map in [!2, !4, u32::MAX, !8, 0, u32::MAX, 0, 5] {
        assert_eq!(guest.roots(Normal).sppt, guest.roots(Smm).sppt);
        guest.set(BASE, &[map]);
        // Processor 2 stays in system-management mode.
        for sub in 0..5 {
            let permitted = map & 1 << sub != 0;
            let write = write_of(at(0, sub * 128), 8);
            // A violation may be due to an old translation, which it removes.
            let done = guest.raw(2, Smm, &write).or_else(|_| guest.raw(2, Smm, &write)).is_ok();
            assert_eq!(done, permitted, "{map:#x}, sub-page {sub}");
            for cpu in 0..2 {
                let outcome = guest.write(cpu, at(0, sub * 128));
                assert_eq!(outcome == AccessOutcome::Done, permitted, "{map:#x}: {outcome:?}");
            }
        }
    }
    assert_eq!(guest.domain().counters().spp_misses, 0);
}

/// SET did nothing, and said that it had succeeded, if vCPU 0 had no root at that moment.
#[test]
fn d14_a_processor_that_never_ran_does_not_matter() {
    for staleness in EVERY_STALENESS {
        let mut guest = Guest::new(Setup { staleness, ..stale() }, 16);
        guest.permits(2, at(0, 0));
        guest.permits(2, at(0, 128));
        guest.set(BASE, &[!1]);
        guest.denies(2, at(0, 0));
        guest.permits(2, at(0, 128));
        guest.denies(0, at(0, 0));
    }
}

/// System-management mode was served from the other address space's maps, or from none.
#[test]
fn d30_system_management_mode_opens_nothing() {
    let mut guest = Guest::new(stale(), 16);
    guest.domain_mut().add_slot(Smm, SLOT, gfns(BASE, 16), SlotFlags::default()).expect("free");
    guest.warm(BASE);
    guest.domain_mut().map(Smm, gfn(BASE), host_page(BASE, PageSize::Size4K)).expect("memory");
    let denied = write_of(at(0, 0), 8);
    assert!(guest.raw(1, Smm, &denied).is_ok());
    guest.set(BASE, &[!1]);
    assert!(guest.raw(1, Smm, &denied).is_err(), "mapped before the rule");
    guest.change(|domain| domain.unmap(Smm, gfns(BASE, 16)).expect("memory"));
    guest.domain_mut().map(Smm, gfn(BASE), host_page(BASE, PageSize::Size4K)).expect("memory");
    assert!(guest.raw(1, Smm, &denied).is_err(), "mapped after the rule");
    assert!(guest.raw(1, Smm, &write_of(at(0, 128), 8)).is_ok());
    assert!(!guest.domain().check_write(Smm, bytes(at(0, 127), 2)).permits());
    assert!(guest.domain().check_write(Smm, bytes(at(0, 128), 2)).permits());
}

/// A slot added after enabling had no maps: SET failed until the VM was enabled anew.
#[test]
fn d31_a_new_slot_can_be_restricted_at_once() {
    let mut guest = Guest::new(stale(), 16);
    guest.set(BASE, &[!1]);
    let early = guest.domain_mut().set_access(gfn(0x5000), &[AccessMap::NONE]);
    assert_eq!(early.err(), Some(DomainError::NoSlot(gfn(0x5000))));
    // A rule does not wait for the slot either.
    guest.add_rule(rule(bytes(0x500_1000, 128), Action::Deny));
    let new = SlotId(1);
    guest
        .domain_mut()
        .add_slot(Normal, new, gfns(0x5000, REGION), SlotFlags::default())
        .expect("free");
    guest.denies(1, 0x500_1000);
    guest.set(0x5000, &[!1]);
    guest.denies(0, 0x500_0000);
    guest.permits(0, 0x500_0080);
    assert_eq!(guest.get(BASE), !1, "nothing else was touched");
}

/// Protection moved with the slot to other addresses, or was dropped.
#[test]
fn d32_rules_stay_at_their_addresses_when_a_slot_moves() {
    let mut guest = Guest::new(stale(), 16);
    let target = 0x4_0000;
    guest.add_rule(rule(bytes(at(1, 0), 128), Action::Deny));
    guest.add_rule(rule(bytes(target << 12, 128), Action::Deny));
    guest.set(BASE, &[!1]);
    guest.warm(BASE);
    guest.change(|domain| domain.move_slot(Normal, SLOT, gfn(target)).expect("free"));
    for cpu in 0..3 {
        for gone in [at(0, 0), at(0, 128), at(2, 0)] {
            assert_eq!(guest.write(cpu, gone), AccessOutcome::NoSlot(Gpa::new(gone)));
        }
        guest.denies(cpu, target << 12);
        guest.permits(cpu, (target + 1) << 12);
    }
    guest.change(|domain| domain.move_slot(Normal, SLOT, gfn(BASE)).expect("free"));
    for cpu in 0..3 {
        guest.denies(cpu, at(0, 0));
        guest.denies(cpu, at(1, 0));
        guest.permits(cpu, at(0, 128));
    }
}
