//! Forms of EPT entries, page sizes, and accesses to pages that are apart.

use subpage::address::Gpa;
use subpage::level::Level;
use subpage_model::{Access, AccessKind, Deviations, Features, GuestMemory, Staleness, VmExit};

use crate::guest::{
    Guest, LARGE, MISCONFIGURATION, MISS, P, PASSES, R, SPP, W, WB, X, access, denial, seen, width,
    write,
};

/// The last gigabyte below 2^39.
const HIGHEST_1G: u64 = 0x7F_C000_0000;

const BROKEN: Option<(u16, u64)> = Some((49, 0));

/// One entry of each level, spoilt in every way that its table in "EPT Translation Mechanism"
/// reserves, and in the ways that it ignores.
#[test]
fn every_bit_of_an_entry_at_every_level() {
    // (level, a 2 MiB leaf there?, bits that may be set without harm)
    let ignored_high = 0x0FFF_u64 << 52;
    let leaf_flags = 1 << 8 | 1 << 9 | 1 << 10 | 1 << 11;
    let cases = [
        (Level::L4, false, leaf_flags | ignored_high),
        (Level::L3, false, leaf_flags | ignored_high),
        (Level::L2, false, leaf_flags | ignored_high),
        (Level::L2, true, leaf_flags | ignored_high | 1 << 6),
        (Level::L1, true, leaf_flags | ignored_high | 1 << 6 | 1 << 7),
    ];
    for (level, leaf, ignored) in cases {
        for bit in 3..64_u32 {
            let mut guest = Guest::plain();
            // The type is uncacheable, so that one bit alone makes types 1, 2 and 4.
            let good = match (level, leaf) {
                (Level::L2, true) => P | LARGE | R | W | X,
                (Level::L1, _) => P | R | W | X,
                _ => guest.ept(P, level),
            };
            guest.set_ept(P, level, good | 1 << bit);
            let address = (12..40).contains(&bit);
            let low_address = level == Level::L2 && leaf && (12..21).contains(&bit);
            let expected = if 1 << bit & ignored != 0 || good & 1 << bit != 0 {
                PASSES
            } else if leaf && (3..6).contains(&bit) {
                if bit == 4 { BROKEN } else { PASSES }
            } else if address && leaf && !low_address {
                // Another page, nothing wrong with it.
                PASSES
            } else if address && !leaf {
                // Another table: not a matter of form.
                continue;
            } else {
                // Among them bit 7: a 1 GiB or 2 MiB page at the address of a table, not aligned.
                BROKEN
            };
            assert_eq!(guest.write(P), expected, "{level:?} leaf {leaf} bit {bit}");
        }
    }
}

#[test]
fn memory_types() {
    for kind in 0..8_u64 {
        let mut guest = Guest::plain();
        guest.set_ept(P, Level::L1, P | kind << 3 | R | W | X);
        let expected = if matches!(kind, 2 | 3 | 7) { BROKEN } else { PASSES };
        assert_eq!(guest.write(P), expected, "type {kind}");
    }
}

#[test]
fn rights_that_depend_on_capabilities() {
    let no_execute_only = Features { execute_only: false, ..Features::new(width()) };
    let user_only = 1 << 10;
    for (features, leaf, expected) in [
        (Features::new(width()), X, PASSES),
        (no_execute_only, X, BROKEN),
        // Bit 10 alone is absence, or execute-only, or neither.
        (no_execute_only, user_only, Some((48, 0x584))),
        (Features { mode_based_execute: true, ..no_execute_only }, user_only, BROKEN),
    ] {
        let mut guest = Guest::new(features, Deviations::NONE, Staleness::None);
        guest.set_leaf(P, leaf);
        assert_eq!(guest.kind(AccessKind::Fetch, P), expected);
    }
    let small = Features { pages_1g: false, ..Features::new(width()) };
    for (features, expected) in [(Features::new(width()), PASSES), (small, BROKEN)] {
        let mut guest = Guest::new(features, Deviations::NONE, Staleness::None);
        guest.set_ept(0, Level::L3, LARGE | WB | R | W | X);
        assert_eq!(guest.write(P + 0x1234), expected);
    }
}

/// Presence, then form, entry by entry from the root; rights last.
#[test]
fn order_of_checks() {
    let mut guest = Guest::plain();
    let l3 = guest.ept(P, Level::L3);
    // W = 0 above does not hide a broken leaf.
    guest.set_ept(P, Level::L3, l3 & !W);
    guest.set_leaf(P, W);
    assert_eq!(guest.write(P), BROKEN);
    // A broken upper entry hides an absent leaf; an absent upper entry hides a broken leaf.
    guest.set_leaf(P, 0);
    guest.set_ept(P, Level::L3, l3 | 1 << 3);
    assert_eq!(guest.write(P), BROKEN);
    guest.set_leaf(P, W);
    guest.set_ept(P, Level::L3, 1 << 3);
    assert_eq!(guest.write(P), Some((48, 0x582)));
    // Exit 49 gives the guest-physical address and no linear one.
    guest.set_ept(P, Level::L3, l3);
    let exit = guest.try_write(&write(P + 5, 1), &[0]).expect_err("broken leaf");
    assert_eq!((exit.gpa, exit.gla), (Gpa::new(P + 5), None));
}

