//! Corners that a fresh reader of the engine found.

use subpage::domain::{Answer, DomainError, EptViolation, ImportError, RetryState};
use subpage::exit::{Delivery, EptQualification};
use subpage::level::PageSize;
use subpage::rules::{Action, RuleId};
use subpage::slots::{SlotFlags, SlotId};
use subpage::uapi::{self, Fault, RequestMemory};

use crate::guest::{
    BASE, Normal, bare, bytes, done, gfn, gfns, guest, host_page, map, mapped, picture, rule, set,
};

const PAGE: u64 = BASE * 4096;

/// The last page of the address space is a page like any other, also when its region has a table.
#[test]
fn the_last_page_can_be_changed_twice() {
    let last = (1_u64 << 48) - 4096;
    let (mut domain, _) = bare();
    domain.enable().expect("memory");
    for offset in [0, 128] {
        let (_, token) =
            domain.add_rule(rule(bytes(last + offset, 1), Action::Deny)).expect("room");
        done(&mut domain, token);
    }
    assert_eq!(domain.permitted(gfn(last / 4096)), map(!3));
    let (_, token) = domain.track(bytes(last, 4096)).expect("a free range");
    done(&mut domain, token);
    assert_eq!(domain.permitted(gfn(last / 4096)), map(!3));
}

/// Puts a right checksum under changed content.
fn sealed(content: &[u8]) -> Vec<u8> {
    let mut state = content.to_vec();
    state.extend_from_slice(&crc32fast::hash(content).to_le_bytes());
    state
}

/// State may say that nearly all numbers are used up; then rules end, and nothing else does.
#[test]
fn numbers_of_rules_run_out_without_a_panic() {
    let (domain, _) = guest(1);
    let mut content = domain.export().expect("memory");
    content.truncate(content.len() - 4);
    content[24..32].copy_from_slice(&(u64::MAX - 1).to_le_bytes());
    let (mut domain, _) = guest(1);
    let token = domain.import(&sealed(&content), 0).expect("good state");
    done(&mut domain, token);
    let one = rule(bytes(PAGE, 1), Action::Deny);
    let (id, token) = domain.add_rule(one).expect("one number is left");
    done(&mut domain, token);
    assert_eq!(id, RuleId(u64::MAX - 1));
    let before = picture(&domain);
    assert_eq!(domain.add_rule(one).err(), Some(DomainError::OutOfMemory));
    assert_eq!(picture(&domain), before);
}

fn write_violation(gpa: u64, length: Option<u64>) -> EptViolation {
    EptViolation {
        qualification: EptQualification::new()
            .with_write(true)
            .with_readable(true)
            .with_linear_valid(true)
            .with_final_access(true),
        gpa: bytes(gpa, 1).first(),
        gla: gpa,
        rip: 1,
        length,
        space: Normal,
        delivery: Delivery::default(),
    }
}

/// A write that crosses linear pages is judged by the page in which it trapped, if the backend cuts
/// its length there; the next guest-physical page has nothing to say about it.
#[test]
fn a_length_cut_at_the_page_end_is_judged_by_its_own_page() {
    let (mut domain, _) = mapped(4, PageSize::Size4K);
    set(&mut domain, BASE + 1, &[0]);
    let retry = &mut RetryState::default();
    let (answer, _) = domain.ept_violation(retry, &write_violation(PAGE + 4092, Some(4)));
    assert_eq!(answer, Answer::Retry);
    let (answer, _) = domain.ept_violation(retry, &write_violation(PAGE + 4092, Some(8)));
    assert!(matches!(answer, Answer::Deny(_)), "{answer:?}");
}

/// Flags that are set in a tracked guest paging structure change its bytes.
#[test]
fn a_page_walk_that_sets_flags_is_harvested() {
    let (mut domain, _) = mapped(4, PageSize::Size4K);
    let (id, token) = domain.track(bytes(PAGE, 8192)).expect("a free range");
    done(&mut domain, token);
    let mut exit = write_violation(PAGE + 5 * 128 + 8, None);
    exit.qualification = exit.qualification.with_final_access(false);
    let (answer, _) = domain.ept_violation(&mut RetryState::default(), &exit);
    assert!(matches!(answer, Answer::PageWalk { on_every_walk: false, .. }), "{answer:?}");
    let (pending, token) = domain.harvest_written(id).expect("tracked");
    let completed = token.without_processors();
    domain.finish(&completed);
    let written = pending.ready(&completed).expect("completed");
    assert_eq!(written.len(), 1);
    assert_eq!((written[0].gfn, written[0].written), (gfn(BASE), map(1 << 5)));
}

