//! Access maps: the scenario of the KVM series' own test, all vectors, failures that change nothing.

use crate::hypervisor::test_hooks::{self, Counter, Slot};
use crate::hypervisor::{errno, get_access, has_spp, set_access, set_maps};
use crate::memory::{Bytes, LARGE_PAGE, PAGE, SUB_PAGE, frames};
use crate::test;

/// Stores four bytes at the beginning of each sub-page; returns how many were denied.
fn write_each_sub_page(page: Bytes, value: u32) -> u64 {
    test_hooks::growth(Counter::Denied, || {
        for index in 0..32 {
            page.sub_page(index).write(0, value);
        }
    })
}

/// A slot of 16 pages at 256 MiB, page 0 closed: 32 writes, 32 denials. Opened: none.
fn kvm_selftest() {
    assert_eq!(Slot(1).add(0x10000, 16), 0);
    let slot = Bytes::beyond(0x1000_0000, 16 * PAGE);
    let page = slot.page(0);
    page.fill(0x11);
    set_access(page, 0);
    assert_eq!(get_access(page), 0);
    assert_eq!(write_each_sub_page(page, 0xffff_ffff), 32);
    for offset in 0..PAGE {
        assert_eq!(page.read::<u8>(offset), 0x11, "byte {offset:#x} after denied writes");
    }
    set_access(page, !0);
    assert_eq!(get_access(page), !0);
    assert_eq!(write_each_sub_page(page, 0xffff_ffff), 0);
    for index in 0..32 {
        assert_eq!(page.sub_page(index).read::<u32>(0), 0xffff_ffff);
        assert_eq!(page.sub_page(index).read::<u32>(4), 0x1111_1111);
    }
    // The neighbours were never closed.
    assert_eq!(write_each_sub_page(slot.page(1), 7), 0);
}
test!(kvm_selftest);

/// Each sub-page permitted alone and denied alone, with writes at its first and last byte.
fn partial_vectors() {
    let page = frames::page();
    let spp = has_spp();
    for index in 0..32_u64 {
        for map in [1 << index, !(1 << index)] {
            set_access(page, !0);
            page.fill(0);
            set_access(page, map);
            assert_eq!(get_access(page), map);
            let violations = Counter::Exits(48).get();
            let denied = test_hooks::growth(Counter::Denied, || {
                for other in 0..32 {
                    page.sub_page(other).write(0, 0xa5_u8);
                    page.sub_page(other).write(SUB_PAGE - 8, 0x5a5a_5a5a_5a5a_5a5a_u64);
                }
            });
            let violations = Counter::Exits(48).get() - violations;
            assert_eq!(denied, 2 * u64::from(map.count_zeros()), "map {map:#010x}");
            if spp {
                assert_eq!(violations, denied, "map {map:#010x}");
            }
            for other in 0..32 {
                let permitted = map >> other & 1 == 1;
                let (first, last) = if permitted { (0xa5, 0x5a) } else { (0, 0) };
                let sub_page = page.sub_page(other);
                assert_eq!(sub_page.read::<u8>(0), first, "map {map:#010x}, sub-page {other}");
                assert_eq!(sub_page.read::<u8>(127), last, "map {map:#010x}, sub-page {other}");
                assert_eq!(sub_page.read::<u8>(1), 0, "map {map:#010x}, sub-page {other}");
            }
        }
    }
}
test!(partial_vectors);

/// Reading a restricted page is free.
fn reads_are_free() {
    let page = frames::page();
    page.fill_pattern(1);
    let sum = page.digest();
    set_access(page, 0);
    let violations = test_hooks::growth(Counter::Exits(48), || assert_eq!(page.digest(), sum));
    assert_eq!(violations, 0);
}
test!(reads_are_free);

/// 512 pages in one call, each with a map of its own.
fn a_call_of_512_pages() {
    let region = frames::large_page();
    let map_of = |index: u64| (index as u32).wrapping_mul(0x9e37_79b9) | 1 << 31;
    let maps: [u32; 512] = core::array::from_fn(|index| map_of(index as u64));
    assert_eq!(set_maps(region.gfn(), &maps), 512);
    for index in 0..512 {
        let page = region.page(index);
        assert_eq!(get_access(page), map_of(index));
        let open = map_of(index) >> 5 & 1 == 1;
        page.sub_page(5).write(0, 0x77_u8);
        assert_eq!(page.sub_page(5).read::<u8>(0) == 0x77, open, "page {index}");
        page.sub_page(31).write(0, 0x78_u8);
        assert_eq!(page.sub_page(31).read::<u8>(0), 0x78, "page {index}");
    }
    assert_eq!(region.length(), LARGE_PAGE);
}
test!(a_call_of_512_pages);

/// With every number of table frames left, a call succeeds or changes nothing (contract C2).
fn out_of_frames_changes_nothing() {
    let region = frames::large_page();
    let page = region.page(77);
    page.write(0, 1_u64);
    let mut left = 0;
    loop {
        assert!(left < 16, "one page wants 16 frames");
        test_hooks::limit_frames(Some(left));
        let result = set_maps(page.gfn(), &[0]);
        test_hooks::limit_frames(None);
        if result == 1 {
            break;
        }
        assert_eq!(result, errno::ENOMEM, "with {left} frames left");
        assert_eq!(get_access(page), !0, "with {left} frames left");
        assert_eq!(test_hooks::leaf(page), LARGE_PAGE, "with {left} frames left");
        let denied = test_hooks::growth(Counter::Denied, || page.write(0, left + 2));
        assert_eq!((denied, page.read::<u64>(0)), (0, left + 2));
        left += 1;
    }
    assert!(left > 0, "a fresh region needs a table");
    let before = page.read::<u64>(0);
    page.write(0, 99_u64);
    assert_eq!(page.read::<u64>(0), before);
    assert_eq!(get_access(page), 0);
}
test!(out_of_frames_changes_nothing);

/// What the host takes away and gives back (copy-on-write) does not touch permissions (D9).
fn host_protection_is_apart() {
    let page = frames::page();
    set_access(page, !1);
    test_hooks::protect(page, false);
    let denied = test_hooks::growth(Counter::Denied, || {
        page.write(SUB_PAGE, 0x1234_u64);
        page.write(0, 0x1234_u64);
    });
    assert_eq!(denied, 1);
    assert_eq!(page.read::<u64>(SUB_PAGE), 0x1234);
    assert_eq!(page.read::<u64>(0), 0);
    assert_eq!(get_access(page), !1);
    test_hooks::protect(page, false);
    test_hooks::protect(page, true);
    page.write(0, 1_u64);
    assert_eq!(page.read::<u64>(0), 0);
}
test!(host_protection_is_apart);
