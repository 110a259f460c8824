//! EPT leaves: split on restriction, merge on release, flags and rights kept.

use subpage::ept::{EptEntry, Place};
use subpage::frames::TableFrames;
use subpage::level::{Level, PageSize};
use subpage::slots::{SlotFlags, SlotId};

use crate::guest::{
    BASE, Normal, TestDomain, done, gfn, gfns, guest, host_page, mapped, picture, set,
};

const GIANT: u64 = 1 << 18;

fn leaf(domain: &TestDomain, page: u64) -> Place {
    domain.mapping(Normal, gfn(page)).expect("mapped")
}

fn set_flags(domain: &mut TestDomain, page: u64, accessed: bool, dirty: bool) {
    let place = leaf(domain, page);
    let entry = place.entry.with_accessed(accessed).with_dirty(dirty);
    domain.frames_mut().store(place.table, place.index, entry.into());
}

#[test]
fn a_restriction_splits_and_the_last_release_merges() {
    let (mut domain, _) = mapped(1024, PageSize::Size2M);
    let before = picture(&domain);
    set_flags(&mut domain, BASE, true, true);
    set(&mut domain, BASE + 7, &[0xFFFF]);
    assert_eq!(leaf(&domain, BASE).level, Level::L1);
    assert_eq!(leaf(&domain, BASE + 512).level, Level::L2, "the neighbour keeps its large page");
    let open = leaf(&domain, BASE + 8).entry;
    assert!(open.write() && !open.sub_page_write() && open.accessed() && open.dirty());
    let guarded = leaf(&domain, BASE + 7).entry;
    assert!(!guarded.write() && guarded.sub_page_write() && guarded.read() && guarded.execute());
    assert_eq!(leaf(&domain, BASE + 7).host_frame(gfn(BASE + 7)).as_u64(), (BASE + 7) << 12);
    set(&mut domain, BASE + 7, &[u32::MAX]);
    let merged = leaf(&domain, BASE + 7);
    assert_eq!(merged.level, Level::L2);
    assert!(merged.entry.write() && merged.entry.accessed() && merged.entry.dirty());
    set_flags(&mut domain, BASE, false, false);
    assert_eq!(picture(&domain), before, "nothing is left of the restriction");
}

#[test]
fn giant_pages_split_twice_and_merge_twice() {
    let (mut domain, _) = guest(2 * GIANT - BASE);
    let giant = gfn(GIANT);
    domain.map(Normal, giant, host_page(giant, PageSize::Size1G)).expect("memory");
    let frames = domain.frames().heap.frames_in_use();
    set(&mut domain, GIANT + 1000, &[1]);
    assert_eq!(leaf(&domain, GIANT + 1000).level, Level::L1);
    assert_eq!(leaf(&domain, GIANT).level, Level::L2);
    assert_eq!(
        leaf(&domain, GIANT + 1000).host_frame(gfn(GIANT + 1000)).as_u64(),
        (GIANT + 1000) << 12
    );
    set(&mut domain, GIANT + 1000, &[u32::MAX]);
    assert_eq!(leaf(&domain, GIANT + 1000).level, Level::L3);
    assert_eq!(domain.frames().heap.frames_in_use(), frames);
}

#[test]
fn mapping_a_large_page_over_a_rule_maps_around_it() {
    let (mut domain, _) = guest(2 * GIANT - BASE);
    set(&mut domain, GIANT + 513, &[3]);
    let giant = gfn(GIANT);
    domain.map(Normal, giant, host_page(giant, PageSize::Size1G)).expect("memory");
    assert_eq!(leaf(&domain, GIANT).level, Level::L2);
    assert_eq!(leaf(&domain, GIANT + 512).level, Level::L1);
    let guarded = leaf(&domain, GIANT + 513).entry;
    assert!(guarded.sub_page_write() && !guarded.write());
    assert!(domain.map(Normal, giant, host_page(giant, PageSize::Size4K)).is_err());
}

#[test]
fn unmapping_a_part_splits_and_empties_tables() {
    let (mut domain, _) = mapped(1024, PageSize::Size2M);
    let frames = domain.frames().heap.frames_in_use();
    let token = domain.unmap(Normal, gfns(BASE + 100, 600)).expect("memory");
    assert!(token.is_required());
    done(&mut domain, token);
    for (page, is) in [(99, true), (100, false), (699, false), (700, true)] {
        assert_eq!(domain.mapping(Normal, gfn(BASE + page)).is_some(), is, "page {page}");
    }
    let token = domain.unmap(Normal, gfns(BASE, 1024)).expect("memory");
    done(&mut domain, token);
    assert_eq!(domain.frames().heap.frames_in_use(), frames - 2, "only the two roots are left");
}

#[test]
fn a_page_the_host_does_not_let_be_written_never_has_bit_61() {
    let (mut domain, _) = mapped(512, PageSize::Size2M);
    set(&mut domain, BASE, &[1, 0, u32::MAX]);
    let token = domain.protect(Normal, gfns(BASE, 3), false).expect("memory");
    assert!(token.is_required(), "losing bit 61 is losing a right");
    done(&mut domain, token);
    for page in 0..3 {
        let entry = leaf(&domain, BASE + page).entry;
        assert!(!entry.write() && !entry.sub_page_write(), "page {page}");
    }
    let token = domain.protect(Normal, gfns(BASE, 3), true).expect("memory");
    assert!(!token.is_required());
    let rights = [0, 1, 2].map(|page| {
        let entry: EptEntry = leaf(&domain, BASE + page).entry;
        (entry.write(), entry.sub_page_write())
    });
    assert_eq!(rights, [(false, true), (false, false), (true, false)]);
}

#[test]
fn late_flags_of_a_merged_table_are_kept() {
    let (mut domain, _) = mapped(512, PageSize::Size2M);
    set(&mut domain, BASE, &[1]);
    let small = leaf(&domain, BASE + 9);
    let token = domain.set_access(gfn(BASE), &[subpage::access::AccessMap::ALL]).expect("memory");
    let late = small.entry.with_dirty(true);
    domain.frames_mut().store(small.table, small.index, late.into());
    assert!(!leaf(&domain, BASE + 9).entry.dirty());
    done(&mut domain, token);
    assert!(leaf(&domain, BASE + 9).entry.dirty(), "a processor set it before its invalidation");
}

#[test]
fn a_region_of_two_slots_is_never_one_large_page() {
    let (mut domain, _) = guest(256);
    domain
        .add_slot(Normal, SlotId(1), gfns(BASE + 256, 256), SlotFlags::default())
        .expect("a free place");
    domain.map(Normal, gfn(BASE), host_page(gfn(BASE), PageSize::Size2M)).expect("memory");
    assert_eq!(leaf(&domain, BASE).level, Level::L1);
    set(&mut domain, BASE, &[1]);
    set(&mut domain, BASE, &[u32::MAX]);
    assert_eq!(leaf(&domain, BASE).level, Level::L1);
}

#[test]
fn a_page_is_mapped_once() {
    let (mut domain, _) = mapped(512, PageSize::Size2M);
    let before = picture(&domain);
    assert!(domain.map(Normal, gfn(BASE + 3), host_page(gfn(BASE + 3), PageSize::Size4K)).is_err());
    assert_eq!(picture(&domain), before);
}