/// One linear access over two guest pages that are not neighbours.
#[test]
fn two_pages_apart() {
    const FIRST: u64 = P + 0x3ffd;
    const SECOND: u64 = P + 0x9000;
    let across = |kind| {
        Access::across(kind, Gpa::new(FIRST), Gpa::new(SECOND), 8)
            .expect("legal")
            .at_linear(0x7fff_fffd)
    };
    let mut guest = Guest::plain();
    let access = across(AccessKind::Write);
    guest.try_write(&access, &[1, 2, 3, 4, 5, 6, 7, 8]).expect("writable");
    assert_eq!(guest.peek(FIRST, 4), [1, 2, 3, 0]);
    assert_eq!(guest.peek(SECOND, 6), [4, 5, 6, 7, 8, 0]);
    let mut bytes = [0; 8];
    let (roots, frames) = (&guest.roots, &mut guest.frames);
    guest.cpus[0]
        .read(roots, frames, &guest.memory, &across(AccessKind::Read), &mut bytes)
        .expect("readable");
    assert_eq!(bytes, [1, 2, 3, 4, 5, 6, 7, 8]);
    for (page, gpa, gla) in [(SECOND, SECOND, 0x8000_0000), (FIRST, FIRST, 0x7fff_fffd)] {
        guest.restrict(page & !0xFFF, 0);
        let exit = guest.try_write(&access, &[9; 8]);
        assert_eq!(exit, Err(VmExit { gla: Some(gla), ..denial(gpa) }));
        assert_eq!(guest.peek(FIRST, 4), [1, 2, 3, 0]);
        assert_eq!(guest.peek(SECOND, 6), [4, 5, 6, 7, 8, 0]);
    }
}

/// The host page, not the guest page, takes the bytes; pages of every size add their offset.
#[test]
fn translations_add_the_offset_in_the_page() {
    let mut guest = Guest::plain();
    guest.set_ept(P, Level::L1, 0x1234_5000 | WB | R | W | X);
    let translation = guest.access(0, &write(P + 0xABC, 8)).expect("mapped");
    assert_eq!(translation.first.as_u64(), 0x1234_5ABC);
    assert_eq!(guest.write(P + 0xABC), PASSES);
    let mut byte = [0];
    guest.memory.read(translation.first, &mut byte);
    assert_eq!(byte, [0x11]);
    guest.set_ept(P, Level::L2, 0x4000_0000 | LARGE | WB | R | W | X);
    let translation = guest.access(0, &write(P + 0x12345, 1)).expect("mapped");
    assert_eq!(translation.first.as_u64(), 0x4001_2345);
    guest.set_ept(P, Level::L3, HIGHEST_1G | LARGE | WB | R | W | X);
    let translation = guest.access(0, &write(P + 0x12345, 1)).expect("mapped");
    assert_eq!(translation.first.as_u64(), HIGHEST_1G + P + 0x12345);
}

/// Every bit of every SPPT entry: an upper entry's reserved bits, a leaf's odd bits.
#[test]
fn every_bit_of_an_sppt_entry() {
    for level in [Level::L4, Level::L3, Level::L2] {
        for bit in (1..12).chain(40..64) {
            let mut guest = Guest::plain();
            guest.restrict(P, u32::MAX);
            let good = guest.sppt(P, level);
            guest.set_sppt(P, level, good | 1 << bit);
            assert_eq!(guest.write(P), MISCONFIGURATION, "{level:?} bit {bit}");
            // With the valid bit clear it is a miss, unless the processor looks closer.
            guest.set_sppt(P, level, good & !1 | 1 << bit);
            assert_eq!(guest.write(P), MISS);
            let features = Features { checks_invalid_sppt_entries: true, ..Features::new(width()) };
            let mut closer = Guest::new(features, Deviations::NONE, Staleness::None);
            closer.restrict(P, u32::MAX);
            let good = closer.sppt(P, level);
            closer.set_sppt(P, level, good & !1 | 1 << bit);
            assert_eq!(closer.write(P), MISCONFIGURATION);
            closer.set_sppt(P, level, good & !1);
            assert_eq!(closer.write(P), MISS);
        }
    }
    for bit in 0..64_u64 {
        let mut guest = Guest::plain();
        guest.set_leaf(P, R | X | SPP);
        guest.set_sppt(P, Level::L1, 1 << bit);
        for sub in 0..32 {
            let seen = seen(guest.access(0, &access(AccessKind::Write, P + sub * 128, 8)));
            let expected = match bit {
                bit if bit % 2 == 1 => MISCONFIGURATION,
                bit if bit == 2 * sub => PASSES,
                _ => Some((48, 0x5aa)),
            };
            assert_eq!(seen, expected, "bit {bit} sub-page {sub}");
        }
    }
}
