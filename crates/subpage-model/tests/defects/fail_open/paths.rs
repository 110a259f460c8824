//! D15, D16: writes that do not come from the guest's own instructions.

use subpage::address::Gpa;
use subpage::domain::{Decision, RetryState};
use subpage::rules::Action;
use subpage_model::{Access, AccessKind, AccessOutcome, Features, Setup};

use crate::guest::{
    BASE, Guest, Normal, at, bytes, features, rule, stale, write_of, write_violation,
};

/// Processors on which every write to a restricted page traps and is emulated.
fn emulating() -> Setup {
    let features = Features { sub_page_write_permissions: false, ..features() };
    Setup { features, ..stale() }
}

/// The emulator refused a write if any sub-page of its page was restricted.
#[test]
fn d15a_emulated_writes_are_decided_by_sub_page() {
    let mut guest = Guest::new(emulating(), 16);
    guest.set(BASE, &[!2]);
    for sub in 0..32 {
        if sub == 1 {
            guest.denies(0, at(0, sub * 128));
        } else {
            guest.permits(0, at(0, sub * 128));
        }
    }
    assert!(guest.traps().emulated >= 31, "these were emulated writes");
}

/// A write that ended at a page end was tested against the next page too.
#[test]
fn d15b_a_write_that_ends_with_its_page_does_not_touch_the_next() {
    for setup in [stale(), emulating()] {
        let mut guest = Guest::new(setup, 16);
        guest.set(BASE, &[!2, 0]);
        guest.permits(0, at(1, 0) - 8);
        guest.denies(0, at(1, 0) - 7);
        assert!(guest.domain().check_write(Normal, bytes(at(0, 4095), 1)).permits());
        assert!(!guest.domain().check_write(Normal, bytes(at(0, 4095), 2)).permits());
    }
}

/// The emulator reported a frame number where an address was due, and an instruction length that
/// nobody had given it.
#[test]
fn d15cd_denials_name_the_byte_and_claim_no_length() {
    for setup in [stale(), emulating()] {
        let mut guest = Guest::new(setup, 16);
        guest.set(BASE, &[!2]);
        let AccessOutcome::Denied(denial) = guest.write(1, at(0, 124)) else {
            panic!("sub-page 1")
        };
        assert_eq!((denial.gpa, denial.at), (Gpa::new(at(0, 124)), Gpa::new(at(0, 128))));
        assert_eq!(denial.length, Some(8), "the model decodes");
    }
    let mut guest = Guest::new(Setup { decodes: false, ..stale() }, 16);
    guest.set(BASE, &[!2]);
    let AccessOutcome::Denied(denial) = guest.write(1, at(0, 130)) else { panic!("sub-page 1") };
    assert_eq!((denial.gpa, denial.length), (Gpa::new(at(0, 130)), None));
}

/// Emulated compare-and-exchange was not checked, nor was anything that the host wrote for the
/// guest (clocks, steal time, results of hypercalls).
#[test]
fn d15ef_locked_and_host_side_writes_are_decided_too() {
    for setup in [stale(), emulating()] {
        let mut guest = Guest::new(setup, 16);
        guest.set(BASE, &[!2]);
        guest.warm(BASE);
        let modify = |offset| {
            Access::new(AccessKind::ReadModifyWrite, Gpa::new(at(0, offset)), 8).expect("legal")
        };
        assert!(matches!(guest.touch(0, &modify(128)), AccessOutcome::Denied(_)));
        assert!(matches!(guest.touch(0, &modify(124)), AccessOutcome::Denied(_)));
        assert_eq!(guest.touch(0, &modify(256)), AccessOutcome::Done);
        for (offset, permitted) in [(120, true), (124, false), (255, false), (256, true)] {
            let range = bytes(at(0, offset), 8);
            let decision = guest.domain_mut().authorize_write(Normal, range).expect("memory");
            assert_eq!(decision.permits(), permitted, "host-side write at {offset}");
        }
    }
}

/// What an emulated instruction had written before its denied part stayed written.
#[test]
fn d15g_a_denied_part_denies_the_whole_write() {
    for setup in [stale(), emulating(), Setup { decodes: false, ..stale() }] {
        let mut guest = Guest::new(setup, 16);
        guest.set(BASE + 1, &[!1, !(1 << 31)]);
        guest.warm(BASE);
        guest.warm(BASE + 1);
        guest.warm(BASE + 2);
        // Across a page end with the second page denied, with the first denied, and inside a page.
        for start in [at(1, 0) - 1, at(1, 0) - 63, at(3, 0) - 1, at(2, 31 * 128) - 63] {
            let before = guest.peek::<64>(start);
            let outcome = guest.write_bytes(0, start, &before.map(|byte| byte ^ 0x5A));
            assert!(matches!(outcome, AccessOutcome::Denied(_)), "{start:#x}: {outcome:?}");
            assert_eq!(guest.peek::<64>(start), before, "{start:#x}");
        }
    }
}

/// Devices and the VMM's own writes go round the processor: they get a decision to ask for, over
/// as many pages as a transfer has, and it counts and has the side effects of any other write.
#[test]
fn d16_device_models_can_ask_for_whole_transfers() {
    let mut guest = Guest::new(stale(), 64);
    let rule = guest.add_rule(rule(bytes(at(40, 1000), 3), Action::Deny));
    let transfer = |first, length| bytes(at(first, 0), length);
    let denied = Decision::Denied { rule: Some(rule), at: Gpa::new(at(40, 1000)), stop: false };
    assert_eq!(guest.domain().check_write(Normal, transfer(0, 64 << 12)), denied);
    assert_eq!(guest.domain().check_write(Normal, transfer(0, 40 << 12)), Decision::Allowed);
    assert_eq!(guest.domain().check_write(Normal, transfer(41, 23 << 12)), Decision::Allowed);
    let beyond = Decision::NotMapped { at: Gpa::new(at(64, 0)) };
    assert_eq!(guest.domain().check_write(Normal, transfer(63, 8192)), beyond);
    assert_eq!(guest.domain().counters().denied, 0, "asking is no attempt");
    let decision = guest.domain_mut().authorize_write(Normal, transfer(0, 64 << 12));
    assert_eq!(decision, Ok(denied));
    assert_eq!(guest.domain().counters().denied, 1);
    // The processor is told the same as the device.
    guest.denies(0, write_of(at(40, 996), 8).first().gpa().as_u64());
    let (answer, _) = guest
        .domain_mut()
        .ept_violation(&mut RetryState::default(), &write_violation(at(40, 1000)));
    assert!(matches!(answer, subpage::domain::Answer::Deny(d) if d.rule == Some(rule)));
}
