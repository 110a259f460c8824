//! D33 to D41: wrong exits, spurious exits, and exits without end.

use subpage::access::AccessMap;
use subpage::address::{Gpa, PhysicalWidth};
use subpage::domain::{Answer, Denial, Domain, EptViolation, RetryState, SppEvent};
use subpage::errno::Errno;
use subpage::exit::{Delivery, EptQualification, SppQualification, VectoringInfo};
use subpage::frames::HeapFrames;
use subpage::level::PageSize;
use subpage::slots::SlotFlags;
use subpage::uapi;
use subpage_model::{
    Access, AccessKind, AccessOutcome, Deviations, EntryError, Features, Roots, Setup, Staleness,
    Vcpu,
};

use crate::guest::{
    BASE, EVERY_STALENESS, Guest, LOGGING, Normal, SLOT, at, features, gfn, gfns, host_page,
    of_bits, stale, write_of, write_violation,
};
use crate::requests::Request;

/// A machine whose first page is mapped and has sub-page 0 denied.
fn restricted() -> Guest {
    let mut guest = Guest::new(stale(), 16);
    guest.set(BASE, &[!1]);
    guest.warm(BASE);
    guest
}

fn miss(gpa: u64, delivery: Delivery) -> SppEvent {
    let qualification = SppQualification::new().with_miss(true);
    SppEvent { qualification, gpa: Gpa::new(gpa), rip: 0x1000, space: Normal, delivery }
}

fn denial(answer: Answer) -> Denial {
    match answer {
        Answer::Deny(denial) => denial,
        other => panic!("{other:?}"),
    }
}

/// After each pass of the dirty log the first permitted write was reported as a denial.
#[test]
fn d33_the_first_write_after_a_harvest_is_no_denial() {
    for staleness in EVERY_STALENESS {
        let mut guest = Guest::new(Setup { staleness, ..stale() }, 16);
        guest.set(BASE, &[!1]);
        guest.change(|domain| domain.set_slot_flags(Normal, SLOT, LOGGING).expect("a slot"));
        for _ in 0..4 {
            for cpu in 0..3 {
                guest.permits(cpu, at(0, 128));
            }
            assert_eq!(guest.harvest(), [0]);
        }
        let traps = guest.traps();
        assert_eq!((traps.denied, traps.emulated), (0, 0));
        assert!((4..=12).contains(&traps.cured), "one for each pass and processor: {traps:?}");
    }
}

/// Any write violation on a page with bit 61 counted as denied, whatever its vector said: writes
/// with stale translations, permissions just raised, and the processor's page walks.
#[test]
fn d34_the_vector_decides_and_not_the_exit() {
    for staleness in EVERY_STALENESS {
        let mut guest = Guest::new(Setup { staleness, ..stale() }, 16);
        for map in [!1, 0, 1, !2, u32::MAX, 3, 0, !1] {
            guest.warm(BASE);
            // Nobody is told: the change may only have added rights to what each still remembers.
            let old = guest.get(BASE);
            let token =
                guest.domain_mut().set_access(gfn(BASE), &of_bits(&[old | map])).expect("ok");
            for sub in 0..32 {
                if (old | map) >> sub & 1 == 1 {
                    guest.permits(1, at(0, sub * 128));
                }
            }
            let _done = guest.complete(token);
            guest.set(BASE, &[map]);
        }
    }

    let mut guest = restricted();
    let mut retry = RetryState::default();
    let permitted = write_violation(at(0, 128));
    let answers = [(); 2].map(|()| guest.domain_mut().ept_violation(&mut retry, &permitted).0);
    assert_eq!(answers, [Answer::Retry, Answer::Emulate], "there is an end to retrying");

    // A guest page table in a restricted page: no guest's write, permitted sub-page or denied.
    for offset in [0, 128] {
        let update =
            Access::new(AccessKind::WalkUpdate, Gpa::new(at(0, offset)), 8).expect("legal");
        let exit = guest.raw(1, Normal, &update).expect_err("not eligible");
        let walk = EptViolation {
            qualification: EptQualification::from(exit.qualification),
            ..write_violation(at(0, offset))
        };
        assert!(walk.qualification.is_page_walk());
        let (answer, _) = guest.domain_mut().ept_violation(&mut RetryState::default(), &walk);
        assert_eq!(answer, Answer::PageWalk { gpa: exit.gpa, on_every_walk: false });
        assert_eq!(guest.touch(1, &update), AccessOutcome::Done);
    }
    let mut flags = Guest::new(Setup { accessed_dirty: true, ..stale() }, 16);
    flags.set(BASE, &[!1]);
    let read = Access::new(AccessKind::WalkRead, Gpa::new(at(0, 128)), 8).expect("legal");
    for _ in 0..100 {
        assert_eq!(
            flags.touch(0, &read),
            AccessOutcome::Done,
            "reads count as writes, and continue"
        );
    }
    assert_eq!(flags.domain().counters().denied, 0);
}

