//! The k-th request for memory fails, for every k in every call (contract C2).

use subpage::access::AccessMap;
use subpage::domain::{Answer, DomainError, EptViolation, HostError, RetryState};
use subpage::exit::{Delivery, EptQualification};
use subpage::invalidate::Invalidation;
use subpage::level::PageSize;
use subpage::rules::{Action, Owner, RuleId};
use subpage::slots::{SlotFlags, SlotId};
use subpage::track::TrackId;

use crate::guest::{
    BASE, Failure, Normal, TestDomain, bytes, done, gfn, gfns, guest, host_page, map, mapped,
    picture, rule, set,
};

const PAGE: u64 = BASE * 4096;
const GIANT: u64 = 1 << 18;

/// Runs `call` with every request failing in turn. Each failure must leave the domain as it was;
/// the first run without one must do the same as a run that was never disturbed.
fn each_failure(
    prepare: impl Fn() -> (TestDomain, Failure),
    call: impl Fn(&mut TestDomain) -> Result<Option<Invalidation>, DomainError>,
) {
    let (mut undisturbed, _) = prepare();
    if let Some(token) = call(&mut undisturbed).expect("memory enough") {
        done(&mut undisturbed, token);
    }
    let (mut domain, failure) = prepare();
    let before = picture(&domain);
    for k in 0.. {
        failure.after(Some(k));
        let result = call(&mut domain);
        let requests = failure.requests();
        failure.after(None);
        match result {
            Err(error) => {
                assert_eq!(error, DomainError::OutOfMemory, "request {k}");
                assert_eq!(picture(&domain), before, "after the failure of request {k}");
            }
            Ok(token) => {
                assert!(requests <= k, "a failed request was passed over");
                if let Some(token) = token {
                    done(&mut domain, token);
                }
                assert_eq!(picture(&domain), picture(&undisturbed));
                assert!(k > 0 || requests == 0);
                return;
            }
        }
    }
}

fn giant() -> (TestDomain, Failure) {
    let (mut domain, failure) = guest(2 * GIANT - BASE);
    let first = gfn(GIANT);
    domain.map(Normal, first, host_page(first, PageSize::Size1G)).expect("memory");
    (domain, failure)
}

#[test]
fn enable() {
    each_failure(crate::guest::bare, |domain| domain.enable().map(|()| None));
}

#[test]
fn set_access_over_regions_and_split_pages() {
    let maps: Vec<AccessMap> = (0..1500).map(|page| map(page * 77)).collect();
    each_failure(|| guest(4096), |domain| domain.set_access(gfn(BASE + 30), &maps).map(Some));
    each_failure(
        || mapped(2048, PageSize::Size2M),
        |domain| domain.set_access(gfn(BASE + 30), &maps).map(Some),
    );
    each_failure(giant, |domain| {
        domain.set_access(gfn(GIANT + 500), &[AccessMap::NONE; 600]).map(Some)
    });
}

#[test]
fn set_access_that_empties_tables() {
    let prepare = || {
        let (mut domain, failure) = mapped(1024, PageSize::Size2M);
        set(&mut domain, BASE, &[0; 1024]);
        (domain, failure)
    };
    each_failure(prepare, |domain| domain.set_access(gfn(BASE), &[AccessMap::ALL; 1024]).map(Some));
}

#[test]
fn add_and_remove_rules() {
    let rules = [
        rule(bytes(PAGE + 50, 5000), Action::Deny),
        rule(bytes(3, 3), Action::Log),
        rule(bytes(1 << 40, 1 << 22), Action::Stop),
        rule(bytes((1 << 40) + 4096, 64), Action::Stop),
    ];
    let prepare = || {
        let (mut domain, failure) = mapped(1024, PageSize::Size2M);
        set(&mut domain, BASE, &[1, 2, 3]);
        (domain, failure)
    };
    each_failure(prepare, |domain| domain.add_rules(&rules).map(|(_, token)| Some(token)));
    let with_rules = || {
        let (mut domain, failure) = prepare();
        let (_, token) = domain.add_rules(&rules).expect("memory");
        done(&mut domain, token);
        (domain, failure)
    };
    for id in 1..=4 {
        each_failure(with_rules, |domain| domain.remove_rule(RuleId(id), Owner::HOST).map(Some));
    }
}

#[test]
fn map_and_unmap_and_protect() {
    let restricted = || {
        let (mut domain, failure) = guest(2 * GIANT - BASE);
        set(&mut domain, GIANT + 700, &[0, 1, 2]);
        (domain, failure)
    };
    let first = gfn(GIANT);
    for size in [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G] {
        each_failure(restricted, |domain| {
            domain.map(Normal, first, host_page(first, size)).map(|()| None)
        });
    }
    each_failure(giant, |domain| domain.unmap(Normal, gfns(GIANT + 5, 100_000)).map(Some));
    each_failure(giant, |domain| domain.protect(Normal, gfns(GIANT + 5, 3), false).map(Some));
}

