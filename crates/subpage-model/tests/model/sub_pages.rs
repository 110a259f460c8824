//! The sub-page decision, exhaustively, against a loop over bytes.

use subpage::access::AccessMap;
use subpage_model::{AccessKind, Deviations, Staleness, decision};

use crate::guest::{Guest, P, R, SPP, X, access, denial, seen, write};

/// The definition: each byte's own sub-page.
fn byte_by_byte(map: u32, offset: u64, length: u64) -> bool {
    (offset..offset + length).all(|byte| map >> (byte / 128) & 1 == 1)
}

/// Every offset in a page, every length, every vector that denies one sub-page: 8.4 million cases
/// less those that cross the page end, which are cut there.
#[test]
fn every_offset_length_and_single_denied_sub_page() {
    let mut denied = 0_u64;
    for offset in 0..4096 {
        for length in 1..=64 {
            let piece = write(P + offset, length).first();
            let length = u64::from(piece.length());
            for sub in 0..32 {
                let map = !(1_u32 << sub);
                let vector = AccessMap::from_bits(map);
                let permitted = decision::sub_pages_permit(vector, piece, Deviations::NONE);
                assert_eq!(permitted, byte_by_byte(map, offset, length), "{offset} {length} {sub}");
                denied += u64::from(!permitted);
            }
        }
    }
    // Each case touches its first byte's sub-page, and a second one if it reaches beyond its end:
    // per sub-page but the last, offsets 128 - k (k = 1..=63) do so with 64 - k lengths.
    let crossings: u64 = (1..64).map(|k| 64 - k).sum();
    assert_eq!(denied, 4096 * 64 + 31 * crossings);
}

/// The same through whole accesses, at the offsets around every boundary, fresh and remembered.
#[test]
fn whole_accesses_around_every_boundary() {
    for staleness in [Staleness::None, Staleness::UntilEvicted, Staleness::Longest] {
        let mut guest = Guest::with(staleness);
        guest.set_leaf(P, R | X | SPP);
        guest.set_leaf(P + 0x1000, R | X | SPP);
        guest.set_vector(P + 0x1000, u32::MAX);
        for sub in 0..32 {
            let map = !(1_u32 << sub);
            guest.set_vector(P, map);
            guest.invept(0);
            for boundary in (128..=4096).step_by(128) {
                for offset in boundary - 65..boundary.min(4095) {
                    for length in [1, 2, 4, 8, 16, 32, 63, 64] {
                        let in_page = length.min(4096 - offset);
                        let result = guest.access(0, &write(P + offset, length));
                        if byte_by_byte(map, offset, in_page) {
                            assert_eq!(seen(result), None, "{offset} {length} {sub}");
                        } else {
                            assert_eq!(result, Err(denial(P + offset)), "{offset} {length} {sub}");
                        }
                    }
                }
            }
        }
    }
}

/// The deviation asks for the first byte only, in each page.
#[test]
fn first_byte_only() {
    for offset in 0..4096 {
        for length in [1, 8, 64] {
            let piece = write(P + offset, length).first();
            for sub in 0..32 {
                let map = !(1_u32 << sub);
                let permitted = decision::sub_pages_permit(
                    AccessMap::from_bits(map),
                    piece,
                    Deviations { first_byte_only: true, ..Deviations::NONE },
                );
                assert_eq!(permitted, byte_by_byte(map, offset, 1));
            }
        }
    }
}

/// Only writes to a linear address that are not of the guest's page walk are eligible.
#[test]
fn what_is_not_eligible_is_an_ordinary_violation() {
    for staleness in [Staleness::None, Staleness::UntilEvicted, Staleness::Longest] {
        let mut guest = Guest::with(staleness);
        guest.restrict(P, u32::MAX);
        let write_access = write(P, 8);
        assert_eq!(seen(guest.access(0, &write_access)), None);
        // Reported without a linear address: bits 7 to 11 are clear.
        let exit = guest.access(0, &write_access.without_linear()).expect_err("not eligible");
        assert_eq!((exit.reason.0, exit.qualification, exit.gla), (48, 0x2a, None));
        let update = access(AccessKind::WalkUpdate, P, 8);
        assert_eq!(seen(guest.access(0, &update)), Some((48, 0xaa)));
        assert_eq!(seen(guest.access(0, &write_access)), None);
        let sppt = guest.roots.sppt.take();
        assert_eq!(seen(guest.access(0, &write_access)), Some((48, 0x5aa)));
        guest.roots.sppt = sppt;
        guest.set_leaf(P, R | SPP);
        guest.invept(0);
        assert_eq!(seen(guest.access(0, &access(AccessKind::Fetch, P, 8))), Some((48, 0x58c)));
        guest.roots.sppt = None;
        assert_eq!(seen(guest.access(0, &write_access)), Some((48, 0x58a)));
    }
}