/// A miss while an event was delivered killed the VM, and a denial did not say that there was no
/// instruction to skip.
#[test]
fn d35_an_exit_during_event_delivery_delivers_the_event_again() {
    let mut guest = restricted();
    let vectoring =
        VectoringInfo::new().with_vector(14).with_kind(3).with_error_code(true).with_valid(true);
    let delivery = Delivery { vectoring, error_code: 6, virtual_nmis: true };
    for (delivery, during) in [(delivery, true), (Delivery::default(), false)] {
        let expected = during.then_some((vectoring, 6));
        let event = miss(at(0, 128), delivery);
        let (answer, fixup) = guest.domain_mut().spp_event(&mut RetryState::default(), &event);
        assert_eq!((answer, fixup.reinject), (Answer::Retry, expected));
        let violation = EptViolation { delivery, ..write_violation(at(0, 0)) };
        let (answer, fixup) =
            guest.domain_mut().ept_violation(&mut RetryState::default(), &violation);
        assert_eq!((denial(answer).during_delivery, fixup.reinject), (during, expected));
    }
}

/// A field that user space can write, and that nobody reset, told whether there had been a denial.
#[test]
fn d36_a_denial_leaves_nothing_for_the_next_exit() {
    let mut guest = Guest::new(Setup { page_size: PageSize::Size4K, ..stale() }, 16);
    guest.set(BASE, &[!1]);
    let mut retry = RetryState::default();
    guest.denies(0, at(0, 0));
    let mut answer = |gpa| guest.domain_mut().ept_violation(&mut retry, &write_violation(gpa)).0;
    assert_eq!(denial(answer(at(0, 0))).gpa, Gpa::new(at(0, 0)));
    assert_eq!(answer(at(5, 0)), Answer::Map(Gpa::new(at(5, 0))));
    assert_eq!(denial(answer(at(0, 0))).gpa, Gpa::new(at(0, 0)));
    assert_eq!(answer(0x9000), Answer::NoSlot(Gpa::new(0x9000)));
    assert_eq!(answer(at(0, 128)), Answer::Retry, "a permitted write after a denied one");
}

/// The instruction length was reported as if an EPT violation gave one.
#[test]
fn d37_what_is_not_known_is_not_reported() {
    let mut guest = restricted();
    let plain = write_violation(at(0, 8));
    let without_linear = EptQualification::new().with_write(true).with_readable(true);
    for (length, qualification, gla) in [
        (None, plain.qualification, Some(plain.gla)),
        (Some(4), plain.qualification, Some(plain.gla)),
        (Some(4), without_linear, None),
    ] {
        let violation = EptViolation { length, qualification, ..plain };
        let (answer, _) = guest.domain_mut().ept_violation(&mut RetryState::default(), &violation);
        let denial = denial(answer);
        assert_eq!((denial.length, denial.gla, denial.gpa), (length, gla, plain.gpa));
    }
}

/// Exit 66 set NMI blocking without looking whether virtual NMIs are in use.
#[test]
fn d38_nmi_blocking_needs_virtual_nmis_and_no_event() {
    let mut guest = restricted();
    let event = VectoringInfo::new().with_vector(32).with_valid(true);
    for bits in 0..8 {
        let (virtual_nmis, in_delivery, unblocked) = (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0);
        let vectoring = if in_delivery { event } else { VectoringInfo::new() };
        let delivery = Delivery { vectoring, error_code: 0, virtual_nmis };
        let mut spp = miss(at(0, 128), delivery);
        spp.qualification = spp.qualification.with_nmi_unblocked(unblocked);
        let mut ept = EptViolation { delivery, ..write_violation(at(0, 128)) };
        ept.qualification = ept.qualification.with_nmi_unblocked(unblocked);
        let domain = guest.domain_mut();
        let fixups = [
            domain.spp_event(&mut RetryState::default(), &spp).1,
            domain.ept_violation(&mut RetryState::default(), &ept).1,
        ];
        let expected = virtual_nmis && !in_delivery && unblocked;
        assert_eq!(fixups.map(|fixup| fixup.block_nmi), [expected; 2], "{delivery:?}");
    }
}