#[test]
fn slots() {
    let logging = SlotFlags { read_only: false, log_dirty: true };
    let id = SlotId(0);
    let prepare = || mapped(1024, PageSize::Size2M);
    each_failure(prepare, |domain| {
        domain.add_slot(Normal, SlotId(1), gfns(0, 5), logging).map(|()| None)
    });
    each_failure(prepare, |domain| domain.remove_slot(Normal, id).map(Some));
    each_failure(prepare, |domain| domain.move_slot(Normal, id, gfn(0)).map(Some));
    each_failure(prepare, |domain| domain.set_slot_flags(Normal, id, logging).map(Some));
    each_failure(
        || {
            let (mut domain, failure) = prepare();
            let token = domain.set_slot_flags(Normal, id, logging).expect("memory");
            done(&mut domain, token);
            (domain, failure)
        },
        |domain| domain.set_slot_flags(Normal, id, SlotFlags::default()).map(Some),
    );
}

#[test]
fn tracking() {
    let range = bytes(PAGE + 5, 3_000_000);
    let prepare = || mapped(1024, PageSize::Size2M);
    each_failure(prepare, |domain| domain.track(range).map(|(_, token)| Some(token)));
    let tracked = || {
        let (mut domain, failure) = prepare();
        let (_, token) = domain.track(range).expect("memory");
        done(&mut domain, token);
        for offset in [5, 4096, 900_000, 2_999_999] {
            let decision = domain.authorize_write(Normal, bytes(PAGE + offset, 8));
            assert!(decision.expect("memory").permits());
        }
        (domain, failure)
    };
    each_failure(tracked, |domain| {
        domain.harvest_written(TrackId(1)).map(|(_pending, token)| Some(token))
    });
    each_failure(tracked, |domain| domain.untrack(TrackId(1)).map(Some));
    each_failure(tracked, |domain| {
        domain.authorize_write(Normal, bytes(PAGE + 8192, 8)).map(|decision| {
            assert!(decision.permits());
            None
        })
    });
}

#[test]
fn import() {
    let state = {
        let (mut domain, _) = guest(1024);
        set(&mut domain, BASE, &[7; 600]);
        let (_, token) = domain.add_rule(rule(bytes(PAGE, 9000), Action::Deny)).expect("memory");
        done(&mut domain, token);
        let (_, token) = domain.track(bytes(PAGE + 5_000_000, 9000)).expect("memory");
        done(&mut domain, token);
        domain.export().expect("memory")
    };
    each_failure(
        || mapped(1024, PageSize::Size2M),
        |domain| match domain.import(&state, 1 << 20) {
            Ok(token) => Ok(Some(token)),
            Err(subpage::domain::ImportError::Domain(error)) => Err(error),
            Err(other) => panic!("{other}"),
        },
    );
}

#[test]
fn exits_report_the_host_error_and_change_nothing() {
    let logging = SlotFlags { read_only: false, log_dirty: true };
    let (mut domain, failure) = mapped(512, PageSize::Size2M);
    let token = domain.set_slot_flags(Normal, SlotId(0), logging).expect("memory");
    done(&mut domain, token);
    let before = picture(&domain);
    let exit = EptViolation {
        qualification: EptQualification::new().with_write(true).with_readable(true),
        gpa: gfn(BASE).gpa(),
        gla: 0,
        rip: 0,
        length: None,
        space: Normal,
        delivery: Delivery::default(),
    };
    failure.after(Some(0));
    let (answer, _) = domain.ept_violation(&mut RetryState::default(), &exit);
    assert_eq!(answer, Answer::Host(HostError::OutOfMemory));
    failure.after(None);
    assert_eq!(picture(&domain), before);
    let (answer, _) = domain.ept_violation(&mut RetryState::default(), &exit);
    assert_eq!(answer, Answer::Resume);
}

#[test]
fn memory_that_is_named_again() {
    let named = |domain: &mut TestDomain| {
        let pages = gfns(BASE + 4096 + 100, 700);
        domain.add_alias(Normal, SlotId(1), pages, SlotFlags::default(), gfn(BASE + 30)).map(Some)
    };
    let prepare = || {
        let (mut domain, failure) = mapped(1024, PageSize::Size2M);
        set(&mut domain, BASE + 40, &[1, 2, 3]);
        for at in [PAGE + 33 * 4096, PAGE + (4096 + 105) * 4096] {
            let (_, token) = domain.add_rule(rule(bytes(at, 70), Action::Deny)).expect("memory");
            done(&mut domain, token);
        }
        (domain, failure)
    };
    each_failure(prepare, named);
    let again = || {
        let (mut domain, failure) = prepare();
        let token = named(&mut domain).expect("memory").expect("a token");
        done(&mut domain, token);
        (domain, failure)
    };
    let alias = PAGE + (4096 + 100) * 4096;
    each_failure(again, |domain| {
        let rules = [
            rule(bytes(alias + 500 * 4096, 5000), Action::Deny),
            rule(bytes(PAGE + 8 * 4096, 90_000), Action::Deny),
        ];
        domain.add_rules(&rules).map(|(_, token)| Some(token))
    });
    each_failure(again, |domain| domain.remove_rule(RuleId(1), Owner(7)).map(Some));
    each_failure(again, |domain| {
        domain.set_access(gfn(BASE + 4096 + 130), &[AccessMap::NONE; 600]).map(Some)
    });
    each_failure(again, |domain| {
        domain.track(bytes(alias, 600 * 4096)).map(|(_, token)| Some(token))
    });
    each_failure(again, |domain| domain.remove_slot(Normal, SlotId(1)).map(Some));
}
