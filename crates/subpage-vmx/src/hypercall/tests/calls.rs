//! What holds for every call.

use subpage::domain::DomainError;
use subpage::frames::OutOfFrames;
use subpage::rules::{Owner, RuleId};
use subpage::track::TrackId;

use super::*;
use crate::abi::{VERSION, query};

const ALL: [Call; 10] = [
    Call::Query,
    Call::GetAccess,
    Call::SetAccess,
    Call::AddRule,
    Call::RemoveRule,
    Call::LockRule,
    Call::Track,
    Call::Harvest,
    Call::Untrack,
    Call::ReadEvents,
];

#[test]
fn only_cpl_0_may_call() {
    let mut guest = Guest::new();
    for cpl in 1..=3 {
        guest.cpl = cpl;
        for call in ALL.into_iter().chain([Call(10), Call(u64::MAX)]) {
            guest.fails(call, &[REQUEST, 1, 1], Errno::NotPermitted);
        }
    }
}

#[test]
fn unknown_calls_are_told() {
    let mut guest = Guest::new();
    for number in [10, 11, Call::FIRST_TEST_HOOK, 1 << 32, u64::MAX] {
        guest.fails(Call(number), &[REQUEST, 1, 1, 1], Errno::NoCall);
    }
}

#[test]
fn queries() {
    let mut guest = Guest::new();
    assert_eq!(guest.call(Call::Query, &[query::VERSION]), i64::from(VERSION));
    assert_eq!(guest.call(Call::Query, &[query::FEATURES]), 1);
    assert_eq!(guest.call(Call::Query, &[query::PROCESSORS]), 2);
    assert_eq!(guest.call(Call::Query, &[query::EVENTS_LOST]), 0);
    assert_eq!(guest.call(Call::Query, &[query::MEMORY]), 40 * 4096);
    guest.fails(Call::Query, &[5], Errno::Invalid);
    guest.fails(Call::Query, &[u64::MAX], Errno::Invalid);
}

#[test]
fn errors_have_linuxs_numbers() {
    for (errno, number) in [
        (Errno::NotPermitted, -1),
        (Errno::NoEntry, -2),
        (Errno::NoMemory, -12),
        (Errno::Fault, -14),
        (Errno::Busy, -16),
        (Errno::NoDevice, -19),
        (Errno::Invalid, -22),
        (Errno::NoSpace, -28),
        (Errno::NoCall, -38),
    ] {
        assert_eq!(error(errno), number);
    }
    let (rule, owner) = (RuleId(1), Owner::HOST);
    for (from, to) in [
        (DomainError::NotEnabled, Errno::NoDevice),
        (DomainError::NoSuchRule(rule), Errno::NoEntry),
        (DomainError::NoSuchTracking(TrackId(1)), Errno::NoEntry),
        (DomainError::AlreadyTracked(TrackId(1)), Errno::Busy),
        (DomainError::Locked(rule), Errno::NotPermitted),
        (DomainError::NotOwner { rule, owner }, Errno::NotPermitted),
        (DomainError::NoSlot(Gfn::new(1)), Errno::Fault),
        (OutOfFrames.into(), Errno::NoMemory),
    ] {
        assert_eq!(Errno::from(from), to);
    }
}

/// Before the hypervisor has enabled permissions, or if it never does.
#[test]
fn without_permissions_there_is_no_device() {
    let mut guest = Guest::new();
    guest.domain = Domain::new(ScarceFrames::default(), PhysicalWidth::MAX);
    let pages = GfnRange::new(Gfn::new(0), RAM).expect("pages");
    guest.domain.add_slot(SPACE, SlotId(0), pages, SlotFlags::default()).expect("a slot");
    assert_eq!(guest.add(&rule(0x4000, 1)), error(Errno::NoDevice));
    for call in [Call::GetAccess, Call::SetAccess, Call::RemoveRule, Call::Track] {
        assert_eq!(guest.call(call, &[REQUEST, 1]), error(Errno::NoDevice), "{call:?}");
    }
    assert_eq!(guest.ledger.responses.count(), 0);
}