/// The first VM that enabled turned the control on for all later ones, with SPPTP 0.
#[test]
fn d39_enabling_concerns_one_domain() {
    let mut first = restricted();
    let mut off = Domain::new(HeapFrames::new(), PhysicalWidth::MAX);
    off.add_slot(Normal, SLOT, gfns(BASE, 16), SlotFlags::default()).expect("free");
    assert_eq!(off.sppt(), None, "nothing to put into SPPTP, so the control stays 0");
    let mut request = Request::new(BASE, 1, 0, &[0]);
    assert_eq!(uapi::get_access(&off, &mut request), Err(Errno::NoDevice));
    let mut second = Guest::new(stale(), 16);
    second.permits(0, at(0, 0));
    assert_eq!((first.get(BASE), second.get(BASE)), (!1, u32::MAX));
    first.denies(0, at(0, 0));
}

/// The capability was reported whatever the hardware and the settings.
#[test]
fn d40_support_is_what_there_is() {
    let none = Features { sub_page_write_permissions: false, ..features() };
    let mut domain = Domain::new(HeapFrames::new(), PhysicalWidth::MAX);
    domain.add_slot(Normal, SLOT, gfns(BASE, 16), SlotFlags::default()).expect("free");
    for maps in [&[0][..], &[]] {
        let pages = u32::try_from(maps.len()).expect("small");
        let mut request = Request::new(BASE, pages, 0, maps);
        let refused = uapi::set_access(&mut domain, &mut request).err();
        assert_eq!(refused, Some(Errno::NoDevice), "before anything else is looked at");
    }
    domain.enable().expect("memory");
    domain.map(Normal, gfn(BASE), host_page(BASE, PageSize::Size4K)).expect("memory");
    let roots = Roots {
        ept: domain.ept(Normal).expect("mapped").root(),
        ept_accessed_dirty: false,
        sppt: domain.sppt().map(subpage::sppt::Sppt::root),
    };
    assert_eq!(roots.check(&features()), Ok(()));
    assert_eq!(roots.check(&none), Err(EntryError::NoSubPageWritePermissions));
}

/// vCPUs in the guest were not told that permissions had been enabled; it took effect at their next
/// entry, whenever that was.
#[test]
fn d41_a_processor_that_has_not_heard_of_enabling_is_held_by_ept() {
    let mut domain = Domain::new(HeapFrames::new(), PhysicalWidth::MAX);
    domain.add_slot(Normal, SLOT, gfns(BASE, 16), SlotFlags::default()).expect("free");
    domain.map(Normal, gfn(BASE), host_page(BASE, PageSize::Size4K)).expect("memory");
    let ept = domain.ept(Normal).expect("mapped").root();
    let before = Roots { ept, ept_accessed_dirty: false, sppt: None };
    let mut vcpu = Vcpu::new(features(), Deviations::NONE, Staleness::Longest);
    let write = write_of(at(0, 0), 8);
    assert!(vcpu.access(&before, domain.frames_mut(), &write).is_ok());

    domain.enable().expect("memory");
    let token = domain.set_access(gfn(BASE), &[AccessMap::from_bits(!1)]).expect("good");
    assert!(token.is_required(), "SET is what takes rights away, and it waits for all");
    vcpu.invept();
    domain.finish(&token.without_processors());
    // It still runs with the control off and no SPPTP, and yet writes nothing that is denied.
    for (offset, permitted) in [(0, false), (124, false), (128, true)] {
        let exit = vcpu.access(&before, domain.frames_mut(), &write_of(at(0, offset), 8));
        let exit = exit.expect_err("a restricted page has W = 0");
        let violation = EptViolation {
            qualification: EptQualification::from(exit.qualification),
            length: Some(8),
            ..write_violation(at(0, offset))
        };
        let (answer, _) = domain.ept_violation(&mut RetryState::default(), &violation);
        assert_eq!(matches!(answer, Answer::Deny(_)), !permitted, "{offset}: {answer:?}");
    }
    let entered = Roots { sppt: domain.sppt().map(subpage::sppt::Sppt::root), ..before };
    assert!(vcpu.access(&entered, domain.frames_mut(), &write_of(at(0, 128), 8)).is_ok());
    assert!(vcpu.access(&entered, domain.frames_mut(), &write).is_err());
}
