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
    for page in [3, 4, 511] {
        assert!(leaf(&domain, BASE + page).entry.write(), "page {page} is as it was");
    }
    let token = domain.protect(Normal, gfns(BASE, 3), true).expect("memory");
    assert!(!token.is_required());
    let rights = [0, 1, 2].map(|page| {
        let entry: EptEntry = leaf(&domain, BASE + page).entry;
        (entry.write(), entry.sub_page_write())
    });
    assert_eq!(rights, [(false, true), (false, false), (true, false)]);
}

/// A run of pages may lie in two slots, and each page has the flags of its own.
#[test]
fn a_run_over_two_slots_has_the_flags_of_both() {
    let (mut domain, _) = mapped(16, PageSize::Size4K);
    let read_only = SlotFlags { read_only: true, log_dirty: false };
    domain.add_slot(Normal, SlotId(1), gfns(BASE + 16, 48), read_only).expect("a free place");
    for page in BASE + 16..BASE + 64 {
        domain.map(Normal, gfn(page), host_page(gfn(page), PageSize::Size4K)).expect("memory");
    }
    for map in [0, !1, 0, u32::MAX] {
        set(&mut domain, BASE, &[map; 64]);
        for page in 0..64 {
            let entry = leaf(&domain, BASE + page).entry;
            let rights = (entry.write(), entry.sub_page_write());
            let expected = if page < 16 { (map == u32::MAX, map == !1) } else { (false, false) };
            assert_eq!(rights, expected, "page {page}, {map:#x}");
        }
    }
}

/// However many tables go at once.
#[test]
fn everything_is_unmapped_by_one_call() {
    let (mut domain, failure) = mapped(16 * 512, PageSize::Size4K);
    let before = domain.frames().heap.frames_in_use();
    failure.after(Some(0));
    let token = domain.unmap(Normal, gfns(BASE, 16 * 512)).expect("no frame is needed");
    assert!(token.is_required());
    done(&mut domain, token);
    // Sixteen tables of pages, and two above them.
    assert_eq!(before - domain.frames().heap.frames_in_use(), 16 + 2);
}

