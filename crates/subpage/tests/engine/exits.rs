//! Answers to exits that are neither a denial nor a first write.

use subpage::domain::{Answer, EptViolation, ProcessorUse, RetryState};
use subpage::exit::{Delivery, EptQualification};
use subpage::level::PageSize;

use crate::guest::{BASE, Normal, bytes, mapped, set};

fn violation(page: u64, qualification: EptQualification) -> EptViolation {
    EptViolation {
        qualification: qualification.with_readable(true).with_linear_valid(true),
        gpa: bytes((BASE + page) * 4096 + 8, 1).first(),
        gla: 0x7000,
        rip: 0x1000,
        length: None,
        space: Normal,
        delivery: Delivery::default(),
    }
}

/// A page walk is never a denial; only in a restricted page is there something to do about it.
#[test]
fn page_walks_are_retried_or_completed_but_not_denied() {
    let (mut domain, _) = mapped(512, PageSize::Size2M);
    set(&mut domain, BASE, &[0, u32::MAX]);
    let walk = EptQualification::new().with_write(true).with_final_access(false);
    let mut retry = RetryState::default();
    for on_every_walk in [false, true] {
        domain.set_processor_use(ProcessorUse {
            sub_page_permissions: true,
            ept_accessed_dirty: on_every_walk,
        });
        let exit = violation(0, walk);
        let expected = Answer::PageWalk { gpa: exit.gpa, on_every_walk };
        assert_eq!(domain.ept_violation(&mut retry, &exit).0, expected);
    }
    let stale = violation(1, walk);
    assert_eq!(domain.ept_violation(&mut retry, &stale).0, Answer::Retry);
    assert_eq!(domain.ept_violation(&mut retry, &stale).0, Answer::Emulate, "C8: no livelock");
    assert_eq!(domain.counters().denied, 0);
}

/// Reads and fetches trap only on stale entries, and not for ever.
#[test]
fn reads_and_fetches_are_retried_once() {
    let (mut domain, _) = mapped(512, PageSize::Size2M);
    set(&mut domain, BASE, &[0]);
    for kind in [EptQualification::new().with_read(true), EptQualification::new().with_fetch(true)]
    {
        let mut retry = RetryState::default();
        let exit = violation(0, kind.with_final_access(true));
        assert_eq!(domain.ept_violation(&mut retry, &exit).0, Answer::Retry);
        assert_eq!(domain.ept_violation(&mut retry, &exit).0, Answer::Emulate);
    }
}
