//! Memory slots: adding, removing, moving and re-flagging one touches no other, and rules and maps
//! belong to addresses (contract C5).

use crate::hypervisor::test_hooks::{self, Counter, Slot, leaf};
use crate::hypervisor::{Action, Rule, add_rule_at, errno, get_access, set_access, set_maps};
use crate::memory::{Bytes, PAGE, frames};
use crate::test;

/// Slots of 4 pages stand here.
const BASE: u64 = 0x1000_0000;

fn place(index: u64) -> Bytes {
    Bytes::beyond(BASE + index * 4 * PAGE, 4 * PAGE)
}

/// What a slot's pages permit and hold, of which nothing may change.
fn check_untouched(pages: Bytes) {
    assert_eq!(get_access(pages), !(1 << 4), "{:#x}", pages.address());
    assert_eq!(get_access(pages.page(1)), 0, "{:#x}", pages.address());
    assert_eq!(get_access(pages.page(2)), !0, "{:#x}", pages.address());
    let denied = test_hooks::growth(Counter::Denied, || {
        pages.sub_page(4).write(0, 1_u64);
        pages.page(1).write(0, 1_u64);
        pages.sub_page(5).write(0, 77_u64);
        pages.page(2).write(0, 78_u64);
    });
    assert_eq!(denied, 2, "{:#x}", pages.address());
    assert_eq!(pages.sub_page(4).read::<u64>(0), 0);
    assert_eq!(pages.page(1).read::<u64>(0), 0);
    assert_eq!(pages.sub_page(5).read::<u64>(0), 77);
    assert_eq!(pages.page(2).read::<u64>(0), 78);
}

fn restrict(pages: Bytes) {
    assert_eq!(set_maps(pages.gfn(), &[!(1 << 4), 0, !0, !0]), 4);
}

/// All four operations next to two restricted neighbours, one of them in the guest's own memory.
fn slots_touch_only_themselves() {
    let own = frames::pages(4);
    restrict(own);
    assert_eq!(Slot(1).add(place(0).gfn(), 4), 0);
    restrict(place(0));
    let check = || {
        check_untouched(own);
        check_untouched(place(0));
    };
    check();
    assert_eq!(Slot(2).add(place(1).gfn(), 4), 0);
    check();
    assert_eq!(get_access(place(1)), !0);
    place(1).write(8, 42_u64);
    restrict(place(1).page(0).part(0, PAGE));
    check();
    assert_eq!(Slot(2).set_flags(true, false), 0);
    check();
    // Of a read-only slot nothing may be written, and nothing is denied by a rule.
    let denied = test_hooks::growth(Counter::Denied, || place(1).page(2).write(0, 9_u64));
    assert_eq!((denied, place(1).page(2).read::<u64>(0)), (0, 0));
    assert_eq!(Slot(2).set_flags(false, false), 0);
    place(1).page(2).write(0, 9_u64);
    assert_eq!(place(1).page(2).read::<u64>(0), 9);
    check();
    assert_eq!(Slot(2).move_to(place(2).gfn()), 0);
    check();
    assert_eq!(leaf(place(1)), 0, "the old addresses are still mapped");
    assert_eq!(place(2).read::<u64>(8), 42, "the contents have moved along");
    assert_eq!(get_access(place(2)), !0, "maps belong to addresses and do not move");
    place(2).sub_page(4).write(0, 3_u64);
    assert_eq!(place(2).sub_page(4).read::<u64>(0), 3);
    assert_eq!(Slot(2).remove(), 0);
    check();
    assert_eq!(leaf(place(2)), 0);
    assert_eq!(Slot(2).remove(), errno::ENOENT);
    assert_eq!(Slot(3).add(place(0).gfn() + 3, 2), errno::EEXIST);
    check();
}
test!(slots_touch_only_themselves);

/// A rule for addresses without a slot holds from the slot's first moment on, and survives its going.
fn rules_wait_for_slots() {
    let page = place(0).page(1);
    let early = Rule::new("early", page.part(0x100, 8), Action::Deny);
    // A guest may guard only what it has; the host guards what it likes.
    assert_eq!(add_rule_at(early.request_page().address()), errno::EFAULT);
    early.add_as_host();
    assert_eq!(Slot(1).add(place(0).gfn(), 4), 0);
    for round in 0..3 {
        let denied = test_hooks::growth(Counter::Denied, || {
            page.write(0x100, 5_u64);
            page.write(0x110, 6_u64 + round);
        });
        assert_eq!(denied, 1, "round {round}");
        assert_eq!(page.read::<u64>(0x100), 0, "round {round}");
        assert_eq!(page.read::<u64>(0x110), 6 + round, "round {round}");
        assert_eq!(Slot(1).remove(), 0);
        assert_eq!(Slot(1).add(place(0).gfn(), 4), 0);
    }
}
test!(rules_wait_for_slots);

/// The dirty log names written pages, counts no denied write, and permissions hold meanwhile.
fn dirty_log_beside_restrictions() {
    let slot = Slot(1);
    assert_eq!(slot.add(place(0).gfn(), 4), 0);
    let pages = place(0);
    set_access(pages.page(0), !1);
    set_access(pages.page(3), 0);
    assert_eq!(slot.set_flags(false, true), 0);
    assert_eq!(slot.take_dirty(), 0);
    pages.page(0).write(0, 1_u64);
    pages.page(1).write(8, 1_u64);
    pages.page(3).write(8, 1_u64);
    assert_eq!(slot.take_dirty(), 1 << 1, "the denied writes made nothing dirty");
    pages.page(0).write(0x80, 1_u64);
    assert_eq!(slot.take_dirty(), 1 << 0);
    assert_eq!(slot.take_dirty(), 0);
    pages.page(1).write(8, 2_u64);
    assert_eq!(slot.take_dirty(), 1 << 1, "a page is logged again after the log was taken");
    assert_eq!(slot.set_flags(false, false), 0);
    assert_eq!(pages.page(0).read::<u64>(0), 0);
    let denied = test_hooks::growth(Counter::Denied, || pages.page(0).write(0, 1_u64));
    assert_eq!(denied, 1);
}
test!(dirty_log_beside_restrictions);
