//! Access tracking at 128 bytes.

use subpage::address::Gpa;
use subpage::domain::{Decision, DomainError, WriteParts};
use subpage::rules::{Action, Owner};
use subpage::track::{TrackId, WrittenPage};

use crate::guest::{
    BASE, Normal, TestDomain, bytes, done, get, gfn, guest, map, picture, rule, set,
};

const PAGE: u64 = BASE * 4096;

fn write(domain: &mut TestDomain, offset: u64, length: u64) -> Decision {
    domain.authorize_write(Normal, bytes(PAGE + offset, length)).expect("memory")
}

fn harvest(domain: &mut TestDomain, id: TrackId) -> Vec<(u64, u32)> {
    let (pending, token) = domain.harvest_written(id).expect("tracked");
    let completed = token.without_processors();
    domain.finish(&completed);
    let pages: Vec<WrittenPage> = pending.ready(&completed).expect("completed");
    pages.iter().map(|page| (page.gfn.as_u64() - BASE, page.written.bits())).collect()
}

fn track(domain: &mut TestDomain, first: u64, length: u64) -> TrackId {
    let (id, token) = domain.track(bytes(PAGE + first, length)).expect("a free range");
    done(domain, token);
    id
}

#[test]
fn written_sub_pages_are_harvested_once() {
    let (mut domain, _) = guest(4);
    let id = track(&mut domain, 256, 8192);
    assert_eq!(get(&domain, BASE), u32::MAX, "armed is not denied");
    assert_eq!(domain.sppt().expect("enabled").vector(domain.frames(), gfn(BASE)).to_map(), map(3));
    assert_eq!(write(&mut domain, 256, 8), Decision::Allowed);
    assert_eq!(write(&mut domain, 4090, 8), Decision::Allowed);
    assert_eq!(write(&mut domain, 0, 8), Decision::Allowed);
    assert_eq!(write(&mut domain, 256 + 8192, 8), Decision::Allowed);
    assert_eq!(domain.written_pages(id), Ok(2));
    assert_eq!(domain.written_pages(id), Ok(2), "asking changes nothing");
    assert_eq!(harvest(&mut domain, id), [(0, 1 << 31 | 1 << 2), (1, 1)]);
    assert_eq!(domain.written_pages(id), Ok(0));
    assert_eq!(domain.written_pages(TrackId(99)), Err(DomainError::NoSuchTracking(TrackId(99))));
    assert_eq!(harvest(&mut domain, id), []);
    assert_eq!(write(&mut domain, 300, 1), Decision::Allowed);
    assert_eq!(harvest(&mut domain, id), [(0, 1 << 2)]);
}

/// A write that opens sub-pages of two pages is one trap.
#[test]
fn a_write_that_opens_tracked_sub_pages_counts_once() {
    let (mut domain, _) = guest(4);
    track(&mut domain, 0, 8192);
    for (offset, length, tracked) in [(0, 8, 1), (4090, 12, 2), (4090, 12, 2), (8192, 8, 2)] {
        assert_eq!(write(&mut domain, offset, length), Decision::Allowed);
        assert_eq!(domain.counters().tracked, tracked, "{length} at {offset}");
    }
}

/// Memory may be short just when tracking ends: where nothing was written, none is needed.
#[test]
fn regions_that_nobody_wrote_are_let_go_without_memory() {
    let (mut domain, failure) = guest(2048);
    let before = domain.frames().heap.frames_in_use();
    let (id, token) = domain.track(bytes(PAGE, 2 * 512 * 4096)).expect("a free range");
    done(&mut domain, token);
    failure.after(Some(0));
    let token = domain.untrack(id).expect("no memory is needed");
    failure.after(None);
    done(&mut domain, token);
    assert_eq!(domain.next_restricted(gfn(0)), None);
    assert_eq!(domain.frames().heap.frames_in_use(), before, "no table is left");
}

/// What a walk sets in the guest's page tables is harvested, and no rule decides about it.
#[test]
fn flags_that_a_walk_sets_are_harvested() {
    let (mut domain, _) = guest(2);
    let (_, token) = domain.add_rule(rule(bytes(PAGE + 128, 128), Action::Deny)).expect("a rule");
    done(&mut domain, token);
    let id = track(&mut domain, 0, 4096);
    for offset in [0x8, 0x80, 0x1000] {
        domain.note_marked(Normal, Gpa::new(PAGE + offset)).expect("memory");
    }
    assert_eq!(harvest(&mut domain, id), [(0, 0b11)], "the second page is not tracked");
    assert_eq!(harvest(&mut domain, id), [], "each is told once");
    assert!(!write(&mut domain, 0x80, 8).permits(), "the rule is in force");
}

#[test]
fn denied_sub_pages_are_not_tracked_until_they_open() {
    let (mut domain, _) = guest(1);
    let (rule_id, token) = domain.add_rule(rule(bytes(PAGE, 128), Action::Deny)).expect("a rule");
    done(&mut domain, token);
    let id = track(&mut domain, 0, 4096);
    assert!(!write(&mut domain, 0, 1).permits());
    assert!(!write(&mut domain, 120, 16).permits(), "one denied byte denies all");
    assert_eq!(harvest(&mut domain, id), []);
    let token = domain.remove_rule(rule_id, Owner::HOST).expect("the host");
    done(&mut domain, token);
    assert!(write(&mut domain, 0, 1).permits());
    assert_eq!(harvest(&mut domain, id), [(0, 1)]);
}

#[test]
fn what_was_written_is_reported_even_if_it_is_denied_by_now() {
    let (mut domain, _) = guest(1);
    let id = track(&mut domain, 0, 4096);
    assert!(write(&mut domain, 0, 1).permits());
    set(&mut domain, BASE, &[!1]);
    assert_eq!(get(&domain, BASE), !1);
    assert_eq!(harvest(&mut domain, id), [(0, 1)]);
    set(&mut domain, BASE, &[u32::MAX]);
    assert!(write(&mut domain, 0, 1).permits());
    assert_eq!(harvest(&mut domain, id), [(0, 1)]);
}

#[test]
fn untracking_leaves_what_was_there_before() {
    let (mut domain, _) = guest(4);
    set(&mut domain, BASE + 1, &[0xFF]);
    let before = picture(&domain);
    let id = track(&mut domain, 100, 12_000);
    assert!(write(&mut domain, 4096, 1).permits());
    let token = domain.untrack(id).expect("tracked");
    done(&mut domain, token);
    let strip = |text: String| text.lines().filter(|l| !l.starts_with("Ok(")).collect::<String>();
    assert_eq!(strip(picture(&domain)), strip(before));
    assert_eq!(domain.untrack(id).err(), Some(DomainError::NoSuchTracking(id)));
}

#[test]
fn two_ranges_share_no_page() {
    let (mut domain, _) = guest(4);
    let id = track(&mut domain, 0, 128);
    let error = domain.track(bytes(PAGE + 4000, 200)).err();
    assert_eq!(error, Some(DomainError::AlreadyTracked(id)));
    track(&mut domain, 4096, 1);
}

/// Of a write that is allowed whole, a part may be done: only that is written.
#[test]
fn a_part_of_an_allowed_write_may_be_committed() {
    let (mut domain, _) = guest(8);
    let id = track(&mut domain, 0, 1024);
    let whole = WriteParts::one(bytes(PAGE, 512));
    let considered = domain.consider_write(Normal, &whole);
    considered.commit_part(bytes(PAGE + 128, 8)).expect("memory");
    assert_eq!(harvest(&mut domain, id), [(0, 1 << 1)]);
}