struct Request(Vec<u8>);

impl RequestMemory for Request {
    fn read(&mut self, offset: usize, buffer: &mut [u8]) -> Result<(), Fault> {
        buffer.copy_from_slice(self.0.get(offset..offset + buffer.len()).ok_or(Fault)?);
        Ok(())
    }

    fn write(&mut self, _: usize, _: &[u8]) -> Result<(), Fault> {
        Err(Fault)
    }
}

/// A request for no page succeeds, as in the series, wherever it points.
#[test]
fn no_page_is_no_error_at_any_frame() {
    let (mut domain, _) = guest(1);
    let mut request = Request(vec![0xFF; 8]);
    request.0.extend_from_slice(&[0; 8]);
    assert_eq!(uapi::get_access(&domain, &mut request), Ok(0));
    let (pages, token) = uapi::set_access(&mut domain, &mut request).expect("no page, no error");
    assert_eq!((pages, token.is_required()), (0, false));
}

/// Maps count as pages too: one takes a table, far more than its twelve bytes of input.
#[test]
fn maps_count_among_the_pages_of_an_import() {
    let (mut domain, _) = guest(4096);
    for region in 0..8 {
        set(&mut domain, BASE + region * 512, &[1]);
    }
    let state = domain.export().expect("memory");
    let (mut fresh, _) = guest(4096);
    assert_eq!(fresh.import(&state, 7).err(), Some(ImportError::TooManyPages));
    let token = fresh.import(&state, 8).expect("as many as allowed");
    done(&mut fresh, token);
}

/// Tracked ranges with one number, or with a page in common, are refused.
#[test]
fn tracked_ranges_of_an_import_are_apart_and_have_their_own_numbers() {
    let (mut domain, _) = guest(4);
    for page in 0..2 {
        let range = bytes(PAGE + page * 4096 + 2048, 128);
        let (_, token) = domain.track(range).expect("a free range");
        done(&mut domain, token);
    }
    let mut state = domain.export().expect("memory");
    state.truncate(state.len() - 4);
    assert!(guest(4).0.import(&sealed(&state), 2).is_ok());
    // The records are at the end: number, first byte, bytes, pages with written sub-pages.
    let second = state.len() - 32;
    let mut twin = state.clone();
    twin.copy_within(second - 32..second - 24, second);
    let mut same_page = state;
    let first = PAGE + 2048 + 128;
    same_page[second + 8..second + 16].copy_from_slice(&first.to_le_bytes());
    for wrong in [twin, same_page] {
        let refused = guest(4).0.import(&sealed(&wrong), 2);
        assert!(matches!(refused, Err(ImportError::Record { .. })), "{refused:?}");
    }
}

/// Memory is given back when it is short: what splits no large page takes no frame.
#[test]
fn unmapping_whole_pages_needs_no_frame() {
    let (mut domain, failure) = mapped(1024, PageSize::Size2M);
    failure.after(Some(0));
    let token = domain.protect(Normal, gfns(BASE, 512), false).expect("no frame is needed");
    done(&mut domain, token);
    let token = domain.unmap(Normal, gfns(BASE, 512)).expect("no frame is needed");
    done(&mut domain, token);
    assert_eq!(
        domain.unmap(Normal, gfns(BASE + 512, 1)).err(),
        Some(DomainError::OutOfMemory),
        "a part of a large page needs a split"
    );
    let token = domain.remove_slot(Normal, SlotId(0)).expect("no frame is needed");
    done(&mut domain, token);
}

/// Both ends of a range may lie in one large page, which is split once.
#[test]
fn a_range_within_one_large_page() {
    let giant = 512 * 512;
    for (first, pages, frames) in
        [(0, 1, 2), (512, 512, 1), (100, 1000, 3), (giant - 1, 1, 2), (511, giant - 1022, 3)]
    {
        let (mut domain, failure) = bare();
        let whole = gfns(giant, giant);
        domain.add_slot(Normal, SlotId(0), whole, SlotFlags::default()).expect("a free place");
        let page = host_page(whole.first(), PageSize::Size1G);
        domain.map(Normal, whole.first(), page).expect("memory");
        failure.after(Some(frames * 2));
        let before = domain.frames().heap.frames_in_use();
        let token = domain.protect(Normal, gfns(giant + first, pages), false).expect("enough");
        done(&mut domain, token);
        assert_eq!(domain.frames().heap.frames_in_use() - before, frames, "{pages} at {first}");
    }
}
