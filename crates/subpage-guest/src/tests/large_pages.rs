//! Large EPT leaves: split where a page is restricted, merged when it no longer is.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::hypervisor::test_hooks::{self, Counter, leaf};
use crate::hypervisor::{set_access, set_maps};
use crate::memory::{LARGE_PAGE, PAGE, frames};
use crate::processor::start::{give, join, start, wait_for};
use crate::test;

/// One restricted page splits the large page around it; the last release merges it.
fn large_page_splits_and_merges() {
    let region = frames::large_page();
    region.fill_words();
    assert_eq!(leaf(region), LARGE_PAGE, "the region is not in one leaf to begin with");
    let frames_before = Counter::Frames.get();
    let page = region.page(300);
    set_access(page, !(1 << 9));
    for other in [0, 299, 300, 301, 511] {
        assert_eq!(leaf(region.page(other)), PAGE);
    }
    page.sub_page(9).write(0, 5_u64);
    assert_eq!(page.sub_page(9).read::<u64>(0), 0);
    region.page(301).write(0, 5_u64);
    region.check_words(Some((301, 5)));
    region.page(301).write(0, 301 * PAGE);
    assert_eq!(set_maps(region.gfn() + 17, &[0]), 1);
    set_access(page, !0);
    assert_eq!(leaf(region), PAGE, "a restricted page is left");
    assert_eq!(set_maps(region.gfn() + 17, &[!0]), 1);
    assert_eq!(leaf(region), LARGE_PAGE);
    assert_eq!(leaf(page), LARGE_PAGE);
    region.check_words(None);
    assert_eq!(Counter::Frames.get(), frames_before, "tables are left over");
    assert_eq!(Counter::Retired.get(), 0);
}
test!(large_page_splits_and_merges);

/// Address of the region that the other processor writes.
static REGION: AtomicU64 = AtomicU64::new(0);
/// Rounds that it has done; [`STOP`] when it is to end.
static ROUNDS: AtomicU64 = AtomicU64::new(0);
static STOP: AtomicU64 = AtomicU64::new(0);

/// The same while another processor writes all over the region: no write of its is lost.
fn large_page_splits_under_a_running_processor() {
    let region = frames::large_page();
    assert_eq!(leaf(region), LARGE_PAGE);
    REGION.store(region.address(), Ordering::Relaxed);
    start(1);
    give(1, |_| {
        let region = frames::again(REGION.load(Ordering::Relaxed), LARGE_PAGE);
        while STOP.load(Ordering::Relaxed) == 0 {
            for index in 0..512 {
                region.page(index).increment(8 * 17);
            }
            ROUNDS.fetch_add(1, Ordering::Release);
        }
    });
    let denied = test_hooks::growth(Counter::Denied, || {
        for index in 0..40 {
            let page = region.page(index * 12);
            let before = ROUNDS.load(Ordering::Acquire);
            // Sub-page 0 closed; the other processor writes sub-page 1.
            set_access(page, !1);
            assert_eq!(leaf(region), PAGE);
            wait_for("a round of writes", || ROUNDS.load(Ordering::Acquire) > before + 1);
            set_access(page, !0);
            assert_eq!(leaf(region), LARGE_PAGE);
        }
    });
    STOP.store(1, Ordering::Relaxed);
    join(1);
    assert_eq!(denied, 0);
    let rounds = ROUNDS.load(Ordering::Acquire);
    for index in 0..512 {
        assert_eq!(region.page(index).read::<u64>(8 * 17), rounds, "page {index}");
    }
}
test!(large_page_splits_under_a_running_processor; cpus = 2; limit = 40);

impl crate::memory::Bytes {
    /// Stores in the first word of each page where it is.
    fn fill_words(self) {
        for index in 0..self.length() / PAGE {
            self.page(index).write(0, index * PAGE);
        }
    }

    /// Checks that, but for one page's word.
    fn check_words(self, but: Option<(u64, u64)>) {
        for index in 0..self.length() / PAGE {
            let wanted = but.filter(|(page, _)| *page == index).map_or(index * PAGE, |(_, w)| w);
            assert_eq!(self.page(index).read::<u64>(0), wanted, "page {index}");
        }
    }
}