/// A large page counts as read if the entry that linked its small pages was.
#[test]
fn a_merged_page_is_accessed_if_its_link_was() {
    let (mut domain, _) = mapped(512, PageSize::Size2M);
    set_flags(&mut domain, BASE, true, false);
    set(&mut domain, BASE, &[1]);
    for page in BASE..BASE + 512 {
        set_flags(&mut domain, page, false, false);
    }
    set(&mut domain, BASE, &[u32::MAX]);
    let merged = leaf(&domain, BASE);
    assert_eq!(merged.level, Level::L2);
    assert!(merged.entry.accessed() && !merged.entry.dirty());
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

/// The highest page that the processor's width allows can be mapped, and none beyond.
#[test]
fn the_last_host_page_is_mapped_like_any_other() {
    let (mut domain, _) = guest(2);
    assert_eq!(domain.ept(Normal), None);
    let mut page = host_page(gfn(BASE), PageSize::Size4K);
    page.hpa = subpage::address::Hpa::new((1 << 52) - 4096);
    domain.map(Normal, gfn(BASE), page).expect("the width has 52 bits");
    let place = leaf(&domain, BASE);
    assert_eq!(place.host_frame(gfn(BASE)), page.hpa);
    let ept = domain.ept(Normal).expect("a page is mapped");
    assert_eq!(ept.find(domain.frames(), gfn(BASE)).entry, place.entry);
    assert_eq!(domain.ept(subpage::slots::AddressSpace::Smm), None);

    let width = subpage::address::PhysicalWidth::try_new(36).expect("a width");
    let mut narrow = subpage::domain::Domain::new(subpage::frames::HeapFrames::new(), width);
    narrow.add_slot(Normal, SlotId(0), gfns(0, 2), SlotFlags::default()).expect("a free place");
    for (number, fits) in [((1_u64 << 36) - 4096, true), (1 << 36, false)] {
        page.hpa = subpage::address::Hpa::new(number);
        assert_eq!(narrow.map(Normal, gfn(0), page).is_ok(), fits, "{number:#x}");
    }
}

/// Whatever maps follow each other: vectors and leaves say what the maps say, and an invalidation is
/// asked for if a right is gone, a leaf stops asking the SPPT or a table waits, and for nothing else.
/// In the end nothing is left of the maps.
#[test]
fn leaves_and_tokens_follow_from_the_maps() {
    const PAGES: u64 = 1024;
    let mut seed = 7_u64;
    let mut random = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    for glances in [true, false] {
        let (mut domain, _) = mapped(PAGES, PageSize::Size2M);
        domain.frames_mut().glances = glances;
        let frames = domain.frames().heap.frames_in_use();
        let mut maps = vec![u32::MAX; 1024];
        for _ in 0..300 {
            let first = random(PAGES - 1);
            let count = [1, 2, 31, 32, 33, 70, 600][usize::try_from(random(7)).expect("seven")];
            let count = count.min(PAGES - first);
            let kinds = random(4);
            let new: Vec<u32> = (0..count)
                .map(|_| match (kinds, random(4)) {
                    (0, _) | (1, 0) => u32::MAX,
                    (1, 1) => 0,
                    // In one half of the vector, and in both.
                    (2, bit) => !(1 << (bit * 10)),
                    (_, bit) => !(0x1_0001 << (bit * 5)),
                })
                .collect();
            let at = usize::try_from(first).expect("small");
            let old = &mut maps[at..at + new.len()];
            let lost = |(old, new): (&u32, &u32)| {
                old & !new != 0 || (*new == u32::MAX && *old != u32::MAX && *old != 0)
            };
            let lost = old.iter().zip(&new).any(lost);
            old.copy_from_slice(&new);
            let waiting = domain.retired_frames();
            let bits: Vec<_> = new.iter().map(|bits| crate::guest::map(*bits)).collect();
            let token = domain.set_access(gfn(BASE + first), &bits).expect("memory");
            assert_eq!(token.is_required(), lost || domain.retired_frames() > waiting);
            done(&mut domain, token);
            let sppt = domain.sppt().expect("enabled");
            for (page, map) in (BASE..).zip(&maps) {
                let place = leaf(&domain, page);
                let rights = (place.entry.write(), place.entry.sub_page_write());
                assert_eq!(rights, (*map == u32::MAX, *map != u32::MAX && *map != 0));
                let vector = sppt.vector(domain.frames(), gfn(page)).to_map().bits();
                assert_eq!(vector, *map, "page {page:#x}");
            }
        }
        set(&mut domain, BASE, &[u32::MAX; 1024]);
        assert_eq!(leaf(&domain, BASE + 700).level, Level::L2);
        // The root of the SPPT has been there before.
        assert_eq!(domain.frames().heap.frames_in_use(), frames);
    }
}

/// One call may release as many regions as it has pages in.
#[test]
fn many_regions_are_released_by_one_call() {
    const REGIONS: u64 = 64;
    let (mut domain, _) = mapped(REGIONS * 512, PageSize::Size2M);
    let frames = domain.frames().heap.frames_in_use();
    for region in 0..REGIONS {
        set(&mut domain, BASE + region * 512 + region, &[!1]);
    }
    let all = vec![u32::MAX; 64 * 512];
    set(&mut domain, BASE, &all);
    assert_eq!(domain.frames().heap.frames_in_use(), frames);
    assert_eq!(leaf(&domain, BASE + 63 * 512).level, Level::L2);
}

/// A change that succeeds with as many frames as it keeps has taken none in vain.
#[test]
fn a_change_takes_no_more_frames_than_it_keeps() {
    let make = |limit: usize| {
        let heap = subpage::frames::HeapFrames::with_limit(limit);
        let mut domain = subpage::domain::Domain::new(heap, subpage::address::PhysicalWidth::MAX);
        domain.enable().expect("a frame");
        let pages = gfns(GIANT, 2 * GIANT);
        domain.add_slot(Normal, SlotId(0), pages, SlotFlags::default()).expect("a free place");
        domain.map(Normal, gfn(GIANT), host_page(gfn(GIANT), PageSize::Size1G)).expect("frames");
        for region in [2 * GIANT, 2 * GIANT + 512] {
            let page = host_page(gfn(region), PageSize::Size2M);
            domain.map(Normal, gfn(region), page).expect("frames");
        }
        domain
    };
    let denied = [crate::guest::map(!1); 600];
    for first in [GIANT, GIANT + 511, 2 * GIANT, 2 * GIANT + 300] {
        let mut domain = make(1000);
        let before = domain.frames().frames_in_use();
        let token = domain.set_access(gfn(first), &denied).expect("frames");
        assert!(token.is_required());
        let kept = domain.frames().frames_in_use();
        assert!(
            make(kept).set_access(gfn(first), &denied).is_ok(),
            "{kept} frames, {before} before"
        );
        assert!(make(kept - 1).set_access(gfn(first), &denied).is_err());
    }
}

/// Flags of a table that was merged away go to the leaves that map the same pages when its frame is
/// freed, whatever their size is by then.
#[test]
fn late_flags_find_their_page_after_another_split() {
    let (mut domain, _) = guest(2 * GIANT - BASE);
    let giant = gfn(GIANT);
    domain.map(Normal, giant, host_page(giant, PageSize::Size1G)).expect("memory");
    set(&mut domain, GIANT, &[1]);
    let region = GIANT + 5 * 512;
    let large = leaf(&domain, region);
    assert_eq!(large.level, Level::L2);
    let merged = domain.set_access(giant, &[subpage::access::AccessMap::ALL]).expect("memory");
    let late = large.entry.with_accessed(true);
    domain.frames_mut().store(large.table, large.index, late.into());
    let again = domain.set_access(giant, &[crate::guest::map(1)]).expect("memory");
    done(&mut domain, merged);
    done(&mut domain, again);
    let flags = |page| (leaf(&domain, page).entry.accessed(), leaf(&domain, page).entry.dirty());
    assert_eq!(flags(region), (true, false), "a processor set it before its invalidation");
    assert_eq!(flags(region + 512), (false, false));
    assert_eq!(flags(GIANT), (false, false));
}
